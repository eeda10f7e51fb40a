package tether

import (
	"fmt"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vic/tether/wire"
)

// maxEnded is how many ended execs are remembered.
const maxEnded = 64

// An execution is an exec of a host, running or ended.
type execution struct {
	id      string
	process *process
	exit    *wire.Exit // nil while it runs
}

// Begin implements wire.Handler.
func (g *guest) Begin(c *wire.Channel) { g.stdin.begin(c) }

// Do implements wire.Handler.
func (g *guest) Do(s *wire.GuestSession, r wire.Request) (wire.Reply, error) {
	switch r.Op {
	case wire.OpPing:
		return wire.Reply{}, nil
	case wire.OpClock:
		return wire.Reply{}, stepClock(time.Unix(0, r.Time))
	case wire.OpState:
		return wire.Reply{State: g.state()}, nil
	case wire.OpExec:
		if r.Exec == nil {
			return wire.Reply{}, &wire.Error{Kind: wire.Invalid, Message: "exec of nothing"}
		}
		pid, err := g.exec(s, r)
		return wire.Reply{PID: pid}, err
	case wire.OpSignal:
		if r.Final && r.Process == "" && g.end(syscall.Signal(r.Signal)) {
			return wire.Reply{}, nil // it has ended, and now for good
		}
		return wire.Reply{}, g.signal(r.Process, syscall.Signal(r.Signal))
	case wire.OpHealth:
		return g.listen(s)
	case wire.OpResize:
		p, err := g.process(r.Process)
		if err != nil {
			return wire.Reply{}, err
		}
		return wire.Reply{}, p.resize(r.Size)
	case wire.OpSockets:
		sockets, err := sockets()
		return wire.Reply{Sockets: sockets}, err
	case wire.OpNetwork:
		if r.Network == nil {
			return wire.Reply{}, &wire.Error{Kind: wire.Invalid, Message: "no network is given"}
		}
		addresses, err := g.connect(r.Network)
		return wire.Reply{Addresses: addresses}, err
	case wire.OpUpdate:
		if r.Update == nil {
			return wire.Reply{}, &wire.Error{Kind: wire.Invalid, Message: "no update is given"}
		}
		return wire.Reply{}, g.update(r.Update)
	case wire.OpShutdown:
		return wire.Reply{}, g.shutdown(time.Duration(r.Grace))
	case wire.OpTask:
		return g.task(s, r)
	case wire.OpPath:
		if _, err := g.process(""); err != nil {
			return wire.Reply{}, err
		}
		st, err := statPath(r.Path)
		return wire.Reply{Path: &st}, fileError(err)
	case wire.OpUsage:
		u, err := usage()
		return wire.Reply{Usage: u}, err
	case wire.OpFreeze:
		if _, err := g.process(""); err != nil {
			return wire.Reply{}, err
		}
		return wire.Reply{}, g.freezer.freeze(s)
	case wire.OpThaw:
		return wire.Reply{}, g.freezer.release(nil)
	}
	return wire.Reply{}, &wire.Error{Kind: wire.Invalid, Message: fmt.Sprintf("operation %q is not known", r.Op)}
}

func (g *guest) state() *wire.State {
	g.mu.Lock()
	defer g.mu.Unlock()
	st := new(wire.State)
	if g.main != nil {
		st.PID = g.main.pid
	}
	for _, x := range g.execs {
		st.Execs = append(st.Execs, wire.ExecState{ID: x.id, PID: x.process.pid, Exit: x.exit})
	}
	return st
}

// process finds the container's process, or an exec by its ID.
func (g *guest) process(id string) (*process, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if id == "" {
		if g.main == nil {
			return nil, &wire.Error{Kind: wire.NotRunning, Message: "container is not running"}
		}
		return g.main, nil
	}
	for _, x := range g.execs {
		if x.id == id {
			if x.exit != nil {
				return nil, &wire.Error{Kind: wire.NotRunning, Message: fmt.Sprintf("exec %s has ended", id)}
			}
			return x.process, nil
		}
	}
	return nil, &wire.Error{Kind: wire.NotFound, Message: fmt.Sprintf("no such exec: %s", id)}
}

func (g *guest) signal(id string, sig syscall.Signal) error {
	if sig <= 0 || sig > 64 {
		return &wire.Error{Kind: wire.Invalid, Message: fmt.Sprintf("no such signal: %d", int(sig))}
	}
	p, err := g.process(id)
	if err != nil {
		return err
	}
	if id == "" && g.early(p, sig) {
		return nil
	}
	return g.reaper.signal(p.pid, sig)
}

// shutdown asks the container's process to end, and kills it after grace.
func (g *guest) shutdown(grace time.Duration) error {
	sig := syscall.Signal(g.conf.StopSignal)
	if sig == 0 {
		sig = unix.SIGTERM
	}
	if g.end(sig) {
		return nil
	}
	if err := g.signal("", sig); err != nil {
		return err
	}
	if grace >= 0 {
		time.AfterFunc(grace, func() {
			_ = g.signal("", unix.SIGKILL) // it may have ended
		})
	}
	return nil
}

// exec starts a further process.
func (g *guest) exec(s *wire.GuestSession, r wire.Request) (int, error) {
	if _, err := g.process(""); err != nil {
		return 0, err
	}
	cmd, err := resolve(g.conf, *r.Exec)
	if err != nil {
		return 0, err
	}
	cmd.in = g.in
	stdio, stderr, err := s.Open(r.Channel)
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
	x, err := g.startExec(cmd, st, r.Exec)
	if err != nil {
		// The host closes them too; if the session is lost, nobody is left to tell.
		_ = stdio.Close()
		_ = stderr.Close()
		return 0, err
	}
	if !r.Exec.Stdin {
		refuse(stdio)
	}
	go g.follow(s, x, stdio, stderr) // until the process ends, or the VM
	return x.process.pid, nil
}

// startExec starts the process and enters it into the table of execs.
func (g *guest) startExec(cmd *command, st streams, e *wire.Exec) (*execution, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, x := range g.execs {
		if x.id == e.ID {
			return nil, &wire.Error{Kind: wire.Invalid, Message: fmt.Sprintf("exec %s has been started already", e.ID)}
		}
	}
	p, err := g.reaper.start(cmd, st, e.Size)
	if err != nil {
		return nil, err
	}
	x := &execution{id: e.ID, process: p}
	g.execs = append(g.execs, x)
	ended := 0
	for _, x := range g.execs {
		if x.exit != nil {
			ended++
		}
	}
	for i := 0; ended > maxEnded; {
		if g.execs[i].exit == nil {
			i++
			continue
		}
		g.execs = append(g.execs[:i], g.execs[i+1:]...)
		ended--
	}
	return x, nil
}

// follow waits for an exec's end and tells the host that asked for it.
func (g *guest) follow(s *wire.GuestSession, x *execution, channels ...*wire.Channel) {
	exit := x.process.wait()
	x.process.drainedSoon()
	g.mu.Lock()
	x.exit = &exit
	g.mu.Unlock()
	for _, c := range channels {
		_ = c.Close() // fails if the session is lost, as does the next
	}
	_ = s.Exited(x.id, exit)
}
