package qemu

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

// maxMessage bounds a line of QMP. What this package asks for is answered in less than 1 KiB.
const maxMessage = 1 << 20

// errGone is what commands return when QEMU has closed the monitor.
var errGone = errors.New("qemu: monitor closed")

// monitor is a client of QEMU's machine protocol (docs/interop/qmp-spec.txt in QEMU's source): a
// line of JSON each way. Commands are given one at a time; events come in between.
type monitor struct {
	conn net.Conn
	wg   sync.WaitGroup
	gone chan struct{} // closed when QEMU has closed the connection

	replies chan reply // unbuffered; readLines gives up on gone

	cmd sync.Mutex // held from a command to its reply

	mu       sync.Mutex
	shutdown string                   // reason of the SHUTDOWN event, or "guest-panic"
	deleting map[string]chan struct{} // by device: closed when it is gone
	err      error                    // why gone
}

type reply struct {
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	ID uint64 `json:"id"`
}

// commandError is QEMU's word that it did not carry out a command.
type commandError struct{ class, desc string }

func (e *commandError) Error() string { return e.desc }

// notFound says that err is about a device that does not exist.
func notFound(err error) bool {
	var ce *commandError
	return errors.As(err, &ce) && ce.class == "DeviceNotFound"
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

// dialMonitor connects and negotiates. QEMU serves one client at a time: another
// gets no greeting, and the error is then ctx's.
func dialMonitor(ctx context.Context, path string) (*monitor, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	m := &monitor{conn: conn, gone: make(chan struct{}), replies: make(chan reply), deleting: map[string]chan struct{}{}}
	greeted := make(chan struct{})
	m.wg.Go(func() { m.readLines(greeted) })
	select {
	case <-greeted:
		_, err = m.execute(ctx, "qmp_capabilities", nil)
	case <-m.gone:
		err = m.failure()
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		m.close()
		return nil, fmt.Errorf("open monitor: %w", err)
	}
	return m, nil
}

// readLines reads until the connection ends.
func (m *monitor) readLines(greeted chan<- struct{}) {
	sc := bufio.NewScanner(m.conn)
	sc.Buffer(nil, maxMessage)
	var err error
	for err == nil && sc.Scan() {
		var msg message
		if err = json.Unmarshal(sc.Bytes(), &msg); err != nil {
			err = fmt.Errorf("qemu: parse monitor message: %w", err)
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
		default:
			select {
			case m.replies <- msg.reply:
			case <-m.gone: // close was called
			}
		}
	}
	if err == nil {
		err = sc.Err()
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = errGone
	}
	m.end(err)
}

func (m *monitor) event(msg message) {
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

// awaitDeleted returns a channel that is closed when QEMU says that the device is gone.
func (m *monitor) awaitDeleted(device string) <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.deleting[device] == nil {
		m.deleting[device] = make(chan struct{})
	}
	return m.deleting[device]
}

func (m *monitor) end(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err == nil {
		m.err = err
		close(m.gone)
	}
}

func (m *monitor) failure() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}

// reason is why the VM ended, as far as QEMU has said.
func (m *monitor) reason() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.shutdown
}

// execute runs a command. After a context that ended the monitor is of no use.
func (m *monitor) execute(ctx context.Context, name string, args any) (json.RawMessage, error) {
	m.cmd.Lock()
	defer m.cmd.Unlock()
	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{name, args})
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", name, err)
	}
	if _, err := m.conn.Write(append(line, '\n')); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	select {
	case r := <-m.replies:
		if r.Error != nil {
			return nil, fmt.Errorf("%s: %w", name, &commandError{r.Error.Class, r.Error.Desc})
		}
		return r.Return, nil
	case <-m.gone:
		return nil, fmt.Errorf("%s: %w", name, m.failure())
	case <-ctx.Done():
		m.end(ctx.Err()) // the reply may come yet, and is not the next command's
		return nil, fmt.Errorf("%s: %w", name, ctx.Err())
	}
}

// close hangs up. The VM runs on.
func (m *monitor) close() {
	m.end(errGone)
	_ = m.conn.Close() // nothing is lost by it
	m.wg.Wait()
}
