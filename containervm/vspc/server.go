package vspc

import (
	"container/list"
	"context"
	"crypto/sha1"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// maxStrangers is how many connections there are at most that have not said who they are.
	maxStrangers = 1024
	// maxPorts is how many ports are connected at most, beside those that are dialled.
	maxPorts = 1 << 14
	// identifyTimeout is how long a host may take to say who it is.
	identifyTimeout = 10 * time.Second
	// acceptPause is how long nothing is accepted after the system had no means to.
	acceptPause = 100 * time.Millisecond
)

// errClosed is what Dial returns on a server that is closed.
var errClosed = fmt.Errorf("vspc: server closed: %w", net.ErrClosed)

// Options say how a server works.
type Options struct {
	// Log is told of ports that somebody has dialled, and at debug level of the others; nil is silent.
	Log *slog.Logger
}

// A Server lets those who Dial it talk through the serial ports of VMs.
type Server struct {
	log      *slog.Logger
	identify time.Duration  // identifyTimeout
	vMotion  time.Duration  // vMotionTimeout
	wg       sync.WaitGroup // of lines

	mu        sync.Mutex
	closed    bool
	listeners map[net.Listener]struct{}
	lines     map[*line]struct{}
	strangers list.List // of *line that belong to no port, the oldest first
	slots     map[key]*slot
	idle      list.List           // of *port that nobody uses, likewise
	vMotions  map[string]*vMotion // by sequence and secret
}

// A key names a port: a VM's UUID in hex digits, and the service URI of its backing.
type key struct{ vm, service string }

// ProxyURI is the ProxyURI of a port's backing that leads to a server at HOST:PORT: with TLS if there is a certificate (DER), which hosts
// then know the server by, whoever has issued it.
func ProxyURI(address string, certificate []byte) string {
	if certificate == nil {
		return "telnet://" + address
	}
	sum := sha1.Sum(certificate)
	return fmt.Sprintf("telnets://%s#thumbprint=%s", address, strings.ReplaceAll(fmt.Sprintf("% X", sum[:]), " ", ":"))
}

// NewServer makes a server that listens nowhere yet.
func NewServer(o Options) *Server {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Server{log: o.Log, identify: identifyTimeout, vMotion: vMotionTimeout, listeners: map[net.Listener]struct{}{}, lines: map[*line]struct{}{}, slots: map[key]*slot{}, vMotions: map[string]*vMotion{}}
}

// Serve talks with the hosts that connect to l, in plain text or, if it is a TLS listener, in TLS. It closes l, and returns nil once the
// server is closed.
func (s *Server) Serve(l net.Listener) error {
	defer l.Close()
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.listeners[l] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.listeners, l)
		s.mu.Unlock()
	}()
	for {
		conn, err := l.Accept()
		if err == nil {
			s.accept(conn)
			continue
		}
		s.mu.Lock()
		closed := s.closed
		s.mu.Unlock()
		if closed {
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		s.log.Error("accept", "error", err) // no file descriptors, no memory: it is transient
		time.Sleep(acceptPause)
	}
}

// accept begins to talk with a host. If there are too many strangers, the oldest goes.
func (s *Server) accept(conn net.Conn) {
	if c := tcpConn(conn); c != nil {
		if err := watchOver(c); err != nil {
			s.log.Debug("set up connection", "error", err)
		}
	}
	l := &line{s: s, conn: conn, done: make(chan struct{})}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		_ = conn.Close()
		return
	}
	if s.strangers.Len() == maxStrangers {
		oldest := s.strangers.Remove(s.strangers.Front()).(*line)
		oldest.stranger = nil
		_ = oldest.conn.Close() // its reader sees to the rest
	}
	l.stranger = s.strangers.PushBack(l)
	s.lines[l] = struct{}{}
	s.wg.Go(l.run)
}

// tcpConn is the TCP connection that a connection is on, or nil.
func tcpConn(conn net.Conn) *net.TCPConn {
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	c, _ := conn.(*net.TCPConn)
	return c
}

// Close hangs up on everybody: streams end, and those who wait in Dial get an error.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	var err error
	for l := range s.listeners {
		err = errors.Join(err, l.Close())
	}
	for l := range s.lines {
		_ = l.conn.Close()
		if l.port != nil {
			s.end(l.port)
		}
	}
	for _, slot := range s.slots {
		if slot.port != nil { // its source has gone, and its target is not there
			s.end(slot.port)
		}
		for _, w := range slot.waiting {
			close(w)
		}
	}
	clear(s.slots)
	s.mu.Unlock()
	s.wg.Wait()
	return err
}

// Dial returns the stream of a VM's serial port. vm is the VM's UUID (config.uuid or config.instanceUuid of vSphere's API), in any of the
// ways that they are written, and service the ServiceURI of the port's backing. Dial waits until the VM is connected and nobody else has
// the port, or ctx ends. Bytes from the VM that come while nobody has dialled are dropped, but none that come while somebody waits.
//
// The stream ends, with io.EOF, when the VM's connection does, and lives on in a vMotion. Closing it leaves the VM connected. Until then
// it has to be read: what is not holds the VM's host up, and a vMotion with it.
func (s *Server) Dial(ctx context.Context, vm, service string) (net.Conn, error) {
	id, err := parseUUID(vm)
	if err != nil {
		return nil, fmt.Errorf("dial serial port: %w", err)
	}
	k := key{id, service}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil, errClosed
	}
	slot := s.slot(k)
	if slot.port != nil && slot.port.user == nil {
		st := s.attach(slot.port)
		s.mu.Unlock()
		return st, nil
	}
	w := make(chan *stream, 1)
	slot.waiting = append(slot.waiting, w)
	s.mu.Unlock()
	select {
	case st, ok := <-w:
		if !ok {
			return nil, errClosed
		}
		return st, nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case st, ok := <-w: // at the same time
		if ok {
			return st, nil
		}
		return nil, errClosed
	default:
	}
	slot.waiting = slices.DeleteFunc(slot.waiting, func(o chan *stream) bool { return o == w })
	s.prune(k)
	return nil, fmt.Errorf("wait for serial port %s of VM %s: %w", service, vm, context.Cause(ctx))
}

// parseUUID reads a UUID as VMware or anybody else writes it.
func parseUUID(text string) (string, error) {
	digits := strings.ToLower(strings.Map(func(r rune) rune {
		if r == ' ' || r == '-' {
			return -1
		}
		return r
	}, text))
	if len(digits) != 32 || strings.Trim(digits, "0123456789abcdef") != "" {
		return "", fmt.Errorf("%q is not a UUID", text)
	}
	return digits, nil
}
