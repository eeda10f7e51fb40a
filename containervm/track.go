package containervm

import (
	"context"
	"io"
	"strconv"
	"time"

	"vic/tether/wire"
)

// track follows the log of a run and keeps the container's state to what the guest says: that its process
// runs, and where the guest starts it again, each end and start. Where it does not, it follows no further than
// the first start until Update gives the container a restart policy, and finish learns of the end. A log that is bounded is
// followed all the way, and given back behind.
func (c *Container) track(r *run, off int64) {
	defer close(r.tracked)
	f, err := c.openLog(off)
	for scarce(err) && c.m.rest() {
		f, err = c.openLog(off)
	}
	if err != nil {
		c.m.o.Log.Warn("follow log", "container", c.id, "error", err)
		return
	}
	defer f.close()
	f.caughtUp = func(off int64) { // a guest that writes no records is bounded as well
		if off-f.last > c.spec.Log.Room {
			c.trim(wire.Record{Offset: off, End: off})
		}
	}
	down := func() bool {
		select {
		case <-r.down:
			return true
		default:
			return false
		}
	}
	for {
		if !c.awaitPolicy(r, down) {
			return
		}
		rec, err := f.next(context.Background(), down)
		if err == io.EOF {
			return
		}
		if scarce(err) && c.m.rest() {
			continue
		}
		if err != nil { // the Manager is closed, or the log cannot be read
			if err != ErrClosed {
				c.m.o.Log.Warn("follow log", "container", c.id, "error", err)
			}
			return
		}
		c.trim(rec)
		switch rec.Type {
		case wire.RecStarted:
			if c.wasReset() {
				c.sawEnd(r, rec, wire.Exit{Code: 137})
			}
			c.sawStart(r, rec)
		case wire.RecExit:
			exit, err := rec.Exit()
			if err != nil || exit.Again <= 0 {
				close(r.exited)
				return
			}
			c.sawEnd(r, rec, exit)
		}
	}
}

// awaitPolicy waits until there may be more in the log than output. It reports whether there may.
func (c *Container) awaitPolicy(r *run, down func() bool) bool {
	for {
		c.mu.Lock()
		_, others := r.machine.(Observed) // may have the VM begin again
		r.policed = r.policed || others || c.spec.Restart.any() || c.spec.Log.Room > 0
		more := r.policed || !r.started || c.state.Status == Restarting
		changed := c.changed
		c.mu.Unlock()
		if more || down() {
			return more
		}
		select {
		case <-changed:
		case <-c.m.closed:
			return false
		}
	}
}

// wasReset says whether a process that starts is one whose VM was running it, and began from the beginning without its guest having a say.
func (c *Container) wasReset() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.logSeen > c.logStart && (c.state.Status == Running || c.state.Status == Paused)
}

// sawStart takes in that the process runs: for the first time, or again.
func (c *Container) sawStart(r *run, rec wire.Record) {
	c.mu.Lock()
	first := !r.started
	at := c.guestTime(rec, time.Now()) // not later than what the process wrote: clients ask for the logs since then
	r.started = true
	c.logSeen = rec.End
	c.state.Status, c.state.Started, c.state.Finished = Running, at, time.Time{}
	c.state.ExitCode, c.state.OOM = 0, false
	if !first {
		c.state.Health = c.freshHealth()
	}
	c.state.PID = r.machine.Info().PID
	told := c.guestNetwork(r.connections)
	c.notifyLocked()
	c.mu.Unlock()
	if started, err := rec.Started(); err == nil && first {
		c.takeLeases(r, told, started.Addresses)
	}
	if first {
		for _, k := range c.connected(r) {
			c.m.emitNetwork("connect", k.segment.conf, c)
		}
		c.emitMounts("mount")
		c.m.o.Log.Info("container started", "container", c.id, "template", r.machine.Info().Template)
	}
	c.emit("start", nil)
	c.keepState()
	if first {
		close(r.up)
	}
	if first && r.like.Boot.Kernel != "" { // there may soon be another
		if err := c.m.o.Hypervisor.Prepare(r.ctx, r.like); err != nil {
			c.m.o.Log.Warn("prepare fast starts", "error", err)
		}
	}
}

// sawEnd takes in that the process has ended and will be started again, by the guest or with the whole VM.
func (c *Container) sawEnd(r *run, rec wire.Record, exit wire.Exit) {
	c.mu.Lock()
	at := c.guestTime(rec, time.Now())
	lasted := at.Sub(c.state.Started)
	c.logSeen = rec.End
	if exit.Again > 0 {
		c.restarts++
	}
	c.state.Status, c.state.ExitCode, c.state.OOM, c.state.Finished, c.state.PID = Restarting, exit.Code, exit.OOM, at, 0
	c.state.Health = ended(c.state.Health)
	c.mu.Unlock()
	c.keepState()
	c.m.forgetExecs(c)
	c.emitEnd(exit, lasted)
	c.mu.Lock()
	c.tellWaiters(NotRunning, NextExit)
	c.notifyLocked()
	c.mu.Unlock()
}

// guestTime is the time of a record, as far as the guest's clock can be right: it is after what is
// known to have come before. Call it with mu held.
func (c *Container) guestTime(rec wire.Record, now time.Time) time.Time {
	if rec.Time.Before(now) && rec.Time.After(c.state.Started) && rec.Time.After(c.state.Finished) {
		return rec.Time
	}
	return now
}

// emitEnd tells that the process has ended.
func (c *Container) emitEnd(exit wire.Exit, lasted time.Duration) {
	if exit.OOM {
		c.emit("oom", nil)
	}
	c.emit("die", map[string]string{"exitCode": strconv.Itoa(exit.Code), "execDuration": strconv.Itoa(int(lasted.Seconds()))})
}

// keepState saves the state where nobody could be told that it failed.
func (c *Container) keepState() {
	if err := c.saveState(); err != nil {
		c.m.o.Log.Warn("save state", "container", c.id, "error", err)
	}
}
