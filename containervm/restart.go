package containervm

import (
	"context"
	"errors"
	"time"

	"vic/tether/wire"
)

// RestartPolicy says when an ended container is started again. Where its VM lives on the guest does
// that, whether or not there is a VCH; where the VM has ended without a word (a crash, a boot of the host) the VCH
// does.
type RestartPolicy struct {
	Name       string `json:"name,omitempty"`       // "", no, always, unless-stopped, on-failure
	MaxRetries int    `json:"maxRetries,omitempty"` // of on-failure; 0 is no bound
}

func (p RestartPolicy) any() bool { return p.wire(0).Any() }

func (p RestartPolicy) check() error {
	switch p.Name {
	case "", "no", "always", "unless-stopped", "on-failure":
	default:
		return refuse(ErrInvalid, "invalid restart policy: unknown policy '%s'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'", p.Name)
	}
	if p.MaxRetries < 0 {
		return refuse(ErrInvalid, "invalid restart policy: maximum retry count cannot be negative")
	}
	return nil
}

// wire is the policy as the guest has it.
func (p RestartPolicy) wire(done int) wire.Restart {
	return wire.Restart{Policy: p.Name, Max: p.MaxRetries, Done: done}
}

// A retry is a start that is to come: the VM of a container has ended, and its policy wants it to run.
type retry struct {
	cancel context.CancelFunc
	done   chan struct{} // closed when it has started the container, or will not
}

// retryLater starts the container again after a while. Call it with mu held, and with a run that has
// ended.
func (c *Container) retryLater(ran time.Duration) {
	ctx, cancel := context.WithCancel(context.Background())
	t := &retry{cancel: cancel, done: make(chan struct{})}
	c.retry = t
	c.backOff = wire.BackOff(c.backOff, ran)
	wait := time.NewTimer(c.backOff)
	c.m.wg.Go(func() {
		defer close(t.done)
		defer cancel()
		select {
		case <-wait.C:
		case <-ctx.Done():
			return
		case <-c.m.closed:
			return
		}
		c.tryAgain(ctx, t)
	})
}

// tryAgain starts the container unless somebody has stopped, started or removed it.
func (c *Container) tryAgain(ctx context.Context, t *retry) {
	if c.acquire(ctx) != nil {
		return
	}
	defer c.releaseOp()
	c.mu.Lock()
	wanted := c.retry == t && !c.removing && !c.removed
	if wanted {
		c.retry = nil
	}
	c.mu.Unlock()
	if !wanted {
		return
	}
	if err := c.launch(context.Background()); err != nil && err != ErrClosed {
		c.m.o.Log.Warn("restart container", "container", c.id, "error", err)
	}
}

// giveUpRetry calls off a start that is to come. It reports whether there was one.
func (c *Container) giveUpRetry() bool {
	c.mu.Lock()
	t := c.retry
	c.retry = nil
	if t != nil {
		t.cancel()
		c.state.Status = Exited
		c.halted = true
		c.tellWaiters(NotRunning, NextExit)
		c.notifyLocked()
	}
	c.mu.Unlock()
	if t != nil {
		c.keepState()
	}
	return t != nil
}

// wantsStart says whether a container that was not running when the VCH came up is to run, as dockerd has
// it. The container is nobody else's yet.
func (c *Container) wantsStart() bool {
	if c.state.Status != Exited || c.state.Started.IsZero() || c.spec.AutoRemove {
		return false
	}
	if c.halted && c.spec.Restart.Name != "always" {
		return false
	}
	return c.spec.Restart.wire(c.restarts).Wants(c.state.ExitCode)
}

// resurrect starts a container whose policy wants it to run.
func (c *Container) resurrect() {
	if err := c.Start(context.Background()); err != nil && !errors.Is(err, ErrNotModified) && !errors.Is(err, ErrClosed) {
		c.m.o.Log.Warn("start container", "container", c.id, "error", err)
	}
}
