package containervm

import (
	"context"
	"errors"
	"path/filepath"
)

// followOthers has containers run whose VMs somebody powers on past the Manager.
func (m *Manager) followOthers(h Shared) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	m.wg.Go(func() {
		select {
		case <-m.closed:
			cancel()
		case <-ctx.Done():
		}
	})
	for {
		id, err := h.PoweredOn(ctx)
		if err != nil {
			return
		}
		m.mu.Lock()
		c := m.containers[id]
		if c != nil {
			m.wg.Go(func() { c.poweredOn(ctx) })
		}
		m.mu.Unlock()
	}
}

// poweredOn starts a container whose VM somebody has powered on, unless it runs. What such a VM was told in its last run, addresses among it,
// may be others' by now, and it lacks its volumes: so it is ended first.
func (c *Container) poweredOn(ctx context.Context) {
	wanted, err := c.endStray(ctx)
	if wanted && err == nil {
		c.m.o.Log.Warn("somebody has powered on a container's VM: the container is started", "container", c.id)
		err = c.Start(ctx)
	}
	if err != nil && ctx.Err() == nil && !errors.Is(err, ErrNotModified) {
		c.m.o.Log.Warn("start a container whose VM was powered on", "container", c.id, "error", err)
	}
}

// endStray ends the VM of a container that does not run. It reports whether there was one, of a container that may be started.
func (c *Container) endStray(ctx context.Context) (wanted bool, err error) {
	if err := c.acquire(ctx); err != nil {
		return false, err
	}
	defer c.releaseOp()
	c.mu.Lock()
	runs := c.run != nil || c.removing || c.removed || c.state.Status == Dead
	c.mu.Unlock()
	if runs {
		return false, nil
	}
	machine, err := c.m.o.Hypervisor.Find(ctx, c.lastVM())
	if errors.Is(err, ErrNoMachine) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if err := machine.Kill(); err != nil {
		return false, errors.Join(err, machine.Close())
	}
	select {
	case <-machine.Done():
	case <-ctx.Done():
	}
	return true, errors.Join(ctx.Err(), machine.Close())
}

// lastVM is what a Hypervisor finds the container's VM by.
func (c *Container) lastVM() VM {
	c.mu.Lock()
	defer c.mu.Unlock()
	return VM{ID: c.id, Dir: c.dir, RuntimeDir: c.runtimeDir(), Boot: c.boot, Log: filepath.Join(c.dir, logFile), Console: filepath.Join(c.dir, consoleFile)}
}
