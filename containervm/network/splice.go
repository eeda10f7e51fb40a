package network

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// conns are the TCP connections of a guest.
type conns struct {
	ctx   context.Context // of all that is done for them
	stop  context.CancelFunc
	slots chan struct{}
}

func newConns(limit int) *conns {
	ctx, stop := context.WithCancel(context.Background())
	return &conns{ctx, stop, make(chan struct{}, limit)}
}

// pair is a connection on either side of the gateway.
type pair struct {
	ctx  context.Context
	stop context.CancelFunc
}

// reserve makes room for a pair, which is to be released.
func (c *conns) reserve() (*pair, bool) {
	select {
	case c.slots <- struct{}{}:
		ctx, stop := context.WithCancel(c.ctx)
		return &pair{ctx, stop}, true
	default:
		return nil, false
	}
}

func (c *conns) release(p *pair) {
	p.stop()
	<-c.slots
}

// close ends all pairs, and what is being dialled.
func (c *conns) close() { c.stop() }

// duplex is a stream that can be closed one way.
type duplex interface {
	net.Conn
	CloseWrite() error
}

// splice copies both ways until both have ended, or one has failed, and closes both.
func (p *pair) splice(a, b duplex) {
	closeBoth := func() {
		_ = a.Close() // what could not be sent is the peer's to miss
		_ = b.Close()
	}
	cancel := context.AfterFunc(p.ctx, closeBoth)
	copyTo := func(dst, src duplex) {
		_, err := io.Copy(dst, src)
		if err == nil {
			err = dst.CloseWrite()
		}
		if err != nil {
			closeBoth()
		}
	}
	var wg sync.WaitGroup
	wg.Go(func() { copyTo(a, b) })
	copyTo(b, a)
	wg.Wait()
	if cancel() {
		closeBoth()
	}
}

// flows are the UDP flows of a guest.
type flows struct {
	mu     sync.Mutex
	limit  int
	closed bool
	open   map[*flow]struct{}
}

type flow struct {
	a, b net.Conn
	last atomic.Int64 // when a datagram came, in ns since 1970
}

func newFlows(limit int) *flows { return &flows{limit: limit, open: map[*flow]struct{}{}} }

// add registers f, if need be in place of the flow that was idle longest.
func (fs *flows) add(f *flow) bool {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.closed {
		return false
	}
	if len(fs.open) >= fs.limit {
		var oldest *flow
		for o := range fs.open {
			if oldest == nil || o.last.Load() < oldest.last.Load() {
				oldest = o
			}
		}
		oldest.close()
		delete(fs.open, oldest)
	}
	fs.open[f] = struct{}{}
	return true
}

func (fs *flows) remove(f *flow) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	delete(fs.open, f)
}

func (fs *flows) close() {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.closed = true
	for f := range fs.open {
		f.close()
	}
}

func (f *flow) close() {
	_ = f.a.Close() // datagrams are not waited for
	_ = f.b.Close()
}

// relay passes datagrams both ways until none came for flowTimeout, and closes both.
func (fs *flows) relay(a, b net.Conn) {
	f := &flow{a: a, b: b}
	f.last.Store(time.Now().UnixNano())
	defer f.close()
	if !fs.add(f) {
		return
	}
	defer fs.remove(f)
	var wg sync.WaitGroup
	wg.Go(func() {
		defer f.close()
		f.pass(a, b)
	})
	f.pass(b, a)
	f.close()
	wg.Wait()
}

// datagrams are buffers for the largest.
var datagrams = sync.Pool{New: func() any { return new([65535]byte) }}

func (f *flow) pass(dst, src net.Conn) {
	buf := datagrams.Get().(*[65535]byte)
	defer datagrams.Put(buf)
	for {
		deadline := time.Unix(0, f.last.Load()).Add(flowTimeout)
		if err := src.SetReadDeadline(deadline); err != nil {
			return
		}
		n, err := src.Read(buf[:])
		var timeout net.Error
		switch {
		case errors.As(err, &timeout) && timeout.Timeout():
			if time.Since(time.Unix(0, f.last.Load())) < flowTimeout {
				continue // the other way is in use
			}
			return
		case errors.Is(err, syscall.ECONNREFUSED):
			continue // about a datagram sent before; UDP goes on
		case err != nil:
			return
		}
		f.last.Store(time.Now().UnixNano())
		if _, err := dst.Write(buf[:n]); err != nil && !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.EMSGSIZE) {
			return
		}
	}
}
