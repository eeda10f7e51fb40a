package containervm

import (
	"syscall"
	"testing"
	"time"
)

func TestPause(t *testing.T) {
	t.Parallel()
	s, ctx := newSite(t), t.Context()
	c := s.create(Spec{Name: "one", Args: []string{"sleep"}})
	wantError(t, c.Pause(ctx), ErrNotRunning, "is not running")
	if err := c.Unpause(ctx); err == nil || err.Error() != "Container "+c.ID()+" is not paused" {
		t.Errorf("unpause of one that does not run: %v", err)
	}
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if err := c.Unpause(ctx); err == nil || err.Error() != "Container "+c.ID()+" is not paused" {
		t.Errorf("unpause of a running one: %v", err)
	}
	e, err := c.CreateExec(ExecSpec{Args: []string{"echo"}})
	if err != nil {
		t.Fatal(err)
	}
	s.happened()
	if err := c.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	wantError(t, c.Pause(ctx), ErrConflict, "is already paused")
	wantError(t, c.Start(ctx), ErrConflict, "cannot start a paused container, try unpause instead")
	wantError(t, c.Remove(ctx, RemoveOptions{}), ErrConflict, `cannot remove container "/one": container is paused and must be unpaused first`)
	for range 2 { // it is not spent by having been refused
		wantError(t, e.Start(ctx, ExecStartOptions{}), ErrConflict, "is paused, unpause the container before exec")
	}
	_, err = c.CreateExec(ExecSpec{Args: []string{"echo"}})
	wantError(t, err, ErrConflict, "is paused, unpause the container before exec")
	_, err = c.Attach(AttachOptions{Stdout: true})
	wantError(t, err, ErrConflict, "is paused, unpause the container before attach")

	// It is found paused, and the signal of before comes when it goes on.
	if err := c.Kill(ctx, syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	s.reopen()
	if c, err = s.Container("one"); err != nil {
		t.Fatal(err)
	}
	if st := c.Info().State; st.Status != Paused || !st.Status.Alive() {
		t.Errorf("after a restart: %+v", st)
	}
	if err := c.Unpause(ctx); err != nil {
		t.Fatal(err)
	}
	if code := s.wait(c, NotRunning); code != 128+int(syscall.SIGUSR1) {
		t.Errorf("exit code %d", code)
	}
	v := s.rack.vm(c.ID())
	v.mu.Lock()
	if d := time.Since(time.Unix(0, v.clock)); d < 0 || d > time.Hour {
		t.Errorf("clock was set to %v before now", d)
	}
	v.mu.Unlock()

	// Stop and kill let it go on first.
	for _, end := range []func() error{
		func() error { return c.Stop(ctx, StopOptions{}) },
		func() error { return c.Kill(ctx, syscall.SIGKILL) },
	} {
		if err := c.Start(ctx); err != nil {
			t.Fatal(err)
		}
		if err := c.Pause(ctx); err != nil {
			t.Fatal(err)
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
		if st := c.Info().State; st.Status != Exited {
			t.Errorf("ended: %+v", st)
		}
	}
}
