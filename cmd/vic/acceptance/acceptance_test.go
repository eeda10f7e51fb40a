// Package acceptance uses vic as its users do, on real images, and holds what it leaves
// on disk against other people's programs.
package acceptance

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"vic/bench/oracle"
	"vic/bench/testimage"
)

// vic is the program under test, and tether lies beside it.
var vic string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "vic-acceptance-")
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

func command(t testing.TB, name string, args ...string) string {
	t.Helper()
	var out, said bytes.Buffer
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, said.Bytes(), out.Bytes())
	}
	return out.String()
}

// A host is a "vic serve" and the environment of its docker clients.
type host struct {
	t      testing.TB
	socket string
	store  string
	cmd    *exec.Cmd
	done   chan error
	log    lockedBuffer
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// serve starts a host that ends with the test, and its containers with it.
func serve(t testing.TB, store string) *host {
	t.Helper()
	release, err := testimage.Guard(store)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { release() })
	h := &host{t: t, store: store, socket: filepath.Join(t.TempDir(), "s")}
	h.start()
	t.Cleanup(func() {
		if h.cmd != nil {
			h.removeAll()
			h.stop()
		}
	})
	return h
}

func (h *host) start() {
	h.t.Helper()
	h.cmd = exec.Command(vic, "serve", "--store", h.store, "--listen", "unix://"+h.socket)
	h.cmd.Stdout, h.cmd.Stderr = &h.log, &h.log
	h.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := h.cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	h.done = make(chan error, 1)
	go func(cmd *exec.Cmd, done chan error) { done <- cmd.Wait() }(h.cmd, h.done)
	ctx, cancel := context.WithTimeout(h.t.Context(), 2*time.Minute)
	defer cancel()
	for {
		conn, err := net.Dial("unix", h.socket)
		if err == nil {
			conn.Close()
			return
		}
		select {
		case err := <-h.done:
			h.t.Fatalf("vic serve ended: %v\n%s", err, h.log.String())
		case <-ctx.Done():
			h.t.Fatalf("vic serve does not listen: %v\n%s", err, h.log.String())
		case <-time.After(10 * time.Millisecond): // sockets cannot be waited for
		}
	}
}

// removeAll removes the containers that a test that failed has left.
func (h *host) removeAll() {
	docker := func(args ...string) string {
		cmd := exec.Command("docker", args...) // the test's context has ended
		cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+h.socket)
		out, err := cmd.CombinedOutput()
		if err != nil {
			h.t.Errorf("docker %s: %v\n%s", args[0], err, out)
		}
		return string(out)
	}
	if ids := strings.Fields(docker("ps", "-aq")); len(ids) > 0 {
		docker(append([]string{"rm", "-f", "-v"}, ids...)...)
	}
}

// stop ends the host as an init system would.
func (h *host) stop() {
	h.t.Helper()
	if err := h.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		h.t.Error(err)
	}
	if err := <-h.done; err != nil {
		h.t.Errorf("vic serve: %v\n%s", err, h.log.String())
	}
	h.cmd = nil
}

// kill ends the host as a power cut would.
func (h *host) kill() {
	h.cmd.Process.Kill()
	<-h.done
	h.cmd = nil
}

// docker runs the client and returns what it printed on standard output.
func (h *host) docker(args ...string) string {
	h.t.Helper()
	out, err := h.try(args...)
	if err != nil {
		h.t.Fatalf("docker %s: %v\nvic serve:\n%s", strings.Join(args, " "), err, h.log.String())
	}
	return out
}

func (h *host) try(args ...string) (string, error) {
	var out, said bytes.Buffer
	cmd := h.client(args...)
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%w\n%s", err, said.Bytes())
	}
	return out.String(), nil
}

func (h *host) client(args ...string) *exec.Cmd {
	cmd := exec.CommandContext(h.t.Context(), "docker", args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+h.socket)
	return cmd
}
