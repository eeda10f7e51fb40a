package tether

import (
	"errors"
	"sync"

	"vic/tether/wire"
)

// terms are limits that a host may change, also before there is a control group to keep them.
type terms struct {
	mu     sync.Mutex
	limits wire.Limits
	group  *cgroup // nil until the container is set up
}

// enforce has the group keep the limits from now on.
func (t *terms) enforce(group *cgroup) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.group = group
	return group.set(t.limits)
}

// set changes the limits, all of them or none.
func (t *terms) set(l wire.Limits) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.group != nil {
		if err := t.group.set(l); err != nil {
			return errors.Join(err, t.group.set(t.limits))
		}
	}
	t.limits = l
	return nil
}

// update takes in another restart policy and other limits.
func (g *guest) update(u *wire.Update) error {
	if err := g.terms.set(u.Limits); err != nil {
		return err
	}
	g.mu.Lock()
	g.restart.Policy, g.restart.Max = u.Restart.Policy, u.Restart.Max
	g.mu.Unlock()
	g.stdin.keep(u.Restart.Any())
	return nil
}
