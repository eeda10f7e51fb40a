package containervm

import (
	"context"
	"io"
)

// ExecSpec says what a further process in a container is to be.
type ExecSpec struct {
	Args []string
	// Env is added to the container's.
	Env []string
	// Dir and User are the container's if "".
	Dir, User string
	TTY       bool
	Size      Size // of the terminal at the start
	// The streams that are not wanted are /dev/null. With TTY all output is on stdout.
	Stdin, Stdout, Stderr bool
	DetachKeys            []byte
	// Extra is the caller's own.
	Extra any
}

// An Exec is a further process in a container.
type Exec struct{}

// CreateExec makes an Exec, which does not run yet. The error is ErrNotRunning or ErrInvalid.
func (c *Container) CreateExec(s ExecSpec) (*Exec, error) { return nil, ErrNotImplemented }

// ID has 64 hex digits.
func (e *Exec) ID() string { return "" }

// Container is the one it belongs to.
func (e *Exec) Container() *Container { return nil }

// ExecInfo is what is known of an Exec at one moment.
type ExecInfo struct {
	ID, ContainerID string
	Spec            ExecSpec
	Started         bool
	Running         bool
	PID             int  // in the guest; 0 before it runs
	ExitCode        *int // nil until it has ended
}

// Info returns what is known of the exec now.
func (e *Exec) Info() ExecInfo { return ExecInfo{} }

// ExecStartOptions say how to start an Exec.
type ExecStartOptions struct {
	// Detach gives the process /dev/null whatever streams its Spec wants; Stream is
	// not to be called.
	Detach bool
	// Size of the terminal; zero means the Spec's.
	Size Size
}

// Start starts the process and returns when it runs. The error is a *StartError if the guest
// could not execute it, ErrConflict if it was started before, or ErrNotRunning. Without Detach
// Stream must follow.
func (e *Exec) Start(ctx context.Context, o ExecStartOptions) error { return ErrNotImplemented }

// Stream copies like that of an Attachment, until the process has ended and all its output has been written. When
// the client goes away (ctx, ErrDetached, a writer's error) the process runs on, and what it writes
// is thrown away.
func (e *Exec) Stream(ctx context.Context, stdin io.Reader, stdout, stderr io.Writer) error {
	return ErrNotImplemented
}

// Resize sets the size of the terminal. It may be called at any time: before the process runs it waits
// for that, at most 10 s. The error is ErrConflict if the process has ended, or did not
// start in time.
func (e *Exec) Resize(ctx context.Context, s Size) error { return ErrNotImplemented }
