package containervm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"vic/tether/wire"
)

const (
	// usagePatience is how long it may take to tell what it has used: who asks wants to see
	// something within two seconds.
	usagePatience = time.Second
	// firstPatience is how long it may take if it has told nothing before.
	firstPatience = 10 * time.Second
	// maxProcesses bounds what a guest tells of its processes, in bytes.
	maxProcesses = 64 << 20
)

// guest returns the control session of the run that is under way, within answerPatience. The error
// is ErrNotRunning, or ErrPaused while the VM stands still: what it has not written to its disk yet only it knows.
func (c *Container) guest(ctx context.Context) (*wire.Conn, error) {
	r, err := c.current()
	if err != nil {
		return nil, err
	}
	if c.paused() {
		return nil, refuse(ErrPaused, "container %s is paused, unpause the container first", c.id)
	}
	ctx, cancel := context.WithTimeout(ctx, answerPatience)
	defer cancel()
	return c.control(ctx, r)
}

// taskError translates a guest's refusal of something that is no exec.
func taskError(err error) error {
	var w *wire.Error
	if !errors.As(err, &w) {
		return err
	}
	switch w.Kind {
	case wire.NotFound:
		return refuse(ErrNotFound, "%s", w.Message)
	case wire.NotRunning:
		return refuse(ErrNotRunning, "%s", w.Message)
	case wire.Invalid:
		return refuse(ErrInvalid, "%s", w.Message)
	}
	return err
}

// readTask begins a task in the guest. The context is that of the whole task, whose beginning
// has answerPatience.
func (c *Container) readTask(ctx context.Context, t wire.Task) (wire.PathStat, io.ReadCloser, error) {
	conn, err := c.guest(ctx)
	if err != nil {
		return wire.PathStat{}, nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	late := time.AfterFunc(answerPatience, func() { cancel(errors.New("the container's guest does not answer")) })
	t.ID = newID()
	st, stream, err := conn.Read(ctx, t)
	if !late.Stop() && err != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		cancel(nil)
		return wire.PathStat{}, nil, taskError(err)
	}
	// Who waits for more is woken by the context's end.
	stop := context.AfterFunc(ctx, func() { stream.Close() })
	return st, &taskStream{stream, func() { stop(); cancel(nil) }}, nil
}

// A taskStream is what a guest sends.
type taskStream struct {
	io.ReadCloser
	release func()
}

func (s *taskStream) Close() error {
	s.release()
	return s.ReadCloser.Close()
}

// errStands is why a paused VM is not asked.
var errStands = errors.New("the VM stands still")

// Process is a process in a container, as /proc tells of it.
type Process = wire.ProcessInfo

// Processes lists the container's processes in the order of /proc, without the kernel's and the
// tether. The error is ErrNotRunning if it does not run.
func (c *Container) Processes(ctx context.Context) ([]Process, error) {
	_, stream, err := c.readTask(ctx, wire.Task{Kind: wire.TaskProcesses})
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	var list []Process
	for dec := json.NewDecoder(io.LimitReader(stream, maxProcesses)); ; {
		var p Process
		if err := dec.Decode(&p); err == io.EOF {
			c.emit("top", nil)
			return list, nil
		} else if err != nil {
			return nil, fmt.Errorf("list the container's processes: %w", err)
		}
		list = append(list, p)
	}
}

// Usage is what a container's VM has used since it was started, by the guest's word.
type Usage = wire.Usage

// Usage tells what the container has used. A guest that does not answer in time, as that of
// a paused container, has used what it said last. The error is ErrNotRunning if it does not run.
func (c *Container) Usage(ctx context.Context) (Usage, error) {
	r, err := c.current()
	if err != nil {
		return Usage{}, err
	}
	c.mu.Lock()
	patience := usagePatience
	if r.usage.Time == 0 {
		patience = firstPatience
	}
	c.mu.Unlock()
	asking, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var u Usage
	err = errStands
	if !c.paused() {
		var conn *wire.Conn
		if conn, err = c.control(asking, r); err == nil {
			u, err = conn.Usage(asking)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		r.usage = u
		return u, nil
	}
	if ctx.Err() != nil {
		return Usage{}, ctx.Err()
	}
	if c.run != r {
		return Usage{}, refuse(ErrNotRunning, "container %s is not running", c.id)
	}
	u = r.usage
	u.Time = time.Now().UnixNano()
	return u, nil
}
