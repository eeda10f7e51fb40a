package containervm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"vic/tether/wire"
)

// redial is how long to wait before a port that failed is tried again.
const redial = 100 * time.Millisecond

// maxRedial is the same for a guest that broke the protocol again and again.
const maxRedial = 30 * time.Second

// helloPatience is how long a guest may take to answer a hello before another is sent. One
// that is still booting takes longer, and answers the last. One that was sent while the port
// changed hands can be lost, and nothing but silence tells.
const helloPatience = 5 * time.Second

// serve looks after a VM until it ends or the Manager is closed: its control session, its
// network, its end.
func (c *Container) serve(r *run) {
	ctx, cancel := context.WithCancel(context.Background())
	r.ctx, r.cancel = ctx, cancel
	if err := c.m.watcher.Add(filepath.Join(c.dir, logFile)); err != nil {
		c.m.o.Log.Warn("watch log", "container", c.id, "error", err)
	}
	r.wg.Go(func() { c.serveControl(ctx, r) })
	if m, ok := r.machine.(Observed); ok {
		r.wg.Go(func() { c.observe(ctx, r, m) })
	}
	for _, k := range r.connections {
		c.serveConnection(r, k)
	}
	c.m.wg.Go(func() { c.track(r, c.logSeen) })
	c.m.wg.Go(func() {
		select {
		case <-r.machine.Done():
			close(r.down)
			c.notify()
			<-r.tracked
			c.finish(r)
		case <-c.m.closed:
		}
		cancel()
		r.wg.Wait()
	})
}

// serveControl keeps a control session open. A guest that breaks the protocol is spoken to less and less
// often: it costs this host time.
func (c *Container) serveControl(ctx context.Context, r *run) {
	pause := redial
	for ctx.Err() == nil {
		conn, err := c.connect(ctx, r)
		if err == nil {
			c.setConn(r, conn)
			r.wg.Go(func() { c.remind(ctx, conn) })
			if c.spec.Health != nil {
				r.wg.Go(func() { c.watchHealth(ctx, r, conn) })
			}
			select {
			case <-conn.Done():
			case <-ctx.Done():
			}
			c.setConn(r, nil)
			err = errors.Join(conn.Err(), conn.Close())
		}
		if errors.Is(err, wire.ErrProtocol) {
			pause = min(2*pause, maxRedial)
			c.accuse(r, err)
		} else {
			pause = redial
			c.m.o.Log.Debug("control session ended", "container", c.id, "error", err)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

// accuse tells of a guest that does what no tether does, in the log each time, and in the container's state.
func (c *Container) accuse(r *run, err error) {
	c.mu.Lock()
	first := c.run == r && c.state.Error == ""
	if first {
		c.state.Error = "its guest misbehaves: " + err.Error()
	}
	c.mu.Unlock()
	if first {
		c.keepState()
	}
	c.m.o.Log.Warn("guest misbehaves", "container", c.id, "error", err)
}

func (c *Container) connect(ctx context.Context, r *run) (*wire.Conn, error) {
	rw, err := r.machine.Dial(ctx, "control")
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, helloPatience)
	defer cancel()
	return wire.Connect(ctx, rw, wire.ConnectOptions{Token: c.token, Window: r.machine.Info().Window, Health: func(h Health) { c.takeHealth(r, h) }})
}

func (c *Container) setConn(r *run, conn *wire.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r.conn = conn
	c.notifyLocked()
}

// end ends what serves a VM.
func (c *Container) end(r *run) {
	c.mu.Lock()
	r.left = true
	c.mu.Unlock()
	r.cancel()
	r.wg.Wait()
}

// finish records the end of a VM, unless the Manager is closed before it knows what that was: the next one finds out.
func (c *Container) finish(r *run) {
	c.end(r)
	_ = c.m.watcher.Remove(filepath.Join(c.dir, logFile)) // it may not be watched
	exit, at, noExit := c.exit(r)
	if errors.Is(noExit, ErrClosed) {
		return
	}
	all := c.connected(r)
	if err := c.leaveAll(all); err != nil {
		c.m.o.Log.Warn("leave networks", "container", c.id, "error", err)
	}
	if err := r.machine.Close(); err != nil {
		c.m.o.Log.Warn("let go of VM", "container", c.id, "error", err)
	}
	if err := os.RemoveAll(c.runtimeDir()); err != nil {
		c.m.o.Log.Warn("remove sockets", "container", c.id, "error", err)
	}
	c.releaseVolumes()
	c.mu.Lock()
	started, waited := r.started, c.state.Status == Restarting
	if waited && c.state.Finished.After(c.state.Started) { // it had ended before, and will not be started again
		at = c.state.Finished
	}
	lasted := at.Sub(c.state.Started)
	c.state = State{Status: Exited, ExitCode: exit.Code, OOM: exit.OOM, Error: exit.Error, Started: c.state.Started, Finished: at, Health: ended(c.state.Health)}
	c.run, c.pending = nil, nil
	// What the guest says of the end is its last word. It is the VCH's turn where there is none.
	again := started && noExit != nil && !c.halted && !c.removing && c.spec.Restart.wire(c.restarts).Wants(exit.Code)
	if again {
		c.restarts++
		c.state.Status = Restarting
		c.retryLater(lasted)
	}
	c.mu.Unlock()
	c.keepState()
	c.m.forgetExecs(c)
	if started {
		if !waited {
			c.emitEnd(exit, lasted)
		}
		for _, k := range all {
			c.m.emitNetwork("disconnect", k.segment.conf, c)
		}
		c.emitMounts("unmount")
	}
	c.mu.Lock()
	close(r.ended)
	if started { // else Start tells
		c.tellWaiters(NotRunning, NextExit)
	}
	c.notifyLocked()
	remove := started && c.spec.AutoRemove && !c.keep
	c.mu.Unlock()
	if remove {
		c.m.wg.Go(func() {
			if err := c.acquire(context.Background()); err == nil {
				defer c.releaseOp()
				c.autoRemove()
			}
		})
	}
}

// exit reads from the log how and when the run ended: the last record after its start. The
// guest's clock counts as far as it can be right. If the guest has left no exit, the error says so. A log that cannot be
// opened for now is waited for.
func (c *Container) exit(r *run) (wire.Exit, time.Time, error) {
	e, at, err := c.lastExit()
	for told := false; scarce(err); told = true {
		if !told {
			c.m.o.Log.Warn("wait to read how a container has ended", "container", c.id, "error", err)
		}
		if !c.m.rest() {
			return e, at, ErrClosed
		}
		e, at, err = c.lastExit()
	}
	if err == nil {
		return e, at, nil
	}
	killed := wire.Exit{Code: 137}
	c.mu.Lock()
	manual := r.manual
	c.mu.Unlock()
	if !manual {
		killed.Error = fmt.Sprintf("%v: %s", err, c.lastWords(r))
	}
	return killed, time.Now(), err
}

// scarce says whether an error is that there are no file descriptors, or no memory, left for now: what failed is to be tried again.
func scarce(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.ENOMEM)
}

// rest is a pause before what was scarce is asked for again. It reports false when the Manager is closed.
func (m *Manager) rest() bool {
	t := time.NewTimer(redial)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-m.closed:
		return false
	}
}

var errNoExit = errors.New("the VM ended without an exit code")

func (c *Container) lastExit() (wire.Exit, time.Time, error) {
	f, err := os.Open(filepath.Join(c.dir, logFile))
	if err != nil {
		return wire.Exit{}, time.Time{}, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return wire.Exit{}, time.Time{}, err
	}
	for rec, err := range wire.Backward(f, st.Size()) {
		if err != nil {
			return wire.Exit{}, time.Time{}, err
		}
		if rec.Offset < c.logStart || rec.Type != wire.RecExit {
			break // the exit is the last record of a boot that ended well
		}
		e, err := rec.Exit()
		if err != nil {
			return wire.Exit{}, time.Time{}, err
		}
		if e.Again > 0 { // it was to be started again
			break
		}
		c.mu.Lock()
		at := c.guestTime(rec, time.Now())
		c.mu.Unlock()
		return e, at, nil
	}
	return wire.Exit{}, time.Time{}, errNoExit
}

// lastWords says why a VM ended, as far as anybody knows.
func (c *Container) lastWords(r *run) string {
	if reason := r.machine.Info().Reason; reason != "" {
		return reason
	}
	f, err := os.Open(filepath.Join(c.dir, consoleFile))
	if err != nil {
		return "it left no console"
	}
	defer f.Close()
	const most = 500
	if st, err := f.Stat(); err == nil && st.Size() > most {
		if _, err := f.Seek(-most, io.SeekEnd); err != nil {
			return err.Error()
		}
	}
	text, _ := io.ReadAll(io.LimitReader(f, most)) // what there is of it
	return fmt.Sprintf("its console ends with %q", strings.TrimSpace(string(text)))
}

// over says whether a run has ended.
func (c *Container) over(number int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.runs > number || c.runs == number && c.run == nil
}

// reattach finds the container's VM again after a restart of the VCH, or learns how it ended.
func (c *Container) reattach(ctx context.Context) {
	if !c.state.Status.Alive() {
		if c.spec.AutoRemove && c.state.Status == Exited || c.state.Status == Removing {
			c.m.wg.Go(c.autoRemove) // the container is its from here on
		} else if c.wantsStart() {
			c.m.wg.Go(c.resurrect)
		}
		return
	}
	r := newRun()
	r.number, r.started = 1, true
	close(r.up)
	c.runs = 1
	c.run = r
	machine, err := c.m.o.Hypervisor.Find(ctx, c.lastVM())
	if err != nil {
		if !errors.Is(err, ErrNoMachine) {
			c.m.o.Log.Warn("find VM", "container", c.id, "error", err)
		}
		r.machine, r.cancel = goneMachine{}, func() {}
		close(r.down)
		c.track(r, c.logSeen)
		c.finish(r)
		return
	}
	r.machine = machine
	if machine.Info().Paused {
		c.state.Status = Paused
	} else if c.state.Status == Paused {
		c.state.Status = Running
	}
	c.holdVolumes()
	c.rejoin(r)
	c.serve(r)
	if len(r.connections) > 0 {
		r.wg.Go(func() { c.renew(r.ctx, r) })
	}
}

// goneMachine stands for a VM that ended while nobody looked.
type goneMachine struct{ Machine }

func (goneMachine) Info() MachineInfo { return MachineInfo{} }
func (goneMachine) Close() error      { return nil }

// letGo ends what serves the container, without ending its VM.
func (c *Container) letGo() error {
	c.mu.Lock()
	c.notifyLocked()
	for c.starting { // in begin, which waits for no guest
		changed := c.changed
		c.mu.Unlock()
		<-changed
		c.mu.Lock()
	}
	r := c.run
	c.mu.Unlock()
	if r == nil {
		return nil
	}
	c.end(r)
	return errors.Join(c.leaveAll(c.connected(r)), r.machine.Close())
}
