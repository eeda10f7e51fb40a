package containervm

import (
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"

	"vic/tether/wire"
)

// await waits until a container's state is as it should be.
func (s *site) await(c *Container, what string, is func(Info) bool) Info {
	s.t.Helper()
	for over := time.After(time.Minute); ; {
		c.mu.Lock()
		changed := c.changed
		c.mu.Unlock()
		i := c.Info()
		if is(i) {
			return i
		}
		select {
		case <-changed:
		case <-over:
			s.t.Fatalf("%s: %+v", what, i.State)
		}
	}
}

func inState(status Status, restarts int) func(Info) bool {
	return func(i Info) bool { return i.State.Status == status && i.Restarts == restarts }
}

// A guest that starts its process again is followed, over a restart of the VCH too.
func TestGuestRestarts(t *testing.T) {
	t.Parallel()
	s, ctx := newSite(t), t.Context()
	c := s.run(Spec{Name: "one", Args: []string{"idle"}, Restart: RestartPolicy{Name: "on-failure", MaxRetries: 5}})
	v := s.rack.vm(c.ID())
	if got, want := v.conf.Restart, (wire.Restart{Policy: "on-failure", Max: 5}); got != want {
		t.Errorf("the guest has policy %+v, want %+v", got, want)
	}
	a, err := c.Attach(AttachOptions{Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	waiter, err := c.Wait(ctx, NotRunning)
	if err != nil {
		t.Fatal(err)
	}
	s.happened()
	v.record(wire.Stdout, "first\n")
	v.record(wire.RecExit, `{"code":3,"again":100000000}`)
	i := s.await(c, "restarting", inState(Restarting, 1))
	if st := i.State; st.ExitCode != 3 || st.Finished.IsZero() || !st.Status.Alive() || st.PID != 0 {
		t.Errorf("restarting: %+v", st)
	}
	if r := <-waiter; r.ExitCode != 3 {
		t.Errorf("waiter got %+v", r)
	}
	var out strings.Builder
	if err := a.Stream(ctx, nil, &out, nil); err != nil || out.String() != "first\n" {
		t.Errorf("attached: %q, %v", out.String(), err)
	}
	_, err = c.CreateExec(ExecSpec{Args: []string{"echo"}})
	wantError(t, err, ErrConflict, "is restarting, wait until the container is running")
	_, err = c.Attach(AttachOptions{Stdout: true})
	wantError(t, err, ErrConflict, "is restarting, wait until the container is running")
	wantError(t, c.Pause(ctx), ErrConflict, "is restarting, wait until the container is running")
	wantError(t, c.Start(ctx), ErrNotModified, "")
	wantError(t, c.Remove(ctx, RemoveOptions{}), ErrConflict, `cannot remove container "/one": container is restarting`)
	v.record(wire.RecStarted, `{"pid":1}`)
	s.await(c, "runs again", inState(Running, 1))
	s.tells("container die, container attach, container start")

	// What happened while nobody looked is caught up with.
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	v.record(wire.RecExit, `{"code":4,"again":100000000}`)
	v.record(wire.RecStarted, `{"pid":1}`)
	v.record(wire.RecExit, `{"code":5,"again":100000000}`)
	s.open()
	if c, err = s.Container("one"); err != nil {
		t.Fatal(err)
	}
	if i := s.await(c, "restarting, found", inState(Restarting, 3)); i.State.ExitCode != 5 {
		t.Errorf("found: %+v", i.State)
	}

	// Stopped while it waits, it has ended as it had.
	go func() {
		<-v.signals
		v.record(wire.RecExit, `{"code":5}`)
		v.end()
	}()
	if err := c.Stop(ctx, StopOptions{}); err != nil {
		t.Fatal(err)
	}
	if st := c.Info().State; st.Status != Exited || st.ExitCode != 5 {
		t.Errorf("stopped: %+v", st)
	}
	if got := s.happened(); strings.Count(got, "container die") != 2 || strings.Count(got, "container start") != 1 {
		t.Errorf("events since the restart of the VCH: %s", got)
	}
	s.reopen()
	if c, err = s.Container("one"); err != nil {
		t.Fatal(err)
	}
	if i := c.Info(); i.State.Status != Exited || i.Restarts != 3 {
		t.Errorf("on-failure, stopped by a user, after a restart: %+v", i.State)
	}
}

// A VM that ends without a word is the VCH's to start again.
func TestCrashRestarts(t *testing.T) {
	t.Parallel()
	s, ctx := newSite(t), t.Context()
	c := s.run(Spec{Args: []string{"sleep"}, Restart: RestartPolicy{Name: "always"}})
	s.rack.vm(c.ID()).end()
	s.await(c, "started again", inState(Running, 1))
	s.rack.vm(c.ID()).end()
	s.await(c, "and again", inState(Running, 2))
	if done := s.rack.vm(c.ID()).conf.Restart.Done; done != 2 {
		t.Errorf("the guest knows of %d restarts", done)
	}
	if err := c.Kill(ctx, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if i := c.Info(); i.State.Status != Exited || i.Restarts != 2 {
		t.Errorf("killed: %+v", i.State)
	}

	// A guest that says that it will not go on is believed: its process could not be started.
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if i := c.Info(); i.Restarts != 0 {
		t.Errorf("%d restarts after a start by hand", i.Restarts)
	}
	s.rack.vm(c.ID()).exit(127)
	if code := s.wait(c, NotRunning); code != 127 {
		t.Errorf("exit code %d", code)
	}
	if st := c.Info().State; st.Status != Exited {
		t.Errorf("ended for good: %+v", st)
	}

	// One that waits to be started can be stopped, and removed.
	loop := s.run(Spec{Args: []string{"crash"}, Restart: RestartPolicy{Name: "always"}})
	s.await(loop, "waits", func(i Info) bool { return i.State.Status == Restarting && i.Restarts > 2 })
	if err := loop.Stop(ctx, StopOptions{}); err != nil {
		t.Fatal(err)
	}
	if st := loop.Info().State; st.Status != Exited || st.ExitCode != 137 {
		t.Errorf("stopped: %+v", st)
	}
	loop = s.run(Spec{Args: []string{"crash"}, Restart: RestartPolicy{Name: "always"}})
	s.await(loop, "waits", func(i Info) bool { return i.State.Status == Restarting && i.Restarts > 2 })
	if err := loop.Remove(ctx, RemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
}

// After a boot of the host what the policies want runs again.
func TestPoliciesAtOpen(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		policy  RestartPolicy
		stopped bool // by its user
		runs    bool
	}{
		{RestartPolicy{}, false, false},
		{RestartPolicy{Name: "no"}, false, false},
		{RestartPolicy{Name: "always"}, false, true},
		{RestartPolicy{Name: "always"}, true, true},
		{RestartPolicy{Name: "unless-stopped"}, false, true},
		{RestartPolicy{Name: "unless-stopped"}, true, false},
		{RestartPolicy{Name: "on-failure"}, false, true},
		{RestartPolicy{Name: "on-failure"}, true, false},
		{RestartPolicy{Name: "on-failure", MaxRetries: 1}, false, true},
	} {
		name := tt.policy.Name
		if tt.stopped {
			name += " stopped"
		}
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			c := s.run(Spec{Args: []string{"sleep"}, Restart: tt.policy})
			if tt.stopped {
				if err := c.Stop(t.Context(), StopOptions{}); err != nil {
					t.Fatal(err)
				}
			}
			s.Close()
			s.rack.vm(c.ID()).end()
			s.open()
			c, err := s.Container(c.ID())
			if err != nil {
				t.Fatal(err)
			}
			if tt.runs {
				s.await(c, "runs", func(i Info) bool { return i.State.Status == Running })
			} else if st := c.Info().State; st.Status != Exited {
				t.Errorf("%+v", st)
			}
		})
	}
	s := newSite(t)
	if c := s.create(Spec{Args: []string{"sleep"}, Restart: RestartPolicy{Name: "always"}}); true {
		s.reopen()
		if c, _ = s.Container(c.ID()); c.Info().State.Status != Created {
			t.Error("a container was started that nobody had started")
		}
	}
}

// Only the stop signal and SIGKILL say that a container is not to run any more.
func TestKillAndPolicy(t *testing.T) {
	t.Parallel()
	s, ctx := newSite(t), t.Context()
	for _, tt := range []struct {
		sig   syscall.Signal
		final bool
	}{{syscall.SIGTERM, true}, {syscall.SIGINT, false}} {
		c := s.run(Spec{Args: []string{"sleep"}, StopSignal: syscall.SIGTERM, Restart: RestartPolicy{Name: "always"}})
		if err := c.Kill(ctx, tt.sig); err != nil && !errors.Is(err, ErrNotRunning) { // it may end before it answers
			t.Fatal(err)
		}
		s.wait(c, NotRunning)
		v := s.rack.vm(c.ID())
		v.mu.Lock()
		if v.final != tt.final {
			t.Errorf("signal %d: final %v", tt.sig, v.final)
		}
		v.mu.Unlock()
	}
}
