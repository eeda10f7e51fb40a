package containervm

import (
	"context"
	"slices"
)

// WaitCondition says what Wait waits for.
type WaitCondition string

const (
	NotRunning WaitCondition = "not-running" // at once if it does not run
	NextExit   WaitCondition = "next-exit"   // the next end of a run
	Removed    WaitCondition = "removed"
)

// WaitResult is what Wait gives: State.ExitCode of the last run, or Err, which is
// the context's or ErrClosed.
type WaitResult struct {
	ExitCode int
	Err      error
}

type waiter struct {
	cond WaitCondition
	ch   chan WaitResult // holds one
	done chan struct{}   // closed with the result
}

// Wait registers a waiter, and has done so when it returns. One result comes on the channel. An
// unknown condition is ErrInvalid, "" means NotRunning. When the result comes Info shows the
// container as ended, and after Removed its name is free. A start that fails ends Removed of a container that
// removes itself, and NextExit.
func (c *Container) Wait(ctx context.Context, cond WaitCondition) (<-chan WaitResult, error) {
	switch cond {
	case "":
		cond = NotRunning
	case NotRunning, NextExit, Removed:
	default:
		return nil, refuse(ErrInvalid, "invalid condition: %q", string(cond))
	}
	w := &waiter{cond, make(chan WaitResult, 1), make(chan struct{})}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.removed && cond != Removed {
		return nil, c.notFound()
	}
	if cond == NotRunning && c.run == nil && c.state.Status != Restarting || c.removed {
		w.ch <- WaitResult{ExitCode: c.state.ExitCode}
		return w.ch, nil
	}
	c.waiters = append(c.waiters, w)
	c.m.wg.Go(func() {
		select {
		case <-w.done:
		case <-ctx.Done():
			c.giveUp(w, ctx.Err())
		case <-c.m.closed:
			c.giveUp(w, ErrClosed)
		}
	})
	return w.ch, nil
}

// giveUp ends one waiter.
func (c *Container) giveUp(w *waiter, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if i := slices.Index(c.waiters, w); i >= 0 {
		c.waiters = slices.Delete(c.waiters, i, i+1)
		w.ch <- WaitResult{Err: err}
	}
}

// tellWaiters gives the exit code to those who wait for what has happened. Call it with
// mu held.
func (c *Container) tellWaiters(happened ...WaitCondition) {
	c.waiters = slices.DeleteFunc(c.waiters, func(w *waiter) bool {
		if !slices.Contains(happened, w.cond) {
			return false
		}
		w.ch <- WaitResult{ExitCode: c.state.ExitCode}
		close(w.done)
		return true
	})
}
