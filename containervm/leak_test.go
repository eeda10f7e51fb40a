package containervm

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"
)

// use is what this process and a site hold.
type use struct {
	goroutines, descriptors, files, containers, names, execs int
}

func (s *site) use(t *testing.T) use {
	t.Helper()
	u := use{goroutines: runtime.NumGoroutine()}
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	u.descriptors = len(fds)
	for _, dir := range []string{s.o.Store, s.o.RuntimeDir} {
		err := filepath.WalkDir(dir, func(string, fs.DirEntry, error) error { u.files++; return nil })
		if err != nil {
			t.Fatal(err)
		}
	}
	s.Manager.mu.Lock()
	defer s.Manager.mu.Unlock()
	u.containers, u.names, u.execs = len(s.Manager.containers), len(s.names), len(s.Manager.execs)
	return u
}

// settled returns what is held once it is no more than want, or after a while. Goroutines that end tell
// nobody.
func (s *site) settled(t *testing.T, want use) use {
	t.Helper()
	for tries := 0; ; tries++ {
		u := s.use(t)
		if u.goroutines <= want.goroutines && u.descriptors <= want.descriptors || tries == 3000 {
			return u
		}
		time.Sleep(time.Millisecond)
	}
}

// A life from create to rm leaves nothing behind, however it ends.
func TestNothingLeaks(t *testing.T) {
	s := newSite(t)
	ctx := t.Context()
	lives := []func() error{
		func() error { // docker run --rm
			c := s.create(Spec{Args: []string{"print", "out", "err"}, AutoRemove: true})
			gone, err := c.Wait(ctx, Removed)
			if err != nil {
				return err
			}
			if err := c.Start(ctx); err != nil {
				return err
			}
			<-gone
			return nil
		},
		func() error { // with an exec, stopped, removed
			c := s.run(Spec{Args: []string{"sleep"}})
			e, err := c.CreateExec(ExecSpec{Args: []string{"echo", "x"}, Stdout: true})
			if err != nil {
				return err
			}
			if err := e.Start(ctx, ExecStartOptions{Detach: true}); err != nil {
				return err
			}
			if err := c.Stop(ctx, StopOptions{}); err != nil {
				return err
			}
			return c.Remove(ctx, RemoveOptions{})
		},
		func() error { // does not start
			c := s.create(Spec{Args: []string{"nope"}, AutoRemove: true})
			if err := c.Start(ctx); err == nil {
				return fmt.Errorf("nope started")
			}
			return nil
		},
		func() error { // killed while somebody waits for the next end and another follows the log
			c := s.run(Spec{Args: []string{"sleep"}, Network: NetworkSpec{Mode: "bridge"}})
			if _, err := c.Wait(ctx, NextExit); err != nil {
				return err
			}
			done := make(chan error, 1)
			go func() {
				done <- c.Logs(ctx, LogOptions{Stdout: true, Follow: true}, func(LogEntry) error { return nil })
			}()
			if err := c.Remove(ctx, RemoveOptions{Force: true}); err != nil {
				return err
			}
			return <-done
		},
	}
	round := func() {
		t.Helper()
		for i, life := range lives {
			if err := life(); err != nil {
				t.Fatalf("life %d: %v", i, err)
			}
		}
		s.rack.mu.Lock() // the rack remembers its VMs, which is no leak of the Manager
		clear(s.rack.vms)
		s.rack.mu.Unlock()
		s.happened()
	}
	round()
	round()
	base := s.use(t)
	heap := memory()
	for range 25 {
		round()
	}
	after := s.settled(t, base)
	// Execs are kept for a minute after their container's end.
	if after.execs > 27 {
		t.Errorf("%d execs", after.execs)
	}
	base.execs, after.execs = 0, 0
	if after.goroutines > base.goroutines || after.descriptors > base.descriptors || after.files != base.files ||
		after.containers != base.containers || after.names != base.names {
		t.Errorf("after 100 lives: %+v, before: %+v", after, base)
	}
	if now := memory(); now > heap+8<<20 {
		t.Errorf("heap of %d bytes, %d before", now, heap)
	}
}
