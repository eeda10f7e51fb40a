package containervm

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"vic/tether/wire"
)

// A Container is a handle on one container; it stays valid, if of little use, when
// the container has been removed. Unless a method says otherwise its errors are
// ErrNotFound after removal, and a change that has begun is finished even if its
// context ends.
type Container struct {
	id      string
	m       *Manager
	dir     string
	created time.Time
	token   string
	op      chan struct{} // held by Start, Restart, Remove
	netOp   chan struct{} // held by Connect, Disconnect and Update; after op

	// saving is held while a record is written, so that the last state is the last one written; before mu.
	saving sync.Mutex
	sealed bool // the folder is being removed: nothing is written; guarded by saving

	mu        sync.Mutex // guards all below
	spec      Spec
	state     State
	endpoints []EndpointInfo // of the run, or of the last one
	accel     string
	boot      Boot
	logStart  int64
	logSeen   int64 // track's place in the log
	logHead   int64 // what is before it is not there any more
	places    map[*place]struct{}
	restarts  int           // automatic ones since somebody started it
	halted    bool          // by somebody, and not started since
	retry     *retry        // the VCH will start it, or nil
	backOff   time.Duration // the last one of retries
	run       *run          // nil while no VM runs
	runs      int           // how many runs have begun
	changed   chan struct{} // closed, and replaced, when any of these or the log changes
	waiters   []*waiter
	pending   []syscall.Signal // sent while the container was paused
	removing  bool
	removed   bool
	keep      bool                                  // Restart is at work: no AutoRemove
	busy      bool                                  // the disk is written to without a VM
	starting  bool                                  // a VM is about to use the disk
	readers   map[*context.CancelCauseFunc]struct{} // of the disk, while there is no VM
	// removeVolumes tells that the container's own volumes go with it, once State.Status is Removing.
	removeVolumes bool
}

// A run is one life of the VM.
type run struct {
	number  int
	machine Machine
	like    VM         // what its VM was like; the zero value if another process has started it
	conn    *wire.Conn // nil while there is no control session
	started bool       // the container's process runs
	manual  bool       // somebody stops or kills it
	policed bool       // it had a restart policy at some time, or its log is bounded
	usage   Usage      // what its guest said last
	// question is what the VM stands still for, "" most of the time.
	question string
	up       chan struct{} // closed when the process runs for the first time
	down     chan struct{} // closed when the VM has ended
	exited   chan struct{} // closed when the guest has said how it ends
	tracked  chan struct{} // closed when track has ended
	ended    chan struct{}
	ctx      context.Context // of what serves the VM
	cancel   context.CancelFunc
	wg       sync.WaitGroup // what serves the VM

	connections []*connection
	left        bool // the run is over, and takes no further connection
}

func newRun() *run {
	return &run{up: make(chan struct{}), down: make(chan struct{}), exited: make(chan struct{}), tracked: make(chan struct{}), ended: make(chan struct{})}
}

func newContainer(m *Manager, id string) *Container {
	return &Container{id: id, m: m, dir: filepath.Join(m.dir, id), op: make(chan struct{}, 1), netOp: make(chan struct{}, 1), changed: make(chan struct{}), places: make(map[*place]struct{})}
}

// ID has 64 hex digits.
func (c *Container) ID() string { return c.id }

// Info returns what is known of the container now, also after its removal.
func (c *Container) Info() Info {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := Info{
		ID: c.id, Name: c.spec.Name, Created: c.created, Spec: c.spec, State: c.state, Restarts: c.restarts, Accel: c.accel,
		DiskPath: filepath.Join(c.dir, "disk.vmdk"), LogPath: filepath.Join(c.dir, logFile), ConsolePath: filepath.Join(c.dir, consoleFile),
	}
	if c.removing && i.State.Status != Dead {
		i.State.Status = Removing
	}
	if c.run != nil {
		i.Endpoints = slices.Clone(c.endpoints)
		if q := c.run.question; q != "" {
			i.State.Error = standing(q)
		}
	}
	return i
}

// notify wakes those who wait for a change.
func (c *Container) notify() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.notifyLocked()
}

func (c *Container) notifyLocked() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// acquire serialises what begins or ends the container's existence or a run.
func (c *Container) acquire(ctx context.Context) error {
	select {
	case <-c.m.closed:
		return ErrClosed
	default:
	}
	select {
	case c.op <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-c.m.closed:
		return ErrClosed
	}
}

func (c *Container) releaseOp() { <-c.op }

// current returns the run that is under way.
func (c *Container) current() (*run, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.removed {
		return nil, c.notFound()
	}
	if c.run == nil || !c.run.started {
		return nil, refuse(ErrNotRunning, "container %s is not running", c.id)
	}
	return c.run, nil
}

func (c *Container) notFound() error { return refuse(ErrNotFound, "No such container: %s", c.id) }

// control returns the control session of a run, waiting for it if it is being opened.
func (c *Container) control(ctx context.Context, r *run) (*wire.Conn, error) {
	return c.controlAfter(ctx, r, nil)
}

// controlAfter returns the control session that follows one that was lost.
func (c *Container) controlAfter(ctx context.Context, r *run, lost *wire.Conn) (*wire.Conn, error) {
	for {
		c.mu.Lock()
		conn, changed := r.conn, c.changed
		c.mu.Unlock()
		if conn != nil && conn != lost {
			return conn, nil
		}
		select {
		case <-changed:
		case <-r.ended:
			return nil, refuse(ErrNotRunning, "container %s is not running", c.id)
		case <-ctx.Done():
			return nil, fmt.Errorf("reach the container's guest: %w", ctx.Err())
		case <-c.m.closed:
			return nil, ErrClosed
		}
	}
}

// StopOptions say how to stop a container. The zero value does as its Spec says.
type StopOptions struct {
	// Signal to send first; 0 means the Spec's.
	Signal syscall.Signal
	// Grace is how long to wait before SIGKILL: nil means the Spec's, less than zero for ever.
	Grace *time.Duration
}

const (
	defaultGrace = 10 * time.Second
	// killPatience is how long a guest may take from SIGKILL to its end, with all it has
	// to write, before its VM is killed.
	killPatience = 20 * time.Second
	// answerPatience is how long a guest may take to carry out what nobody else waits for.
	answerPatience = time.Minute
)

// Stop sends a signal, waits and kills, and returns when the VM has ended. The
// error is ErrNotModified if the container does not run. If ctx ends Stop returns, and the
// container is stopped all the same.
func (c *Container) Stop(ctx context.Context, o StopOptions) error {
	if c.giveUpRetry() {
		c.emit("stop", nil)
		return nil
	}
	r, err := c.current()
	if errors.Is(err, ErrNotRunning) {
		return refuse(ErrNotModified, "container %s is stopped already", c.id)
	}
	if err == nil {
		err = c.m.Available() // else nobody could tell that the VM has ended
	}
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	c.m.wg.Go(func() { done <- c.stop(r, o) })
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// stop ends a run and returns when it has ended, or the Manager is closed.
func (c *Container) stop(r *run, o StopOptions) error {
	sig, grace := o.Signal, defaultGrace
	if sig == 0 {
		sig = c.stopSignal()
	}
	c.mu.Lock()
	if o.Grace == nil {
		o.Grace = c.spec.StopGrace
	}
	r.manual, c.halted = true, true
	c.mu.Unlock()
	c.keepState() // a VCH that comes back does not start it
	if o.Grace != nil {
		grace = *o.Grace
	}
	ctx, cancel := context.WithCancel(context.Background())
	if grace >= 0 {
		ctx, cancel = context.WithTimeout(context.Background(), grace)
	}
	defer cancel()
	err := c.resume(ctx, r) // a process that stands still gets no signal
	if err != nil {
		c.m.o.Log.Warn("stop container", "container", c.id, "error", err)
	}
	_ = c.signal(ctx, r, sig, true) // whatever came of it, the process has its time
	select {
	case <-r.ended:
	case <-ctx.Done():
	case <-c.m.closed:
		return ErrClosed
	}
	if err := c.kill(r); err != nil {
		return err
	}
	c.emit("stop", nil)
	return nil
}

// signal sends a signal to the container's process. If the session is lost before the guest has
// answered it is sent again, so the process may get it twice. After a final one the guest does not start
// the process again.
func (c *Container) signal(ctx context.Context, r *run, sig syscall.Signal, final bool) error {
	var lost *wire.Conn
	for {
		conn, err := c.controlAfter(ctx, r, lost)
		if err != nil {
			return err
		}
		if lost == nil {
			c.emit("kill", map[string]string{"signal": strconv.Itoa(int(sig))})
		}
		if final {
			err = conn.End(ctx, int(sig))
		} else {
			err = conn.Signal(ctx, "", int(sig))
		}
		var refused *wire.Error
		switch {
		case err == nil:
			return nil
		case errors.Is(err, wire.ErrLost), errors.Is(err, wire.ErrClosed): // closed: the run has ended, which controlAfter tells
			lost = conn
		case errors.As(err, &refused) && refused.Kind == wire.NotRunning:
			return refuse(ErrNotRunning, "container %s is not running", c.id)
		default:
			return fmt.Errorf("send signal %d: %w", sig, err)
		}
	}
}

// kill ends a run for certain: by SIGKILL, so that what was written reaches the disk, or
// if the guest does not end then, by pulling the plug.
func (c *Container) kill(r *run) error {
	select {
	case <-r.ended:
		return nil
	default:
	}
	ctx, cancel := context.WithTimeout(context.Background(), killPatience)
	defer cancel()
	if err := c.resume(ctx, r); err != nil {
		c.m.o.Log.Warn("kill container", "container", c.id, "error", err)
	}
	_ = c.signal(ctx, r, syscall.SIGKILL, true) // a process that has ended is none to be killed, and its VM may still be writing
	select {
	case <-r.ended:
		return nil
	case <-ctx.Done():
	case <-c.m.closed:
		return ErrClosed
	}
	if err := r.machine.Kill(); err != nil {
		return fmt.Errorf("kill VM: %w", err)
	}
	select {
	case <-r.ended:
		return nil
	case <-c.m.closed:
		return ErrClosed
	}
}

// Kill sends a signal to the container's process, when it goes on if it is paused. With SIGKILL it returns when the
// VM has ended. The error is ErrNotRunning if the container does not run.
func (c *Container) Kill(ctx context.Context, sig syscall.Signal) error {
	final := sig == syscall.SIGKILL || sig == c.stopSignal()
	if final && c.giveUpRetry() {
		return nil
	}
	r, err := c.current()
	if err == nil && sig == syscall.SIGKILL {
		err = c.m.Available()
	}
	if err != nil {
		return err
	}
	if final {
		c.mu.Lock()
		r.manual, c.halted = sig == syscall.SIGKILL || r.manual, true
		c.mu.Unlock()
		c.keepState()
	}
	if sig == syscall.SIGKILL {
		return c.kill(r)
	}
	if waits, err := c.postpone(sig); err != nil {
		return err
	} else if waits {
		return c.saveState()
	}
	ctx, cancel := context.WithTimeout(ctx, answerPatience)
	defer cancel()
	return c.signal(ctx, r, sig, final)
}

// stopSignal is what Stop sends unless it is told otherwise. Who sends it by Kill stops the container too: it is
// not started again.
func (c *Container) stopSignal() syscall.Signal {
	if c.spec.StopSignal == 0 {
		return syscall.SIGTERM
	}
	return c.spec.StopSignal
}

// Restart stops the container if it runs, and starts it. It is not removed
// in between even if its Spec says AutoRemove.
func (c *Container) Restart(ctx context.Context, o StopOptions) error {
	c.setKeep(true)
	defer c.setKeep(false)
	if err := c.Stop(ctx, o); err != nil && !errors.Is(err, ErrNotModified) {
		return err
	}
	if err := c.Start(ctx); err != nil {
		return err
	}
	c.emit("restart", nil)
	return nil
}

func (c *Container) setKeep(keep bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.keep = keep
}

// Rename gives the container another name, also in the network. The error is
// ErrInvalid for what is no name, ErrConflict for another container's.
func (c *Container) Rename(name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	c.m.mu.Lock()
	c.mu.Lock()
	old := c.spec.Name
	err := c.m.nameFree(name)
	switch {
	case c.removed:
		err = c.notFound()
	case name == old:
		err = refuse(ErrInvalid, "Renaming a container with the same name as its current name")
	}
	if err == nil {
		delete(c.m.names, old)
		c.m.names[name] = c
		c.spec.Name = name
	}
	r := c.run
	c.mu.Unlock()
	c.m.mu.Unlock()
	if err != nil {
		return err
	}
	if r != nil {
		err = c.renameConnections(r)
	}
	if d, ok := c.m.o.Disks.(Registered); ok {
		if err := d.RenameContainer(context.Background(), c.id, name); err != nil { // that it has is what counts
			c.m.o.Log.Warn("rename what the hypervisor shows", "container", c.id, "name", name, "error", err)
		}
	}
	if err := errors.Join(err, c.save()); err != nil {
		return fmt.Errorf("rename container: %w", err)
	}
	c.emit("rename", map[string]string{"oldName": "/" + old})
	return nil
}

// Resize sets the size of the terminal of the container's process. The error is ErrNotRunning, or
// ErrInvalid if it has none.
func (c *Container) Resize(ctx context.Context, s Size) error {
	r, err := c.current()
	if err != nil {
		return err
	}
	if !c.spec.TTY {
		return refuse(ErrInvalid, "container %s has no terminal", c.id)
	}
	conn, err := c.control(ctx, r)
	if err != nil {
		return err
	}
	if err := conn.Resize(ctx, "", s); err != nil {
		return fmt.Errorf("resize terminal: %w", err)
	}
	c.emit("resize", map[string]string{"height": strconv.Itoa(int(s.Rows)), "width": strconv.Itoa(int(s.Cols))})
	return nil
}
