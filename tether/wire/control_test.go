package wire

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// guest is a Handler whose execs are Go functions named by Args[0].
type guest struct {
	begun chan *Channel
	wg    sync.WaitGroup

	mu       sync.Mutex
	requests []Request
}

func newGuest() *guest { return &guest{begun: make(chan *Channel, 16)} }

func (g *guest) Begin(stdin *Channel) { g.begun <- stdin }

func (g *guest) Do(s *GuestSession, r Request) (Reply, error) {
	g.mu.Lock()
	g.requests = append(g.requests, r)
	g.mu.Unlock()
	switch r.Op {
	case OpPing, OpResize, OpShutdown:
		return Reply{}, nil
	case OpSignal:
		return Reply{}, &Error{Kind: NotRunning, Message: "no process " + r.Process}
	case OpState:
		return Reply{State: &State{PID: 42, Execs: []ExecState{{ID: "x", PID: 43, Exit: &Exit{Code: 3}}}}}, nil
	case OpExec:
		stdio, stderr, err := s.Open(r.Channel)
		if err != nil {
			return Reply{}, err
		}
		g.wg.Go(func() {
			code := 0
			switch r.Exec.Args[0] {
			case "cat":
				if _, err := io.Copy(stdio, stdio); err != nil {
					code = 1
				}
			case "sum":
				h := sha256.New()
				if _, err := io.Copy(h, stdio); err != nil {
					code = 1
				}
				fmt.Fprintf(stdio, "%x", h.Sum(nil))
				fmt.Fprint(stderr, "done")
			case "yes":
				for {
					if _, err := stdio.Write([]byte("yes\n")); err != nil {
						code = 141
						break
					}
				}
			}
			stdio.CloseWrite()
			stderr.CloseWrite()
			s.Exited(r.Exec.ID, Exit{Code: code})
		})
		return Reply{PID: 100}, nil
	}
	return Reply{}, errors.New("what?")
}

// serve runs a Server over port until the test ends.
func serve(t *testing.T, port io.ReadWriteCloser) *guest {
	t.Helper()
	g := newGuest()
	v := &Server{ID: "c1", Token: "secret", Handler: g}
	done := make(chan error, 1)
	go func() { done <- v.Serve(port) }()
	t.Cleanup(func() {
		port.Close()
		if err := <-done; err == nil {
			t.Error("Serve returned no error")
		}
		g.wg.Wait()
	})
	return g
}

func connect(t *testing.T, rw io.ReadWriteCloser, window int) *Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c, err := Connect(ctx, rw, ConnectOptions{Token: "secret", Window: window})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func pair(t *testing.T, window int) (*Conn, *guest) {
	t.Helper()
	a, b := net.Pipe()
	g := serve(t, b)
	return connect(t, a, window), g
}

func TestRequests(t *testing.T) {
	c, g := pair(t, 0)
	ctx := t.Context()
	if c.ID() != "c1" {
		t.Errorf("ID = %q, want c1", c.ID())
	}
	if err := c.Ping(ctx); err != nil {
		t.Error(err)
	}
	if err := c.Resize(ctx, "x", Size{30, 100}); err != nil {
		t.Error(err)
	}
	if err := c.Shutdown(ctx, time.Second); err != nil {
		t.Error(err)
	}
	var ge *Error
	if err := c.Signal(ctx, "x", 15); !errors.As(err, &ge) || ge.Kind != NotRunning || ge.Message != "no process x" {
		t.Errorf("Signal: %v", err)
	}
	st, err := c.State(ctx)
	if err != nil || st.PID != 42 || len(st.Execs) != 1 || st.Execs[0].Exit.Code != 3 {
		t.Errorf("State = %+v, %v", st, err)
	}
	want := []Request{
		{Op: OpPing}, {Op: OpResize, Process: "x", Size: Size{30, 100}},
		{Op: OpShutdown, Grace: 1e9}, {Op: OpSignal, Process: "x", Signal: 15}, {Op: OpState},
	}
	if got := fmt.Sprint(g.requests); got != fmt.Sprint(want) {
		t.Errorf("requests %v, want %v", got, want)
	}
}

func TestExec(t *testing.T) {
	for _, window := range []int{minWindow, 8 << 10, 0, maxWindow} {
		t.Run(fmt.Sprint(window), func(t *testing.T) {
			c, _ := pair(t, window)
			data := make([]byte, 300_000)
			rand.NewChaCha8([32]byte{1}).Read(data)
			copy(data[100:], bytes.Repeat(magic, 5000))
			var wg sync.WaitGroup
			for i := range 8 {
				wg.Go(func() {
					p, err := c.Exec(t.Context(), Exec{ID: fmt.Sprint("cat", i), Args: []string{"cat"}, Stdin: true, Stdout: true})
					if err != nil {
						t.Error(err)
						return
					}
					go func() {
						p.Stdin().Write(data)
						p.Stdin().CloseWrite()
					}()
					got, err := io.ReadAll(p.Stdout())
					if err != nil || !bytes.Equal(got, data) {
						t.Errorf("read %d bytes back, %v; want %d", len(got), err, len(data))
					}
					if e, err := p.Wait(t.Context()); err != nil || e.Code != 0 {
						t.Errorf("Wait = %+v, %v", e, err)
					}
				})
			}
			wg.Wait()
			p, err := c.Exec(t.Context(), Exec{ID: "sum", Args: []string{"sum"}})
			if err != nil {
				t.Fatal(err)
			}
			p.Stdin().CloseWrite()
			out, _ := io.ReadAll(p.Stdout())
			errs, _ := io.ReadAll(p.Stderr())
			if want := fmt.Sprintf("%x", sha256.Sum256(nil)); string(out) != want || string(errs) != "done" {
				t.Errorf("got %q and %q", out, errs)
			}
			if _, err := p.Wait(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

// Channel numbers of ended execs must come free, on both sides.
func TestManyExecs(t *testing.T) {
	c, _ := pair(t, 0)
	for i := range 2 * MaxChannels {
		p, err := c.Exec(t.Context(), Exec{ID: fmt.Sprint(i), Args: []string{"true"}})
		if err != nil {
			t.Fatal(i, err)
		}
		if _, err := p.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		p.Stdin().CloseWrite()
	}
}

func TestExecGivenUp(t *testing.T) {
	c, _ := pair(t, minWindow)
	p, err := c.Exec(t.Context(), Exec{ID: "yes", Args: []string{"yes"}})
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 3*minWindow)
	if _, err := io.ReadFull(p.Stdout(), b); err != nil || !strings.HasPrefix(string(b), "yes\nyes\n") {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if e, err := p.Wait(t.Context()); err != nil || e.Code != 141 {
		t.Errorf("Wait = %+v, %v", e, err)
	}
}

// A reader that does not read stops its own channel only.
func TestSlowReader(t *testing.T) {
	c, g := pair(t, minWindow)
	if _, err := c.Exec(t.Context(), Exec{ID: "yes", Args: []string{"yes"}}); err != nil {
		t.Fatal(err)
	}
	stdin := <-g.begun
	wrote := make(chan int, 1)
	go func() {
		n, _ := c.Stdin().Write(make([]byte, 3*minWindow))
		wrote <- n
	}()
	for range 100 {
		if err := c.Ping(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := io.ReadFull(stdin, make([]byte, 3*minWindow)); err != nil || n != 3*minWindow {
		t.Errorf("read %d, %v", n, err)
	}
	if n := <-wrote; n != 3*minWindow {
		t.Errorf("wrote %d", n)
	}
}

func TestRefused(t *testing.T) {
	for _, tt := range []struct {
		name string
		o    ConnectOptions
		want string
	}{
		{"token", ConnectOptions{Token: "guess"}, "token is not"},
		{"window", ConnectOptions{Token: "secret", Window: 7}, "window of 7"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, b := net.Pipe()
			serve(t, b)
			if _, err := Connect(t.Context(), a, tt.o); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestConnectCancelled(t *testing.T) {
	a, b := net.Pipe() // nobody reads b
	defer b.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Connect(ctx, a, ConnectOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
