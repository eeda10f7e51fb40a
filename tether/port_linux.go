package tether

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"vic/tether/wire"
)

// A logPort is where the log goes. Its methods may be called from several
// goroutines; they wait for a host that takes the log slowly.
type logPort struct {
	mu   sync.Mutex
	f    *os.File
	uart *uart // in place of f
	bell *bell // nil without a uart, and without a port for it
	buf  []byte
	pipe *portPipe // nil until there was much to write at once
}

func openLog(d *devices) (*logPort, error) {
	p, err := d.port(wire.LogPort, wire.LogSerial)
	if err != nil {
		return nil, err
	}
	l := new(logPort)
	if p.dev == "" {
		if l.uart, err = openUART(p.uart); err == nil {
			l.bell, err = openBell(l.uart)
		}
	} else {
		l.f, err = os.OpenFile(p.dev, os.O_WRONLY, 0)
	}
	if err != nil {
		return nil, err
	}
	return l, nil
}

// drain waits until the host has all that was written, which a port of virtio-serial makes each write wait for.
func (l *logPort) drain() error {
	if l.uart == nil {
		return nil
	}
	if err := l.uart.drain(); err != nil {
		return fmt.Errorf("write the log's end: %w", err)
	}
	return nil
}

// write appends data as one record, or several if it is long. They go to the host together: each write to
// the port leaves the guest.
func (l *logPort) write(t wire.RecordType, data []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf = l.buf[:0]
	now := time.Now() // taken here so that it never runs backward in the log
	for {
		n := min(len(data), wire.MaxPayload)
		l.buf = wire.AppendRecord(l.buf, t, now, data[:n])
		if data = data[n:]; len(data) == 0 {
			break
		}
	}
	if err := l.send(); err != nil {
		return fmt.Errorf("write log: %w", err)
	}
	return nil
}

// portWrite is what the kernel sends to a host for one write to a port, at most
// (drivers/char/virtio_console.c). Each leaves the guest and comes back by an interrupt.
const portWrite = 32 << 10

// send writes l.buf to the port. What takes several writes goes by a pipe, of which the port takes all at once.
func (l *logPort) send() error {
	if l.uart != nil {
		_, err := l.uart.Write(l.buf)
		l.bell.ring()
		return err
	}
	if len(l.buf) <= portWrite {
		_, err := l.f.Write(l.buf)
		return err
	}
	if l.pipe == nil {
		p, err := newPortPipe()
		if err != nil {
			return err
		}
		l.pipe = p
	}
	err := l.pipe.send(l.f, l.buf)
	if err != nil { // what is left in it is nobody's
		l.pipe.close()
		l.pipe = nil
	}
	return err
}

func (l *logPort) json(t wire.RecordType, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(b) > wire.MaxPayload {
		return fmt.Errorf("wire: record of %d bytes", len(b))
	}
	return l.write(t, b)
}

// A portPipe moves what is written to it to a port, page by page and without another copy.
type portPipe struct {
	r, w int
	size int // what it holds
}

func newPortPipe() (*portPipe, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, fmt.Errorf("make pipe: %w", err)
	}
	p := &portPipe{r: fds[0], w: fds[1]}
	var err error
	if p.size, err = unix.FcntlInt(uintptr(p.w), unix.F_SETPIPE_SZ, muchOutputSize+muchOutputSize/2); err != nil {
		p.close()
		return nil, fmt.Errorf("make pipe larger: %w", err)
	}
	return p, nil
}

func (p *portPipe) close() {
	_ = unix.Close(p.r) // nothing is lost by it
	_ = unix.Close(p.w)
}

// send writes b to the port. The pipe is empty before and after, unless there is an error.
func (p *portPipe) send(port *os.File, b []byte) error {
	conn, err := port.SyscallConn()
	if err != nil {
		return err
	}
	for len(b) > 0 {
		n, err := unix.Write(p.w, b[:min(len(b), p.size)])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		b = b[n:]
		for n > 0 {
			var moved int64
			connErr := conn.Write(func(fd uintptr) bool {
				moved, err = unix.Splice(p.r, nil, int(fd), nil, n, 0)
				return err != unix.EAGAIN
			})
			switch {
			case connErr != nil:
				return connErr
			case err == unix.EINTR:
				continue
			case err != nil:
				return err
			case moved == 0:
				return io.ErrShortWrite
			}
			n -= int(moved)
		}
	}
	return nil
}

// stream is a writer of records of one type.
func (l *logPort) stream(t wire.RecordType) io.Writer { return logStream{l, t} }

type logStream struct {
	l *logPort
	t wire.RecordType
}

func (s logStream) Write(p []byte) (int, error) {
	if err := s.l.write(s.t, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// A controlPort is the guest's end of the control stream. On virtio-serial the kernel reads as at
// the end of a file while no host is connected, and lets writes wait for one. A UART tells nothing of a host: reads
// wait, and what is written is lost.
type controlPort struct {
	io.ReadWriter
	f *os.File // nil on a UART
}

func openControl(d *devices) (*controlPort, error) {
	p, err := d.port(wire.ControlPort, wire.ControlSerial)
	if err != nil {
		return nil, err
	}
	if p.dev == "" {
		u, err := openUART(p.uart)
		if err != nil {
			return nil, err
		}
		return &controlPort{u, nil}, wire.Announce(u)
	}
	fd, err := unix.Open(p.dev, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", p.dev, err)
	}
	f := os.NewFile(uintptr(fd), p.dev)
	return &controlPort{f, f}, nil
}

// awaitHost waits, after io.EOF, until the port has a host, which is when it may be written to.
func (c *controlPort) awaitHost() error {
	if c.f == nil {
		return io.ErrUnexpectedEOF // a UART has no end
	}
	conn, err := c.f.SyscallConn()
	if err != nil {
		return err
	}
	err = conn.Write(func(fd uintptr) bool {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		n, err := unix.Poll(fds, 0)
		return n > 0 && fds[0].Revents&unix.POLLOUT != 0 || err != nil && err != unix.EINTR
	})
	if err != nil {
		return fmt.Errorf("wait for a host: %w", err)
	}
	return nil
}

// serveControl serves hosts until the VM ends.
func (g *guest) serveControl() {
	server := &wire.Server{ID: g.conf.ID, Token: g.conf.Token, Handler: g}
	go func() { // for the life of the VM
		for {
			err := server.Serve(g.control)
			if err == io.EOF {
				err = g.control.awaitHost()
			}
			if err != nil {
				g.diagnose(fmt.Errorf("control port: %w", err))
				return
			}
		}
	}()
}
