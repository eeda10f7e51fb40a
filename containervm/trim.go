package containervm

import (
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"vic/tether/wire"
)

// The log of a container is a file that its VM appends to. Where it is bounded its head is given back to the file system
// as a hole, so that all offsets stay as they are. The head is not recorded: it is where the file's data begin.

// A place in the log is what is still to be read from there.
type place struct {
	c   *Container
	off int64 // guarded by c.mu
}

// hold keeps the log from off on until the place is freed, or moved.
func (c *Container) hold(off int64) *place {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.holdLocked(off)
}

func (c *Container) holdLocked(off int64) *place {
	p := &place{c, off}
	c.places[p] = struct{}{}
	return p
}

func (p *place) move(off int64) {
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	p.off = off
}

func (p *place) free() {
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	delete(p.c.places, p)
}

// findHead returns where the log begins.
func (c *Container) findHead(f *os.File) int64 {
	off, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_DATA)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil { // else it is empty, or has no holes
		c.logHead = max(c.logHead, off)
	}
	return c.logHead
}

// trim gives the head of the log back if it is longer than it may be, up to seven eighths of that. last is the record
// that track has come to; what follows it stays, and so does it.
func (c *Container) trim(last wire.Record) {
	room := c.spec.Log.Room
	c.mu.Lock()
	head := c.logHead
	from := min(last.End-room+room/8, last.Offset)
	for p := range c.places {
		from = min(from, p.off)
	}
	c.mu.Unlock()
	const step = 4 << 10 // less is not worth a call
	if room == 0 || last.End-head <= room || from-head < min(step, room/8) {
		return
	}
	if err := c.punch(head, from, last); err != nil {
		c.m.o.Log.Warn("bound the log", "container", c.id, "error", err)
	}
}

// punch gives back what is between head and the first record at or after from.
func (c *Container) punch(head, from int64, last wire.Record) error {
	f, err := os.OpenFile(filepath.Join(c.dir, logFile), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	border := last.Offset
	if rec, err := wire.NewLogReader(io.NewSectionReader(f, from, last.Offset-from), from).Next(); err == nil {
		border = rec.Offset
	} else if err != io.EOF {
		return fmt.Errorf("read log at %d: %w", from, err)
	}
	c.mu.Lock()
	c.logHead = border // before it is gone: readers that are before it go on there
	c.mu.Unlock()
	const whole = 64 << 10       // of file systems' blocks
	begin := head &^ (whole - 1) // the block that head is in was not given back
	if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, begin, border-begin); err != nil {
		return fmt.Errorf("punch hole into log up to %d: %w", border, err)
	}
	return nil
}
