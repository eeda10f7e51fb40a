package tether

import (
	"io"
	"sync"

	"vic/tether/wire"
)

// stdin is what the container's process reads: what one control session after
// another sends, until one of them ends it.
type stdin struct {
	mu     sync.Mutex
	wake   sync.Cond
	next   *wire.Channel // of a session that has begun
	closed bool

	current *wire.Channel // used by Read alone
}

func newStdin() *stdin {
	s := new(stdin)
	s.wake.L = &s.mu
	return s
}

// begin goes over to the channel of a new session. It does not wait. Sessions may be
// told of out of order; one that has been displaced is over by then.
func (s *stdin) begin(c *wire.Channel) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.Err() != nil {
		return
	}
	if s.closed {
		refuse(c)
		return
	}
	s.next = c
	s.wake.Broadcast()
}

// refuse tells the host that nobody reads. It may have to wait for the host.
func refuse(c *wire.Channel) {
	go c.CloseRead() // ends with the session at the latest
}

// refuse lets no session send stdin any more.
func (s *stdin) refuse() { _ = s.CloseRead() }

// CloseRead says that nobody reads any more: Read returns io.EOF.
func (s *stdin) CloseRead() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.next != nil {
		refuse(s.next)
	}
	s.wake.Broadcast()
	return nil
}

// Read reads what the present session sends. One that is lost is followed by the
// next; one that says that stdin is at its end ends it for good.
func (s *stdin) Read(p []byte) (int, error) {
	for {
		if s.current != nil {
			n, err := s.current.Read(p)
			if err == nil {
				return n, nil
			}
			if err == io.EOF {
				return 0, io.EOF
			}
			s.current = nil
		}
		s.mu.Lock()
		for s.next == nil && !s.closed {
			s.wake.Wait()
		}
		closed := s.closed
		s.current, s.next = s.next, nil
		s.mu.Unlock()
		if closed {
			return 0, io.EOF
		}
	}
}
