package containervm

import (
	"context"
	"syscall"
	"testing"
)

// sharedRack is a rack with somebody else at its switches.
type sharedRack struct {
	*rack
	on chan string
}

func (r *sharedRack) PoweredOn(ctx context.Context) (string, error) {
	select {
	case id := <-r.on:
		return id, nil
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// powerOn has a VM run that the Manager knows nothing of.
func (r *rack) powerOn(vm VM) *fakeVM {
	r.mu.Lock()
	defer r.mu.Unlock()
	v := &fakeVM{vm: vm, done: make(chan struct{})}
	r.vms[vm.ID] = v
	return v
}

// Somebody powers on the VM of a container that has ended: it is started, by a VM that is told what holds now. One that runs is not disturbed.
func TestPoweredOn(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	r := &sharedRack{s.rack, make(chan string)}
	s.o.Hypervisor = r
	s.reopen()
	runs, ended := s.run(Spec{Name: "runs", Args: []string{"sleep"}}), s.run(Spec{Name: "ended", Args: []string{"sleep"}})
	s.happened()
	if err := ended.Kill(t.Context(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s.tells("container kill, container die")
	undisturbed, stray := s.rack.vm(runs.ID()), s.rack.powerOn(s.rack.vm(ended.ID()).vm)
	for _, id := range []string{runs.ID(), "none", ended.ID()} {
		r.on <- id
	}
	s.tells("container start")
	select {
	case <-stray.done:
	default:
		t.Error("the VM that somebody has powered on runs on")
	}
	if s.rack.vm(ended.ID()) == stray || s.rack.vm(runs.ID()) != undisturbed {
		t.Error("another VM was started than was to be")
	}

	// One that is to go is not started again.
	if err := ended.Remove(t.Context(), RemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	r.on <- ended.ID()
}
