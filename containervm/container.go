package containervm

import (
	"context"
	"syscall"
	"time"
)

// A Container is a handle on one container; it stays valid, if of little use, when
// the container has been removed. Unless a method says otherwise its errors are
// ErrNotFound after removal, and a change that has begun is finished even if its
// context ends.
type Container struct {
	id string
}

// ID has 64 hex digits.
func (c *Container) ID() string { return c.id }

// Info returns what is known of the container now, also after its removal.
func (c *Container) Info() Info { return Info{} }

// Start boots the VM and returns when the container's process runs. The error
// is ErrNotModified if it does already, a *StartError if the guest could not execute it
// (the container has then ended with that code), ErrConflict while it is removed.
func (c *Container) Start(ctx context.Context) error { return ErrNotImplemented }

// StopOptions say how to stop a container. The zero value does as its Spec says.
type StopOptions struct {
	// Signal to send first; 0 means the Spec's.
	Signal syscall.Signal
	// Grace is how long to wait before SIGKILL: nil means the Spec's, less than zero for ever.
	Grace *time.Duration
}

// Stop sends a signal, waits and kills, and returns when the VM has ended. The
// error is ErrNotModified if the container does not run. If ctx ends Stop returns, and the
// container is stopped all the same.
func (c *Container) Stop(ctx context.Context, o StopOptions) error { return ErrNotImplemented }

// Kill sends a signal to the container's process. With SIGKILL it returns when the
// VM has ended. The error is ErrNotRunning if the container does not run.
func (c *Container) Kill(ctx context.Context, sig syscall.Signal) error { return ErrNotImplemented }

// Restart stops the container if it runs, and starts it. It is not removed
// in between even if its Spec says AutoRemove.
func (c *Container) Restart(ctx context.Context, o StopOptions) error { return ErrNotImplemented }

// RemoveOptions say how to remove a container.
type RemoveOptions struct {
	Force bool // kill it if it runs
}

// Remove removes the container with its disk and log. The error is ErrConflict if it runs and is not
// to be killed, or is being removed by another.
func (c *Container) Remove(ctx context.Context, o RemoveOptions) error { return ErrNotImplemented }

// Rename gives the container another name, also in the network. The error is
// ErrInvalid for what is no name, ErrConflict for another container's.
func (c *Container) Rename(name string) error { return ErrNotImplemented }

// Resize sets the size of the terminal of the container's process. The error is ErrNotRunning, or
// ErrInvalid if it has none.
func (c *Container) Resize(ctx context.Context, s Size) error { return ErrNotImplemented }

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

// Wait registers a waiter, and has done so when it returns. One result comes on the channel. An
// unknown condition is ErrInvalid, "" means NotRunning. When the result comes Info shows the
// container as ended, and after Removed its name is free. A start that fails ends Removed of a container that
// removes itself, and NextExit.
func (c *Container) Wait(ctx context.Context, cond WaitCondition) (<-chan WaitResult, error) {
	return nil, ErrNotImplemented
}
