package containervm

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"vic/tether/wire"
)

// A follower reads a container's log as it grows.
type follower struct {
	c    *Container
	f    *os.File
	r    *wire.LogReader
	last int64 // where the last record ended
	// caughtUp, if set, is told where the log has been read to whenever there is no more for now.
	caughtUp func(off int64)
}

// openLog opens the log at an offset, or at its head if that is behind it. A container that never ran has an empty one.
func (c *Container) openLog(off int64) (*follower, error) {
	path := filepath.Join(c.dir, logFile)
	if err := touch(path); err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	off = max(off, c.findHead(f))
	if _, err := f.Seek(off, io.SeekStart); err != nil {
		f.Close()
		return nil, fmt.Errorf("open log: %w", err)
	}
	return &follower{c: c, f: f, r: wire.NewLogReader(f, off), last: off}, nil
}

// next returns the next record, waiting for it unless over says that none will come; then
// it returns io.EOF. The record is valid until the next call.
func (f *follower) next(ctx context.Context, over func() bool) (wire.Record, error) {
	for {
		f.c.mu.Lock()
		changed, head := f.c.changed, f.c.logHead
		f.c.mu.Unlock()
		if f.r.Offset() < head { // it was too slow
			if _, err := f.f.Seek(head, io.SeekStart); err != nil {
				return wire.Record{}, err
			}
			f.r = wire.NewLogReader(f.f, head)
		}
		if err := f.renew(); err != nil {
			return wire.Record{}, err
		}
		end := over() // before the read: what was written until then is read
		rec, err := f.r.Next()
		if err != io.EOF {
			f.last = max(f.last, rec.End)
			return rec, err
		}
		if end {
			return rec, io.EOF
		}
		if f.caughtUp != nil {
			f.caughtUp(f.r.Offset())
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return rec, ctx.Err()
		case <-f.c.m.closed:
			return rec, ErrClosed
		}
	}
}

// renew opens the log again as long as nothing was read of it: a VM's first start may have replaced an empty one.
func (f *follower) renew() error {
	if f.r.Offset() > 0 {
		return nil
	}
	now, err := os.Stat(f.f.Name())
	if err != nil {
		return nil // removed: it ends as it is
	}
	was, err := f.f.Stat()
	if err != nil || os.SameFile(was, now) {
		return err
	}
	file, err := os.Open(f.f.Name())
	if err != nil {
		return err
	}
	f.f.Close()
	f.f, f.r = file, wire.NewLogReader(file, 0)
	return nil
}

// maxDamage is how many bytes of a log that are no records, as VMs leave that were killed, are passed over
// without a word.
const maxDamage = 1 << 20

func (f *follower) close() {
	if n := f.r.Skipped(); n > maxDamage {
		f.c.m.o.Log.Warn("guest misbehaves: its log has bytes that are no records", "container", f.c.id, "size", n)
	}
	f.f.Close()
}

// logSize is where the log ends now.
func (c *Container) logSize() int64 {
	st, err := os.Stat(filepath.Join(c.dir, logFile))
	if err != nil {
		return 0
	}
	return st.Size()
}
