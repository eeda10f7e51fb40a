package containervm

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"vic/tether/wire"
)

// keeps waits until a guest keeps these terms.
func (s *site) keeps(v *fakeVM, want wire.Update) {
	s.t.Helper()
	var got wire.Update
	for over := time.Now().Add(time.Minute); time.Now().Before(over); time.Sleep(time.Millisecond) {
		v.mu.Lock()
		got = v.terms
		v.mu.Unlock()
		if got == want {
			return
		}
	}
	s.t.Fatalf("the guest keeps %+v, want %+v", got, want)
}

func TestUpdate(t *testing.T) {
	t.Parallel()
	s, ctx := newSite(t), t.Context()
	c := s.run(Spec{Name: "one", Args: []string{"idle"}, Memory: 128 << 20})
	v := s.rack.vm(c.ID())
	s.happened()
	always := RestartPolicy{Name: "always"}
	more := func(sp *Spec, running bool) error {
		if !running {
			t.Error("there is no VM, says Update")
		}
		sp.Restart, sp.Limits.Pids, sp.Name = always, 9, "other"
		sp.CPUs = 1 // as it has
		return nil
	}
	if err := c.Update(ctx, more); err != nil {
		t.Fatal(err)
	}
	want := wire.Update{Restart: wire.Restart{Policy: "always"}, Limits: Limits{Pids: 9}}
	s.keeps(v, want)
	if i := c.Info(); i.Name != "one" || i.Spec.Restart != always || i.Spec.Limits.Pids != 9 {
		t.Errorf("updated: %+v", i.Spec)
	}
	if got := s.happened(); got != "container update" {
		t.Errorf("events %s", got)
	}
	// A container that had no policy is followed from now on.
	v.record(wire.RecExit, `{"code":3,"again":100000000}`)
	s.await(c, "restarting", inState(Restarting, 1))
	v.record(wire.RecStarted, `{"pid":1}`)
	s.await(c, "runs again", inState(Running, 1))

	for _, tt := range []struct {
		name string
		edit func(*Spec, bool) error
		is   error
		word string
	}{
		{"memory", func(sp *Spec, _ bool) error { sp.Memory = 1 << 30; return nil }, ErrConflict, "the memory of a virtual machine cannot change while it runs: stop the container, update it and start it again"},
		{"CPUs", func(sp *Spec, _ bool) error { sp.CPUs = 2; return nil }, ErrConflict, "the number of CPUs of a virtual machine cannot change"},
		{"CPU set", func(sp *Spec, _ bool) error { sp.CPUSet = []int{0}; return nil }, ErrConflict, "the CPUs of the host of a virtual machine cannot change"},
		{"too little", func(sp *Spec, _ bool) error { sp.Memory = 1; return nil }, ErrInvalid, "Minimum memory limit"},
		{"policy", func(sp *Spec, _ bool) error { sp.Restart.Name = "never"; return nil }, ErrInvalid, "unknown policy 'never'"},
	} {
		t.Run(tt.name, func(t *testing.T) { wantError(t, c.Update(ctx, tt.edit), tt.is, tt.word) })
	}
	mine := errors.New("no")
	wantError(t, c.Update(ctx, func(*Spec, bool) error { return mine }), mine, "no")
	v.mu.Lock()
	v.fails = fmt.Errorf("set limit pids.max")
	v.mu.Unlock()
	if err := c.Update(ctx, func(sp *Spec, _ bool) error { sp.Limits.Pids = 10; return nil }); err == nil {
		t.Error("updated a guest that could not")
	}
	if i := c.Info(); i.Spec.Memory != 128<<20 || i.Spec.Limits.Pids != 9 || i.Spec.Restart != always {
		t.Errorf("after refused updates: %+v", i.Spec)
	}

	// A guest that was told what was not recorded is told what was.
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	v.mu.Lock()
	v.terms = wire.Update{Limits: Limits{Pids: 1}}
	v.mu.Unlock()
	s.open()
	s.keeps(v, want)
	var err error
	if c, err = s.Container("one"); err != nil {
		t.Fatal(err)
	}
	if i := c.Info(); i.Spec.Restart != always || i.Spec.Limits.Pids != 9 {
		t.Errorf("found: %+v", i.Spec)
	}
	if err := c.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	wantError(t, c.Update(ctx, more), ErrConflict, "is paused, unpause the container before updating it")
	if err := c.Unpause(ctx); err != nil {
		t.Fatal(err)
	}

	// With no VM all of it changes, for the next.
	if err := c.Remove(ctx, RemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	wantError(t, c.Update(ctx, more), ErrNotFound, "No such container")
	c = s.create(Spec{Name: "two", Args: []string{"sleep"}})
	if err := c.Update(ctx, func(sp *Spec, running bool) error {
		if running {
			t.Error("there is a VM, says Update")
		}
		sp.Memory, sp.Limits.Pids, sp.Restart = 100<<20, 7, RestartPolicy{Name: "on-failure", MaxRetries: 2}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	s.reopen()
	if c, err = s.Container("two"); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	v = s.rack.vm(c.ID())
	if v.vm.Memory != 100<<20 || v.conf.Limits.Pids != 7 || v.conf.Restart != (wire.Restart{Policy: "on-failure", Max: 2}) {
		t.Errorf("started with %d bytes, %+v, %+v", v.vm.Memory, v.conf.Limits, v.conf.Restart)
	}
}
