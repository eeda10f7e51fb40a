package containervm

import (
	"context"
	"time"
)

// LogOptions select lines of a container's log.
type LogOptions struct {
	Stdout, Stderr bool // at least one; else ErrInvalid
	// Follow goes on until the container does not run.
	Follow bool
	// Tail begins with so many of the last lines; nil means all.
	Tail *int
	// Since and Until leave out what came before and at or after; zero for none.
	// With Until in the future Follow ends then.
	Since, Until time.Time
}

// LogEntry is a line of output, its newline included, or a piece of a line longer than 16 KiB.
// The last line of a run may have no newline.
type LogEntry struct {
	Time   time.Time // when the line was finished, by the guest's clock
	Stderr bool
	// Partial says that the line goes on in the next entry of the same stream.
	Partial bool
	Data    []byte // valid until the function returns
}

// Logs calls fn with the selected lines of all runs, in order. It returns nil at the end, fn's error,
// ctx's, or ErrClosed.
func (c *Container) Logs(ctx context.Context, o LogOptions, fn func(LogEntry) error) error {
	return ErrNotImplemented
}
