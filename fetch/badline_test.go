package fetch

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
)

// A badLine passes TCP connections on to a server and breaks each after so
// many bytes from it.
type badLine struct {
	host string
	n    atomic.Int64
	open sync.Map // connections
}

func newBadLine(t *testing.T, to string, limit int64) *badLine {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &badLine{host: ln.Addr().String()}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			down, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { l.pass(down.(*net.TCPConn), to, limit) })
		}
	})
	t.Cleanup(func() {
		ln.Close()
		l.open.Range(func(conn, _ any) bool {
			conn.(net.Conn).Close()
			return true
		})
		wg.Wait()
	})
	return l
}

func (l *badLine) broken() int { return int(l.n.Load()) }

func (l *badLine) pass(down *net.TCPConn, to string, limit int64) {
	l.open.Store(down, true)
	defer down.Close()
	up, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		io.Copy(up, down)
		up.(*net.TCPConn).CloseWrite()
	})
	if n, err := io.CopyN(down, up, limit); err == nil && n == limit {
		l.n.Add(1)
		down.SetLinger(0) // RST: what is not yet read is lost
	}
	down.Close()
	up.Close()
	wg.Wait()
}
