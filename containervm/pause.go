package containervm

import (
	"context"
	"fmt"
	"syscall"
	"time"
)

// clockPatience is how long a guest may take to set its clock when its VM goes on.
const clockPatience = 10 * time.Second

// Pause has the container's VM stand still, with all its clocks. The error is ErrNotRunning, or ErrConflict if it does
// so already.
func (c *Container) Pause(ctx context.Context) error {
	if err := c.acquire(ctx); err != nil {
		return err
	}
	defer c.releaseOp()
	r, err := c.active()
	if err != nil {
		return err
	}
	if c.paused() {
		return refuse(ErrConflict, "container %s is already paused", c.id)
	}
	if err := r.machine.Pause(context.WithoutCancel(ctx)); err != nil {
		return fmt.Errorf("cannot pause container %s: %w", c.id, err)
	}
	c.setPaused(r, true)
	c.emit("pause", nil)
	return c.saveState()
}

// observe takes in that others have paused the VM or let it go on, and what it asks.
func (c *Container) observe(ctx context.Context, r *run, m Observed) {
	for {
		c.adoptQuestion(r)
		select {
		case <-m.Changed():
		case <-ctx.Done():
			return
		}
		if c.acquire(ctx) != nil {
			return
		}
		err := c.adoptPause(r)
		c.releaseOp()
		if err != nil {
			c.m.o.Log.Warn("take in that the VM was paused", "container", c.id, "error", err)
		}
	}
}

// adoptQuestion takes in what the hypervisor asks.
func (c *Container) adoptQuestion(r *run) {
	q := r.machine.Info().Question
	c.mu.Lock()
	news := q != r.question
	r.question = q
	c.mu.Unlock()
	if news && q != "" {
		c.m.o.Log.Warn("a VM stands still until somebody answers", "container", c.id, "question", q)
		c.emit("question", map[string]string{"question": q})
	}
}

// standing is the error of what stands still, in words.
func standing(question string) string {
	return "its virtual machine stands still until somebody answers: " + question
}

// adoptPause brings the state to what the VM does. Pause and Unpause have done so if it was they. The caller holds op.
func (c *Container) adoptPause(r *run) error {
	paused := r.machine.Info().Paused
	c.mu.Lock()
	same := c.run != r || !r.started || c.state.Status != Running && c.state.Status != Paused || paused == (c.state.Status == Paused)
	c.mu.Unlock()
	if same {
		return nil
	}
	if !paused {
		return c.resumed(r)
	}
	c.setPaused(r, true)
	c.emit("pause", nil)
	return c.saveState()
}

// Unpause lets the VM go on; what signals came meanwhile reach the process now. The error is
// of no kind if no VM stands still.
func (c *Container) Unpause(ctx context.Context) error {
	if err := c.acquire(ctx); err != nil {
		return err
	}
	defer c.releaseOp()
	if !c.paused() {
		return fmt.Errorf("Container %s is not paused", c.id) // docker's words, and its 500
	}
	r, err := c.current()
	if err != nil {
		return err
	}
	return c.resume(context.WithoutCancel(ctx), r)
}

// resume lets a run go on that was paused; it is no error if it was not.
func (c *Container) resume(ctx context.Context, r *run) error {
	if !c.paused() {
		return nil
	}
	if err := r.machine.Resume(ctx); err != nil {
		return fmt.Errorf("cannot unpause container %s: %w", c.id, err)
	}
	return c.resumed(r)
}

// resumed takes in that the VM goes on.
func (c *Container) resumed(r *run) error {
	signals, was := c.setPaused(r, false)
	if !was {
		return nil
	}
	c.emit("unpause", nil)
	err := c.saveState()
	// The guest may be anybody's: it does not keep the caller waiting.
	c.m.wg.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), clockPatience)
		defer cancel()
		if conn, err := c.control(ctx, r); err == nil {
			if err := conn.SetClock(ctx, time.Now()); err != nil {
				c.m.o.Log.Warn("set guest's clock", "container", c.id, "error", err)
			}
		}
		for _, sig := range signals {
			if err := c.signal(ctx, r, sig, sig == c.stopSignal()); err != nil {
				c.m.o.Log.Warn("send signal", "container", c.id, "signal", int(sig), "error", err)
			}
		}
	})
	return err
}

func (c *Container) paused() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state.Status == Paused
}

// setPaused changes the state of a run that has not ended, and returns the signals that waited for it to
// go on, and whether it was paused.
func (c *Container) setPaused(r *run, paused bool) (signals []syscall.Signal, was bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	was = c.state.Status == Paused
	if c.run != r || was == paused {
		return nil, was
	}
	c.state.Status = Running
	if paused {
		c.state.Status = Paused
	}
	signals, c.pending = c.pending, nil
	c.notifyLocked()
	return signals, was
}

// postpone keeps a signal for a container that is paused, until it goes on.
func (c *Container) postpone(sig syscall.Signal) (bool, error) {
	const most = 64
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state.Status != Paused {
		return false, nil
	}
	if len(c.pending) >= most {
		return true, refuse(ErrConflict, "container %s is paused and %d signals wait for it already", c.id, most)
	}
	c.pending = append(c.pending, sig)
	return true, nil
}

// active is current, but refuses a container whose process does not run at this moment.
func (c *Container) active() (*run, error) {
	c.mu.Lock()
	status := c.state.Status
	c.mu.Unlock()
	if status == Restarting {
		return nil, refuse(ErrConflict, "container %s is restarting, wait until the container is running", c.id)
	}
	r, err := c.current()
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if r.question != "" {
		return nil, refuse(ErrConflict, "container %s: %s", c.id, standing(r.question))
	}
	return r, nil
}
