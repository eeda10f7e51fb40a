package tether

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"vic/tether/wire"
)

// health is what the guest knows of its container's.
type health struct {
	mu       sync.Mutex
	state    wire.HealthState
	listener *wire.GuestSession // nil if nobody has asked
}

func (h *health) set(s wire.HealthState) {
	h.mu.Lock()
	h.state = s
	l := h.listener
	h.mu.Unlock()
	if l != nil {
		_ = l.Health(s) // a host that has gone asks when it comes back
	}
}

// listen is carried out for OpHealth.
func (g *guest) listen(s *wire.GuestSession) (wire.Reply, error) {
	if g.conf.Health == nil {
		return wire.Reply{}, &wire.Error{Kind: wire.NotFound, Message: "container has no health check"}
	}
	g.health.mu.Lock()
	defer g.health.mu.Unlock()
	g.health.listener = s
	state := g.health.state
	return wire.Reply{Health: &state}, nil
}

// watchHealth runs probes until the container's process has ended. Nothing is done if there are none.
func (g *guest) watchHealth(ended <-chan struct{}) {
	h := g.conf.Health
	if h == nil {
		return
	}
	began := time.Now()
	state := wire.HealthState{Status: wire.Starting}
	g.health.set(state)
	for {
		next := time.NewTimer(state.Wait(*h, time.Since(began)))
		select {
		case <-ended:
			next.Stop()
			return
		case <-next.C:
		}
		ran := time.Since(began)
		probe := g.probe(h, ended)
		select {
		case <-ended:
			return // it says nothing
		default:
		}
		state = state.After(*h, probe, ran)
		g.health.set(state)
	}
}

// probe runs one.
func (g *guest) probe(h *wire.Health, ended <-chan struct{}) wire.Probe {
	p := wire.Probe{Start: time.Now(), Code: -1}
	out := new(headWriter)
	cmd, err := resolve(g.conf, wire.Exec{Args: h.Args, Groups: g.conf.Groups})
	var run *process
	if err == nil {
		cmd.in = g.in
		run, err = g.reaper.start(cmd, streams{stdout: out, stderr: out}, wire.Size{})
	}
	if err != nil {
		p.Output, p.End = err.Error(), time.Now()
		return p
	}
	timeout := time.NewTimer(time.Duration(h.Timeout))
	defer timeout.Stop()
	done := make(chan wire.Exit, 1)
	go func() { done <- run.wait() }()
	select {
	case exit := <-done:
		p.Code = exit.Code
	case <-ended:
		<-done // the end of the container's process is that of all
	case <-timeout.C:
		if err := g.reaper.signal(run.pid, unix.SIGKILL); err != nil && !errors.As(err, new(*wire.Error)) {
			g.diagnose(err)
		}
		<-done
		p.Output = fmt.Sprintf("Health check exceeded timeout (%v)", time.Duration(h.Timeout))
	}
	run.drainedSoon()
	text := out.String()
	if p.Output != "" && text != "" {
		text = p.Output + ": " + text
	} else if text == "" {
		text = p.Output
	}
	p.Output, p.End = text, time.Now()
	return p
}

// headWriter keeps the beginning of what is written to it.
type headWriter struct {
	mu   sync.Mutex
	head []byte
}

func (w *headWriter) Write(p []byte) (int, error) {
	const most = 4<<10 + 1 // one more than is told, to tell that there was more
	w.mu.Lock()
	defer w.mu.Unlock()
	w.head = append(w.head, p[:min(len(p), most-len(w.head))]...)
	return len(p), nil
}

func (w *headWriter) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return string(w.head)
}
