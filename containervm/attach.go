package containervm

import (
	"context"
	"errors"
	"io"

	"vic/tether/wire"
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
type Attachment struct {
	c   *Container
	o   AttachOptions
	run int // ends with this run
	off int64
	end int64 // where the log ended at the time
	at  *place
}

// Attach attaches to the container's process, or if it does not run to the next
// start. Any number may be attached at a time. The error is ErrConflict while the container
// is removed.
func (c *Container) Attach(o AttachOptions) (*Attachment, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.removed:
		return nil, c.notFound()
	case c.removing:
		return nil, refuse(ErrConflict, "container %s is being removed", c.id)
	case c.state.Status == Restarting:
		return nil, refuse(ErrConflict, "container %s is restarting, wait until the container is running", c.id)
	case c.state.Status == Paused:
		return nil, refuse(ErrPaused, "container %s is paused, unpause the container before attach", c.id)
	}
	a := &Attachment{c: c, o: o, run: c.runs, end: c.logSize()}
	if c.run == nil {
		a.run++
	}
	if !o.Logs {
		a.off = a.end
	}
	a.at = c.holdLocked(a.off)
	return a, nil
}

// Stream copies stdin to the process and its output to stdout and stderr, whichever
// were asked for and are not nil, until the run ends and all output has been written. Both writers are
// used by one goroutine, in the order in which the guest sent. With a terminal all
// output is on stdout. It returns nil then, ErrDetached, ctx's error, that of a writer, or ErrClosed.
//
// A Read of stdin may still wait when Stream returns; the caller ends it by closing what
// it reads from, and Stream's goroutine ends with it. An error or io.EOF from stdin ends
// only the input.
func (a *Attachment) Stream(ctx context.Context, stdin io.Reader, stdout, stderr io.Writer) error {
	c := a.c
	c.emit("attach", nil)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if a.o.Stdin && stdin != nil && c.spec.OpenStdin && !a.o.LogsOnly {
		go func() { // ends with what it reads from
			if err := a.input(ctx, stdin); errors.Is(err, ErrDetached) {
				cancel(ErrDetached)
			}
		}()
	}
	f, err := c.openLog(a.off)
	if err != nil {
		return err
	}
	defer f.close()
	over := func() bool { return a.o.LogsOnly || c.over(a.run) || c.gone() }
	for {
		rec, err := f.next(ctx, over)
		if err == io.EOF || err == nil && a.o.LogsOnly && rec.Offset >= a.end {
			return nil
		}
		if err != nil {
			if cause := context.Cause(ctx); cause != nil {
				err = cause
			}
			if err == ErrDetached {
				c.emit("detach", nil)
			}
			return err
		}
		a.at.move(rec.Offset)
		if rec.Type == wire.RecExit && rec.Offset >= a.end && !a.o.LogsOnly {
			if exit, err := rec.Exit(); err == nil && exit.Again > 0 {
				return nil // what comes is another process's
			}
		}
		w := stdout
		switch {
		case rec.Type == wire.Stderr && a.o.Stderr:
			w = stderr
		case rec.Type != wire.Stdout || !a.o.Stdout:
			continue
		}
		if w == nil {
			continue
		}
		if _, err := w.Write(rec.Data); err != nil {
			return err
		}
	}
}

// gone says that the container will not run any more.
func (c *Container) gone() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.removed
}

// input copies stdin into the run's control session.
func (a *Attachment) input(ctx context.Context, stdin io.Reader) error {
	r, err := a.awaitRun(ctx)
	if err != nil {
		return err
	}
	conn, err := a.c.control(ctx, r)
	if err != nil {
		return err
	}
	in := &detachReader{r: stdin, keys: a.o.DetachKeys}
	if _, err := io.Copy(conn.Stdin(), in); err != nil {
		return err
	}
	if a.c.spec.StdinOnce && !a.c.spec.TTY {
		return conn.Stdin().CloseWrite()
	}
	return nil
}

// awaitRun waits for the run that the Attachment is for.
func (a *Attachment) awaitRun(ctx context.Context) (*run, error) {
	c := a.c
	for {
		c.mu.Lock()
		r, changed := c.run, c.changed
		c.mu.Unlock()
		if r != nil && r.number == a.run {
			return r, nil
		}
		if c.over(a.run) || c.gone() {
			return nil, refuse(ErrNotRunning, "container %s is not running", c.id)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-c.m.closed:
			return nil, ErrClosed
		}
	}
}

// Close detaches. It must be called, after Stream or instead of it.
func (a *Attachment) Close() error {
	a.at.free()
	return nil
}

// A detachReader passes on what is typed, but for the detach keys: those end it with
// ErrDetached.
type detachReader struct {
	r    io.Reader
	keys []byte
	n    int    // how many of the keys were typed
	held []byte // what is to be returned before more is read
	err  error
}

// Read implements io.Reader.
func (d *detachReader) Read(p []byte) (int, error) {
	if len(d.keys) == 0 {
		return d.r.Read(p)
	}
	for len(d.held) == 0 {
		if d.err != nil {
			return 0, d.err
		}
		buf := make([]byte, len(p))
		n, err := d.r.Read(buf)
		d.err = err
		d.scan(buf[:n])
		if d.err != nil && d.err != ErrDetached { // the rest of the keys will not come
			d.held = append(d.held, d.keys[:d.n]...)
			d.n = 0
		}
	}
	n := copy(p, d.held)
	d.held = d.held[n:]
	return n, nil
}

// scan takes in what was typed.
func (d *detachReader) scan(p []byte) {
	for _, b := range p {
		if d.n > 0 && d.keys[d.n] != b { // not the keys after all
			d.held = append(d.held, d.keys[:d.n]...)
			d.n = 0
		}
		if d.keys[d.n] != b {
			d.held = append(d.held, b)
			continue
		}
		if d.n++; d.n == len(d.keys) {
			d.err, d.n = ErrDetached, 0
			return
		}
	}
}
