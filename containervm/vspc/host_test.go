package vspc

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"vic/containervm/vspc/telnet"
)

// patience bounds what is waited for. It is no measure of anything: what hangs shall fail.
const patience = 30 * time.Second

// A host is a connection of an ESXi host's for a port of a VM, as the test has it behave.
type host struct {
	t       *testing.T
	conn    net.Conn
	d       telnet.Decoder
	options telnet.Options
	bios    string // "" does not know the question
	vc      string
	service string

	events []telnet.Event
	data   []byte
}

// testHost makes a host that has connected and said nothing.
func testHost(t *testing.T, address string) *host {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return &host{t: t, conn: conn, service: "vic.control", options: telnet.Options{
		Us: []byte{telnet.Binary, telnet.SuppressGoAhead, telnet.VMware}, Them: []byte{telnet.Binary, telnet.SuppressGoAhead}}}
}

func (h *host) send(p []byte) {
	h.t.Helper()
	if _, err := h.conn.Write(p); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) vmware(number byte, p ...byte) {
	h.t.Helper()
	h.send(telnet.AppendVMware(nil, number, p...))
}

// introduce says what a host says first, without asking for a proxy.
func (h *host) introduce() {
	h.t.Helper()
	known := []byte{telnet.KnownSuboptions1, telnet.KnownSuboptions2, telnet.VMotionBegin, telnet.DoProxy, telnet.GetName}
	if h.bios != "" {
		known = append(known, telnet.GetBIOSUUID)
	}
	if h.vc != "" {
		known = append(known, telnet.GetVCUUID)
	}
	h.send(telnet.AppendVMware(h.options.Offer(nil), telnet.KnownSuboptions1, known...))
}

// connect has the port connected.
func (h *host) connect() {
	h.t.Helper()
	h.introduce()
	h.vmware(telnet.DoProxy, append([]byte("C"), h.service...)...)
	h.await(telnet.WillProxy)
}

// next answers what the server says until something comes that a host does not answer by itself. It is nil at the end.
func (h *host) next() *telnet.Event {
	h.t.Helper()
	for {
		for len(h.events) > 0 {
			e := h.events[0]
			h.events = h.events[1:]
			if h.answer(e) {
				continue
			}
			return &e
		}
		b := make([]byte, 64)
		n, err := h.conn.Read(b)
		if err != nil && n == 0 {
			if ne, ok := err.(net.Error); ok && ne.Timeout() {
				h.t.Fatal("the server says nothing")
			}
			return nil
		}
		for e, err := range h.d.Decode(b[:n]) {
			if err != nil {
				h.t.Fatal(err)
			}
			e.Bytes = bytes.Clone(e.Bytes)
			h.events = append(h.events, e)
		}
	}
}

func (h *host) answer(e telnet.Event) bool {
	switch {
	case e.Kind == telnet.Negotiation:
		if reply := h.options.Receive(nil, e.Verb, e.Option); len(reply) > 0 {
			h.send(reply)
		}
	case e.Kind == telnet.Subnegotiation && e.Bytes[0] == telnet.GetBIOSUUID && h.bios != "":
		h.vmware(telnet.BIOSUUID, []byte(h.bios)...)
	case e.Kind == telnet.Subnegotiation && e.Bytes[0] == telnet.GetVCUUID:
		h.vmware(telnet.VCUUID, []byte(h.vc)...)
	case e.Kind == telnet.Subnegotiation && e.Bytes[0] == telnet.GetName:
		h.vmware(telnet.Name, []byte("a \xff name")...)
	case e.Kind == telnet.Subnegotiation && e.Bytes[0] == telnet.KnownSuboptions2:
	default:
		return false
	}
	return true
}

// await waits for a subnegotiation and returns what is in it. Data before it is kept.
func (h *host) await(number byte) []byte {
	h.t.Helper()
	for {
		e := h.next()
		switch {
		case e == nil:
			h.t.Fatalf("the server hung up instead of saying %d", number)
		case e.Kind == telnet.Data:
			h.data = append(h.data, e.Bytes...)
		case e.Kind == telnet.Subnegotiation && e.Bytes[0] == number:
			return e.Bytes[1:]
		default:
			h.t.Fatalf("the server says %+v instead of %d", e, number)
		}
	}
}

// expect reads data until it is what is wanted.
func (h *host) expect(want string) {
	h.t.Helper()
	for len(h.data) < len(want) {
		e := h.next()
		if e == nil || e.Kind != telnet.Data {
			h.t.Fatalf("after %q comes %+v, want %q", h.data, e, want)
		}
		h.data = append(h.data, e.Bytes...)
	}
	if string(h.data) != want {
		h.t.Fatalf("got %q, want %q", h.data, want)
	}
	h.data = nil
}

// expectEnd waits for the server to hang up.
func (h *host) expectEnd() {
	h.t.Helper()
	if _, err := io.Copy(io.Discard, h.conn); errors.Is(err, os.ErrDeadlineExceeded) {
		h.t.Fatal("the server does not hang up")
	}
}

// serve starts a server on loopback.
func serve(t *testing.T) (*Server, string) {
	t.Helper()
	s, l := NewServer(Options{}), listen(t)
	serveOn(t, s, l)
	return s, l.Addr().String()
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func serveOn(t *testing.T, s *Server, l net.Listener) {
	t.Helper()
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
}

// dial waits for a port.
func dial(t *testing.T, s *Server, vm, service string) net.Conn {
	t.Helper()
	conn, err := s.Dial(t.Context(), vm, service)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// reads reads as much as is wanted, and compares.
func reads(t *testing.T, r io.Reader, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(r, got); err != nil || string(got) != want {
		t.Fatalf("got %q, %v; want %q", got[:n], err, want)
	}
}

func writes(t *testing.T, w io.Writer, text string) {
	t.Helper()
	if _, err := io.WriteString(w, text); err != nil {
		t.Fatal(err)
	}
}

// noise are random bytes, a lot of them 255.
func noise(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	for i := range b {
		if b[i]&3 == 0 {
			b[i] = telnet.IAC
		}
	}
	return b
}
