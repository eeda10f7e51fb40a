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

	kept    bool          // what one process does not read is for the next
	current *wire.Channel // used by Read alone

	turn sync.Mutex // held by feed
	rest []byte     // read, and not taken
}

// keep says whether a process comes after the one that reads now.
func (s *stdin) keep(kept bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kept = kept
}

// feed copies what comes to a process until it takes no more, or nothing more comes. It reports whether
// there is more for the process that follows; then a process has ended, or closed its stdin.
func (s *stdin) feed(to io.Writer) bool {
	s.turn.Lock()
	defer s.turn.Unlock()
	buf := make([]byte, wire.MaxPayload)
	for {
		if len(s.rest) == 0 {
			n, err := s.Read(buf)
			if err != nil {
				return false
			}
			s.rest = buf[:n]
		}
		n, err := to.Write(s.rest)
		s.rest = s.rest[n:]
		if err != nil {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.kept
		}
	}
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
