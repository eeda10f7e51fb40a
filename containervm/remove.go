package containervm

import (
	"context"
	"errors"
	"fmt"
)

// RemoveOptions say how to remove a container.
type RemoveOptions struct {
	Force bool // kill it if it runs
	// Volumes removes the volumes that are the container's own, too, as far as no other container mounts them.
	Volumes bool
}

// Remove removes the container with its disk and log. The error is ErrConflict if it runs and is not
// to be killed, or is being removed by another.
func (c *Container) Remove(ctx context.Context, o RemoveOptions) error {
	c.mu.Lock()
	r, name := c.run, c.spec.Name
	var err error
	switch {
	case c.removed:
		err = c.notFound()
	case c.removing:
		err = refuse(ErrConflict, "removal of container %s is already in progress", c.id)
	case c.state.Status == Paused && !o.Force:
		err = refuse(ErrConflict, "cannot remove container %q: container is paused and must be unpaused first", "/"+name)
	case c.state.Status == Restarting && !o.Force:
		err = refuse(ErrConflict, "cannot remove container %q: container is restarting: stop the container before removing or force remove", "/"+name)
	case r != nil && !o.Force:
		err = refuse(ErrConflict, "cannot remove container %q: container is running: stop the container before removing or force remove", "/"+name)
	}
	if err == nil {
		err = c.m.Available()
	}
	if err == nil {
		c.removing = true
		if c.retry != nil {
			c.retry.cancel()
			c.retry = nil
		}
		c.notifyLocked()
	}
	c.mu.Unlock()
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	c.m.wg.Go(func() {
		if r != nil {
			if err := c.kill(r); err != nil {
				c.unmark()
				done <- err
				return
			}
		}
		if err := c.acquire(context.Background()); err != nil {
			c.unmark()
			done <- err
			return
		}
		defer c.releaseOp()
		done <- c.delete(o.Volumes)
	})
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *Container) unmark() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.removing = false
}

// autoRemove removes a container that is to go by itself. The caller holds op, or nobody
// else knows the container yet.
func (c *Container) autoRemove() {
	c.mu.Lock()
	taken := c.removing || c.removed || c.run != nil
	c.removing = true
	c.mu.Unlock()
	if taken {
		return
	}
	for c.m.Available() != nil {
		if !c.m.rest() {
			return // the next Manager removes it
		}
	}
	if err := c.delete(true); err != nil {
		c.m.o.Log.Warn("remove container", "container", c.id, "error", err)
	}
}

// Retain makes a Transient container one as all others.
func (c *Container) Retain() error {
	c.mu.Lock()
	c.spec.Transient = false
	c.mu.Unlock()
	if err := c.save(); err != nil {
		return fmt.Errorf("retain container %s: %w", c.id, err)
	}
	return nil
}

// abandon removes a Transient container that nobody waits for any more.
func (c *Container) abandon() {
	err := c.Remove(context.Background(), RemoveOptions{Force: true, Volumes: true})
	if err != nil && !errors.Is(err, ErrConflict) { // being removed already
		c.m.o.Log.Warn("remove transient container", "container", c.id, "error", err)
	}
}

// seal lets no state be written any more into a folder that is removed, or lets it again.
func (c *Container) seal(sealed bool) {
	c.saving.Lock()
	defer c.saving.Unlock()
	c.sealed = sealed
}

// delete removes the container's folder, and then the container.
func (c *Container) delete(volumes bool) error {
	c.mu.Lock()
	before := c.state.Status
	c.state.Status = Removing
	c.dropReaders()
	c.removeVolumes = c.removeVolumes || volumes
	c.mu.Unlock()
	err := c.saveState() // a crash from here on goes on with the removal
	if before == Dead {
		err = nil // its files are damaged anyway
	}
	c.seal(true)
	if err = errors.Join(err, c.removeFiles(c.removeVolumes)); err != nil {
		c.seal(false)
		c.mu.Lock()
		c.state.Status, c.state.Error, c.removing = Dead, err.Error(), false
		c.notifyLocked()
		c.mu.Unlock()
		return fmt.Errorf("remove container %s: %w", c.id, err)
	}
	c.m.forget(c)
	c.emit("destroy", nil)
	c.mu.Lock()
	c.removed = true
	c.tellWaiters(Removed, NotRunning, NextExit)
	c.notifyLocked()
	c.mu.Unlock()
	return nil
}

// removeFiles removes the container's folder, and before it the volumes that are its own if they are to go.
func (c *Container) removeFiles(volumes bool) error {
	if volumes {
		removed, err := c.m.o.Volumes.RemoveOwnVolumes(c.id)
		for _, name := range removed {
			c.m.emitVolume("destroy", name, nil)
		}
		if err != nil {
			return err
		}
	}
	return c.m.o.Disks.RemoveContainer(c.id)
}
