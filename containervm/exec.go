package containervm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"vic/tether/wire"
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
	// Privileged leaves the process all that the container's may not do.
	Privileged bool
	// Extra is the caller's own.
	Extra any
}

// An Exec is a further process in a container.
type Exec struct {
	id   string
	c    *Container
	spec ExecSpec
	run  *run

	mu      sync.Mutex
	begun   bool
	process *wire.Process // nil until it runs
	pid     int
	exit    *int
	changed chan struct{} // closed, and replaced, when any of these changes
}

// CreateExec makes an Exec, which does not run yet. The error is ErrNotRunning or ErrInvalid.
func (c *Container) CreateExec(s ExecSpec) (*Exec, error) {
	if len(s.Args) == 0 {
		return nil, refuse(ErrInvalid, "No exec command specified")
	}
	r, err := c.executable()
	if err != nil {
		return nil, err
	}
	e := &Exec{id: newID(), c: c, spec: s, run: r, changed: make(chan struct{})}
	c.m.mu.Lock()
	c.m.execs[e.id] = e
	c.m.mu.Unlock()
	c.emit("exec_create: "+strings.Join(s.Args, " "), map[string]string{"execID": e.id})
	return e, nil
}

// executable is the run in which an exec can be started.
func (c *Container) executable() (*run, error) {
	r, err := c.active()
	if err == nil && c.paused() {
		return nil, refuse(ErrPaused, "container %s is paused, unpause the container before exec", c.id)
	}
	return r, err
}

// Execs are the IDs of the container's execs that have not ended.
func (c *Container) Execs() []string {
	var ids []string
	for _, e := range c.m.execsOf(c) {
		if e.Info().ExitCode == nil {
			ids = append(ids, e.id)
		}
	}
	slices.Sort(ids)
	return ids
}

// execKept is how long an exec that has ended is known: clients ask for exit codes after the
// streams have closed.
const execKept = time.Minute

// forgetExecs drops the execs of a run that has ended, a while later; those that were never started at once.
func (m *Manager) forgetExecs(c *Container) {
	for _, e := range m.execsOf(c) {
		if e.Info().Started {
			e.forget()
			continue
		}
		m.mu.Lock()
		delete(m.execs, e.id)
		m.mu.Unlock()
	}
}

func (m *Manager) execsOf(c *Container) []*Exec {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []*Exec
	for _, e := range m.execs {
		if e.c == c {
			all = append(all, e)
		}
	}
	return all
}

// forget drops an exec a while later.
func (e *Exec) forget() {
	time.AfterFunc(execKept, func() {
		e.c.m.mu.Lock()
		defer e.c.m.mu.Unlock()
		delete(e.c.m.execs, e.id)
	})
}

// ID has 64 hex digits.
func (e *Exec) ID() string { return e.id }

// Container is the one it belongs to.
func (e *Exec) Container() *Container { return e.c }

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
func (e *Exec) Info() ExecInfo {
	e.mu.Lock()
	defer e.mu.Unlock()
	return ExecInfo{ID: e.id, ContainerID: e.c.id, Spec: e.spec, Started: e.begun,
		Running: e.process != nil && e.exit == nil, PID: e.pid, ExitCode: e.exit}
}

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
func (e *Exec) Start(ctx context.Context, o ExecStartOptions) error {
	e.mu.Lock()
	before := e.begun
	e.begun = true
	e.mu.Unlock()
	if before {
		return refuse(ErrConflict, "exec %s has been started already", e.id)
	}
	if err := e.start(ctx, o); err != nil {
		var start *StartError
		if errors.As(err, &start) {
			e.ended(start.ExitCode)
		}
		if errors.Is(err, ErrPaused) { // it can be started later
			e.mu.Lock()
			e.begun = false
			e.mu.Unlock()
		}
		return err
	}
	return nil
}

func (e *Exec) start(ctx context.Context, o ExecStartOptions) error {
	now, err := e.c.executable()
	if err == nil && now != e.run {
		err = refuse(ErrNotRunning, "container %s is not running", e.c.id)
	}
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, answerPatience)
	defer cancel()
	conn, err := e.c.control(ctx, e.run)
	if err != nil {
		return err
	}
	s := e.spec
	x := wire.Exec{ID: e.id, Args: s.Args, Env: s.Env, Dir: s.Dir, User: s.User, Groups: e.c.spec.Groups, TTY: s.TTY, Size: s.Size, Privileged: s.Privileged}
	if o.Size != (Size{}) {
		x.Size = o.Size
	}
	if !o.Detach {
		x.Stdin, x.Stdout, x.Stderr = s.Stdin, s.Stdout || s.TTY, s.Stderr && !s.TTY
	}
	p, err := conn.Exec(ctx, x)
	if err != nil {
		return execError(err)
	}
	e.mu.Lock()
	e.process, e.pid = p, p.PID
	close(e.changed)
	e.changed = make(chan struct{})
	e.mu.Unlock()
	e.c.emit("exec_start: "+strings.Join(s.Args, " "), map[string]string{"execID": e.id})
	if o.Detach {
		e.c.m.wg.Go(func() { e.reap(p) })
	}
	return nil
}

// execError translates the guest's refusal.
func execError(err error) error {
	var w *wire.Error
	if !errors.As(err, &w) {
		return fmt.Errorf("start exec: %w", err)
	}
	switch w.Kind {
	case wire.NotStarted:
		return &StartError{ExitCode: w.ExitCode, Message: w.Message}
	case wire.NotRunning:
		return refuse(ErrNotRunning, "%s", w.Message)
	case wire.Invalid:
		return refuse(ErrInvalid, "%s", w.Message)
	}
	return fmt.Errorf("start exec: %w", err)
}

// reap waits for the process and records its exit code; 137 if the container went first.
func (e *Exec) reap(p *wire.Process) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		select {
		case <-e.run.ended:
		case <-e.c.m.closed:
		case <-ctx.Done():
		}
		cancel()
	}()
	code := 137
	if exit, err := p.Wait(ctx); err == nil {
		code = exit.Code
	}
	_ = p.Close() // the session may be gone
	e.ended(code)
	e.c.emit("exec_die", map[string]string{"execID": e.id, "exitCode": strconv.Itoa(code)})
}

func (e *Exec) ended(code int) {
	e.forget()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.exit = &code
	close(e.changed)
	e.changed = make(chan struct{})
}

// Stream copies like that of an Attachment, until the process has ended and all its output has been written. When
// the client goes away (ctx, ErrDetached, a writer's error) the process runs on, and what it writes
// is thrown away.
func (e *Exec) Stream(ctx context.Context, stdin io.Reader, stdout, stderr io.Writer) error {
	e.mu.Lock()
	p := e.process
	e.mu.Unlock()
	if p == nil {
		return refuse(ErrConflict, "exec %s does not run", e.id)
	}
	detached := make(chan error, 1)
	if e.spec.Stdin && stdin != nil {
		go func() { // ends with what it reads from
			_, err := io.Copy(p.Stdin(), &detachReader{r: stdin, keys: e.spec.DetachKeys})
			if errors.Is(err, ErrDetached) {
				detached <- err
				return
			}
			_ = p.Stdin().CloseWrite() // the process may be gone
		}()
	}
	out := make(chan error, 1)
	e.c.m.wg.Go(func() { out <- e.output(p, stdout, stderr) })
	select {
	case err := <-out:
		return err
	case err := <-detached:
		e.c.emit("exec_detach", map[string]string{"execID": e.id})
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-e.c.m.closed:
		return ErrClosed
	}
}

// output copies all output and then learns the exit code. After a writer's error the
// rest is thrown away, so that the process is not held up.
func (e *Exec) output(p *wire.Process, stdout, stderr io.Writer) error {
	var wg sync.WaitGroup
	var mu sync.Mutex // the writers may share a connection
	errs := make([]error, 2)
	for i, x := range []struct {
		r io.Reader
		w io.Writer
	}{{p.Stdout(), stdout}, {p.Stderr(), stderr}} {
		wg.Go(func() {
			w := x.w
			if w == nil {
				w = io.Discard
			}
			_, errs[i] = io.Copy(lockedWriter{&mu, w}, x.r)
			_, _ = io.Copy(io.Discard, x.r)
		})
	}
	wg.Wait()
	e.reap(p)
	for _, err := range errs {
		if err != nil && !errors.Is(err, wire.ErrLost) && !errors.Is(err, io.ErrClosedPipe) {
			return err
		}
	}
	return nil
}

type lockedWriter struct {
	mu *sync.Mutex
	w  io.Writer
}

func (l lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// execPatience is how long Resize waits for the process.
const execPatience = 10 * time.Second

// Resize sets the size of the terminal. It may be called at any time: before the process runs it waits
// for that, at most 10 s. The error is ErrConflict if the process has ended, or did not
// start in time.
func (e *Exec) Resize(ctx context.Context, s Size) error {
	ctx, cancel := context.WithTimeout(ctx, execPatience)
	defer cancel()
	for {
		e.mu.Lock()
		p, exit, changed := e.process, e.exit, e.changed
		e.mu.Unlock()
		if exit != nil {
			return refuse(ErrConflict, "exec %s is not running", e.id)
		}
		if p != nil {
			conn, err := e.c.control(ctx, e.run)
			if err != nil {
				return err
			}
			if err := conn.Resize(ctx, e.id, s); err != nil {
				return refuse(ErrConflict, "resize exec %s: %v", e.id, err)
			}
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return refuse(ErrConflict, "exec %s does not run", e.id)
		}
	}
}
