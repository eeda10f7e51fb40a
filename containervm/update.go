package containervm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"vic/tether/wire"
)

var updating = changing{"updating it", `"update"`, ErrConflict}

// Update changes the Restart, Limits, Memory, CPUs, CPUSet and Extra of the container's Spec to what edit makes of
// them; edit may be called more than once, and is told whether there is a VM. A VM keeps its memory and its CPUs, so
// that changing these is refused with ErrConflict while there is one. A running guest keeps the rest before it is
// recorded, and is told what is recorded with each control session: after a crash between the two it goes back.
func (c *Container) Update(ctx context.Context, edit func(s *Spec, running bool) error) error {
	return c.change(ctx, updating, func(ctx context.Context, _ *run) error {
		old, err := c.agree(ctx, edit)
		if err != nil {
			return err
		}
		if err := c.save(); err != nil {
			c.mu.Lock()
			c.spec.adopt(old)
			r := c.run
			c.mu.Unlock()
			if r != nil {
				err = errors.Join(err, c.instruct(ctx, r, old))
			}
			return fmt.Errorf("update container: %w", err)
		}
		c.emit("update", nil)
		return nil
	})
}

// agree changes the Spec once the guest, if there is one, has taken the change. It returns what was.
func (c *Container) agree(ctx context.Context, edit func(*Spec, bool) error) (Spec, error) {
	for {
		c.mu.Lock()
		r, old, vm := c.run, c.spec, c.run != nil || c.starting
		c.mu.Unlock()
		s := old
		err := edit(&s, vm)
		if err == nil {
			err = s.check()
		}
		if err == nil && (s.CPUs != old.CPUs || s.Memory != old.Memory) { // else it may have what a host had that is gone
			err = c.m.Resources().check(&s)
		}
		if err == nil && vm {
			err = c.fits(&old, &s)
		}
		if err == nil && r != nil {
			err = c.instruct(ctx, r, s)
		}
		c.mu.Lock()
		if c.run != r { // it has ended, or another has begun
			c.mu.Unlock()
			if err := ctx.Err(); err != nil {
				return old, err
			}
			continue
		}
		if err == nil {
			c.spec.adopt(s)
			c.notifyLocked()
		}
		c.mu.Unlock()
		return old, err
	}
}

// adopt takes from o what Update changes.
func (s *Spec) adopt(o Spec) {
	s.Restart, s.Limits, s.Memory, s.CPUs, s.CPUSet, s.Extra = o.Restart, o.Limits, o.Memory, o.CPUs, o.CPUSet, o.Extra
}

// fits refuses what a VM gets at its start alone.
func (c *Container) fits(old, s *Spec) error {
	var what string
	switch {
	case cmp.Or(s.Memory, DefaultMemory) != cmp.Or(old.Memory, DefaultMemory):
		what = "memory"
	case cmp.Or(s.CPUs, defaultCPUs) != cmp.Or(old.CPUs, defaultCPUs):
		what = "number of CPUs"
	case !slices.Equal(s.CPUSet, old.CPUSet):
		what = "CPUs of the host"
	default:
		return nil
	}
	return refuse(ErrConflict, "container %s is running, and the %s of a virtual machine cannot change while it runs: stop the container, update it and start it again", c.id, what)
}

// instruct tells the guest of a run what to keep from now on.
func (c *Container) instruct(ctx context.Context, r *run, s Spec) error {
	var lost *wire.Conn
	for {
		conn, err := c.controlAfter(ctx, r, lost)
		if err != nil {
			return err
		}
		err = conn.Update(ctx, s.terms())
		if !errors.Is(err, wire.ErrLost) {
			return err
		}
		lost = conn
	}
}

func (s *Spec) terms() wire.Update {
	return wire.Update{Restart: s.Restart.wire(0), Limits: s.Limits}
}

// remind tells a guest what is recorded, as it may have been told otherwise, or nothing, by a VCH that crashed.
func (c *Container) remind(ctx context.Context, conn *wire.Conn) {
	ctx, cancel := context.WithTimeout(ctx, plugPatience)
	defer cancel()
	select {
	case c.netOp <- struct{}{}:
		defer func() { <-c.netOp }()
	case <-conn.Done():
		return
	case <-ctx.Done():
		return
	}
	c.mu.Lock()
	t := c.spec.terms()
	c.mu.Unlock()
	if err := conn.Update(ctx, t); err != nil && conn.Err() == nil && !errors.Is(err, context.Canceled) {
		c.m.o.Log.Warn("tell the guest its limits", "container", c.id, "error", err)
	}
}
