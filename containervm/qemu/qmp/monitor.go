// Package qmp is a client of QEMU's machine protocol (docs/interop/qmp-spec.txt in QEMU's source): a line of JSON each way, commands one
// at a time, events in between.
package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
)

// maxMessage bounds a line. What is asked for here is answered in less than 1 KiB.
const maxMessage = 1 << 20

// ErrGone is what commands return when QEMU has closed the monitor.
var ErrGone = errors.New("qmp: monitor closed")

// A Monitor is a connection with a QEMU. It may be used by several goroutines.
type Monitor struct {
	conn net.Conn
	wg   sync.WaitGroup
	gone chan struct{} // closed when QEMU has closed the connection

	replies chan reply // has room for the one that is expected

	cmd sync.Mutex // held from a command to its reply

	mu       sync.Mutex
	expected bool                     // a reply, to a command
	shutdown string                   // reason of the SHUTDOWN event, or "guest-panic"
	deleting map[string]chan struct{} // by device: closed when it is gone
	err      error                    // why gone
}

type reply struct {
	Return json.RawMessage `json:"return"`
	Error  *Error          `json:"error"`
}

// An Error is QEMU's word that it did not carry out a command.
type Error struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

func (e *Error) Error() string { return e.Desc }

// NotFound says that err is about a device that does not exist.
func NotFound(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Class == "DeviceNotFound"
}

type message struct {
	reply
	QMP   json.RawMessage `json:"QMP"`
	Event string          `json:"event"`
	Data  struct {
		Reason string `json:"reason"`
		Device string `json:"device"`
	} `json:"data"`
}

// Dial connects to a QEMU at a UNIX socket, as New does.
func Dial(ctx context.Context, path string) (*Monitor, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	return New(ctx, conn)
}

// New negotiates on a connection, which is then the monitor's. QEMU serves one client at a time: another gets no greeting, and the error is
// then ctx's.
func New(ctx context.Context, conn net.Conn) (*Monitor, error) {
	m := &Monitor{conn: conn, gone: make(chan struct{}), replies: make(chan reply, 1), deleting: map[string]chan struct{}{}}
	greeted := make(chan struct{})
	m.wg.Go(func() { m.readLines(greeted) })
	var err error
	select {
	case <-greeted:
		_, err = m.Execute(ctx, "qmp_capabilities", nil)
	case <-m.gone:
		err = m.failure()
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		m.Close()
		return nil, fmt.Errorf("open monitor: %w", err)
	}
	return m, nil
}

// readLines reads until the connection ends.
func (m *Monitor) readLines(greeted chan<- struct{}) {
	sc := bufio.NewScanner(m.conn)
	sc.Buffer(nil, maxMessage)
	var err error
	for err == nil && sc.Scan() {
		var msg message
		if err = json.Unmarshal(sc.Bytes(), &msg); err != nil {
			err = fmt.Errorf("qmp: parse message: %w", err)
			break
		}
		switch {
		case msg.QMP != nil:
			if greeted != nil {
				close(greeted)
				greeted = nil
			}
		case msg.Event != "":
			m.event(msg)
		case m.expect(false):
			m.replies <- msg.reply
		default:
			err = errors.New("qmp: a reply to no command")
		}
	}
	if err == nil {
		err = sc.Err()
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = ErrGone
	}
	m.end(err)
}

// expect says whether a reply is expected from now on, and returns whether one was.
func (m *Monitor) expect(reply bool) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	was := m.expected
	m.expected = reply
	return was
}

func (m *Monitor) event(msg message) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case msg.Event == "GUEST_PANICKED":
		m.shutdown = "guest-panic"
	case msg.Event == "SHUTDOWN" && m.shutdown == "":
		m.shutdown = msg.Data.Reason
	case msg.Event == "DEVICE_DELETED":
		if gone := m.deleting[msg.Data.Device]; gone != nil {
			delete(m.deleting, msg.Data.Device)
			close(gone)
		}
	}
}

// AwaitDeleted returns a channel that is closed when QEMU says that the device is gone.
func (m *Monitor) AwaitDeleted(device string) <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.deleting[device] == nil {
		m.deleting[device] = make(chan struct{})
	}
	return m.deleting[device]
}

func (m *Monitor) end(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err == nil {
		m.err = err
		close(m.gone)
	}
}

func (m *Monitor) failure() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}

// Reason is why the VM ended, as far as QEMU has said: the reason of its SHUTDOWN event, or "guest-panic".
func (m *Monitor) Reason() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.shutdown
}

// Execute runs a command and returns what QEMU does. What QEMU refuses is an *Error. After a context that ended the monitor is of no use.
func (m *Monitor) Execute(ctx context.Context, name string, args any) (json.RawMessage, error) {
	m.cmd.Lock()
	defer m.cmd.Unlock()
	if err := m.failure(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{name, args})
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", name, err)
	}
	m.expect(true)
	if _, err := m.conn.Write(append(line, '\n')); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", name, ErrGone, err)
	}
	select {
	case r := <-m.replies:
		if r.Error != nil {
			return nil, fmt.Errorf("%s: %w", name, r.Error)
		}
		return r.Return, nil
	case <-m.gone:
		return nil, fmt.Errorf("%s: %w", name, m.failure())
	case <-ctx.Done():
		m.end(ctx.Err()) // the reply may come yet, and is not the next command's
		return nil, fmt.Errorf("%s: %w", name, ctx.Err())
	}
}

// Close hangs up. The VM runs on.
func (m *Monitor) Close() {
	m.end(ErrGone)
	_ = m.conn.Close() // nothing is lost by it
	m.wg.Wait()
}
