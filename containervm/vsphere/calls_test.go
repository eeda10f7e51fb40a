package vsphere

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"vic/bench/vcsim"
)

// mostCalls is how many calls of the API a container may take from its creation to its removal, groupCalls how many more with a VM group.
const mostCalls, groupCalls = 30, 10

// TestCalls counts the calls that containers take, one after another and many at once.
func TestCalls(t *testing.T) {
	s := newSite(t, vcsim.Options{})
	s.countCalls(mostCalls)
	for name, n := range s.sim.Calls() {
		if strings.HasPrefix(name, "ReconfigureComputeResource") {
			t.Errorf("%d times %s without a VM group", n, name)
		}
	}
}

// countCalls fails if a container takes more calls.
func (s *site) countCalls(most int) {
	t := s.t
	t.Helper()
	live := func(n int) {
		id := s.create(n)
		m := s.start(s.spec(id))
		if err := m.Kill(); err != nil {
			t.Error(err)
		}
		s.wait(m)
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		if err := s.RemoveContainer(id); err != nil {
			t.Error(err)
		}
	}
	live(0) // looks for the port group, and brings the ISO
	count := func(what string, n int, do func()) {
		t.Helper()
		before := s.sim.Calls()
		do()
		calls := since(s.sim.Calls(), before)
		all := 0
		var text []string
		for _, name := range slices.Sorted(maps.Keys(calls)) {
			if !strings.Contains(name, " ") { // a file's
				all += calls[name]
			}
			text = append(text, fmt.Sprintf("%s %.1f", name, float64(calls[name])/float64(n)))
		}
		t.Logf("%s: %.1f calls a container: %s", what, float64(all)/float64(n), strings.Join(text, ", "))
		if all > most*n {
			t.Errorf("%s: %d calls, want at most %d", what, all, most*n)
		}
	}
	count("one", 1, func() { live(1) })
	count("again", 1, func() { live(2) })
	const many = 24
	count(fmt.Sprint(many, " at once"), many, func() {
		var wg sync.WaitGroup
		for i := range many {
			wg.Go(func() { live(10 + i) })
		}
		wg.Wait()
	})
}
