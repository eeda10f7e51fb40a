package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vic/bench/oracle"
)

// patience bounds what is waited for. It is no measure of anything: what hangs shall fail.
const patience = 30 * time.Second

// pretend makes a monitor of what a QEMU would say: a greeting, and to each command what answers has for it.
func pretend(t *testing.T, answers map[string]string) (*Monitor, net.Conn) {
	t.Helper()
	ours, theirs := net.Pipe()
	go func() {
		_, _ = io.WriteString(theirs, `{"QMP": {"version": {}, "capabilities": []}}`+"\n") // who reads it may be gone
		for lines := bufio.NewScanner(theirs); lines.Scan(); {
			var command struct{ Execute string }
			if err := json.Unmarshal(lines.Bytes(), &command); err != nil {
				t.Error(err)
			}
			answer, ok := answers[command.Execute]
			if !ok {
				answer = `{"return": {}}` + "\n"
			}
			_, _ = io.WriteString(theirs, answer)
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	m, err := New(ctx, ours)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	return m, theirs
}

func TestMonitor(t *testing.T) {
	m, qemu := pretend(t, map[string]string{
		"query-name": `{"event": "STOP"}` + "\n" + `{"return": {"name": "one"}}` + "\n",
		"device_del": `{"error": {"class": "DeviceNotFound", "desc": "Device 'x' not found"}}` + "\n",
		"stop":       "",
	})
	got, err := m.Execute(t.Context(), "query-name", nil)
	if err != nil || string(got) != `{"name": "one"}` {
		t.Errorf("got %s, %v", got, err)
	}
	_, err = m.Execute(t.Context(), "device_del", map[string]any{"id": "x"})
	if !NotFound(err) || err.Error() != "device_del: Device 'x' not found" {
		t.Errorf("error %v", err)
	}
	gone, other := m.AwaitDeleted("disk"), m.AwaitDeleted("other")
	if _, err := io.WriteString(qemu, `{"event": "DEVICE_DELETED", "data": {"device": "disk"}}`+"\n"+
		`{"event": "SHUTDOWN", "data": {"reason": "guest-shutdown"}}`+"\n"+`{"event": "SHUTDOWN", "data": {"reason": "host-qmp-quit"}}`+"\n"); err != nil {
		t.Fatal(err)
	}
	<-gone
	select {
	case <-other:
		t.Error("another device is gone")
	default:
	}
	if _, err := m.Execute(t.Context(), "query-status", nil); err != nil { // all before it has been read
		t.Error(err)
	}
	if r := m.Reason(); r != "guest-shutdown" {
		t.Errorf("reason %q", r)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := m.Execute(ctx, "stop", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := m.Execute(t.Context(), "cont", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("after that: %v", err)
	}
}

// TestEnds has QEMU hang up at each moment.
func TestEnds(t *testing.T) {
	m, qemu := pretend(t, map[string]string{"quit": ""})
	done := make(chan error)
	go func() {
		_, err := m.Execute(t.Context(), "quit", nil)
		done <- err
	}()
	qemu.Close()
	if err := <-done; !errors.Is(err, ErrGone) {
		t.Errorf("during a command: %v", err)
	}
	if _, err := m.Execute(t.Context(), "cont", nil); !errors.Is(err, ErrGone) {
		t.Errorf("after the end: %v", err)
	}
	ours, theirs := net.Pipe()
	theirs.Close()
	if _, err := New(t.Context(), ours); !errors.Is(err, ErrGone) {
		t.Errorf("before the greeting: %v", err)
	}
	ours, theirs = net.Pipe() // serves another client
	defer theirs.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := New(ctx, ours); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("without a greeting: %v", err)
	}
}

// TestQEMU asks a real one.
func TestQEMU(t *testing.T) {
	program := oracle.Find(t, "qemu-system-x86_64")
	path := filepath.Join(t.TempDir(), "qmp")
	cmd := exec.Command(program, "-M", "none", "-nodefaults", "-display", "none", "-S", "-chardev", "socket,id=m,path="+path+",server=on,wait=on", "-mon", "chardev=m,mode=control")
	said, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
	}()
	if line, err := bufio.NewReader(said).ReadString('\n'); !strings.Contains(line, "waiting for connection") { // it listens
		t.Fatalf("QEMU says %q, %v", line, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	m, err := Dial(ctx, path)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	got, err := m.Execute(ctx, "query-status", nil)
	if err != nil || !strings.Contains(string(got), `"prelaunch"`) {
		t.Errorf("status %s, %v", got, err)
	}
	if _, err := m.Execute(ctx, "device_del", map[string]any{"id": "none"}); !NotFound(err) {
		t.Errorf("delete what is not there: %v", err)
	}
	if _, err := m.Execute(ctx, "quit", nil); err != nil && !errors.Is(err, ErrGone) {
		t.Errorf("quit: %v", err)
	}
}

// FuzzMonitor reads what no QEMU says.
func FuzzMonitor(f *testing.F) {
	f.Add([]byte(`{"QMP": {}}` + "\n" + `{"return": {}}` + "\n" + `{"event": "DEVICE_DELETED", "data": {"device": "disk"}}` + "\n" + `{"return": 1}`))
	f.Add([]byte(`{"error": {"class": "x", "desc": "y"}}` + "\n" + `{"return": null}` + "\n"))
	f.Add([]byte("{\n"))
	f.Fuzz(func(t *testing.T, said []byte) {
		ours, theirs := net.Pipe()
		go func() { _, _ = io.Copy(io.Discard, theirs) }() // until it is closed
		go func() {
			_, _ = theirs.Write(said) // likewise
			theirs.Close()
		}()
		m, err := New(t.Context(), ours)
		for err == nil {
			_, err = m.Execute(t.Context(), "query-status", nil)
			var refused *Error
			if errors.As(err, &refused) {
				err = nil
			}
		}
		if fmt.Sprint(err) == "" {
			t.Error("an error says nothing")
		}
		if m != nil {
			m.Close()
		}
	})
}
