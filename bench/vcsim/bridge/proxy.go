package bridge

import (
	"bytes"
	"context"
	"crypto/sha1"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"vic/containervm/vspc/telnet"
)

const (
	// proxyTimeout is how long a proxy may take for an answer. For VMOTION-GOAHEAD it is that long on ESXi.
	proxyTimeout = 5 * time.Second
	// firstPause and lastPause are how long a port waits before it tries a proxy again, twice as long each time.
	firstPause = 50 * time.Millisecond
	lastPause  = 2 * time.Second
)

// A proxy is a virtual serial port concentrator and what it is told about a port.
type proxy struct {
	address        string
	thumbprint     string // of its certificate, in hex digits; "" is without TLS
	direction      byte   // 'C' or 'S'
	service        string
	name           string
	bios, instance string // UUIDs as VMware's hosts write them
}

// A proxied is a serial port between QEMU and a proxy. It connects as an ESXi host does, and again when the proxy has gone; what the guest
// says meanwhile is lost.
type proxied struct {
	proxy  proxy
	log    *slog.Logger
	l      net.Listener // that QEMU connects to
	cancel context.CancelFunc
	wg     sync.WaitGroup

	wmu sync.Mutex // held across writes of what the guest says, and while the VM moves; before mu

	mu sync.Mutex
	s  *session // nil while there is none
}

// newProxied makes a port that QEMU finds at a unix socket.
func newProxied(path string, p proxy, log *slog.Logger) (*proxied, error) {
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	x := &proxied{proxy: p, log: log, l: l, cancel: cancel}
	x.wg.Go(func() { x.serve(ctx) })
	return x, nil
}

// close ends it. QEMU has gone or uses another.
func (x *proxied) close() error {
	x.cancel()
	err := x.l.Close()
	x.wg.Wait()
	if errors.Is(err, net.ErrClosed) { // QEMU has come
		err = nil
	}
	return err
}

// serve passes bytes both ways until the port is closed.
func (x *proxied) serve(ctx context.Context) {
	guest, err := x.l.Accept()
	if err != nil {
		return // closed before QEMU came
	}
	_ = x.l.Close() // it comes once
	context.AfterFunc(ctx, func() { _ = guest.Close() })
	x.wg.Go(func() { x.fromGuest(guest) })
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		s, err := openSession(ctx, x.proxy, nil)
		if err == nil {
			x.use(s)
			pause = firstPause
		}
		for ; s != nil; s = x.next(s) {
			conn := s.conn
			stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
			err = s.read(func(p []byte) error { _, err := guest.Write(p); return err })
			stop()
			close(s.done)
		}
		x.log.Debug("no proxy for serial port", "vm", x.proxy.name, "proxy", x.proxy.address, "error", err)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
	}
}

// next returns the session that the port has after one that has ended: another, if the VM has moved, or nil.
func (x *proxied) next(s *session) *session {
	_ = s.conn.Close()
	if now := x.session(); now != s {
		return now
	}
	x.wmu.Lock() // it may be moving
	defer x.wmu.Unlock()
	if x.session() == s {
		x.use(nil)
	}
	return x.session()
}

func (x *proxied) session() *session {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.s
}

func (x *proxied) use(s *session) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.s = s
}

// fromGuest passes what the guest says, or drops it.
func (x *proxied) fromGuest(guest net.Conn) {
	b := make([]byte, 4<<10)
	for {
		n, err := guest.Read(b)
		if err != nil {
			return
		}
		x.wmu.Lock()
		if s := x.session(); s != nil {
			if _, err := s.conn.Write(telnet.AppendData(nil, b[:n])); err != nil {
				_ = s.conn.Close() // its reader sees to the rest
			}
		}
		x.wmu.Unlock()
	}
}

// A move is a port's way to another host.
type move struct {
	x        *proxied
	sequence []byte
	source   *session // nil if there was no connection to move
	target   *session
}

// begin tells the proxy that the VM, which stands still, moves, and connects a second time. Only commit or abort let the guest's bytes
// go on.
func (x *proxied) begin(ctx context.Context, sequence []byte) (*move, error) {
	x.wmu.Lock()
	m := &move{x: x, sequence: sequence, source: x.session()}
	if m.source == nil {
		return m, nil
	}
	ctx, cancel := context.WithTimeout(ctx, proxyTimeout)
	defer cancel()
	cookie, err := m.source.begin(ctx, sequence)
	if err == nil {
		m.target, err = openSession(ctx, x.proxy, cookie)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("move serial port %s: %w", x.proxy.service, err), m.abort())
	}
	return m, nil
}

// commit has the port use the second connection.
func (m *move) commit() error {
	defer m.x.wmu.Unlock()
	if m.source == nil {
		return nil
	}
	_, err := m.target.conn.Write(telnet.AppendVMware(nil, telnet.VMotionComplete, m.sequence...))
	m.x.use(m.target)
	return errors.Join(err, m.source.conn.Close()) // the reader goes on to the target
}

// abort leaves the port where it is.
func (m *move) abort() error {
	defer m.x.wmu.Unlock()
	if m.source == nil {
		return nil
	}
	_, err := m.source.conn.Write(telnet.AppendVMware(nil, telnet.VMotionAbort))
	if m.target != nil {
		err = errors.Join(err, m.target.conn.Close())
	}
	return err
}

// A session is a conversation with a proxy, from the side of a host.
type session struct {
	conn    net.Conn
	proxy   proxy
	options telnet.Options
	d       telnet.Decoder
	known   []byte            // what is said when the proxy has agreed to VMware's option
	wish    []byte            // what is said when it has told what it knows of that
	answers chan telnet.Event // to VMOTION-BEGIN
	done    chan struct{}     // closed when nothing more comes
}

// knownSuboptions are what this host knows of VMware's option.
var knownSuboptions = []byte{
	telnet.KnownSuboptions1, telnet.KnownSuboptions2, telnet.UnknownSuboption1, telnet.UnknownSuboption2,
	telnet.VMotionBegin, telnet.VMotionGoAhead, telnet.VMotionNotNow, telnet.VMotionPeer, telnet.VMotionPeerOK, telnet.VMotionComplete, telnet.VMotionAbort,
	telnet.DoProxy, telnet.WillProxy, telnet.WontProxy,
	telnet.VCUUID, telnet.GetVCUUID, telnet.Name, telnet.GetName, telnet.BIOSUUID, telnet.GetBIOSUUID,
}

// openSession connects to a proxy, which agrees to serve the port or, if there is a cookie, to be the target of that vMotion.
func openSession(ctx context.Context, p proxy, cookie []byte) (*session, error) {
	ctx, cancel := context.WithTimeout(ctx, proxyTimeout)
	defer cancel()
	conn, err := p.dial(ctx)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	s := &session{conn: conn, proxy: p, answers: make(chan telnet.Event, 1), done: make(chan struct{}), options: telnet.Options{
		Us: []byte{telnet.Binary, telnet.SuppressGoAhead, telnet.VMware}, Them: []byte{telnet.Binary, telnet.SuppressGoAhead}}}
	if err = s.open(cookie); err == nil && !stop() {
		err = ctx.Err()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open session with proxy: %w", err), conn.Close())
	}
	return s, nil
}

func (p proxy) dial(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	if p.thumbprint == "" {
		return d.DialContext(ctx, "tcp", p.address)
	}
	secure := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, VerifyConnection: func(s tls.ConnectionState) error {
		if sum := sha1.Sum(s.PeerCertificates[0].Raw); hex.EncodeToString(sum[:]) != p.thumbprint {
			return fmt.Errorf("certificate has thumbprint %x, want %s", sum, p.thumbprint)
		}
		return nil
	}}}
	return secure.DialContext(ctx, "tcp", p.address)
}

// errAgreed ends the reading of an agreement.
var errAgreed = errors.New("agreed")

func (s *session) open(cookie []byte) error {
	s.known = telnet.AppendVMware(nil, telnet.KnownSuboptions1, knownSuboptions...)
	agreement := byte(telnet.WillProxy)
	s.wish = telnet.AppendVMware(nil, telnet.DoProxy, append([]byte{s.proxy.direction}, s.proxy.service...)...)
	if cookie != nil {
		agreement = telnet.VMotionPeerOK
		s.wish = telnet.AppendVMware(nil, telnet.VMotionPeer, cookie...)
	}
	if err := s.say(s.options.Offer(nil)); err != nil {
		return err
	}
	err := s.read(func([]byte) error { return errors.New("data before the proxy agreed") }, agreement)
	if errors.Is(err, errAgreed) {
		return nil
	}
	return err
}

// read reads what the proxy says, until the end or, if one is given, until an agreement. It is called by one at a time.
func (s *session) read(data func([]byte) error, until ...byte) error {
	b := make([]byte, 4<<10)
	size := len(b)
	if len(until) > 0 {
		size = 1 // so that nothing is read that comes after
	}
	for {
		n, err := s.conn.Read(b[:size])
		for e, err := range s.d.Decode(b[:n]) {
			if err == nil && e.Kind == telnet.Data {
				err = data(e.Bytes)
			} else if err == nil {
				err = s.event(e, until)
			}
			if err != nil {
				return err
			}
		}
		if err != nil {
			return err
		}
	}
}

func (s *session) event(e telnet.Event, until []byte) error {
	if e.Kind == telnet.Negotiation {
		answer := s.options.Receive(nil, e.Verb, e.Option)
		if e.Verb == telnet.DO && e.Option == telnet.VMware {
			answer, s.known = append(answer, s.known...), nil
		}
		return s.say(answer)
	}
	if e.Kind != telnet.Subnegotiation || e.Option != telnet.VMware || len(e.Bytes) == 0 {
		return nil
	}
	number := e.Bytes[0]
	switch number {
	case telnet.KnownSuboptions2:
		wish := s.wish
		s.wish = nil
		return s.say(wish)
	case telnet.GetVCUUID:
		return s.say(telnet.AppendVMware(nil, telnet.VCUUID, []byte(s.proxy.instance)...))
	case telnet.GetBIOSUUID:
		return s.say(telnet.AppendVMware(nil, telnet.BIOSUUID, []byte(s.proxy.bios)...))
	case telnet.GetName:
		return s.say(telnet.AppendVMware(nil, telnet.Name, []byte(s.proxy.name)...))
	case telnet.WillProxy, telnet.VMotionPeerOK:
		if slices.Contains(until, number) {
			return errAgreed
		}
		return nil
	case telnet.WontProxy:
		return errors.New("the proxy does not serve the port")
	case telnet.VMotionGoAhead, telnet.VMotionNotNow:
		e.Bytes = bytes.Clone(e.Bytes)
		select {
		case s.answers <- e:
			return nil
		default:
			return errors.New("the proxy answers what it was not asked")
		}
	case telnet.UnknownSuboption2:
		return fmt.Errorf("the proxy does not know suboption %d", e.Bytes[1:])
	}
	return s.say(telnet.AppendVMware(nil, telnet.UnknownSuboption1, number))
}

// say writes an answer. Those that are due while the guest's bytes pass are options', which take no lock: a Write is whole.
func (s *session) say(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	_, err := s.conn.Write(p)
	return err
}

// begin asks the proxy to let the VM move, and returns what the other host needs to know.
func (s *session) begin(ctx context.Context, sequence []byte) (cookie []byte, err error) {
	if err := s.say(telnet.AppendVMware(nil, telnet.VMotionBegin, sequence...)); err != nil {
		return nil, err
	}
	select {
	case e := <-s.answers:
		if e.Bytes[0] == telnet.VMotionNotNow {
			return nil, errors.New("not now, says the proxy")
		}
		if !bytes.HasPrefix(e.Bytes[1:], sequence) {
			return nil, errors.New("the proxy answers about another vMotion")
		}
		return e.Bytes[1:], nil
	case <-s.done:
		return nil, errors.New("the proxy has hung up")
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for the proxy: %w", ctx.Err())
	}
}

// vmwareUUID writes a UUID as VMware's hosts do: "00 11 22 33 44 55 66 77-88 99 aa bb cc dd ee ff".
func vmwareUUID(text string) (string, error) {
	b, err := hex.DecodeString(strings.ReplaceAll(text, "-", ""))
	if err != nil || len(b) != 16 {
		return "", fmt.Errorf("%q is not a UUID", text)
	}
	return fmt.Sprintf("% x-% x", b[:8], b[8:]), nil
}
