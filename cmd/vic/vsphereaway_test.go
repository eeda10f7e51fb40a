package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vmware/govmomi/object"
)

// away is what clients are told of a vCenter that does not answer.
const away = "vSphere is not available"

// refused does what needs vCenter, which is known to be away, with the containers stays, which runs, and other, which does not: each is
// answered 503 before anything else. The archive is an image's.
func (s *suite) refused(t *testing.T, image, archive string) {
	t.Helper()
	folder := filepath.Dir(archive) // has a Dockerfile, and the archive is sent with it
	for _, args := range [][]string{
		{"create", "bb", "true"}, {"start", "other"}, {"stop", "stays"}, {"restart", "stays"}, {"kill", "stays"}, {"rm", "other"}, {"rm", "-f", "stays"}, {"volume", "create", "away"},
		{"pull", image}, {"load", "-i", archive}, {"import", archive}, {"build", folder}, {"commit", "stays"},
	} {
		s.docker(t, "", args...).wantError(1, away)
	}
	text, err := os.ReadFile(archive)
	if err != nil {
		t.Fatal(err)
	}
	const tar = "application/x-tar"
	for _, r := range []struct{ path, contentType, body string }{
		{"/containers/create", "application/json", `{"Image":"bb"}`}, {"/containers/other/start", "", ""}, {"/containers/stays/stop", "", ""}, {"/volumes/create", "application/json", "{}"},
		{"/images/create?fromImage=" + url.QueryEscape(image), "", ""}, {"/images/create?fromSrc=-", tar, string(text)}, {"/images/load", tar, string(text)}, {"/build", tar, string(text)}, {"/commit?container=stays", "", ""},
	} {
		res, reply := s.request(t, http.MethodPost, "/v1.44"+r.path, r.contentType, r.body)
		if message, _ := reply["message"].(string); res.StatusCode != http.StatusServiceUnavailable || !strings.Contains(message, away) {
			t.Errorf("%s: %s, %v", r.path, res.Status, reply)
		}
	}
}

// imageArchive saves an image of which more is to be sent than what a server reads of a request that it refuses, into a folder with a Dockerfile.
func (s *suite) imageArchive(t *testing.T) string {
	t.Helper()
	image, dir := s.wide(t, "lib/archive:1", 4<<20), t.TempDir()
	file := filepath.Join(dir, "image.tar")
	s.docker(t, "", "pull", image).ok()
	s.docker(t, "", "save", "-o", file, image).ok()
	s.docker(t, "", "rmi", image).ok()
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM scratch\nCOPY . /\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

// stalled is a registry whose images do not come until it is opened. The channel is closed with the first request for one.
func stalled(t *testing.T, registry string) (addr string, came <-chan struct{}, open func()) {
	first, opened := make(chan struct{}), make(chan struct{})
	come, open := sync.OnceFunc(func() { close(first) }), sync.OnceFunc(func() { close(opened) })
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: registry})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/manifests/") {
			come()
			<-opened
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	t.Cleanup(open) // first: it waits for requests
	return strings.TrimPrefix(srv.URL, "http://"), first, open
}

// begin begins a docker command with an input. End waits for its end.
func (s *suite) begin(t *testing.T, in string, args ...string) (end func() result) {
	done := make(chan result, 1)
	var out, errOut bytes.Buffer
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), commandTimeout)
	t.Cleanup(cancel)
	cmd := s.command(ctx, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(in), &out, &errOut
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = cmd.Wait() // its exit code tells
		done <- result{t, args, out.String(), errOut.String(), cmd.ProcessState.ExitCode()}
	}()
	return func() result { return <-done }
}

// A deaf vCenter takes connections. It breaks them at once, or keeps them and never says a word.
type deaf struct {
	net.Listener
	silent atomic.Bool
	tries  chan struct{} // has one for each connection

	mu   sync.Mutex
	kept []net.Conn
	done chan struct{}
}

// newDeaf listens where vCenter does, which is away, until it is closed.
func newDeaf(t *testing.T, c *cluster) *deaf {
	t.Helper()
	l, err := net.Listen("tcp", c.URL().Host)
	if err != nil {
		t.Fatal(err)
	}
	d := &deaf{Listener: l, tries: make(chan struct{}, 1000), done: make(chan struct{})}
	go d.run()
	return d
}

func (d *deaf) run() {
	defer close(d.done)
	for {
		conn, err := d.Accept()
		if err != nil {
			return
		}
		if d.silent.Load() {
			d.mu.Lock()
			d.kept = append(d.kept, conn)
			d.mu.Unlock()
		} else {
			conn.Close()
		}
		d.tries <- struct{}{}
	}
}

// leave ends it.
func (d *deaf) leave() {
	d.Close()
	<-d.done
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, conn := range d.kept {
		conn.Close()
	}
	d.kept = nil
}

// tried waits until so many connections have come, from now on.
func (d *deaf) tried(t *testing.T, n int) {
	t.Helper()
	for over := time.After(commandTimeout); n > 0; n-- {
		select {
		case <-d.tries:
		case <-over:
			t.Fatal("nobody looks for vCenter any more")
		}
	}
}

// testLongAway has vCenter be away until it was looked for often, of which it knows nothing at first, and then is silent.
func testLongAway(t *testing.T, s *suite, c *cluster) {
	files := s.onDatastore(t)
	ctx := t.Context()
	running := func(name, script string) *object.VirtualMachine {
		t.Helper()
		s.docker(t, "", "run", "-d", "-i", "--name", name, "bb", "sh", "-c", script).ok()
		vm, err := c.machine(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		return vm
	}
	idle := "echo up; trap 'exit 7' TERM; while true; do sleep 1; done"
	running("stays", "echo up; exec cat")
	running("ends", idle)
	deleted := running("deleted", idle)
	s.docker(t, "", "create", "--name", "other", "bb", "true").ok()
	image := s.wide(t, "lib/away:1", 1<<20)
	archive := s.imageArchive(t)
	slow, came, open := stalled(t, s.registry.Addr)
	building := s.begin(t, "FROM "+strings.Replace(image, s.registry.Addr, slow, 1)+"\nLABEL a=b\n", "build", "-")
	<-came
	since := fmt.Sprint(time.Now().Unix())
	before := s.held(t)
	listed, logged := s.docker(t, "", "ps", "-a", "--format", "{{.Names}} {{.State}}").ok(), len(s.log.String())

	if err := c.Away(); err != nil {
		t.Fatal(err)
	}
	d := newDeaf(t, c)
	defer d.leave()
	d.tried(t, 2)
	s.refused(t, image, archive)
	open() // the registry goes on
	if r := building(); r.code == 0 || !strings.Contains(r.out, "Step 1/2 : FROM") || !strings.Contains(r.errOut, away) {
		t.Errorf("a build under way: exit code %d\n%s%s", r.code, r.out, r.errOut)
	}
	if now := s.docker(t, "", "ps", "-a", "--format", "{{.Names}} {{.State}}").ok(); now != listed {
		t.Errorf("containers are\n%s\nand were\n%s", now, listed)
	}
	s.docker(t, "", "logs", "stays").want(0, "up\n")
	finish := s.attach(t, "stays", "hello\n")
	s.docker(t, "", "exec", "stays", "echo", "alive").want(0, "alive\n")

	d.silent.Store(true)
	s.docker(t, "", "exec", "ends", "kill", "-TERM", "1").ok()
	for _, do := range []func(context.Context) (*object.Task, error){deleted.PowerOff, deleted.Destroy} { // by somebody else
		task, err := do(ctx)
		if err == nil {
			err = task.Wait(ctx)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	d.tried(t, 2) // the first has waited in vain
	s.docker(t, "", "exec", "stays", "echo", "alive").want(0, "alive\n")
	events := func(extra ...string) string {
		args := append([]string{"events", "--since", since, "--until", fmt.Sprint(time.Now().Add(time.Second).Unix()), "--filter", "event=die", "--format", "{{.Actor.Attributes.name}} {{.Actor.Attributes.exitCode}}"}, extra...)
		return s.docker(t, "", args...).ok()
	}
	if got := events(); got != "" {
		t.Errorf("events while vCenter is away: %s", got)
	}
	during := s.held(t)

	d.leave()
	if err := c.Return(); err != nil {
		t.Fatal(err)
	}
	s.docker(t, "", "wait", "ends", "deleted").want(0, "7\n137\n")
	finish() // what a container writes comes by the datastore
	s.docker(t, "", "inspect", "deleted", "--format", "{{.State.Error}}").has("was deleted")
	s.docker(t, "", "ps", "--format", "{{.Names}}").want(0, "stays\n")
	got := strings.Fields(events())
	slices.Sort(got)
	if want := "137 7 deleted ends"; strings.Join(got, " ") != want {
		t.Errorf("ended since: %s, want %s", got, want)
	}
	if lines := strings.Split(strings.TrimSpace(s.log.String()[logged:]), "\n"); len(lines) > 25 {
		t.Errorf("%d lines of log:\n%s", len(lines), strings.Join(lines, "\n"))
	}
	if during.goroutines > before.goroutines || during.descriptors > before.descriptors { // vCenter's own are less
		t.Errorf("while vCenter is away there are %d goroutines and %d descriptors, before were %d and %d", during.goroutines, during.descriptors, before.goroutines, before.descriptors)
	}
	s.docker(t, "", "pull", image).has("Downloaded newer image")
	s.docker(t, "", "rm", "-f", "stays", "ends", "deleted", "other").ok()
	s.docker(t, "", "rmi", image).ok()
	await(t, files, func() string { return s.onDatastore(t) })
}

// attach attaches to a container that copies its input to its output, and says something. Finish waits until that has come back.
func (s *suite) attach(t *testing.T, container, says string) (finish func()) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), commandTimeout)
	cmd := s.command(ctx, "attach", container)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(in, says); err != nil {
		t.Error(err)
	}
	return func() {
		t.Helper()
		back := make([]byte, len(says))
		if _, err := io.ReadFull(out, back); err != nil || string(back) != says {
			t.Errorf("attached to %s: %q, %v; want %q", container, back, err, says)
		}
		cancel()
		_ = cmd.Wait() // it was killed
	}
}
