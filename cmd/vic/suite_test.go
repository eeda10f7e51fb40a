package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"vic/api/certificate"
	"vic/bench/oracle"
	"vic/bench/testimage"
)

// commandTimeout is how long one docker command may take. It is no measure of anything: a command that
// hangs shall fail the test and not the whole run.
const commandTimeout = 3 * time.Minute

// A suite is one vic serve, the registry beside it, and the docker client.
type suite struct {
	dir, socket string
	registry    *testimage.Registry
	image       string // busybox, pushed
	tether      string
	driver      []string   // flags of vic serve
	log         syncBuffer // what vic serve writes
	stop        context.CancelFunc
	ended       chan error
}

// syncBuffer is a bytes.Buffer that is read while others write.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// newSuite starts a registry with an image, and vic serve with further flags on an empty store.
func newSuite(t *testing.T, flags ...string) *suite {
	t.Helper()
	return startSuite(t, func(*suite) []string { return []string{"--accel", "tcg"} }, flags...)
}

// startSuite is newSuite with flags for the driver, which are asked for when there is a folder.
func startSuite(t *testing.T, driver func(*suite) []string, flags ...string) *suite {
	t.Helper()
	oracle.Need(t, "docker", "docker-registry", "busybox", "qemu-system-x86_64")
	dir, err := os.MkdirTemp("", "vic-test-") // t.TempDir's path is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	release, err := testimage.Guard(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { release() })
	s := &suite{dir: dir, socket: filepath.Join(dir, "vic.sock")}
	if s.tether, err = builtTether(); err != nil {
		t.Fatal(err)
	}
	if s.registry, err = testimage.StartRegistry(t.Context(), filepath.Join(dir, "registry")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.registry.Stop() })
	s.image = s.push(t, "lib/bb:1", v1.Config{Cmd: []string{"sh"}, Env: []string{"PATH=/bin", "FROM=image"}, Labels: map[string]string{"kind": "test"}})
	if err := certificate.Make(filepath.Join(dir, "certs"), []string{"127.0.0.1"}, time.Now(), 1); err != nil {
		t.Fatal(err)
	}
	s.driver = driver(s)
	s.serve(t, flags...)
	t.Cleanup(func() {
		s.docker(t, "", "ps", "-aq").each(func(id string) { s.docker(t, "", "rm", "-f", id) })
		s.end(t)
		if t.Failed() {
			t.Logf("vic serve wrote:\n%s", s.log.String())
		}
	})
	return s
}

// push makes a busybox image and returns its reference.
func (s *suite) push(t *testing.T, name string, cfg v1.Config) string {
	t.Helper()
	layer, err := testimage.Busybox()
	if err != nil {
		t.Fatal(err)
	}
	img, err := testimage.Build(cfg, layer)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := s.registry.Push(t.Context(), name, img)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// serve starts vic serve and waits until it answers.
func (s *suite) serve(t *testing.T, flags ...string) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	s.stop, s.ended = stop, make(chan error, 1)
	args := []string{"serve", "--store", filepath.Join(s.dir, "store"), "--listen", "unix://" + s.socket, "--tether", s.tether,
		"--host", "tcp://127.0.0.1:0", "--tlsverify", "--tlscacert", filepath.Join(s.dir, "certs/server/ca.pem"),
		"--tlscert", filepath.Join(s.dir, "certs/server/cert.pem"), "--tlskey", filepath.Join(s.dir, "certs/server/key.pem"),
		"--metrics-addr", "127.0.0.1:0"}
	args = append(append(args, s.driver...), flags...)
	go func() { s.ended <- run(ctx, args, strings.NewReader(""), &s.log, &s.log) }()
	for over := time.After(commandTimeout); ; {
		c, err := net.Dial("unix", s.socket)
		if err == nil {
			c.Close()
			return
		}
		select {
		case err := <-s.ended:
			t.Fatalf("vic serve ended: %v\n%s", err, s.log.String())
		case <-over:
			t.Fatalf("vic serve does not listen: %v\n%s", err, s.log.String())
		case <-time.After(20 * time.Millisecond): // a socket appears without telling anybody
		}
	}
}

// end stops vic serve and waits for it.
func (s *suite) end(t *testing.T) {
	t.Helper()
	s.stop()
	select {
	case err := <-s.ended:
		if err != nil {
			t.Errorf("vic serve: %v", err)
		}
	case <-time.After(commandTimeout):
		t.Fatalf("vic serve does not end:\n%s", s.log.String())
	}
	if _, err := os.Lstat(s.socket); !os.IsNotExist(err) {
		t.Errorf("vic serve left its socket: %v", err)
	}
}

// A result is what a docker command came to.
type result struct {
	t           *testing.T
	args        []string
	out, errOut string
	code        int
}

// command is a docker command against the suite's host.
func (s *suite) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "docker", args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+s.socket, "DOCKER_CONFIG="+filepath.Join(s.dir, "docker"), "DOCKER_BUILDKIT=0")
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// docker runs a command with an input.
func (s *suite) docker(t *testing.T, in string, args ...string) result {
	t.Helper()
	return s.run(t, strings.NewReader(in), args...)
}

func (s *suite) run(t *testing.T, in io.Reader, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	cmd := s.command(ctx, args...)
	var out, errOut bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, &out, &errOut
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) || ctx.Err() != nil {
		t.Fatalf("docker %s: %v, %v\n%s%s", strings.Join(args, " "), err, ctx.Err(), out.String(), errOut.String())
	}
	return result{t, args, out.String(), errOut.String(), cmd.ProcessState.ExitCode()}
}

// await asks until the answer is what is wanted: what it is about has no event for docker's clients.
func await(t *testing.T, want string, ask func() string) {
	t.Helper()
	for over := time.Now().Add(commandTimeout); ; time.Sleep(50 * time.Millisecond) {
		got := ask()
		if got == want {
			return
		}
		if time.Now().After(over) {
			t.Fatalf("it is %q and does not become %q", got, want)
		}
	}
}

// want compares standard output and exit code.
func (r result) want(code int, out string) result {
	r.t.Helper()
	if r.code != code || r.out != out {
		r.t.Errorf("docker %s: exit code %d and output %q, want %d and %q; standard error:\n%s", strings.Join(r.args, " "), r.code, r.out, code, out, r.errOut)
	}
	return r
}

// wantError compares the exit code and looks for a text on standard error.
func (r result) wantError(code int, text string) result {
	r.t.Helper()
	if r.code != code || !strings.Contains(r.errOut, text) {
		r.t.Errorf("docker %s: exit code %d and error %q, want %d and %q", strings.Join(r.args, " "), r.code, r.errOut, code, text)
	}
	return r
}

// ok wants success and returns the trimmed output.
func (r result) ok() string {
	r.t.Helper()
	if r.code != 0 {
		r.t.Fatalf("docker %s: exit code %d\n%s%s", strings.Join(r.args, " "), r.code, r.out, r.errOut)
	}
	return strings.TrimSpace(r.out)
}

// has wants success and a text in the output.
func (r result) has(texts ...string) result {
	r.t.Helper()
	for _, text := range texts {
		if r.code != 0 || !strings.Contains(r.out, text) {
			r.t.Errorf("docker %s: exit code %d and output %q, which lacks %q\n%s", strings.Join(r.args, " "), r.code, r.out, text, r.errOut)
		}
	}
	return r
}

// each calls f with every word of the output.
func (r result) each(f func(string)) {
	for w := range strings.FieldsSeq(r.out) {
		f(w)
	}
}

// letGo makes the file that a container's process waits for to end. The exec may be killed by that end, and then says 137; what the container does
// tells whether there was the file.
func (s *suite) letGo(t *testing.T, name string) {
	t.Helper()
	if r := s.docker(t, "", "exec", name, "touch", "/go"); r.code != 0 && r.code != 137 {
		t.Errorf("docker exec %s touch /go: exit code %d, %s", name, r.code, r.errOut)
	}
}
