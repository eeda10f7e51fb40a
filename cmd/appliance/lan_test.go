//go:build linux

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// A lan is a network of VMs: a hub that QEMU connects to by a unix socket, and sends frames, each after its length as 4 bytes.
type lan struct {
	t      *testing.T
	socket string

	mu    sync.Mutex
	ports map[*port]bool
}

// A port is what is connected to a lan.
type port struct {
	write func(frame []byte) error
	close func() error
}

const maxFrame = 64 << 10

func newLAN(t *testing.T) *lan {
	t.Helper()
	l := &lan{t: t, socket: filepath.Join(t.TempDir(), "lan"), ports: map[*port]bool{}}
	listener, err := net.Listen("unix", l.socket)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() {
		listener.Close()
		l.mu.Lock()
		for p := range l.ports {
			p.close()
		}
		l.mu.Unlock()
		wg.Wait()
	})
	wg.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { l.serve(conn) })
		}
	})
	return l
}

// serve passes on what a VM sends, until it is gone.
func (l *lan) serve(conn net.Conn) {
	var mu sync.Mutex
	p := &port{close: conn.Close, write: func(frame []byte) error {
		mu.Lock()
		defer mu.Unlock()
		_, err := conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(frame))), frame...))
		return err
	}}
	l.plug(p, func() ([]byte, error) {
		var head [4]byte
		if _, err := io.ReadFull(conn, head[:]); err != nil {
			return nil, err
		}
		n := binary.BigEndian.Uint32(head[:])
		if n > maxFrame {
			return nil, fmt.Errorf("frame of %d bytes", n)
		}
		frame := make([]byte, n)
		_, err := io.ReadFull(conn, frame)
		return frame, err
	})
}

// plug passes on what comes from a port until that ends.
func (l *lan) plug(p *port, next func() ([]byte, error)) {
	l.mu.Lock()
	l.ports[p] = true
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		delete(l.ports, p)
		l.mu.Unlock()
		p.close()
	}()
	for {
		frame, err := next()
		if err != nil {
			return
		}
		l.mu.Lock()
		var others []*port
		for other := range l.ports {
			if other != p {
				others = append(others, other)
			}
		}
		l.mu.Unlock()
		for _, o := range others {
			_ = o.write(frame) // it may be gone
		}
	}
}

// join puts this machine on the network, by an interface with an address, which is gone when the test ends.
func (l *lan) join(name, address string) {
	l.t.Helper()
	needTool(l.t, "ip")
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		missing(l.t, fmt.Errorf("/dev/net/tun: %w", err))
	}
	req, err := unix.NewIfreq(name)
	if err != nil {
		l.t.Fatal(err)
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		unix.Close(fd)
		if errors.Is(err, unix.EPERM) {
			missing(l.t, err)
		}
		l.t.Fatal(err)
	}
	tap := os.NewFile(uintptr(fd), name)
	command(l.t, "ip", "address", "add", address, "dev", name)
	command(l.t, "ip", "link", "set", name, "up")
	p := &port{close: tap.Close, write: func(frame []byte) error { _, err := tap.Write(frame); return err }}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, maxFrame)
		l.plug(p, func() ([]byte, error) {
			n, err := tap.Read(buf)
			return append([]byte(nil), buf[:n]...), err
		})
	}()
	l.t.Cleanup(func() {
		tap.Close()
		<-done
	})
}
