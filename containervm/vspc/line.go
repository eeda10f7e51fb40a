package vspc

import (
	"bytes"
	"container/list"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"vic/containervm/vspc/telnet"
)

const (
	// maxService and maxName bound a service URI and what is kept of a VM's name.
	maxService = 256
	maxName    = 80
	// readSize is how much is read at once.
	readSize = 4 << 10
)

// suboptions are what this end knows of VMware's option.
var suboptions = []byte{
	telnet.KnownSuboptions1, telnet.KnownSuboptions2, telnet.UnknownSuboption1, telnet.UnknownSuboption2,
	telnet.VMotionBegin, telnet.VMotionGoAhead, telnet.VMotionNotNow, telnet.VMotionPeer, telnet.VMotionPeerOK, telnet.VMotionComplete, telnet.VMotionAbort,
	telnet.DoProxy, telnet.WillProxy, telnet.WontProxy,
	telnet.VCUUID, telnet.GetVCUUID, telnet.Name, telnet.GetName, telnet.BIOSUUID, telnet.GetBIOSUUID,
}

// questions are what a host is asked.
var questions = []byte{telnet.GetBIOSUUID, telnet.GetVCUUID, telnet.GetName}

// A line is a host's connection for one serial port of a VM.
type line struct {
	s    *Server
	conn net.Conn
	done chan struct{} // closed when nothing more comes of it

	wmu sync.Mutex // held across writes to conn

	// The reading goroutine's.
	options     telnet.Options
	asked       []byte // questions to which no answer has come
	wasAsked    bool
	bios, vc    string
	name        string
	service     string
	open        bool   // WILL-PROXY is said
	waitingPeer bool   // it may be the target of a vMotion
	early       []byte // what the target of a vMotion sent before that was complete

	// The server's lock guards these.
	stranger *list.Element // in Server.strangers, until it belongs to a port
	port     *port
	vMotion  *vMotion // whose target it is, until complete
	retired  bool     // it was a vMotion's source
}

func (l *line) run() {
	defer close(l.done)
	err := l.converse()
	used := l.s.hangUp(l)
	_ = l.conn.Close()
	log := l.s.log.Debug
	if used {
		log = l.s.log.Info
	}
	log("serial port disconnected", "from", l.conn.RemoteAddr(), "vm", l.name, "uuid", l.id(), "service", l.service, "reason", err)
}

// hangUp is the end of a line. It tells whether its port was in use.
func (s *Server) hangUp(l *line) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.lines, l)
	s.known(l)
	p := l.port
	if p == nil || l.retired {
		return false
	}
	used := p.user != nil
	switch {
	case p.line == l && p.vMotion != nil:
		p.line = nil
		p.vMotion.expectTarget(s)
	case p.line == l:
		s.end(p)
	case p.vMotion != nil && p.vMotion.target == l:
		p.vMotion.target = nil
		if p.line == nil {
			s.end(p)
		}
	}
	return used
}

// converse reads what the host says until it hangs up.
func (l *line) converse() error {
	l.options = telnet.Options{Us: []byte{telnet.Binary, telnet.SuppressGoAhead}, Them: []byte{telnet.Binary, telnet.SuppressGoAhead, telnet.VMware}}
	if err := l.conn.SetDeadline(time.Now().Add(l.s.identify)); err != nil {
		return err
	}
	if err := l.say(l.options.Offer(nil)); err != nil {
		return err
	}
	var d telnet.Decoder
	buf := make([]byte, readSize)
	for {
		n, err := l.conn.Read(buf)
		for e, err := range d.Decode(buf[:n]) {
			if err == nil {
				err = l.event(e)
			}
			if err != nil {
				return err
			}
		}
		if errors.Is(err, os.ErrDeadlineExceeded) && !l.open {
			err = l.settle(true)
		}
		if err != nil {
			return err
		}
	}
}

// say writes to the host.
func (l *line) say(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	l.wmu.Lock()
	defer l.wmu.Unlock()
	_, err := l.conn.Write(p)
	return err
}

func (l *line) event(e telnet.Event) error {
	switch {
	case e.Kind == telnet.Data:
		return l.s.data(l, e.Bytes)
	case e.Kind == telnet.Negotiation:
		if refusal := e.Verb == telnet.WONT || e.Verb == telnet.DONT; refusal && e.Option == telnet.Binary {
			l.s.log.Debug("host declines 8-bit data", "from", l.conn.RemoteAddr())
		} else if refusal && e.Option == telnet.VMware {
			return errors.New("vspc: not a VM's host")
		}
		return l.say(l.options.Receive(nil, e.Verb, e.Option))
	case e.Kind == telnet.Subnegotiation && e.Option == telnet.VMware && len(e.Bytes) > 0:
		return l.vmware(e.Bytes[0], e.Bytes[1:])
	}
	return nil
}

func (l *line) vmware(number byte, arg []byte) error {
	switch number {
	case telnet.KnownSuboptions1:
		if err := l.say(telnet.AppendVMware(nil, telnet.KnownSuboptions2, suboptions...)); err != nil {
			return err
		}
		return l.ask(func(q byte) bool { return bytes.IndexByte(arg, q) >= 0 })
	case telnet.UnknownSuboption1:
		if len(arg) > 0 {
			return l.answered(arg[0])
		}
		return nil
	case telnet.DoProxy:
		return l.doProxy(arg)
	case telnet.BIOSUUID:
		return l.identified(&l.bios, number, arg)
	case telnet.VCUUID:
		return l.identified(&l.vc, number, arg)
	case telnet.Name:
		l.name = string(arg[:min(len(arg), maxName)])
		return l.answered(telnet.GetName)
	case telnet.VMotionBegin:
		return l.s.vMotionBegin(l, arg)
	case telnet.VMotionPeer:
		return l.s.vMotionPeer(l, arg)
	case telnet.VMotionComplete:
		return l.s.vMotionComplete(l)
	case telnet.VMotionAbort:
		return l.s.vMotionAbort(l)
	}
	return l.say(telnet.AppendVMware(nil, telnet.UnknownSuboption2, number))
}

// ask asks the questions that the host knows, once.
func (l *line) ask(knows func(byte) bool) error {
	if l.wasAsked {
		return nil
	}
	l.wasAsked = true
	var b []byte
	for _, q := range questions {
		if knows(q) {
			l.asked = append(l.asked, q)
			b = telnet.AppendVMware(b, q)
		}
	}
	return l.say(b)
}

func (l *line) answered(question byte) error {
	l.asked = slices.DeleteFunc(l.asked, func(q byte) bool { return q == question })
	return l.settle(false)
}

func (l *line) identified(id *string, number byte, arg []byte) error {
	if len(arg) > 0 { // a VM that no vCenter manages has no UUID of one
		u, err := parseUUID(string(arg))
		if err != nil {
			return err
		}
		if *id != "" && *id != u {
			return fmt.Errorf("vspc: VM %s says that it is %s", *id, u)
		}
		*id = u
	}
	return l.answered(number + 1)
}

// id is what the VM is known by.
func (l *line) id() string {
	if l.bios != "" {
		return l.bios
	}
	return l.vc
}

func (l *line) keys() []key {
	var keys []key
	for _, id := range []string{l.bios, l.vc} {
		if k := (key{id, l.service}); id != "" && !slices.Contains(keys, k) {
			keys = append(keys, k)
		}
	}
	return keys
}

func (l *line) doProxy(arg []byte) error {
	if len(arg) < 2 || len(arg) > 1+maxService || arg[0] != 'C' && arg[0] != 'S' || l.service != "" {
		return errors.Join(fmt.Errorf("vspc: cannot proxy %q", arg[:min(len(arg), 1+maxService)]), l.say(telnet.AppendVMware(nil, telnet.WontProxy)))
	}
	l.service = string(arg[1:])
	if err := l.ask(func(byte) bool { return true }); err != nil { // a host that does not say what it knows
		return err
	}
	return l.settle(false)
}

// settle gives the line its port, once it is known, or if late as well as it is known.
func (l *line) settle(late bool) error {
	if l.open || l.service == "" || len(l.asked) > 0 && !late {
		if late {
			return errors.New("vspc: host does not ask for a proxy")
		}
		return nil
	}
	keys := l.keys()
	if len(keys) == 0 {
		return errors.New("vspc: host does not say which VM it is")
	}
	if l.waitingPeer && !late {
		return nil
	}
	said := l.waitingPeer
	l.wmu.Lock() // nothing is written to the port before WILL-PROXY
	defer l.wmu.Unlock()
	l.s.mu.Lock()
	v := opened
	if l.port == nil { // or it is a vMotion's target
		v = l.s.open(l, keys)
	}
	used := v == opened && l.port.user != nil
	l.s.mu.Unlock()
	switch {
	case v == refused || v == standby && late:
		_, err := l.conn.Write(telnet.AppendVMware(nil, telnet.WontProxy))
		return errors.Join(fmt.Errorf("vspc: serial port %s of VM %s is connected", l.service, l.id()), err)
	case v == standby:
		l.waitingPeer = true
		if err := l.conn.SetReadDeadline(time.Now().Add(l.s.vMotion)); err != nil {
			return err
		}
	default:
		l.open = true
		if err := l.conn.SetDeadline(time.Time{}); err != nil {
			return err
		}
	}
	log := l.s.log.Debug
	if used {
		log = l.s.log.Info
	}
	log("serial port connected", "from", l.conn.RemoteAddr(), "vm", l.name, "uuid", l.id(), "service", l.service)
	if !said {
		_, err := l.conn.Write(telnet.AppendVMware(nil, telnet.WillProxy))
		return err
	}
	return nil
}

// dead tells whether the host has hung up, although its last bytes may not have been read yet.
func (l *line) dead() bool {
	c := tcpConn(l.conn)
	return c != nil && !established(c)
}
