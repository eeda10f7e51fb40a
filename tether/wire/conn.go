package wire

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// ErrClosed is what a Conn's methods return after Close.
var ErrClosed = errors.New("wire: connection closed")

// ConnectOptions say how to open a control session.
type ConnectOptions struct {
	Token string // Config.Token
	// Health is told of the container's health after WatchHealth. No message of the guest is read meanwhile.
	Health func(HealthState)
	Window int // bytes under way on a channel in one direction; 0 means DefaultWindow. A UART wants SerialWindow
}

// Conn is the host's side of a control session. Its methods may be called from
// several goroutines.
type Conn struct {
	rw io.ReadWriteCloser
	s  *session
	id string

	stdin *Channel
	out   chan []byte // messages for the guest
	hello chan guestHello
	// greeted is closed once the guest has answered the hello. Each receive from ready before that is one more hello.
	greeted chan struct{}
	ready   chan struct{}
	health  func(HealthState)
	wg      sync.WaitGroup

	closeOnce sync.Once
	closeErr  error

	mu        sync.Mutex
	number    uint64
	calls     map[uint64]chan answer
	processes map[string]*Process
	channel   uint16 // last one used for an exec
}

// Connect opens a control session over rw, which is the Conn's from then on: it is
// closed by Close, or if Connect fails. Connect waits for the guest to answer, however long
// it takes to boot; ctx ends the wait, not the session. A session that the guest had before
// is lost, the processes started in it are not.
func Connect(ctx context.Context, rw io.ReadWriteCloser, o ConnectOptions) (*Conn, error) {
	if o.Window == 0 {
		o.Window = DefaultWindow
	}
	var id [4]byte
	rand.Read(id[:])
	c := &Conn{
		rw:        rw,
		s:         newSession(rw, binary.LittleEndian.Uint32(id[:]), o.Window),
		out:       make(chan []byte, maxRequests),
		hello:     make(chan guestHello, 1),
		greeted:   make(chan struct{}),
		ready:     make(chan struct{}, 1),
		health:    o.Health,
		calls:     map[uint64]chan answer{},
		processes: map[string]*Process{},
	}
	chan0, err := c.s.open(messageChannel)
	if err == nil {
		c.stdin, err = c.s.open(stdinChannel)
	}
	if err != nil {
		panic(err) // the session is new
	}
	text, err := json.Marshal(hostHello{Version: version, Token: o.Token, Window: o.Window})
	if err != nil {
		return nil, err
	}
	c.wg.Go(c.readFrames)
	c.wg.Go(func() {
		if c.greet(text) == nil {
			c.writeMessages(chan0)
		}
	})
	c.wg.Go(func() { c.readMessages(chan0) })

	select {
	case h := <-c.hello:
		if h.Error != "" {
			_ = c.Close() // the guest's word says more
			return nil, fmt.Errorf("open control session: %s", h.Error)
		}
		c.id = h.ID
		return c, nil
	case <-c.s.done:
		err = c.s.failure()
	case <-ctx.Done():
		err = ctx.Err()
	}
	_ = c.Close() // err says more
	return nil, fmt.Errorf("open control session: %w", err)
}

// ID is the container's, by the guest's word.
func (c *Conn) ID() string { return c.id }

// Done is closed when the session has ended. Err then says why: ErrClosed or
// an error that is ErrLost.
func (c *Conn) Done() <-chan struct{} { return c.s.done }

// Err is nil while the session lasts.
func (c *Conn) Err() error { return c.s.failure() }

// Close ends the session. Processes in the guest go on.
func (c *Conn) Close() error {
	c.s.fail(ErrClosed)
	c.hangUp()
	c.wg.Wait()
	return c.closeErr
}

func (c *Conn) hangUp() {
	c.closeOnce.Do(func() { c.closeErr = c.rw.Close() })
}

// greet says hello until the guest has heard it: on a line that loses what comes before the guest listens, the guest
// says when it does.
func (c *Conn) greet(text []byte) error {
	err := c.s.send(frameHello, 0, text)
	for err == nil {
		select {
		case <-c.greeted:
			return nil
		case <-c.ready:
			err = c.s.sayAgain(frameHello, text)
		case <-c.s.done:
			err = c.s.failure()
		}
	}
	return err
}

// maxRubbish is how many bytes a guest may send in a session that do not belong to it. What is left over from
// a session before is bounded by the buffers on the way.
const maxRubbish = 4 << 20

// readFrames dispatches what the guest sends. It never waits but in Read.
func (c *Conn) readFrames() {
	defer c.hangUp()
	fr := newFrameReader(c.rw)
	fr.maxSkipped = maxRubbish
	greeted := false
	stale := 0 // bytes left over from a session before
	for {
		f, _, err := fr.next()
		if err == nil && f.typ == frameReady && greeted {
			err = errors.New("the guest has begun anew")
		} else if err == nil && uint32(f.stamp>>32) != c.s.id {
			if stale += headerSize + len(f.payload); stale <= maxRubbish {
				if f.typ == frameReady {
					select {
					case c.ready <- struct{}{}:
					default: // one more hello is said already
					}
				}
				continue
			}
			err = fmt.Errorf("%w: %d bytes of other sessions", ErrProtocol, stale)
		}
		if err != nil {
			c.s.fail(fmt.Errorf("%w: %w", ErrLost, err))
			return
		}
		switch {
		case greeted || f.typ == frameLost:
			err = c.s.handle(f)
		case f.typ == frameHello:
			var h guestHello
			if err = json.Unmarshal(f.payload, &h); err != nil {
				err = broken("parse hello: %w", err)
			} else if err = c.s.numbered(f); err == nil {
				greeted = true
				close(c.greeted)
				c.hello <- h
			}
		}
		if err != nil {
			c.s.fail(err)
			return
		}
	}
}

func (c *Conn) writeMessages(chan0 *Channel) {
	for {
		select {
		case b := <-c.out:
			if _, err := chan0.Write(b); err != nil {
				return // the session is over
			}
		case <-c.s.done:
			return
		}
	}
}

func (c *Conn) readMessages(chan0 *Channel) {
	for {
		var a answer
		err := readMessage(chan0, &a)
		if err == nil && a.Exit != nil {
			err = a.Exit.check()
		}
		if err != nil {
			if c.s.failure() == nil { // the guest's own doing: no end of the line breaks a message
				err = fmt.Errorf("%w: %w", ErrProtocol, err)
			}
			c.s.fail(fmt.Errorf("%w: %w", ErrLost, err))
			c.hangUp()
			return
		}
		var health *HealthState
		c.mu.Lock()
		if a.Number != 0 {
			if ch := c.calls[a.Number]; ch != nil {
				delete(c.calls, a.Number)
				ch <- a // has room for one
			}
		} else if a.Health != nil {
			health = a.Health
		} else if p := c.processes[a.Process]; p != nil && a.Exit != nil {
			delete(c.processes, a.Process)
			p.exit = *a.Exit
			close(p.exited)
		}
		c.mu.Unlock()
		if health != nil && c.health != nil {
			health.bound()
			c.health(*health)
		}
	}
}

// call sends a request and waits for its reply. An *Error is the guest's.
func (c *Conn) call(ctx context.Context, r Request) (Reply, error) {
	ch := make(chan answer, 1)
	c.mu.Lock()
	c.number++
	n := c.number
	c.calls[n] = ch
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.calls, n)
		c.mu.Unlock()
	}()
	b, err := encodeMessage(call{Number: n, Request: r})
	if err != nil {
		return Reply{}, err
	}
	select {
	case c.out <- b:
	case <-c.s.done:
		return Reply{}, c.s.failure()
	case <-ctx.Done():
		return Reply{}, ctx.Err()
	}
	select {
	case a := <-ch:
		if a.Error != nil {
			return Reply{}, a.Error
		}
		return a.Reply, nil
	case <-c.s.done:
		return Reply{}, c.s.failure()
	case <-ctx.Done():
		return Reply{}, ctx.Err()
	}
}

// Stdin is the stdin of the container's process. CloseWrite closes it for good,
// also for later sessions; a session's end does not. If the process has closed it, or none
// was asked for in the Config, Write returns io.ErrClosedPipe.
func (c *Conn) Stdin() *Channel { return c.stdin }

// Ping asks the guest for a sign of life.
func (c *Conn) Ping(ctx context.Context) error {
	_, err := c.call(ctx, Request{Op: OpPing})
	return err
}

// State asks what runs in the guest.
func (c *Conn) State(ctx context.Context) (State, error) {
	r, err := c.call(ctx, Request{Op: OpState})
	if err != nil {
		return State{}, err
	}
	if r.State == nil {
		return State{}, errors.New("wire: guest gave no state")
	}
	return *r.State, nil
}

// Signal sends a signal to the exec of that ID, or with "" to the container's
// process.
func (c *Conn) Signal(ctx context.Context, process string, signal int) error {
	_, err := c.call(ctx, Request{Op: OpSignal, Process: process, Signal: signal})
	return err
}

// End sends a signal to the container's process, which is not started again when it has ended.
func (c *Conn) End(ctx context.Context, signal int) error {
	_, err := c.call(ctx, Request{Op: OpSignal, Signal: signal, Final: true})
	return err
}

// Resize sets the size of the terminal of the exec of that ID, or with "" of the
// container's process.
func (c *Conn) Resize(ctx context.Context, process string, size Size) error {
	_, err := c.call(ctx, Request{Op: OpResize, Process: process, Size: size})
	return err
}

// Network has the guest set up its interfaces as n says, and take down those that n lacks. It waits for
// interfaces that are just being plugged in.
func (c *Conn) Network(ctx context.Context, n Network) (addresses [][]string, err error) {
	r, err := c.call(ctx, Request{Op: OpNetwork, Network: &n})
	return r.Addresses, err
}

// Sockets returns the guest's TCP connections.
func (c *Conn) Sockets(ctx context.Context) ([]Socket, error) {
	r, err := c.call(ctx, Request{Op: OpSockets})
	return r.Sockets, err
}

// Shutdown has the guest send Config.StopSignal to the container's process now,
// and SIGKILL after grace, even if this session ends. A negative grace never kills. The VM
// powers off when the process has ended.
func (c *Conn) Shutdown(ctx context.Context, grace time.Duration) error {
	_, err := c.call(ctx, Request{Op: OpShutdown, Grace: int64(grace)})
	return err
}

// SetClock sets the guest's clock, which does not run while its VM stands still.
func (c *Conn) SetClock(ctx context.Context, now time.Time) error {
	_, err := c.call(ctx, Request{Op: OpClock, Time: now.UnixNano()})
	return err
}

// Process is an exec started over a Conn. Its methods may be called from
// several goroutines.
type Process struct {
	PID int // in the guest

	stdio, stderr *Channel
	s             *session
	exited        chan struct{}
	exit          Exit // once exited is closed
}

// Exec starts a process. The IDs of execs must differ over the VM's life. An
// *Error of kind NotStarted says in docker's words why there is none. If ctx ends first the
// process may come to run nevertheless, with nobody reading.
//
// Stdout and stderr must be read to the end, or given up by Close; else
// the process waits, and so does Wait.
func (c *Conn) Exec(ctx context.Context, e Exec) (*Process, error) {
	p, r, err := c.begin(ctx, e.ID, Request{Op: OpExec, Exec: &e})
	if err != nil {
		return nil, err
	}
	p.PID = r.PID
	if err := p.stderr.CloseWrite(); err != nil { // nothing ever goes that way
		return nil, fmt.Errorf("exec %s: %w", e.ID, err)
	}
	return p, nil
}

// begin sends the request for what has channels, an exec or a task, and an ID.
func (c *Conn) begin(ctx context.Context, id string, req Request) (*Process, Reply, error) {
	p := &Process{s: c.s, exited: make(chan struct{})}
	n, err := c.openExec(p, id)
	if err != nil {
		return nil, Reply{}, fmt.Errorf("%s %s: %w", req.Op, id, err)
	}
	req.Channel = n
	r, err := c.call(ctx, req)
	if err != nil {
		c.mu.Lock()
		delete(c.processes, id)
		c.mu.Unlock()
		// If they fail the session is over, and err says so.
		_ = p.stdio.Close()
		_ = p.stderr.Close()
		var ge *Error
		if errors.As(err, &ge) {
			return nil, Reply{}, err
		}
		return nil, Reply{}, fmt.Errorf("%s %s: %w", req.Op, id, err)
	}
	return p, r, nil
}

// openExec opens the channels of p and registers it under its ID.
func (c *Conn) openExec(p *Process, id string) (uint16, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if id == "" || c.processes[id] != nil {
		return 0, fmt.Errorf("wire: exec ID %q is in use", id)
	}
	for range MaxChannels {
		if c.channel += 2; c.channel < firstExec { // wrapped around
			c.channel = firstExec
		}
		var err error
		if p.stdio, err = c.s.open(c.channel); err != nil {
			continue
		}
		if p.stderr, err = c.s.open(c.channel + 1); err != nil {
			c.s.forget(p.stdio)
			continue
		}
		c.processes[id] = p
		return c.channel, nil
	}
	if err := c.s.failure(); err != nil {
		return 0, err
	}
	return 0, fmt.Errorf("wire: more than %d channels", MaxChannels)
}

// Stdin writes to the process; CloseWrite ends its stdin.
func (p *Process) Stdin() *Channel { return p.stdio }

// Stdout reads the process's output, with a terminal all of it.
func (p *Process) Stdout() io.Reader { return p.stdio }

// Stderr reads what the process writes there. With a terminal it is empty.
func (p *Process) Stderr() io.Reader { return p.stderr }

// Wait returns how the process ended, once all its output has been sent.
// ErrLost says that the session ended first: ask the next one's State.
func (p *Process) Wait(ctx context.Context) (Exit, error) {
	select {
	case <-p.exited:
		return p.exit, nil
	default:
	}
	select {
	case <-p.exited:
		return p.exit, nil
	case <-p.s.done:
		return Exit{}, p.s.failure()
	case <-ctx.Done():
		return Exit{}, ctx.Err()
	}
}

// Close gives up the process's streams. It runs on; what it writes is thrown
// away.
func (p *Process) Close() error {
	return errors.Join(p.stdio.Close(), p.stderr.Close())
}
