package vsphere

import (
	"strings"
	"testing"
	"time"

	"github.com/vmware/govmomi/object"

	"vic/bench/vcsim"
	"vic/containervm"
)

// TestQuestion has a VM stand still because its datastore is full.
func TestQuestion(t *testing.T) {
	s := newSite(t, vcsim.Options{})
	id := s.create(1)
	m := s.start(s.spec(id))
	asks := func(m containervm.Machine, want bool) {
		t.Helper()
		select {
		case <-m.(containervm.Observed).Changed():
		case <-time.After(patience):
			t.Fatal("nobody says so")
		}
		if got := m.Info().Question; strings.Contains(got, "no more space for virtual disk") != want {
			t.Errorf("it asks %q", got)
		}
	}
	ask := func() {
		t.Helper()
		if err := s.sim.Ask(s.vm(id).Reference(), vcsim.OutOfSpace("datastore1")); err != nil {
			t.Fatal(err)
		}
	}
	ask()
	asks(m, true)
	found, err := s.Find(t.Context(), s.spec(id)) // by a daemon that comes back
	if err != nil || found.Info().Question == "" {
		t.Errorf("found: %v", err)
	}
	found.Close()
	if err := object.NewVirtualMachine(s.client, s.vm(id).Reference()).Answer(t.Context(), "1", "0"); err != nil { // by an administrator
		t.Fatal(err)
	}
	asks(m, false)
	ask()
	asks(m, true)
	if err := m.Kill(); err != nil {
		t.Fatal(err)
	}
	s.wait(m)
	if err := s.RemoveContainer(id); err != nil {
		t.Error(err)
	}
}
