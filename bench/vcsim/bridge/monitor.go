package bridge

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
)

// maxMessage bounds a line of QMP.
const maxMessage = 1 << 20

// errGone is what commands return when QEMU has ended.
var errGone = errors.New("QEMU has ended")

// A monitor is a client of QEMU's machine protocol (docs/interop/qmp-spec.txt in its source): a line of JSON each way, events in
// between. Commands are given one at a time.
type monitor struct {
	conn    net.Conn
	replies chan reply
	gone    chan struct{} // closed when QEMU has closed the connection

	cmd sync.Mutex // held from a command to its reply

	mu      sync.Mutex
	deleted map[string]chan struct{} // by device: closed when it is gone
}

type reply struct {
	Greeting json.RawMessage `json:"QMP"`
	Event    string          `json:"event"`
	Data     struct {
		Device string `json:"device"`
	} `json:"data"`
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Desc string `json:"desc"`
	} `json:"error"`
}

// read reads until QEMU ends.
func (m *monitor) read() {
	defer close(m.gone)
	lines := bufio.NewScanner(m.conn)
	lines.Buffer(nil, maxMessage)
	for lines.Scan() {
		var r reply
		if json.Unmarshal(lines.Bytes(), &r) != nil {
			return
		}
		switch {
		case r.Greeting != nil:
		case r.Event != "":
			m.event(r)
		default:
			m.replies <- r // there is room: one command at a time
		}
	}
}

func (m *monitor) event(r reply) {
	if r.Event != "DEVICE_DELETED" || r.Data.Device == "" {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if c := m.deleted[r.Data.Device]; c != nil {
		close(c)
		delete(m.deleted, r.Data.Device)
	}
}

// awaitDeleted returns a channel that is closed when the device is gone.
func (m *monitor) awaitDeleted(device string) <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := make(chan struct{})
	m.deleted[device] = c
	return c
}

// execute runs a command. After a context that ended the monitor is of no use.
func (m *monitor) execute(ctx context.Context, name string, args any) error {
	m.cmd.Lock()
	defer m.cmd.Unlock()
	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{name, args})
	if err != nil {
		return fmt.Errorf("encode %s: %w", name, err)
	}
	if _, err := m.conn.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("%s: %w", name, errGone)
	}
	select {
	case r := <-m.replies:
		if r.Error != nil {
			return fmt.Errorf("%s: %s", name, r.Error.Desc)
		}
		return nil
	case <-m.gone:
		return fmt.Errorf("%s: %w", name, errGone)
	case <-ctx.Done():
		_ = m.conn.Close() // the reply may come yet, and is not the next command's
		return fmt.Errorf("%s: %w", name, ctx.Err())
	}
}
