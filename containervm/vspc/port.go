package vspc

import "container/list"

// A slot is where a port is or will be. The server's lock guards it.
type slot struct {
	port    *port          // nil while it is not connected
	waiting []chan *stream // in Dial, the first to come first; each has room for one stream
}

// A port is a VM's serial port for as long as it is connected, be it by one host after another. The server's lock guards it.
type port struct {
	keys    []key // by the UUIDs that its VM has
	line    *line // nil if it has gone in a vMotion
	user    *stream
	idle    *list.Element // in Server.idle, if nobody uses it
	vMotion *vMotion
	resume  chan struct{} // in a vMotion: closed at its end
	gone    bool
}

// slot returns the slot of a key. The server's lock is held, as for all that follow.
func (s *Server) slot(k key) *slot {
	if s.slots[k] == nil {
		s.slots[k] = &slot{}
	}
	return s.slots[k]
}

// prune forgets a slot in which nothing is.
func (s *Server) prune(k key) {
	if slot := s.slots[k]; slot != nil && slot.port == nil && len(slot.waiting) == 0 {
		delete(s.slots, k)
	}
}

// A verdict is what becomes of a connection that says which port it is.
type verdict int

const (
	opened  verdict = iota
	standby         // the port is in a vMotion, whose target it may be
	refused         // the port is connected
)

// open gives a line its port.
func (s *Server) open(l *line, keys []key) verdict {
	for _, k := range keys {
		slot := s.slots[k]
		if slot == nil || slot.port == nil {
			continue
		}
		if slot.port.vMotion != nil {
			return standby
		}
		if !slot.port.line.dead() {
			return refused
		}
	}
	for _, k := range keys {
		if slot := s.slot(k); slot.port != nil {
			s.remove(slot.port) // whoever uses it yet reads what there is
		}
	}
	p := &port{keys: keys, line: l}
	l.port = p
	s.known(l)
	for _, k := range keys {
		s.slot(k).port = p
	}
	if !s.attachNext(p) {
		p.idle = s.idle.PushBack(p)
	}
	if s.idle.Len() > maxPorts {
		oldest := s.idle.Front().Value.(*port)
		if oldest.line != nil {
			_ = oldest.line.conn.Close() // its reader ends
		}
		s.end(oldest)
	}
	return opened
}

// known takes a line from those of whom nothing is known.
func (s *Server) known(l *line) {
	if l.stranger != nil {
		s.strangers.Remove(l.stranger)
		l.stranger = nil
	}
}

// attach gives a port that nobody uses a user.
func (s *Server) attach(p *port) *stream {
	if p.idle != nil {
		s.idle.Remove(p.idle)
		p.idle = nil
	}
	p.user = newStream(s, p)
	return p.user
}

// attachNext gives a port to the first of those who wait for it, and tells whether there was one.
func (s *Server) attachNext(p *port) bool {
	for _, k := range p.keys {
		if slot := s.slots[k]; slot != nil && slot.port == p && len(slot.waiting) > 0 {
			w := slot.waiting[0]
			slot.waiting = slot.waiting[1:]
			w <- s.attach(p)
			return true
		}
	}
	return false
}

// release takes a port from its user.
func (s *Server) release(st *stream) {
	p := st.port
	if p.user != st {
		return
	}
	p.user = nil
	if !p.gone && !s.attachNext(p) {
		p.idle = s.idle.PushBack(p)
	}
}

// remove takes a port from where it can be dialled.
func (s *Server) remove(p *port) {
	for _, k := range p.keys {
		if slot := s.slots[k]; slot != nil && slot.port == p {
			slot.port = nil
			s.prune(k)
		}
	}
}

// end ends a port: its user has read all there is.
func (s *Server) end(p *port) {
	if p.gone {
		return
	}
	p.gone = true
	s.remove(p)
	s.endVMotion(p)
	if p.idle != nil {
		s.idle.Remove(p.idle)
		p.idle = nil
	}
	if p.user != nil {
		_ = p.user.feed.Close()
		p.user = nil
	}
}

// deliver gives what comes from a VM to whoever uses its port, and drops it if nobody does. It waits for the user to read. No lock is held.
func (s *Server) deliver(p *port, data []byte) {
	for len(data) > 0 {
		s.mu.Lock()
		u := p.user
		s.mu.Unlock()
		if u == nil {
			return
		}
		n, _ := u.feed.Write(data) // an error says that the user has hung up; the next one gets the rest
		data = data[n:]
	}
}
