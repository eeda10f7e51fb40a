package containervm

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"vic/tether/wire"
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

// maxLine is the longest piece of a line that is one LogEntry.
const maxLine = 16 << 10

// Logs calls fn with the selected lines of all runs, in order. It returns nil at the end, fn's error,
// ctx's, or ErrClosed.
func (c *Container) Logs(ctx context.Context, o LogOptions, fn func(LogEntry) error) error {
	if !o.Stdout && !o.Stderr {
		return refuse(ErrInvalid, "Bad parameters: you must choose at least one stream")
	}
	size := c.logSize()
	skip := 0
	free := func() {}
	if o.Tail != nil && *o.Tail >= 0 {
		free = sync.OnceFunc(c.hold(0).free) // what is counted is there when it is passed over
		defer free()
		total := 0
		l := lines{o: o, fn: func(LogEntry) error { total++; return nil }}
		if err := c.readLog(ctx, ctx, size, false, &l); err != nil {
			return err
		}
		skip = max(0, total-*o.Tail)
	}
	l := lines{o: o, fn: func(e LogEntry) error {
		if skip > 0 {
			skip--
			return nil
		}
		free()
		return fn(e)
	}}
	patience := ctx
	if o.Follow && !o.Until.IsZero() {
		var cancel context.CancelFunc
		patience, cancel = context.WithDeadline(ctx, o.Until)
		defer cancel()
	}
	return c.readLog(ctx, patience, size, o.Follow, &l)
}

// readLog gives the log to l: the first size bytes, or with follow all until the
// container does not run or patience, made from ctx, ends.
func (c *Container) readLog(ctx, patience context.Context, size int64, follow bool, l *lines) error {
	f, err := c.openLog(0)
	if err != nil {
		return err
	}
	defer f.close()
	over := func() bool {
		if !follow {
			return true
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.run == nil && c.state.Status != Restarting
	}
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		rec, err := f.next(patience, over)
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			return l.end()
		}
		if err == io.EOF || err == nil && !follow && rec.Offset >= size {
			return l.end()
		}
		if err != nil {
			return err
		}
		if err := l.add(rec); err != nil {
			return err
		}
	}
}

// lines cuts records into lines.
type lines struct {
	o    LogOptions
	fn   func(LogEntry) error
	part [2]partLine // of stdout and stderr
}

// partLine is a line whose end has not come yet.
type partLine struct {
	data []byte
	time time.Time
}

func (l *lines) add(rec wire.Record) error {
	switch rec.Type {
	case wire.Stdout:
		if !l.o.Stdout {
			return nil
		}
		return l.output(0, rec)
	case wire.Stderr:
		if !l.o.Stderr {
			return nil
		}
		return l.output(1, rec)
	case wire.RecStarted, wire.RecExit: // a run's last line may lack its newline
		return l.end()
	}
	return nil
}

func (l *lines) output(stream int, rec wire.Record) error {
	p := &l.part[stream]
	p.time = rec.Time
	for data := rec.Data; len(data) > 0; {
		n := bytes.IndexByte(data, '\n') + 1
		whole := n > 0
		if !whole {
			n = len(data)
		}
		if room := maxLine - len(p.data); n > room {
			n, whole = room, false
		}
		p.data = append(p.data, data[:n]...)
		data = data[n:]
		if whole || len(p.data) == maxLine {
			if err := l.emit(stream, !whole); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l *lines) emit(stream int, partial bool) error {
	p := &l.part[stream]
	e := LogEntry{Time: p.time, Stderr: stream == 1, Partial: partial, Data: p.data}
	p.data = p.data[:0]
	if e.Time.Before(l.o.Since) || !l.o.Until.IsZero() && !e.Time.Before(l.o.Until) {
		return nil
	}
	return l.fn(e)
}

// end gives out lines without an end.
func (l *lines) end() error {
	for i := range l.part {
		if len(l.part[i].data) > 0 {
			if err := l.emit(i, false); err != nil {
				return err
			}
		}
	}
	return nil
}
