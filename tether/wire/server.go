package wire

import (
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
)

// maxRequests is how many requests of a session a guest carries out at a time.
const maxRequests = 16

// Handler is what a Server serves. Its methods are called from several
// goroutines.
type Handler interface {
	// Begin is told of each new session and given the channel on which the stdin
	// of the container's process comes. It must not wait.
	Begin(stdin *Channel)
	// Do carries out a request. An error that is not an *Error is sent as one
	// of kind Failed.
	Do(s *GuestSession, r Request) (Reply, error)
}

// Server is the guest's side of the control port.
type Server struct {
	ID      string // of the container
	Token   string // a host must show it
	Handler Handler
}

// GuestSession is a session that a host has opened with a Server.
type GuestSession struct {
	s     *session
	wmu   sync.Mutex // one message at a time on channel 0
	chan0 *Channel
}

// Announce tells the host that the guest listens from now on. It is for a port that loses what comes before: a hello
// among it is said again, and a session that the host believes to have with the guest is over.
func Announce(port io.Writer) error {
	if _, err := port.Write(appendFrame(nil, frame{typ: frameReady})); err != nil {
		return fmt.Errorf("tell host that guest is ready: %w", err)
	}
	return nil
}

// Serve serves hosts on port, one session at a time, each displacing the one
// before, until a read fails, and returns that error: io.EOF is a host that has hung up.
// It waits for requests under way.
func (v *Server) Serve(port io.ReadWriter) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	var s *session
	fr := newFrameReader(port)
	for {
		f, _, err := fr.next()
		if err != nil {
			if s != nil {
				s.fail(fmt.Errorf("%w: %w", ErrLost, err))
			}
			return err
		}
		id := uint32(f.stamp >> 32)
		if f.typ != frameHello {
			if s == nil || id != s.id {
				continue
			}
			if err := s.handle(f); err != nil && s.failure() == nil {
				s.fail(err)
				if f.typ != frameLost {
					old := s
					wg.Go(old.tellLost)
				}
			}
			continue
		}
		if s != nil && id == s.id {
			continue // said again, see Announce
		}
		next, err := v.greet(port, f)
		if err != nil {
			// The write may wait for a host that reads; this goroutine must not.
			wg.Go(func() { refuse(port, id, err) })
			continue
		}
		if s != nil {
			s.fail(fmt.Errorf("%w: a new one began", ErrLost))
		}
		s = next.s
		stdin, err := s.open(stdinChannel)
		if err != nil {
			panic(err) // the session is new
		}
		wg.Go(func() { next.run(v, stdin, &wg) })
	}
}

// greet makes a session of a host's hello.
func (v *Server) greet(port io.ReadWriter, f frame) (*GuestSession, error) {
	var h hostHello
	if err := json.Unmarshal(f.payload, &h); err != nil {
		return nil, errors.New("hello is not understood")
	}
	switch {
	case h.Version != version:
		return nil, fmt.Errorf("guest speaks version %d of the protocol, host %d", version, h.Version)
	case subtle.ConstantTimeCompare([]byte(h.Token), []byte(v.Token)) != 1:
		return nil, errors.New("token is not this container's")
	case h.Window < minWindow || h.Window > maxWindow:
		return nil, fmt.Errorf("window of %d bytes", h.Window)
	}
	s := newSession(port, uint32(f.stamp>>32), h.Window)
	s.chunk = guestChunk
	if err := s.numbered(f); err != nil {
		return nil, err
	}
	c, err := s.open(messageChannel)
	if err != nil {
		return nil, err
	}
	return &GuestSession{s: s, chan0: c}, nil
}

func refuse(port io.Writer, id uint32, why error) {
	s := newSession(port, id, minWindow)
	text, err := json.Marshal(guestHello{Version: version, Error: why.Error()})
	if err == nil {
		err = s.send(frameHello, 0, text)
	}
	_ = err // the host has gone, and will say hello again if it comes back
}

// run answers the hello and carries out requests until the session ends.
func (g *GuestSession) run(v *Server, stdin *Channel, wg *sync.WaitGroup) {
	text, err := json.Marshal(guestHello{Version: version, ID: v.ID})
	if err != nil {
		panic(err)
	}
	err = g.s.send(frameHello, 0, text)
	v.Handler.Begin(stdin) // may send at once, and the hello is the session's first frame
	if err != nil {
		return
	}
	slots := make(chan struct{}, maxRequests)
	for {
		var c call
		if err := readMessage(g.chan0, &c); err != nil {
			if g.s.failure() == nil {
				g.s.fail(fmt.Errorf("%w: %w", ErrLost, err))
				g.s.tellLost()
			}
			return
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			g.answer(v.Handler, c)
		})
	}
}

func (g *GuestSession) answer(h Handler, c call) {
	a := answer{Number: c.Number}
	var err error
	if a.Reply, err = h.Do(g, c.Request); err != nil {
		if !errors.As(err, &a.Error) {
			a.Error = &Error{Kind: Failed, Message: err.Error()}
		}
	}
	_ = g.write(a) // if it fails the session is over, and nobody waits for the answer
}

func (g *GuestSession) write(a answer) error {
	b, err := encodeMessage(a)
	if err != nil {
		return err
	}
	g.wmu.Lock()
	defer g.wmu.Unlock()
	_, err = g.chan0.Write(b)
	return err
}

// Open opens the channels of an exec whose request named channel n. The
// caller ends both.
func (g *GuestSession) Open(n uint16) (stdio, stderr *Channel, err error) {
	if n < firstExec || n%2 != 0 {
		return nil, nil, &Error{Kind: Invalid, Message: fmt.Sprintf("channel %d is not for an exec", n)}
	}
	if stdio, err = g.s.open(n); err != nil {
		return nil, nil, err
	}
	if stderr, err = g.s.open(n + 1); err != nil {
		_ = stdio.Close() // err says more
		return nil, nil, err
	}
	return stdio, stderr, nil
}

// Done is closed when the session has ended.
func (g *GuestSession) Done() <-chan struct{} { return g.s.done }

// Exited tells the host that an exec or a task has ended, after all its output was
// written to its channels.
func (g *GuestSession) Exited(process string, e Exit) error {
	return g.write(answer{Process: process, Exit: &e})
}
