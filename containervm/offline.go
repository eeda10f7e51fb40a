package containervm

import (
	"context"
	"errors"
)

// errStarted ends the reading of a disk that is written to from now on.
var errStarted = errors.New("the container was started, written to or removed while its files were read")

// stopped returns a context for reading the disk of a container that does not run. It ends when
// the container is started or removed: nobody waits for who reads slowly.
func (c *Container) stopped(ctx context.Context) (context.Context, context.CancelFunc, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.busy && !c.removed {
		changed := c.changed
		c.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
		}
		c.mu.Lock()
		if ctx.Err() != nil {
			return nil, nil, ctx.Err()
		}
	}
	switch {
	case c.removed:
		return nil, nil, c.notFound()
	case c.removing:
		return nil, nil, refuse(ErrConflict, "container %s is being removed", c.id)
	case c.run != nil || c.starting:
		return nil, nil, refuse(ErrConflict, "container %s is being started", c.id)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	if c.readers == nil {
		c.readers = map[*context.CancelCauseFunc]struct{}{}
	}
	key := &cancel
	c.readers[key] = struct{}{}
	return ctx, func() {
		c.mu.Lock()
		delete(c.readers, key)
		c.mu.Unlock()
		cancel(nil)
	}, nil
}

// dropReaders ends all reading of the disk. Call it with mu held.
func (c *Container) dropReaders() {
	for cancel := range c.readers {
		(*cancel)(errStarted)
	}
}

// setStarting says that the disk is about to be used by a VM, and returns what was before. The Manager
// waits for setStarted before it closes, and lets nothing start from then on.
func (c *Container) setStarting() (State, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.m.closed:
		return State{}, ErrClosed
	default:
	}
	c.starting = true
	c.dropReaders()
	return c.state, nil
}

// setStarted says that c.run tells from now on whether a VM uses the disk.
func (c *Container) setStarted() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.starting = false
	c.notifyLocked()
}

// setBusy says that the disk is written to, without a VM: who wants to read it waits, who reads it has lost.
func (c *Container) setBusy(busy bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.busy = busy
	c.dropReaders()
	c.notifyLocked()
}
