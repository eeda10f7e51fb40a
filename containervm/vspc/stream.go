package vspc

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"vic/containervm/vspc/telnet"
)

// writeChunk is how much of a Write goes to a host at once.
const writeChunk = 16 << 10

// A stream is a port's, as its user sees it. What comes from the VM is read from a pipe that the line's reader fills; what goes there is
// written to the line that the port has at the time.
type stream struct {
	net.Conn // the user's end of the pipe
	feed     net.Conn
	s        *Server
	port     *port

	once   sync.Once
	closed chan struct{}
	by     deadline // of writes

	mu      sync.Mutex
	writing net.Conn // that a Write is under way to
}

func newStream(s *Server, p *port) *stream {
	user, feed := net.Pipe()
	return &stream{Conn: user, feed: feed, s: s, port: p, closed: make(chan struct{}), by: deadline{passed: make(chan struct{})}}
}

// Close lets the next one have the port.
func (st *stream) Close() error {
	st.once.Do(func() {
		close(st.closed)
		st.hurry(time.Unix(1, 0))
		st.s.mu.Lock()
		st.s.release(st)
		st.s.mu.Unlock()
		_ = st.Conn.Close() // a pipe's
	})
	return nil
}

// Write writes to the VM. It waits while the VM moves. If its deadline ends it midway, or Close does, the host is hung up on.
func (st *stream) Write(p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var m int
		m, err = st.write(p[n:min(len(p), n+writeChunk)])
		n += m
	}
	return n, err
}

// write writes all of p or, if it returns no error, nothing of it because the VM has moved.
func (st *stream) write(p []byte) (int, error) {
	passed := st.by.after()
	select {
	case <-st.closed:
		return 0, io.ErrClosedPipe
	case <-passed:
		return 0, os.ErrDeadlineExceeded
	default:
	}
	l, resume, err := st.line()
	if err != nil {
		return 0, err
	}
	if resume != nil {
		select {
		case <-resume:
		case <-st.closed:
		case <-passed:
		}
		return 0, nil
	}
	l.wmu.Lock()
	defer l.wmu.Unlock()
	if now, resume, err := st.line(); err != nil || now != l || resume != nil {
		return 0, err
	}
	if bytes.IndexByte(p, telnet.IAC) < 0 {
		return st.send(l, p, len(p))
	}
	return st.send(l, telnet.AppendData(make([]byte, 0, len(p)+len(p)/8+8), p), len(p))
}

// line is where what is written goes, or what to wait for before that is known.
func (st *stream) line() (*line, <-chan struct{}, error) {
	st.s.mu.Lock()
	defer st.s.mu.Unlock()
	p := st.port
	if p.gone {
		return nil, nil, fmt.Errorf("vspc: serial port disconnected: %w", io.ErrClosedPipe)
	}
	return p.line, p.resume, nil
}

// send writes bytes that stand for n.
func (st *stream) send(l *line, b []byte, n int) (int, error) {
	st.mu.Lock()
	st.writing = l.conn
	st.mu.Unlock()
	select {
	case <-st.closed:
		st.hurry(time.Unix(1, 0))
	default:
		st.hurry(st.by.time())
	}
	written, err := l.conn.Write(b)
	st.mu.Lock()
	st.writing = nil
	st.mu.Unlock()
	if err == nil {
		err = l.conn.SetWriteDeadline(time.Time{})
	}
	if err == nil {
		return n, nil
	}
	_ = l.conn.Close() // the host may have got half of something
	return min(written, n), fmt.Errorf("vspc: write to serial port: %w", err)
}

// hurry sets the deadline of a Write that is under way.
func (st *stream) hurry(t time.Time) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.writing != nil {
		_ = st.writing.SetWriteDeadline(t) // the Write fails for the same reason
	}
}

// SetDeadline is net.Conn's.
func (st *stream) SetDeadline(t time.Time) error {
	if err := st.SetReadDeadline(t); err != nil {
		return err
	}
	return st.SetWriteDeadline(t)
}

// SetWriteDeadline is net.Conn's.
func (st *stream) SetWriteDeadline(t time.Time) error {
	st.by.set(t)
	st.hurry(t)
	return nil
}

// A deadline is a time that can be waited for, and changed meanwhile.
type deadline struct {
	mu     sync.Mutex
	t      time.Time
	timer  *time.Timer
	passed chan struct{}
}

func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.t.IsZero() && (d.timer == nil || !d.timer.Stop()) {
		d.passed = make(chan struct{}) // that one is closed, or about to be
	}
	d.t, d.timer = t, nil
	passed := d.passed
	if left := time.Until(t); t.IsZero() {
		return
	} else if left > 0 {
		d.timer = time.AfterFunc(left, func() { close(passed) })
	} else {
		close(passed)
	}
}

func (d *deadline) after() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.passed
}

func (d *deadline) time() time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.t
}
