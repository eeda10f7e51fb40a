package bridge

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"vic/bench/oracle"
	"vic/containervm/vspc"
)

const (
	testBIOS     = "420f1122-3344-5566-7788-99aabbccddee"
	testInstance = "500f1122-3344-5566-7788-99aabbccddee"
)

// concentrator serves at an address, or at any.
func concentrator(t *testing.T, address string) (*vspc.Server, string) {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	return concentratorOn(t, l), l.Addr().String()
}

func concentratorOn(t *testing.T, l net.Listener) *vspc.Server {
	t.Helper()
	s := vspc.NewServer(vspc.Options{})
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
	return s
}

// dialPort waits for a port of the test's VM, and until the guest hears what is said there.
func dialPort(t *testing.T, s *vspc.Server, guest net.Conn) net.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn, err := s.Dial(ctx, testBIOS, "vic.control")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte{1}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(guest, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// testProxy is one for the test's VM.
func testProxy(t *testing.T, uri string) proxy {
	t.Helper()
	address, thumbprint, err := parseProxyURI(uri)
	if err != nil {
		t.Fatal(err)
	}
	p := proxy{address: address, thumbprint: thumbprint, direction: 'C', service: "vic.control", name: "one"}
	if p.bios, err = vmwareUUID(testBIOS); err != nil {
		t.Fatal(err)
	}
	if p.instance, err = vmwareUUID(testInstance); err != nil {
		t.Fatal(err)
	}
	return p
}

// newPort makes a port whose guest is the connection that it returns.
func newPort(t *testing.T, p proxy) (*proxied, net.Conn) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "serial")
	x, err := newProxied(path, p, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := x.close(); err != nil {
			t.Error(err)
		}
	})
	guest, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { guest.Close() })
	if err := guest.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return x, guest
}

// passes sends random bytes both ways.
func passes(t *testing.T, a, b net.Conn) {
	t.Helper()
	toA, toB := make([]byte, 100<<10), make([]byte, 100<<10)
	rand.Read(toA)
	rand.Read(toB)
	go func() { _, _ = a.Write(toB) }() // the other end tells whether it came
	go func() { _, _ = b.Write(toA) }()
	for name, x := range map[string]struct {
		conn net.Conn
		want []byte
	}{"one": {a, toA}, "other": {b, toB}} {
		got := make([]byte, len(x.want))
		if n, err := io.ReadFull(x.conn, got); err != nil || !bytes.Equal(got, x.want) {
			t.Fatalf("%s way: %d bytes, %v; equal: %v", name, n, err, bytes.Equal(got, x.want))
		}
	}
}

// TestProxied has a port without a VM go through what ports do.
func TestProxied(t *testing.T) {
	s, address := concentrator(t, "127.0.0.1:0")
	x, guest := newPort(t, testProxy(t, "telnet://"+address))
	conn := dialPort(t, s, guest)
	passes(t, conn, guest)

	t.Run("moves", func(t *testing.T) {
		m, err := x.begin(t.Context(), []byte{1, 2, 3, 0xff})
		if err != nil {
			t.Fatal(err)
		}
		late := make([]byte, 8<<10)
		rand.Read(late)
		for _, c := range []net.Conn{conn, guest} { // both wait
			go func() { _, _ = c.Write(late) }()
		}
		if err := m.commit(); err != nil {
			t.Fatal(err)
		}
		for _, c := range []net.Conn{conn, guest} {
			got := make([]byte, len(late))
			if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, late) {
				t.Fatalf("%v; equal: %v", err, bytes.Equal(got, late))
			}
		}
		passes(t, conn, guest)
	})
	t.Run("stays", func(t *testing.T) {
		m, err := x.begin(t.Context(), []byte{1, 2, 3, 4})
		if err != nil {
			t.Fatal(err)
		}
		if err := m.abort(); err != nil {
			t.Fatal(err)
		}
		passes(t, conn, guest)
	})
	t.Run("proxy goes and comes", func(t *testing.T) {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("read after the end: %v", err)
		}
		if _, err := guest.Write(bytes.Repeat([]byte("nobody hears it"), 100<<10)); err != nil { // more than fits anywhere
			t.Fatal(err)
		}
		s, _ := concentrator(t, address)
		conn := dialPort(t, s, guest)
		end := []byte("now they do")
		go func() { _, _ = guest.Write(end) }()
		var got []byte // some of what nobody should hear may still have been on its way
		for b := make([]byte, 4<<10); !bytes.HasSuffix(got, end); {
			n, err := conn.Read(b)
			if err != nil {
				t.Fatalf("%v after %d bytes", err, len(got))
			}
			got = append(got, b[:n]...)
		}
		if m, err := x.begin(t.Context(), []byte{1}); err != nil || m.source == nil {
			t.Errorf("moves %+v, %v", m, err)
		} else if err := m.commit(); err != nil {
			t.Error(err)
		}
		passes(t, conn, guest)
	})
	t.Run("TLS", func(t *testing.T) {
		lender := httptest.NewTLSServer(nil) // of a certificate
		lender.Close()
		l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: lender.TLS.Certificates})
		if err != nil {
			t.Fatal(err)
		}
		s := concentratorOn(t, l)
		p := testProxy(t, vspc.ProxyURI(l.Addr().String(), lender.Certificate().Raw))
		x, guest := newPort(t, p)
		conn := dialPort(t, s, guest)
		passes(t, conn, guest)
		m, err := x.begin(t.Context(), []byte{1, 2, 3, 4})
		if err != nil {
			t.Fatal(err)
		}
		if err := m.commit(); err != nil {
			t.Fatal(err)
		}
		passes(t, conn, guest)
		p.thumbprint = strings.Repeat("00", 20)
		if _, err := openSession(t.Context(), p, nil); err == nil || !strings.Contains(err.Error(), "certificate has thumbprint") {
			t.Errorf("another certificate: %v", err)
		}
	})
	t.Run("without a proxy", func(t *testing.T) {
		x, guest := newPort(t, testProxy(t, "telnet://127.0.0.1:1"))
		m, err := x.begin(t.Context(), []byte{1, 2, 3, 4})
		if err != nil {
			t.Fatal(err)
		}
		if err := m.commit(); err != nil {
			t.Fatal(err)
		}
		if _, err := guest.Write(make([]byte, 1<<20)); err != nil {
			t.Error(err)
		}
	})
}

// TestTelnet puts libtelnet's proxy between a port and the concentrator: it reads all that either says and writes it anew, and tells of
// what it read.
func TestTelnet(t *testing.T) {
	oracle.Need(t, "telnet-proxy")
	s, address := concentrator(t, "127.0.0.1:0")
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	between := free.Addr().String()
	if err := free.Close(); err != nil {
		t.Fatal(err)
	}
	_, own, err := net.SplitHostPort(between)
	if err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	cmd := exec.Command("telnet-proxy", host, port, own)
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_, guest := newPort(t, testProxy(t, "telnet://"+between)) // which tries until the judge listens
	conn := dialPort(t, s, guest)
	passes(t, conn, guest)
	_ = cmd.Process.Kill()
	_ = cmd.Wait() // it was killed
	want := map[string][]string{
		"CLIENT": {
			"IAC WILL 0 (BINARY)", "IAC WILL 3 (SGA)", "IAC WILL 232 (unknown)", "IAC DO 0 (BINARY)", "IAC DO 3 (SGA)",
			"SUB 232 (unknown) [21 bytes]: <0x00><0x00><0x01><0x02><0x03>()+,-.0FGIPQRSTU",   // KNOWN-SUBOPTIONS-1
			"SUB 232 (unknown) [13 bytes]: FCvic.control",                                    // DO-PROXY
			"SUB 232 (unknown) [48 bytes]: T42 0f 11 22 33 44 55 66-77 88 99 aa bb cc dd ee", // VM-BIOS-UUID
			"SUB 232 (unknown) [48 bytes]: P50 0f 11 22 33 44 55 66-77 88 99 aa bb cc dd ee", // VM-VC-UUID
			"SUB 232 (unknown) [4 bytes]: Rone",                                              // VM-NAME
		},
		"SERVER": {
			"IAC WILL 0 (BINARY)", "IAC WILL 3 (SGA)", "IAC DO 0 (BINARY)", "IAC DO 3 (SGA)", "IAC DO 232 (unknown)",
			"SUB 232 (unknown) [21 bytes]: <0x01><0x00><0x01><0x02><0x03>()+,-.0FGIPQRSTU",                       // KNOWN-SUBOPTIONS-2
			"SUB 232 (unknown) [1 bytes]: U", "SUB 232 (unknown) [1 bytes]: Q", "SUB 232 (unknown) [1 bytes]: S", // GETs of what comes above
			"SUB 232 (unknown) [1 bytes]: G", // WILL-PROXY
		},
	}
	got := map[string][]string{}
	for _, m := range regexp.MustCompile(`(CLIENT|SERVER) ((?:IAC|SUB|WARNING|ERROR).*?)(?:\x1b|\r?\n)`).FindAllStringSubmatch(said.String(), -1) {
		got[m[1]] = append(got[m[1]], m[2])
	}
	for _, side := range []string{"CLIENT", "SERVER"} {
		if !slices.Equal(got[side], want[side]) {
			t.Errorf("%s says\n%q, want\n%q", side, got[side], want[side])
		}
	}
}

// TestMoves moves a VM time and again, with bytes under way both ways all the time, and has it stay now and then.
func TestMoves(t *testing.T) {
	s, address := concentrator(t, "127.0.0.1:0")
	x, guest := newPort(t, testProxy(t, "telnet://"+address))
	conn := dialPort(t, s, guest)
	const size, moves = 1 << 20, 20
	var wg sync.WaitGroup
	ways := map[string][2]net.Conn{"into the VM": {conn, guest}, "out of it": {guest, conn}}
	share := make(chan struct{}, moves*len(ways)) // so that each move has some
	for name, way := range ways {
		sent := make([]byte, size)
		rand.Read(sent)
		wg.Go(func() {
			for i := 0; i < size; i += size / moves {
				<-share
				if _, err := way[0].Write(sent[i:min(i+size/moves, size)]); err != nil {
					t.Error(name, err)
					return
				}
			}
		})
		wg.Go(func() {
			got := make([]byte, size)
			if n, err := io.ReadFull(way[1], got); err != nil || !bytes.Equal(got, sent) {
				t.Errorf("%s: %d bytes, %v; equal: %v", name, n, err, bytes.Equal(got, sent))
			}
		})
	}
	for i := range moves + 2 {
		share <- struct{}{}
		share <- struct{}{}
		m, err := x.begin(t.Context(), []byte{byte(i), 0xff})
		if err != nil {
			t.Fatal(err)
		}
		if i%4 == 3 {
			err = m.abort()
		} else {
			err = m.commit()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	wg.Wait()
}
