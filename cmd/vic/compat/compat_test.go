// Package compat has programs that nobody here wrote drive vic serve, and keeps what they find in
// docs/compatibility.md.
package compat

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"vic/bench/oracle"
	"vic/bench/testimage"
)

var update = flag.Bool("update", false, "write docs/compatibility.md")

// document is what the judges found, for people.
const document = "../../../docs/compatibility.md"

// vic is the program under test, and tether lies beside it.
var vic string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "vic-compat-")
	if err != nil {
		panic(err)
	}
	vic = filepath.Join(dir, "vic")
	for _, name := range []string{"vic", "tether"} {
		cmd := exec.Command("go", "build", "-trimpath", "-o", filepath.Join(dir, name), "vic/cmd/"+name)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "go build: %v\n%s", err, out)
			os.Exit(1)
		}
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// need needs programs, and root.
func need(t testing.TB, names ...string) {
	t.Helper()
	oracle.Need(t, names...)
	oracle.Root(t)
}

// An engine answers the Docker API on a socket.
type engine struct {
	dir, socket string
}

// env is what clients of the engine are told.
func (e engine) env() []string {
	return append(os.Environ(), "DOCKER_HOST=unix://"+e.socket, "DOCKER_CONFIG="+filepath.Join(e.dir, "docker"), "T="+e.dir,
		"DOCKER_CLI_HINTS=false", "DOCKER_BUILDKIT=0", "LC_ALL=C.UTF-8")
}

// command is one of a client of the engine.
func (e engine) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env, cmd.WaitDelay = e.env(), 10*time.Second
	return cmd
}

// start runs a daemon until the test ends, and waits until it answers.
func (e engine) start(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	var log lockedBuffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		if err := <-ended; err != nil {
			t.Errorf("%s: %v", cmd.Path, err)
		}
		if t.Failed() {
			t.Logf("%s wrote:\n%s", cmd.Path, log.String())
		}
	})
	for {
		c, err := net.Dial("unix", e.socket)
		if err == nil {
			c.Close()
			return
		}
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("%s ended: %v\n%s", cmd.Path, err, log.String())
		case <-time.After(20 * time.Millisecond): // a socket appears without telling anybody
		}
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// newEngine makes a folder short enough for sockets.
func newEngine(t *testing.T) engine {
	t.Helper()
	dir, err := os.MkdirTemp("", "vic-compat-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	release, err := testimage.Guard(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { release() })
	return engine{dir, filepath.Join(dir, "s")}
}

// newHost is a vic serve with the image bb in its store, which is also in the archive bb.tar.
func newHost(t *testing.T) engine {
	t.Helper()
	need(t, "docker", "busybox", "qemu-system-x86_64", "docker-registry", "skopeo")
	e := newEngine(t)
	registry, err := testimage.StartRegistry(t.Context(), filepath.Join(e.dir, "registry"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { registry.Stop() })
	layer, err := testimage.Busybox()
	if err != nil {
		t.Fatal(err)
	}
	img, err := testimage.Build(v1.Config{Cmd: []string{"sh"}, Env: []string{"PATH=/bin", "FROM=image"}, Labels: map[string]string{"kind": "test"}}, layer)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := registry.Push(t.Context(), "lib/bb:1", img)
	if err != nil {
		t.Fatal(err)
	}
	e.start(t, exec.Command(vic, "serve", "--store", filepath.Join(e.dir, "store"), "-H", "unix://"+e.socket, "--accel", "tcg"))
	for _, script := range []string{
		"skopeo copy -q --src-tls-verify=false docker://" + ref + " docker-archive:$T/bb.tar:bb:latest",
		"docker load -q -i $T/bb.tar",
	} {
		if out, err := e.command(t.Context(), "sh", "-c", script).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", script, err, out)
		}
	}
	t.Cleanup(func() {
		// VMs outlive the daemon.
		if out, err := e.command(context.Background(), "sh", "-c", "docker ps -aq | xargs -r docker rm -f").CombinedOutput(); err != nil {
			t.Errorf("remove containers: %v\n%s", err, out)
		}
	})
	return e
}

// A finding is what came of one check: nothing, or what is wrong.
type finding struct{ check, wrong string }

// A judge is somebody else's program, as a section of the document.
type judge struct {
	title, about string
	source       string // file of its checks
	run          func(*testing.T, engine) []finding
}

var judges = []judge{
	{"dockerd 20.10", "The same shell script of docker commands against dockerd and against `vic serve`: exit codes, standard output and standard error are compared, after IDs, times and the case of a message's first letter.", "testdata/differential.sh.txt", judgeDockerd},
	{"docker-compose 1.29", "Debian's docker-compose, with the project in `cmd/vic/compat/testdata/compose` and COMPOSE_API_VERSION=1.44: with a later one it misses a field of images, dockerd's too, when it makes a container anew.", "testdata/compose.sh.txt", judgeCompose},
	{"docker-py 5.0", "Debian's python3-docker: `cmd/vic/compat/testdata/dockerpy.py`.", "testdata/dockerpy.py", judgeDockerPy},
	{"Docker's description of its API", "Replies to every GET, held against `docs/v1.51.yaml` of moby/api by go-openapi: `cmd/vic/compat/testdata/swagger`.", "swagger_test.go", judgeSwagger},
	{"dockerode 5 and testcontainers 10", "The packages of npm, with `cmd/vic/compat/testdata/dockerode.js`.", "testdata/dockerode.js", judgeDockerode},
	{"testcontainers-go 0.45", "`cmd/vic/compat/testdata/testcontainers`.", "testdata/testcontainers/main.go", judgeTestcontainers},
	{"skopeo 1.9", "Debian's skopeo by `docker-daemon:`, which speaks version 1.22, both ways, and umoci.", "testdata/skopeo.sh.txt", judgeSkopeo},
}

func TestCompatibility(t *testing.T) {
	e := newHost(t)
	text, err := os.ReadFile(document)
	if err != nil && !(*update && errors.Is(err, os.ErrNotExist)) {
		t.Fatal(err)
	}
	sections := map[string]string{}
	for part := range strings.SplitSeq(string(text), "\n## ") {
		title, rest, _ := strings.Cut(part, "\n")
		sections[title] = rest
	}
	out := strings.Builder{}
	out.WriteString(preface)
	for _, j := range judges {
		body := sections[j.title] // of a judge that is not here
		t.Run(j.title, func(t *testing.T) {
			body = j.section(t, j.run(t, e))
		})
		fmt.Fprintf(&out, "\n## %s\n%s", j.title, strings.TrimRight(body, "\n")+"\n")
	}
	for _, l := range lists {
		fmt.Fprintf(&out, "\n## %s\n%s", l.title, l.section(t))
	}
	if *update {
		if err := os.WriteFile(document, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if out.String() != string(text) {
		t.Errorf("docs/compatibility.md is not what the judges find: go test ./cmd/vic/compat -update, and look at what changed:\n%s", firstDifference(string(text), out.String()))
	}
}

// firstDifference is where two texts part, a few lines of each from there on.
func firstDifference(was, is string) string {
	a, b := strings.Split(was, "\n"), strings.Split(is, "\n")
	i := 0
	for i < len(a) && i < len(b) && a[i] == b[i] {
		i++
	}
	some := func(lines []string) string { return strings.Join(lines[i:min(i+4, len(lines))], "\n") }
	return fmt.Sprintf("line %d was\n%s\nand is\n%s", i+1, some(a), some(b))
}

const preface = `# Compatibility

What programs that nobody here wrote find when they drive ` + "`vic serve`" + `. This file is written by the tests (` + "`go test ./cmd/vic/compat -update`" + `),
which fail if it is no longer true. What differs has its reason beside it.
`

// section renders findings, and fails the test for those without a reason and reasons without a finding.
func (j judge) section(t *testing.T, found []finding) string {
	t.Helper()
	var b strings.Builder
	reasons := known[j.title]
	used := map[string]bool{}
	good := 0
	var rows strings.Builder
	for _, f := range found {
		result := "ok"
		switch reason := reasons[f.check]; {
		case f.wrong == "":
			good++
		case reason == "":
			t.Errorf("%s: %s", f.check, f.wrong)
			result = "**differs**"
		default:
			used[f.check] = true
			result = "differs: " + reason
			t.Logf("%s: %s", f.check, f.wrong)
		}
		fmt.Fprintf(&rows, "| %s | %s |\n", strings.ReplaceAll(f.check, "|", "\\|"), result)
	}
	for check := range reasons {
		if !used[check] {
			t.Errorf("%s: there is a reason why this differs, and it does not", check)
		}
	}
	fmt.Fprintf(&b, "\n%s\n\n%d of %d checks.\n\n| check | result |\n|---|---|\n%s", j.about, good, len(found), rows.String())
	return b.String()
}

// scripts reads checks of the form "name: what sh runs" from a file.
func scripts(t *testing.T, file string) [][2]string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", file))
	if err != nil {
		t.Fatal(err)
	}
	var out [][2]string
	seen := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		name, script, ok := strings.Cut(line, ": ")
		if !ok || seen[name] {
			t.Fatalf("%s: %s: no name and script, or a name that was there", file, line)
		}
		seen[name] = true
		out = append(out, [2]string{name, script})
	}
	return out
}

// commandTimeout is no measure of anything: what hangs shall fail its check and not the run.
const commandTimeout = 2 * time.Minute

// outcome is what a script comes to, with what differs from one engine to the next taken out.
func (e engine) outcome(ctx context.Context, script string) string {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	var out, errOut bytes.Buffer
	cmd := e.command(ctx, "sh", "-c", script)
	cmd.Stdout, cmd.Stderr = &out, &errOut
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	err := cmd.Run()
	if ctx.Err() != nil {
		return "hangs"
	}
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		return err.Error()
	}
	return fmt.Sprintf("exit code %d, output %q, error %q", cmd.ProcessState.ExitCode(), e.normal(out.String()), e.normal(errOut.String()))
}

var normalized = []struct {
	re   *regexp.Regexp
	with string
}{
	{regexp.MustCompile(`\b[0-9a-f]{64}\b`), "ID"},
	{regexp.MustCompile(`\b[0-9a-f]{12}\b`), "ID"},
	{regexp.MustCompile(`\d+ (seconds?|minutes?|hours?)|Less than a second|About an? \w+`), "TIME"},
	{regexp.MustCompile(`Run 'docker \w+ --help' for more information`), ""},
}

func (e engine) normal(text string) string {
	text = strings.ReplaceAll(text, e.dir, "DIR")
	for _, n := range normalized {
		text = n.re.ReplaceAllString(text, n.with)
	}
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		// Versions from 25 on begin messages with a small letter.
		for _, prefix := range []string{"Error response from daemon: ", "docker: Error response from daemon: ", "Error: "} {
			if rest, ok := strings.CutPrefix(line, prefix); ok && rest != "" {
				lines[i] = prefix + strings.ToLower(rest[:1]) + rest[1:]
			}
		}
	}
	return strings.TrimSpace(strings.Join(slices.Compact(lines), "\n"))
}
