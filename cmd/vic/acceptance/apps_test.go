package acceptance

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"

	"vic/bench/testimage"
)

// load is how long each tool puts load on a container. A longer one finds more, and takes longer.
var load = flag.Duration("load", time.Second, "how long each load tool runs")

// commandTimeout is for a docker command or a tool. It is no measure of anything: what hangs shall fail.
const commandTimeout = 5 * time.Minute

// An app is a container with well-known software, and the host it is on.
type app struct {
	t    *testing.T
	h    *host
	name string
}

// appsHost starts a host that has the images of these apps.
func appsHost(t *testing.T, names ...string) *host {
	t.Helper()
	need(t, "docker", "qemu-system-x86_64", "debootstrap", "unshare")
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := testimage.KeepApps(t.Context(), filepath.Join(cache, "vic"), names...)
	if err != nil {
		t.Fatal(err)
	}
	h := serve(t, filepath.Join(t.TempDir(), "store"))
	var list strings.Builder
	for _, name := range names {
		fmt.Fprintf(&list, "oci:%s:%s %s\n", dir, name, name)
	}
	seed := exec.CommandContext(t.Context(), vic, "seed", "--store", h.store, "-f", "-")
	seed.Stdin = strings.NewReader(list.String())
	if out, err := seed.CombinedOutput(); err != nil {
		t.Fatalf("vic seed: %v\n%s", err, out)
	}
	return h
}

// run starts an app in a container of its name, from the image of that name.
func (a *app) run(options []string, command ...string) {
	a.t.Helper()
	args := append([]string{"run", "-d", "--name", a.name}, options...)
	a.docker(append(append(args, a.name), command...)...)
}

// docker runs the client and returns what it printed, trimmed.
func (a *app) docker(args ...string) string {
	a.t.Helper()
	out, err := a.try(args...)
	if err != nil {
		a.t.Fatalf("docker %s: %v\nvic serve:\n%s", strings.Join(args, " "), err, a.h.log.String())
	}
	return out
}

func (a *app) try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(a.t.Context(), commandTimeout)
	defer cancel()
	var out, said bytes.Buffer
	cmd := a.command(ctx, "docker", args...)
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%w\n%s%s", err, said.Bytes(), out.Bytes())
	}
	return strings.TrimSpace(out.String()), nil
}

// command is a program with the environment of the host's clients.
func (a *app) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+a.h.socket, "PGPASSWORD=secret")
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// tool runs a program on this machine and returns all that it prints.
func (a *app) tool(name string, args ...string) string {
	a.t.Helper()
	ctx, cancel := context.WithTimeout(a.t.Context(), commandTimeout)
	defer cancel()
	out, err := a.command(ctx, name, args...).CombinedOutput()
	if err != nil {
		a.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// port is where the container's port is published.
func (a *app) port(port string) string {
	a.t.Helper()
	first, _, _ := strings.Cut(a.docker("port", a.name, port), "\n")
	_, number, err := net.SplitHostPort(first)
	if err != nil {
		a.t.Fatalf("docker port %s %s: %q", a.name, port, first)
	}
	return number
}

// said waits until the log has n lines that match.
func (a *app) said(n int, pattern string) {
	a.t.Helper()
	re := regexp.MustCompile(pattern)
	ctx, cancel := context.WithTimeout(a.t.Context(), commandTimeout)
	defer cancel()
	logs := a.command(ctx, "docker", "logs", "-f", a.name)
	r, w := io.Pipe()
	logs.Stdout, logs.Stderr = w, w
	if err := logs.Start(); err != nil {
		a.t.Fatal(err)
	}
	go func() {
		_ = logs.Wait() // it is killed
		w.Close()
	}()
	var all strings.Builder
	for lines := bufio.NewScanner(r); lines.Scan(); {
		fmt.Fprintln(&all, lines.Text())
		if re.MatchString(lines.Text()) {
			if n--; n == 0 {
				cancel()
				_, _ = io.Copy(io.Discard, r)
				return
			}
		}
	}
	a.t.Fatalf("%s ended without having said %q:\n%s", a.name, pattern, all.String())
}

// logs are all lines that it wrote.
func (a *app) logs() []string {
	a.t.Helper()
	return strings.Split(a.tool("docker", "logs", a.name), "\n")
}

// stops ends the container as docker stop does and compares its exit code.
func (a *app) stops(code string) {
	a.t.Helper()
	a.docker("stop", "-t", "60", a.name) // no measure of speed; after the grace the exit code is 137
	if got := a.docker("inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", a.name); got != "exited "+code {
		a.t.Errorf("%s stopped: %s, want exited %s; it said\n%s", a.name, got, code, strings.Join(a.logs(), "\n"))
	}
}

// typing runs a program in the container on a terminal. Each time it has printed a prompt, a line is typed; its answer to
// the first is looked for, and the last is to end it.
func (a *app) typing(prompt, first, answer, last string, program ...string) {
	a.t.Helper()
	ctx, cancel := context.WithTimeout(a.t.Context(), commandTimeout)
	defer cancel()
	cmd := a.command(ctx, "docker", append([]string{"exec", "-it", a.name}, program...)...)
	f, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 24, Cols: 80})
	if err != nil {
		a.t.Fatal(err)
	}
	defer f.Close()
	var seen bytes.Buffer
	looked := 0
	until := func(text string) bool {
		p := make([]byte, 1<<10)
		for {
			if i := bytes.Index(seen.Bytes()[looked:], []byte(text)); i >= 0 {
				looked += i + len(text)
				return true
			}
			n, err := f.Read(p)
			seen.Write(p[:n])
			if err != nil { // the other side is closed
				return false
			}
		}
	}
	found := until(prompt)
	for _, line := range []string{first, last} {
		_, err = io.WriteString(f, line+"\r")
		if line == first {
			found = found && until(answer) && until(prompt)
		}
	}
	_, _ = io.Copy(&seen, f)
	if waitErr := cmd.Wait(); !found || err != nil || waitErr != nil {
		a.t.Errorf("%q typed into %s, want %q: %v, %v; it printed %q", first, strings.Join(program, " "), answer, err, waitErr, seen.String())
	}
}

// get expects an answer of the app's.
func (a *app) get(url, want string) {
	a.t.Helper()
	a.request(http.MethodGet, url, "", http.StatusOK, want)
}

func (a *app) request(method, url, body string, code int, want string) {
	a.t.Helper()
	req, err := http.NewRequestWithContext(a.t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		a.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		a.t.Fatal(err)
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != code || string(got) != want {
		a.t.Errorf("%s %s: %d with %d bytes %.60q, %v, want %d with %d bytes %.60q", method, url, resp.StatusCode, len(got), got, err, code, len(want), want)
	}
}

// wrk loads a page and wants no error.
func (a *app) wrk(url string, args ...string) {
	a.t.Helper()
	out := a.tool("wrk", append([]string{"-t", "1", "-c", "8", "-d", load.String(), "--timeout", "60s", url}, args...)...)
	if !strings.Contains(out, " requests in ") || strings.Contains(out, "Socket errors") || strings.Contains(out, "Non-2xx") {
		a.t.Errorf("wrk: %s", out)
	}
	if testing.Verbose() {
		a.t.Log(out)
	}
}

func TestApps(t *testing.T) {
	need(t, "wrk", "redis-benchmark", "redis-cli", "psql")
	h := appsHost(t, "nginx", "redis", "postgres", "node", "python")
	t.Run("each", func(t *testing.T) {
		for name, test := range map[string]func(*app){
			"nginx": testNginx, "redis": testRedis, "postgres": testPostgres, "node": testNode, "python": testPython,
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				test(&app{t, h, name})
			})
		}
	})
	if t.Failed() {
		return
	}
	t.Run("names", func(t *testing.T) { testNames(t, h) })
	t.Run("host killed under load", func(t *testing.T) { testHostKilled(t, h) })
	t.Run("stop", func(t *testing.T) {
		for name, code := range map[string]string{"nginx": "0", "redis": "0", "postgres": "0", "node": "0", "python": "0"} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				(&app{t, h, name}).stops(code)
			})
		}
	})
	h.docker("rm", "-f", "nginx", "redis", "postgres", "node", "python")
}

func testNginx(a *app) {
	a.run([]string{"-p", "80"})
	a.said(1, "start worker process ")
	url := "http://127.0.0.1:" + a.port("80")
	a.get(url+"/1k", strings.Repeat("k", 1<<10))
	a.get(url+"/1m", strings.Repeat("m", 1<<20))
	a.wrk(url + "/quiet/1k")
	a.wrk(url + "/quiet/1m")

	const requests = 300
	for i := range requests {
		a.get(fmt.Sprintf("%s/1k?number=%d", url, i), strings.Repeat("k", 1<<10))
	}
	a.said(1, fmt.Sprintf(`GET /1k\?number=%d `, requests-1)) // it is logged after it was answered
	next := 0
	for _, line := range a.logs() {
		if strings.Contains(line, fmt.Sprintf("GET /1k?number=%d ", next)) {
			next++
		}
	}
	if next != requests {
		a.t.Errorf("the log has %d requests in order, want %d", next, requests)
	}
	a.docker("restart", a.name)
	a.said(2, "start worker process ")
	a.get("http://127.0.0.1:"+a.port("80")+"/1k", strings.Repeat("k", 1<<10))
}

func testNode(a *app) {
	a.run([]string{"-p", "3000"})
	a.said(1, "^listening on 3000$")
	testNotes(a, "3000", func() { a.said(2, "^listening on 3000$") })
	if last := a.logs()[len(a.logs())-1]; last != "listening on 3000" {
		a.t.Errorf("the last line is %q", last)
	}
}

func testPython(a *app) {
	a.run([]string{"-p", "8000"})
	a.said(1, "Listening at: ")
	testNotes(a, "8000", func() { a.said(2, "Listening at: ") })
}

// testNotes holds an app's hashes against this machine's, loads it, and sees its notes outlive a stop.
func testNotes(a *app, port string, again func()) {
	url := "http://127.0.0.1:" + a.port(port)
	for _, size := range []int{0, 1, 1 << 10, 1 << 20} {
		text := strings.Repeat("x", size)
		a.request(http.MethodPost, url+"/sha256", text, http.StatusOK, fmt.Sprintf("%x\n", sha256.Sum256([]byte(text))))
	}
	a.wrk(url + "/")
	var notes strings.Builder
	for i := range 5 {
		note := fmt.Sprintf("note %d\n", i)
		a.request(http.MethodPost, url+"/notes", note, http.StatusCreated, "kept\n")
		notes.WriteString(note)
	}
	a.get(url+"/notes", notes.String())
	a.stops("0")
	a.docker("start", a.name)
	again()
	a.get("http://127.0.0.1:"+a.port(port)+"/notes", notes.String())
}

// testNames has containers reach each other by name.
func testNames(t *testing.T, h *host) {
	a := &app{t, h, "python"}
	get := func(host string, port int, path string) string {
		a.t.Helper()
		return a.docker("exec", "python", "python3", "-c", fmt.Sprintf("from http.client import *; c = HTTPConnection(%q, %d); c.request('GET', %q); print(c.getresponse().read().decode())", host, port, path))
	}
	id := a.docker("inspect", "--format", "{{.Config.Hostname}}", "node")
	if got := get("node", 3000, "/"); !strings.HasPrefix(got, "hello from "+id+", node v") {
		t.Errorf("python gets %q from node", got)
	}
	if got := get("nginx", 80, "/1k"); got != strings.Repeat("k", 1<<10) {
		t.Errorf("python gets %q from nginx", got)
	}
	if got := a.docker("exec", "-e", "PGPASSWORD=secret", "postgres", "psql", "-h", "postgres", "-U", "postgres", "-Atc", "SELECT 6*7"); got != "42" {
		t.Errorf("postgres says %q by its own name", got)
	}
}
