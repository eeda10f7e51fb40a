package vsphere

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"

	"vic/bench/vcsim"
)

// lines are what is logged: those that are not taken in time are lost.
type lines chan string

func (l lines) Write(p []byte) (int, error) {
	select {
	case l <- string(p):
	default:
	}
	return len(p), nil
}

// await waits for a line that is logged from now on.
func (l lines) await(t *testing.T, text string) {
	t.Helper()
	for { // what is from before does not count
		select {
		case <-l:
			continue
		default:
		}
		break
	}
	for {
		select {
		case line := <-l:
			if strings.Contains(line, text) {
				return
			}
		case <-t.Context().Done():
			t.Fatalf("%q is not logged", text)
		}
	}
}

// kept connects with a session that is kept alive every few milliseconds, and whose calls are tried again as long as it takes.
func (s *site) kept() (*Session, lines) {
	s.t.Helper()
	log := make(lines, 100)
	e := s.endpoint()
	e.KeepAlive, e.Log = 5*time.Millisecond, slog.New(slog.NewTextHandler(log, nil))
	c := s.connect(e)
	c.retry.tries = 1 << 30
	return c, log
}

// TestKeepAlive has nobody but the keep-alive ask vCenter for anything.
func TestKeepAlive(t *testing.T) {
	s, ctx := newSite(t, vcsim.Options{}), t.Context()
	c, log := s.kept()
	d := s.datastore(c, "vic")
	logins := func() int { return s.Calls()["Login"] }

	before, login := logins(), c.Login()
	if err := s.DropSessions(ctx); err != nil {
		t.Fatal(err)
	}
	<-login.Done() // it has found out
	if n := logins() - before; n != 1 {
		t.Errorf("logged in %d times after the session was dropped", n)
	}
	before, login = logins(), c.Login()
	if err := d.MakeFolder(ctx, "after"); err != nil {
		t.Error(err)
	}

	if err := s.Away(); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		log.await(t, "keep the vSphere session")
	}
	if _, err := methods.GetCurrentTime(ctx, c.Client()); !errors.Is(unavailable(err), ErrUnavailable) {
		t.Errorf("a call while vCenter is away: %v, want %v", err, ErrUnavailable)
	}
	if login.Err() != nil {
		t.Error("logged in to a vCenter that is away")
	}
	if err := s.DropSessions(ctx); err != nil { // it starts again
		t.Fatal(err)
	}
	if err := s.Return(); err != nil {
		t.Fatal(err)
	}
	<-login.Done()
	if n := logins() - before; n != 1 {
		t.Errorf("logged in %d times after vCenter has returned", n)
	}
	if err := d.MakeFolder(ctx, "returned"); err != nil {
		t.Error(err)
	}
	if n := logins() - before; n != 1 {
		t.Errorf("logged in %d times: another time than the keep-alive did", n)
	}
}

// TestTaskEndsAway has a task end while vCenter is away and takes the session for gone: the keep-alive finds that out, and who waits for the
// task, which nobody else does, is told how it has ended.
func TestTaskEndsAway(t *testing.T) {
	s, ctx := newSite(t, vcsim.Options{}), t.Context()
	c, log := s.kept()
	d := s.datastore(c, "vic")
	if err := d.MakeFolder(ctx, "folder"); err != nil {
		t.Fatal(err)
	}
	begun, release, ended := make(chan struct{}), make(chan struct{}), make(chan struct{})
	s.OnTask(func(task *simulator.Task, run func() vcsim.Outcome) vcsim.Outcome {
		if task.Info.DescriptionId != "FileManager.deleteDatastoreFile" {
			return run()
		}
		close(begun)
		<-release
		defer close(ended)
		return run()
	})
	done := make(chan error, 1)
	go func() { done <- d.RemoveAll(ctx, "folder") }()
	<-begun
	if err := s.Away(); err != nil {
		t.Fatal(err)
	}
	log.await(t, "keep the vSphere session")
	if err := s.DropSessions(ctx); err != nil {
		t.Fatal(err)
	}
	close(release)
	<-ended
	if err := s.Return(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestCloseWhileSilent closes a session whose keep-alive waits for a vCenter that takes connections and says nothing.
func TestCloseWhileSilent(t *testing.T) {
	s := newSite(t, vcsim.Options{})
	c, _ := s.kept()
	if err := s.Away(); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", s.URL().Host)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := l.Accept() // the keep-alive's: nobody else asks
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // it need not be logged out
	if err := c.Close(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
