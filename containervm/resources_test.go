package containervm

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

func TestResources(t *testing.T) {
	t.Parallel()
	s, ctx := newSite(t), t.Context()
	if r := s.Resources(); r.VMCPUs != maxCPUs {
		t.Errorf("a hypervisor that knows nothing: %+v", r)
	}
	conf, err := os.ReadFile("boot/guest.config")
	if err != nil || !strings.Contains(string(conf), fmt.Sprintf("CONFIG_NR_CPUS=%d\n", maxCPUs)) {
		t.Errorf("the guest's kernel does not take %d CPUs: %v", maxCPUs, err)
	}
	gives := func(r Resources) {
		s.rack.mu.Lock()
		defer s.rack.mu.Unlock()
		s.rack.gives = r
	}
	gives(Resources{VMCPUs: 128})
	if r := s.Resources(); r.VMCPUs != maxCPUs {
		t.Errorf("a hypervisor of many CPUs: %+v", r)
	}
	gives(Resources{VMCPUs: 16, VMMemory: 4 << 30})
	large := s.create(Spec{Args: []string{"idle"}, CPUs: 16, Memory: 4 << 30})
	for _, tt := range []struct {
		edit func(*Spec)
		word string
	}{
		{func(sp *Spec) { sp.CPUs = 17 }, "range of CPUs is from 1 to 16, as there are only 16 CPUs available"},
		{func(sp *Spec) { sp.Memory = 5 << 30 }, "Maximum memory limit allowed is 4096MB"},
	} {
		made := Spec{Args: []string{"idle"}}
		tt.edit(&made)
		_, err := s.Create(ctx, made)
		wantError(t, err, ErrInvalid, tt.word)
		wantError(t, large.Update(ctx, func(sp *Spec, _ bool) error { tt.edit(sp); return nil }), ErrInvalid, tt.word)
	}
	gives(Resources{VMCPUs: 8, VMMemory: 2 << 30}) // the largest host has gone
	if err := large.Update(ctx, func(sp *Spec, _ bool) error { sp.Limits.Pids = 5; return nil }); err != nil {
		t.Errorf("update what has nothing to do with it: %v", err)
	}
	wantError(t, large.Update(ctx, func(sp *Spec, _ bool) error { sp.CPUs = 9; return nil }), ErrInvalid, "range of CPUs")
}
