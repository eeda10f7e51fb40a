package tether

import (
	"errors"
	"io"
	"sync"

	"vic/tether/wire"
)

// A stdin is the container's standard input: what one control session after the other
// delivers, until a host says that it has ended.
type stdin struct {
	mu      sync.Mutex
	changed sync.Cond
	channel *wire.Channel // of the session now; nil before the first
	refused bool
}

func newStdin() *stdin {
	s := &stdin{}
	s.changed.L = &s.mu
	return s
}

// begin takes over the channel of a new session.
func (s *stdin) begin(c *wire.Channel) {
	s.mu.Lock()
	s.channel = c
	refused := s.refused
	s.changed.Broadcast()
	s.mu.Unlock()
	if refused {
		go c.CloseRead() // may wait for the host to read
	}
}

// refuse lets the host know that nobody reads.
func (s *stdin) refuse() {
	s.mu.Lock()
	c, before := s.channel, s.refused
	s.refused = true
	s.changed.Broadcast()
	s.mu.Unlock()
	if c != nil && !before {
		_ = c.CloseRead() // or the session is lost, and then so is the host
	}
}

// Read implements io.Reader. A session that is lost is waited out.
func (s *stdin) Read(p []byte) (int, error) {
	var lost *wire.Channel
	for {
		s.mu.Lock()
		for (s.channel == nil || s.channel == lost) && !s.refused {
			s.changed.Wait()
		}
		c, refused := s.channel, s.refused
		s.mu.Unlock()
		if refused {
			return 0, io.EOF
		}
		n, err := c.Read(p)
		if n > 0 || !errors.Is(err, wire.ErrLost) {
			return n, err
		}
		lost = c
	}
}
