package tether

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"syscall"
	"time"

	"vic/tether/wire"
)

// keptExecs is how many execs that have ended are remembered.
const keptExecs = 64

// An execution is a further process that a host has asked for.
type execution struct {
	id   string
	proc *process
	done bool // and all its output delivered
}

// Begin implements wire.Handler.
func (g *guest) Begin(c *wire.Channel) { g.stdin.begin(c) }

// Do implements wire.Handler.
func (g *guest) Do(s *wire.GuestSession, r wire.Request) (wire.Reply, error) {
	switch r.Op {
	case wire.OpPing:
		return wire.Reply{}, nil
	case wire.OpState:
		return wire.Reply{State: g.state()}, nil
	case wire.OpExec:
		pid, err := g.exec(s, r)
		return wire.Reply{PID: pid}, err
	case wire.OpShutdown:
		return wire.Reply{}, g.shutdown(time.Duration(r.Grace))
	}
	p, err := g.process(r.Process)
	if err != nil {
		return wire.Reply{}, err
	}
	switch r.Op {
	case wire.OpSignal:
		if r.Signal < 1 || r.Signal > 64 {
			return wire.Reply{}, &wire.Error{Kind: wire.Invalid, Message: fmt.Sprintf("signal %d", r.Signal)}
		}
		return wire.Reply{}, p.signal(syscall.Signal(r.Signal))
	case wire.OpResize:
		if p.terminal == nil {
			return wire.Reply{}, &wire.Error{Kind: wire.Invalid, Message: "process has no terminal"}
		}
		return wire.Reply{}, setSize(p.terminal, r.Size)
	}
	return wire.Reply{}, &wire.Error{Kind: wire.Invalid, Message: fmt.Sprintf("unknown request %q", r.Op)}
}

// process finds a running process: "" is the container's, else an exec's.
func (g *guest) process(id string) (*process, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if id == "" {
		if g.main == nil {
			return nil, &wire.Error{Kind: wire.NotRunning, Message: "container's process does not run"}
		}
		return g.main, nil
	}
	for _, e := range g.execs {
		if e.id == id {
			if e.done {
				return nil, &wire.Error{Kind: wire.NotRunning, Message: "process has ended"}
			}
			return e.proc, nil
		}
	}
	return nil, &wire.Error{Kind: wire.NotFound, Message: fmt.Sprintf("no exec %s", id)}
}

func (g *guest) state() *wire.State {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := &wire.State{}
	if g.main != nil {
		s.PID = g.main.pid
	}
	for _, e := range g.execs {
		x := wire.ExecState{ID: e.id, PID: e.proc.pid}
		if e.done {
			exit := e.proc.exit
			x.Exit = &exit
		}
		s.Execs = append(s.Execs, x)
	}
	return s
}

// exec starts a further process with its streams on the request's channels.
func (g *guest) exec(s *wire.GuestSession, r wire.Request) (pid int, err error) {
	if r.Exec == nil || r.Exec.ID == "" {
		return 0, &wire.Error{Kind: wire.Invalid, Message: "exec without an ID"}
	}
	stdio, stderr, err := s.Open(r.Channel)
	if err != nil {
		return 0, err
	}
	defer func() {
		if err != nil {
			_ = stdio.Close() // err says more
			_ = stderr.Close()
		}
	}()
	g.mu.Lock()
	running := g.main != nil
	taken := slices.ContainsFunc(g.execs, func(e *execution) bool { return e.id == r.Exec.ID })
	g.mu.Unlock()
	if !running {
		return 0, &wire.Error{Kind: wire.NotRunning, Message: "container's process does not run"}
	}
	if taken {
		return 0, &wire.Error{Kind: wire.Invalid, Message: fmt.Sprintf("exec %s exists", r.Exec.ID)}
	}
	cmd, err := resolve(g.conf, *r.Exec)
	if err != nil {
		return 0, err
	}
	var st streams
	if r.Exec.Stdin {
		st.stdin = stdio
	}
	if r.Exec.Stdout {
		st.stdout = stdio
	}
	if r.Exec.Stderr && !r.Exec.TTY {
		st.stderr = stderr
	}
	p, err := g.reaper.start(cmd, st, r.Exec.Size)
	if err != nil {
		return 0, err
	}
	e := &execution{id: r.Exec.ID, proc: p}
	g.mu.Lock()
	g.execs = append(g.execs, e)
	g.forgetExecs()
	g.mu.Unlock()
	go g.finish(s, e, stdio, stderr) // ends with the process
	return p.pid, nil
}

// finish waits for an exec and tells the host.
func (g *guest) finish(s *wire.GuestSession, e *execution, channels ...io.Closer) {
	exit := e.proc.wait()
	e.proc.drained()
	for _, c := range channels {
		_ = c.Close() // fails with the session only
	}
	g.mu.Lock()
	e.done = true
	g.mu.Unlock()
	if err := s.Exited(e.id, exit); err != nil && !errors.Is(err, wire.ErrLost) {
		g.diagnose(err)
	}
}

// forgetExecs drops the oldest of many execs that have ended. Call it with mu held.
func (g *guest) forgetExecs() {
	ended := 0
	for _, e := range g.execs {
		if e.done {
			ended++
		}
	}
	g.execs = slices.DeleteFunc(g.execs, func(e *execution) bool {
		if e.done && ended > keptExecs {
			ended--
			return true
		}
		return false
	})
}

// shutdown asks the container's process to end, and kills it after the grace.
func (g *guest) shutdown(grace time.Duration) error {
	p, err := g.process("")
	if err != nil {
		return err
	}
	sig := syscall.Signal(g.conf.StopSignal)
	if sig == 0 {
		sig = syscall.SIGTERM
	}
	if err := p.signal(sig); err != nil {
		return err
	}
	go func() { // ends with the process or the grace
		select {
		case <-p.ended:
		case <-time.After(max(0, grace)):
			_ = p.signal(syscall.SIGKILL) // it may have ended just now
		}
	}()
	return nil
}
