package wire

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// port is what a virtio-serial port is to a guest: it stays while hosts come
// and go, reads end when one hangs up, and writes wait for the next.
type port struct {
	mu     sync.Mutex
	change sync.Cond
	conn   net.Conn
	closed bool
}

func newPort() *port {
	p := new(port)
	p.change.L = &p.mu
	return p
}

func (p *port) plug(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conn != nil {
		p.conn.Close()
	}
	p.conn = c
	p.change.Broadcast()
}

func (p *port) wait() (net.Conn, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.conn == nil && !p.closed {
		p.change.Wait()
	}
	return p.conn, !p.closed
}

func (p *port) unplug(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conn == c {
		p.conn = nil
	}
}

func (p *port) Read(b []byte) (int, error) {
	c, ok := p.wait()
	if !ok {
		return 0, net.ErrClosed
	}
	n, err := c.Read(b)
	if err != nil {
		p.unplug(c)
		err = io.EOF
	}
	return n, err
}

func (p *port) Write(b []byte) (int, error) {
	for {
		c, ok := p.wait()
		if !ok {
			return 0, net.ErrClosed
		}
		n, err := c.Write(b)
		if err == nil {
			return n, nil
		}
		if n > 0 {
			return len(b), nil // the rest went down with the host
		}
		p.unplug(c)
	}
}

func (p *port) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	if p.conn != nil {
		p.conn.Close()
	}
	p.change.Broadcast()
	return nil
}

// serveForever is what the tether does with a port.
func serveForever(t *testing.T, p *port) *guest {
	g := newGuest()
	v := &Server{ID: "c1", Token: "secret", Handler: g}
	var wg sync.WaitGroup
	wg.Go(func() {
		for v.Serve(p) == io.EOF {
		}
	})
	wg.Go(func() { // stdin is read by nobody in these tests
		for range g.begun {
		}
	})
	t.Cleanup(func() {
		p.Close()
		g.wg.Wait()
		close(g.begun)
		wg.Wait()
	})
	return g
}

// faulty damages what is read from it, at random, now and then.
type faulty struct {
	net.Conn
	mu   sync.Mutex
	rand *rand.Rand
	rate float64 // of reads
	hurt *atomic.Int64
}

func (f *faulty) Read(b []byte) (int, error) {
	n, err := f.Conn.Read(b)
	f.mu.Lock()
	defer f.mu.Unlock()
	if n < 2 || f.rand.Float64() > f.rate {
		return n, err
	}
	f.hurt.Add(1)
	at := f.rand.IntN(n)
	switch f.rand.IntN(3) {
	case 0: // flip
		b[at] ^= 1 << f.rand.IntN(8)
	case 1: // drop
		cut := 1 + f.rand.IntN(min(64, n-at))
		n = at + copy(b[at:n], b[at+cut:n])
	case 2: // garbage over a stretch
		for i := at; i < min(n, at+40); i++ {
			b[i] = byte(f.rand.Uint32())
		}
	}
	return n, err
}

// Whatever happens to the bytes, no reader gets one that was not sent in its
// place, nobody hangs, and a new session works at once.
func TestFaults(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	p := newPort()
	serveForever(t, p)
	data := make([]byte, 200_000)
	rand.NewChaCha8([32]byte{2}).Read(data)

	lost := 0
	var hurt atomic.Int64
	for round := range 150 {
		a, b := net.Pipe()
		rate := 0.0
		if round%3 != 2 {
			rate = 0.005
		}
		down := &faulty{Conn: b, rand: rand.New(rand.NewPCG(rnd.Uint64(), 1)), rate: rate, hurt: &hurt}
		up := &faulty{Conn: a, rand: rand.New(rand.NewPCG(rnd.Uint64(), 2)), rate: rate, hurt: &hurt}
		p.plug(down)
		if sendAndReceive(t, up, fmt.Sprint("cat", round), data) {
			if rate == 0 {
				t.Errorf("round %d: session lost without a fault", round)
			}
			lost++
		}
	}
	if lost == 0 || hurt.Load() == 0 {
		t.Errorf("%d sessions lost of %d faults: nothing was tested", lost, hurt.Load())
	}
	t.Logf("%d faults, %d sessions lost", hurt.Load(), lost)
}

// sendAndReceive sends data through an exec and checks what comes back. It reports
// whether the session was lost.
func sendAndReceive(t *testing.T, rw io.ReadWriteCloser, id string, data []byte) bool {
	// A frame lost with none after it shows only as silence.
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	short, cancelShort := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancelShort()
	c, err := Connect(short, rw, ConnectOptions{Token: "secret", Window: 8 << 10})
	if err != nil {
		return true
	}
	defer c.Close()
	// A lost frame is found by the frame after it; pings are those.
	var wg sync.WaitGroup
	defer wg.Wait()
	done := make(chan struct{})
	defer close(done)
	wg.Go(func() {
		for {
			ping, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
			err := c.Ping(ping)
			cancel()
			if err != nil {
				c.Close()
				return
			}
			select {
			case <-done:
				return
			case <-time.After(time.Millisecond):
			}
		}
	})
	p, err := c.Exec(ctx, Exec{ID: id, Args: []string{"cat"}, Stdin: true, Stdout: true})
	if err != nil {
		return true
	}
	wg.Go(func() {
		if _, err := p.Stdin().Write(data); err == nil {
			p.Stdin().CloseWrite()
		}
	})
	got, err := io.ReadAll(p.Stdout())
	if !bytes.HasPrefix(data, got) || err == nil && len(got) != len(data) {
		t.Errorf("read %d bytes that differ from those sent, %v", len(got), err)
	}
	e, werr := p.Wait(ctx)
	if err == nil && werr == nil {
		if e.Code != 0 {
			t.Errorf("exit %+v", e)
		}
		return false
	}
	for _, err := range []error{err, werr} {
		if err != nil && !errors.Is(err, ErrLost) && !errors.Is(err, ErrClosed) {
			t.Errorf("got error %v, want a lost session", err)
		}
	}
	return true
}

// A host that hangs up in the middle of everything leaves nothing behind that
// the next one would stumble over.
func TestReconnect(t *testing.T) {
	p := newPort()
	g := serveForever(t, p)
	for i := range 50 {
		a, b := net.Pipe()
		p.plug(b)
		c := connect(t, a, 0)
		x, err := c.Exec(t.Context(), Exec{ID: fmt.Sprint(i), Args: []string{"yes"}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(io.Discard, x.Stdout(), 10_000); err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			c.Close()
		} // else the next plug hangs up
	}
	// All execs saw their session end.
	a, b := net.Pipe()
	p.plug(b)
	c := connect(t, a, 0)
	if err := c.Ping(t.Context()); err != nil {
		t.Error(err)
	}
	c.Close()
	p.Close()
	g.wg.Wait()
}

// Two hellos on one unbroken stream: the second displaces the first.
func TestDisplaced(t *testing.T) {
	a, b := net.Pipe()
	g := serve(t, b)
	fr := newFrameReader(a)
	var stdins []*Channel
	for id := range uint32(2) {
		hello := fmt.Appendf(nil, `{"version":1,"token":"secret","window":%d}`, minWindow)
		if err := newSession(a, id, minWindow).send(frameHello, 0, hello); err != nil {
			t.Fatal(err)
		}
		f, _, err := fr.next()
		if want := `{"version":1,"id":"c1"}`; err != nil || f.stamp != uint64(id)<<32|1 || string(f.payload) != want {
			t.Fatalf("frame %x %s, %v; want session %d, %s", f.stamp, f.payload, err, id, want)
		}
		stdins = append(stdins, <-g.begun)
	}
	if _, err := stdins[0].Read(make([]byte, 1)); !errors.Is(err, ErrLost) {
		t.Errorf("stdin of the first session: %v", err)
	}
}

func TestOverstep(t *testing.T) {
	for _, tt := range []struct {
		name string
		f    func(s *session)
	}{
		{"data beyond credit", func(s *session) {
			for range 2 {
				s.send(frameData, stdinChannel, make([]byte, minWindow))
			}
		}},
		{"credit beyond window", func(s *session) { s.send(frameCredit, stdinChannel, []byte{1, 0, 0, 0}) }},
		{"short credit", func(s *session) { s.send(frameCredit, stdinChannel, []byte{1}) }},
		{"data after end", func(s *session) {
			s.send(frameEnd, stdinChannel, nil)
			s.send(frameData, stdinChannel, []byte("x"))
		}},
		{"unknown type", func(s *session) { s.send(99, stdinChannel, nil) }},
		{"number left out", func(s *session) { s.sent++; s.send(frameData, stdinChannel, nil) }},
		{"long message", func(s *session) { s.send(frameData, messageChannel, []byte{0, 0, 0, 1}) }},
		{"no JSON", func(s *session) { s.send(frameData, messageChannel, []byte{1, 0, 0, 0, '['}) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, b := net.Pipe()
			g := serve(t, b)
			s := newSession(a, 7, minWindow)
			go func() {
				s.send(frameHello, 0, fmt.Appendf(nil, `{"version":1,"token":"secret","window":%d}`, minWindow))
				tt.f(s)
			}()
			fr := newFrameReader(a)
			f, _, err := fr.next()
			if err == nil && f.typ == frameHello { // not if the end came first
				f, _, err = fr.next()
			}
			if err != nil || f.typ != frameLost {
				t.Fatalf("frame of type %d, %v; want lost", f.typ, err)
			}
			if err := (<-g.begun).CloseWrite(); !errors.Is(err, ErrLost) {
				t.Errorf("channel of the session: %v", err)
			}
		})
	}
}
