package containervm

import (
	"context"
	"io"
)

// AttachOptions say what an Attachment is for.
type AttachOptions struct {
	// Stdin, Stdout, Stderr: the streams wanted. Stdin is refused by none, but goes
	// nowhere unless the Spec has OpenStdin.
	Stdin, Stdout, Stderr bool
	// Logs begins with the output of the runs so far.
	Logs bool
	// LogsOnly ends where the log ends now; nothing that comes is streamed.
	LogsOnly bool
	// DetachKeys typed on stdin detach. Empty means none.
	DetachKeys []byte
}

// An Attachment is a client of a container's streams, from the moment that
// Attach returns: output from then on is not missed, however late Stream comes.
type Attachment struct{}

// Attach attaches to the container's process, or if it does not run to the next
// start. Any number may be attached at a time. The error is ErrConflict while the container
// is removed.
func (c *Container) Attach(o AttachOptions) (*Attachment, error) { return nil, ErrNotImplemented }

// Stream copies stdin to the process and its output to stdout and stderr, whichever
// were asked for and are not nil, until the run ends and all output has been written. Both writers are
// used by one goroutine, in the order in which the guest sent. With a terminal all
// output is on stdout. It returns nil then, ErrDetached, ctx's error, that of a writer, or ErrClosed.
//
// A Read of stdin may still wait when Stream returns; the caller ends it by closing what
// it reads from, and Stream's goroutine ends with it. An error or io.EOF from stdin ends
// only the input.
func (a *Attachment) Stream(ctx context.Context, stdin io.Reader, stdout, stderr io.Writer) error {
	return ErrNotImplemented
}

// Close detaches. It must be called, after Stream or instead of it.
func (a *Attachment) Close() error { return nil }
