package vspc

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"vic/containervm/vspc/telnet"
)

const (
	// vMotionTimeout is how long the target of a vMotion may take to show itself after the source has gone.
	vMotionTimeout = time.Minute
	// drainTimeout is how long a source is read after the VM went on elsewhere.
	drainTimeout = time.Second
	// maxSequence bounds a vMotion's sequence.
	maxSequence = 64
	// secretSize is how long the secret is.
	secretSize = 4
	// maxEarly is how much a target may send before the vMotion is complete.
	maxEarly = 64 << 10
)

// A vMotion is a VM's way from one host to another, from VMOTION-BEGIN to VMOTION-COMPLETE. The server's lock guards it.
type vMotion struct {
	port     *port
	sequence []byte
	cookie   string // sequence and secret
	source   *line
	target   *line       // nil until it has shown itself
	timer    *time.Timer // once the source has gone
}

// vMotionBegin has what is written to the port wait until the VM is elsewhere. All that was written before has gone.
func (s *Server) vMotionBegin(l *line, sequence []byte) error {
	l.wmu.Lock()
	defer l.wmu.Unlock()
	s.mu.Lock()
	p := l.port
	if p == nil || p.line != l || p.gone || len(sequence) > maxSequence {
		s.mu.Unlock()
		_, err := l.conn.Write(telnet.AppendVMware(nil, telnet.VMotionNotNow, sequence...))
		return err
	}
	if p.vMotion != nil { // that one came to nothing
		s.dropVMotion(p)
	}
	secret := make([]byte, secretSize)
	rand.Read(secret)
	v := &vMotion{port: p, sequence: bytes.Clone(sequence), source: l}
	v.cookie = string(v.sequence) + string(secret)
	p.vMotion, s.vMotions[v.cookie] = v, v
	if p.resume == nil {
		p.resume = make(chan struct{})
	}
	s.mu.Unlock()
	_, err := l.conn.Write(telnet.AppendVMware(nil, telnet.VMotionGoAhead, []byte(v.cookie)...))
	return err
}

// vMotionPeer lets a line be the target of a vMotion whose secret it knows.
func (s *Server) vMotionPeer(l *line, cookie []byte) error {
	s.mu.Lock()
	v := s.vMotions[string(cookie)]
	if v == nil || v.target != nil || l.port != nil || !v.matches(l) {
		s.mu.Unlock()
		return errors.Join(errors.New("vspc: not the target of a vMotion"), l.say(telnet.AppendVMware(nil, telnet.UnknownSuboption2, telnet.VMotionPeer)))
	}
	v.target, l.vMotion, l.port = l, v, v.port
	s.known(l)
	if v.timer != nil {
		v.timer.Stop()
		v.timer = nil
	}
	sequence := v.sequence
	s.mu.Unlock()
	l.open = l.open || l.waitingPeer
	if err := l.conn.SetDeadline(time.Time{}); err != nil {
		return err
	}
	return l.say(telnet.AppendVMware(nil, telnet.VMotionPeerOK, sequence...))
}

// matches tells whether a line is, as far as it says, the same port.
func (v *vMotion) matches(l *line) bool {
	for _, k := range v.port.keys {
		if (l.service == "" || l.service == k.service) && (l.id() == "" || k.vm == l.bios || k.vm == l.vc) {
			return true
		}
	}
	return false
}

// vMotionComplete has the target of a vMotion take over.
func (s *Server) vMotionComplete(l *line) error {
	s.mu.Lock()
	v := l.vMotion
	if v == nil || v.port.vMotion != v {
		s.mu.Unlock()
		return errors.New("vspc: no vMotion to complete")
	}
	p := v.port
	p.line, l.vMotion, v.source.retired = l, nil, true
	s.endVMotion(p)
	s.mu.Unlock()
	s.log.Info("serial port moved", "from", v.source.conn.RemoteAddr(), "to", l.conn.RemoteAddr(), "service", p.keys[0].service, "uuid", p.keys[0].vm)
	// The source's last bytes come first. It may be waiting for its stream's user to read.
	_ = v.source.conn.SetReadDeadline(time.Now().Add(drainTimeout)) // it may have ended
	timer := time.NewTimer(2 * drainTimeout)
	defer timer.Stop()
	select {
	case <-v.source.done:
	case <-timer.C:
		_ = v.source.conn.Close()
	}
	s.deliver(p, l.early)
	l.early = nil
	return nil
}

// vMotionAbort has a VM stay where it is.
func (s *Server) vMotionAbort(l *line) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := l.port; p != nil && p.line == l && p.vMotion != nil {
		s.dropVMotion(p)
	}
	return nil
}

// dropVMotion ends a vMotion that came to nothing. The server's lock is held, as for all that follow.
func (s *Server) dropVMotion(p *port) {
	if t := p.vMotion.target; t != nil {
		t.port, t.vMotion = nil, nil
		_ = t.conn.Close() // its reader sees to the rest
	}
	s.endVMotion(p)
}

// endVMotion lets what is written to a port go on.
func (s *Server) endVMotion(p *port) {
	v := p.vMotion
	if v == nil {
		return
	}
	if v.timer != nil {
		v.timer.Stop()
	}
	delete(s.vMotions, v.cookie)
	p.vMotion = nil
	close(p.resume)
	p.resume = nil
}

// expectTarget gives a vMotion whose source has gone some more time, if its target has not shown itself.
func (v *vMotion) expectTarget(s *Server) {
	if v.target != nil {
		return
	}
	v.timer = time.AfterFunc(s.vMotion, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if v.port.vMotion == v && v.target == nil {
			s.log.Info("vMotion timed out", "vm", fmt.Sprint(v.port.keys))
			s.end(v.port)
		}
	})
}

// data takes what a VM sends.
func (s *Server) data(l *line, p []byte) error {
	s.mu.Lock()
	port, early := l.port, l.vMotion != nil
	s.mu.Unlock()
	switch {
	case early && len(l.early)+len(p) > maxEarly:
		return fmt.Errorf("vspc: more than %d bytes before the vMotion was complete", maxEarly)
	case early:
		l.early = append(l.early, p...)
	case port != nil:
		s.deliver(port, p)
	}
	return nil
}
