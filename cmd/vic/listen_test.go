package main

import (
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestListenPlan(t *testing.T) {
	everywhere := []string{"tcp://0.0.0.0:2376"}
	for _, tt := range []struct {
		name string
		plan listenPlan
		want string // the addresses, or a part of the error
	}{
		{"socket", listenPlan{addresses: []string{"unix:///run/../run/x.sock"}}, "unix:///run/x.sock"},
		{"loopback", listenPlan{addresses: []string{"tcp://127.0.0.1:2375", "tcp://[::1]:2375", "tcp://localhost:1"}}, "tcp://127.0.0.1:2375 tcp://[::1]:2375 tcp://localhost:1"},
		{"no port", listenPlan{addresses: []string{"tcp://127.0.0.1", "tcp://[::1]", "tcp://"}}, "tcp://127.0.0.1:2375 tcp://[::1]:2375 tcp://localhost:2375"},
		{"no port with TLS", listenPlan{addresses: []string{"tcp://0.0.0.0"}, verify: true}, "tcp://0.0.0.0:2376"},
		{"everywhere", listenPlan{addresses: []string{"tcp://0.0.0.0:2375"}}, "--tlsverify"},
		{"no host", listenPlan{addresses: []string{"tcp://:2375"}}, "--open-tcp"},
		{"a name", listenPlan{addresses: []string{"tcp://example.org:2375"}}, "--open-tcp"},
		{"everywhere, said so", listenPlan{addresses: everywhere, open: true}, "tcp://0.0.0.0:2376"},
		{"everywhere with certificates", listenPlan{addresses: everywhere, verify: true}, "tcp://0.0.0.0:2376"},
		{"everywhere with the server's alone", listenPlan{addresses: everywhere, tls: true}, "--open-tcp"},
		{"everywhere with the server's alone, said so", listenPlan{addresses: everywhere, tls: true, open: true}, "tcp://0.0.0.0:2376"},
		{"both", listenPlan{addresses: everywhere, verify: true, open: true}, "contradicts"},
		{"certificate without TLS", listenPlan{addresses: everywhere, files: certificateFiles{cert: "c"}}, "--tlsverify"},
		{"authority without verification", listenPlan{addresses: everywhere, tls: true, files: certificateFiles{ca: "a"}}, "--tlsverify"},
		{"TLS on a socket", listenPlan{addresses: []string{"unix:///run/x.sock"}, verify: true}, "TLS is for TCP"},
		{"relative socket", listenPlan{addresses: []string{"unix://x.sock"}}, "unix:///PATH"},
		{"a path", listenPlan{addresses: []string{"tcp://127.0.0.1:1/x"}}, "tcp://HOST:PORT"},
		{"no scheme", listenPlan{addresses: []string{"127.0.0.1:2375"}}, "tcp://HOST:PORT"},
		{"nothing", listenPlan{}, "no --host"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			list, err := tt.plan.check()
			var got []string
			for _, a := range list {
				got = append(got, a.String())
			}
			if err != nil {
				if !strings.Contains(err.Error(), tt.want) || exitCode(err) != 2 {
					t.Errorf("got %v, want %q", err, tt.want)
				}
			} else if strings.Join(got, " ") != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

// A connection too many waits until another ends, which can be half-closed before.
func TestBoundedListener(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &boundedListener{Listener: inner, free: make(chan struct{}, 1), closed: make(chan struct{})}
	accepted := make(chan net.Conn)
	go func() {
		defer close(accepted)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	for range 2 {
		c, err := net.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	first := <-accepted
	if len(l.free) != 1 {
		t.Errorf("%d connections are counted, want 1", len(l.free))
	}
	if half, ok := first.(interface{ CloseWrite() error }); !ok || half.CloseWrite() != nil {
		t.Error("the connection cannot be half-closed")
	}
	select {
	case <-accepted:
		t.Error("a second connection was accepted beside the first")
	default:
	}
	first.Close()
	first.Close() // counts once
	second := <-accepted
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, open := <-accepted; open {
		t.Error("a closed listener accepts")
	}
	second.Close()
}

func TestListenUnix(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := listenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	fi, err := os.Stat(path)
	if err != nil || fi.Mode() != fs.ModeSocket|socketMode {
		t.Errorf("socket: %v, %v", fi.Mode(), err)
	}
	if _, err := listenUnix(path); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("a second listener: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the socket is still there: %v", err)
	}

	// A process that died leaves its socket.
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()
	if l, err = listenUnix(path); err != nil {
		t.Fatal(err)
	}
	// One that was replaced leaves the other's alone.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	other, err := listenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	l.Close()
	if c, err := net.Dial("unix", path); err != nil {
		t.Errorf("the other's socket is gone: %v", err)
	} else {
		c.Close()
	}

	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listenUnix(file); err == nil {
		t.Error("a file was replaced by a socket")
	}
	if b, err := os.ReadFile(file); string(b) != "precious" {
		t.Errorf("file: %q, %v", b, err)
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(path), ".vic-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
