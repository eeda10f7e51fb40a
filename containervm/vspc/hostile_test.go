package vspc

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"vic/containervm/vspc/telnet"
)

// TestRefused has hosts that are none hung up on.
func TestRefused(t *testing.T) {
	s, address := serve(t)
	h := testHost(t, address)
	h.bios, h.vc = biosUUID, vcUUID
	h.connect()
	conn := dial(t, s, biosAPI, h.service)
	doProxy := func(service string) []byte { return telnet.AppendVMware(nil, telnet.DoProxy, []byte("S"+service)...) }
	for name, said := range map[string][]byte{
		"declines VMware":       {telnet.IAC, telnet.WONT, telnet.VMware},
		"no direction":          telnet.AppendVMware(nil, telnet.DoProxy),
		"long service":          doProxy(strings.Repeat("x", maxService+1)),
		"no service":            doProxy(""),
		"two services":          append(doProxy("one"), doProxy("two")...),
		"no UUID":               telnet.AppendVMware(nil, telnet.BIOSUUID, []byte("anybody")...),
		"two UUIDs":             telnet.AppendVMware(telnet.AppendVMware(nil, telnet.VCUUID, []byte(biosUUID)...), telnet.VCUUID, []byte(vcUUID)...),
		"another's UUID":        connecting(biosUUID, h.service),
		"the VM's other UUID":   connecting(vcUUID, h.service),
		"knows no secret":       telnet.AppendVMware(nil, telnet.VMotionPeer, make([]byte, 8)...),
		"no vMotion":            telnet.AppendVMware(nil, telnet.VMotionComplete, 1),
		"subnegotiation broken": {telnet.IAC, telnet.SB, telnet.VMware, telnet.IAC, telnet.DO},
		"endless":               append([]byte{telnet.IAC, telnet.SB, telnet.VMware}, make([]byte, telnet.MaxSubnegotiation+1)...),
	} {
		t.Run(name, func(t *testing.T) {
			f := testHost(t, address)
			f.send(said)
			f.expectEnd()
			writes(t, conn, "still its own")
			h.expect("still its own")
		})
	}
	t.Run("moves nothing", func(t *testing.T) {
		f := testHost(t, address)
		f.vmware(telnet.VMotionBegin, 1, 2)
		if got := f.await(telnet.VMotionNotNow); string(got) != "\x01\x02" {
			t.Errorf("not now: %q", got)
		}
		f.vmware(telnet.VMotionAbort)
		h.vmware(telnet.VMotionBegin, make([]byte, maxSequence+1)...)
		h.await(telnet.VMotionNotNow)
	})
	t.Run("guesses a secret", func(t *testing.T) {
		h.vmware(telnet.VMotionBegin, 1)
		cookie := h.await(telnet.VMotionGoAhead)
		for i := range cookie {
			guess := bytes.Clone(cookie)
			guess[i] ^= 1
			f := testHost(t, address)
			f.introduce()
			f.vmware(telnet.VMotionPeer, guess...)
			f.expectEnd()
		}
		f := testHost(t, address) // one that knows it, and is another VM
		f.bios, f.service = "00 00 00 00 00 00 00 00-00 00 00 00 00 00 00 00", "vic.bell"
		f.connect()
		f.vmware(telnet.VMotionPeer, cookie...)
		f.expectEnd()
		h.vmware(telnet.VMotionBegin, 2) // that one came to nothing
		h.await(telnet.VMotionGoAhead)
		f = testHost(t, address)
		f.introduce()
		f.vmware(telnet.VMotionPeer, cookie...)
		f.expectEnd()
		h.vmware(telnet.VMotionAbort)
		writes(t, conn, "still its own")
		h.expect("still its own")
	})
}

// connecting is what a host sends that asks for a port.
func connecting(uuid, service string) []byte {
	return telnet.AppendVMware(telnet.AppendVMware(telnet.AppendVMware(nil, telnet.KnownSuboptions1, telnet.GetVCUUID),
		telnet.DoProxy, []byte("C"+service)...), telnet.VCUUID, []byte(uuid)...)
}

// TestStrangers has the oldest of too many connections that say nothing go, and a VM come through all the same.
func TestStrangers(t *testing.T) {
	s, l := NewServer(Options{}), listen(t)
	s.identify = time.Hour // none goes by itself
	serveOn(t, s, l)
	address := l.Addr().String()
	first := testHost(t, address)
	if _, err := io.ReadFull(first.conn, make([]byte, 1)); err != nil { // the server has it
		t.Fatal(err)
	}
	for range maxStrangers {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	first.expectEnd()
	h := testHost(t, address)
	h.bios = biosUUID
	h.connect()
	conn := dial(t, s, biosAPI, h.service)
	writes(t, conn, "through")
	h.expect("through")
}

// TestTimeouts has hosts say too little, and vMotions come to nothing.
func TestTimeouts(t *testing.T) {
	s, l := NewServer(Options{}), listen(t)
	s.identify, s.vMotion = 500*time.Millisecond, 500*time.Millisecond
	serveOn(t, s, l)
	address := l.Addr().String()
	testHost(t, address).expectEnd()
	h := testHost(t, address) // says that it has a UUID, and does not tell it
	h.send(telnet.AppendVMware(nil, telnet.KnownSuboptions1, telnet.GetBIOSUUID))
	h.send(telnet.AppendVMware(nil, telnet.DoProxy, []byte("Cvic.control")...))
	h.expectEnd()
	h = testHost(t, address) // of two it tells one
	h.vc = vcUUID
	h.send(telnet.AppendVMware(telnet.AppendVMware(nil, telnet.KnownSuboptions1, telnet.GetBIOSUUID), telnet.DoProxy, []byte("Cvic.control")...))
	h.send(telnet.AppendVMware(nil, telnet.VCUUID, []byte(vcUUID)...))
	h.await(telnet.GetBIOSUUID)
	h.await(telnet.WillProxy)
	conn := dial(t, s, vcAPI, h.service)
	h.vmware(telnet.VMotionBegin, 1)
	h.await(telnet.VMotionGoAhead)
	target := testHost(t, address)
	target.vc = vcUUID
	target.connect()
	target.expectEnd() // it asked for a port that is taken, and had not the secret
	written := make(chan error)
	go func() {
		_, err := conn.Write([]byte("waits"))
		written <- err
	}()
	h.conn.Close()
	if n, err := conn.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("read after a vMotion that came to nothing: %d, %v", n, err)
	}
	if err := <-written; !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("write: %v", err)
	}
}

// TestDead has a VM come again whose last bytes nobody has read yet.
func TestDead(t *testing.T) {
	s, address := serve(t)
	h := testHost(t, address)
	h.bios = biosUUID
	h.connect()
	before := dial(t, s, biosAPI, h.service)
	h.send([]byte("last words"))
	reads(t, before, "last ") // the rest is on its way
	h.conn.Close()
	again := testHost(t, address)
	again.bios = biosUUID
	again.connect()
	conn := dial(t, s, biosAPI, h.service)
	writes(t, conn, "here")
	again.expect("here")
	if got, err := io.ReadAll(before); string(got) != "words" || err != nil {
		t.Errorf("of the one before %q, %v", got, err)
	}
}

// TestMany connects thousands of VMs' ports, uses them all, and leaves nothing behind.
func TestMany(t *testing.T) {
	const vms, atOnce = 3000, 64
	before := runtime.NumGoroutine()
	s, l := NewServer(Options{}), listen(t)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	var wg sync.WaitGroup
	turn := make(chan struct{}, atOnce)
	conns := make([]net.Conn, vms)
	for i := range vms {
		turn <- struct{}{}
		wg.Go(func() {
			defer func() { <-turn }()
			uuid := fmt.Sprintf("%032x", i+1)
			conn, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Error(err)
				return
			}
			conns[i] = conn
			if _, err := conn.Write(append(connecting(uuid, "vic.control"), uuid...)); err != nil {
				t.Error(err)
			}
			user, err := s.Dial(t.Context(), uuid, "vic.control")
			if err != nil {
				t.Error(err)
				return
			}
			text := "to " + uuid
			if _, err := io.WriteString(user, text); err != nil {
				t.Error(err)
			}
			var got []byte
			for b := make([]byte, 256); !bytes.HasSuffix(got, []byte(text)); {
				n, err := conn.Read(b)
				if err != nil {
					t.Error(err)
					return
				}
				got = append(got, b[:n]...)
			}
			if i%2 == 0 {
				user.Close()
			}
		})
	}
	wg.Wait()
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	t.Logf("%d ports: %d goroutines, %.1f KiB each", vms, runtime.NumGoroutine()-before, float64(m.HeapInuse+m.StackInuse)/vms/1024)
	for _, c := range conns[:vms/2] {
		c.Close()
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	for _, c := range conns[vms/2:] {
		c.Close()
	}
	if left := len(s.lines) + len(s.slots) + len(s.vMotions) + s.strangers.Len() + s.idle.Len(); left != 0 {
		t.Errorf("%d lines, %d slots, %d vMotions, %d strangers and %d idle ports are left", len(s.lines), len(s.slots), len(s.vMotions), s.strangers.Len(), s.idle.Len())
	}
	for end := time.Now().Add(patience); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) { // some are on their way out
		if time.Now().After(end) {
			t.Fatalf("%d goroutines are left of the server's", runtime.NumGoroutine()-before)
		}
	}
	if _, err := s.Dial(t.Context(), biosAPI, "vic.control"); err == nil {
		t.Error("a closed server is dialled")
	}
}

// TestTLS serves over TLS, as telnets:// asks for.
func TestTLS(t *testing.T) {
	lender := httptest.NewTLSServer(nil) // of a certificate
	lender.Close()
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: lender.TLS.Certificates})
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(Options{})
	serveOn(t, s, l)
	roots := x509.NewCertPool()
	roots.AddCert(lender.Certificate())
	tcp := testHost(t, l.Addr().String())
	h := *tcp
	h.conn = tls.Client(tcp.conn, &tls.Config{RootCAs: roots, ServerName: "127.0.0.1"})
	h.bios = biosUUID
	h.connect()
	conn := dial(t, s, biosAPI, h.service)
	sent := noise(100 << 10)
	go func() { _, _ = conn.Write(sent) }() // the other end tells whether it came
	h.expect(string(sent))
	h.send(telnet.AppendData(nil, sent))
	reads(t, conn, string(sent))

	plain := testHost(t, l.Addr().String())
	plain.introduce()
	plain.expectEnd()
	again := testHost(t, l.Addr().String()) // the first has hung up without a word
	tcp.conn.Close()
	again.conn = tls.Client(again.conn, &tls.Config{RootCAs: roots, ServerName: "127.0.0.1"})
	again.bios = biosUUID
	again.connect()
}

// FuzzHost feeds a server what any host may say, beside a port that works.
func FuzzHost(f *testing.F) {
	f.Add(connecting(biosUUID, "vic.control"), []byte("data"))
	f.Add(append(connecting(vcUUID, "vic.control"), telnet.AppendVMware(nil, telnet.VMotionBegin, 1, 2, 3, 4)...), telnet.AppendVMware([]byte("x"), telnet.VMotionAbort))
	f.Add(telnet.AppendVMware(nil, telnet.VMotionPeer, 1, 2, 3, 4, 5, 6, 7, 8), telnet.AppendVMware(nil, telnet.VMotionComplete, 1, 2, 3, 4))
	f.Add([]byte{telnet.IAC, telnet.DO, telnet.ComPort, telnet.IAC, telnet.WILL, telnet.ComPort}, []byte{telnet.IAC, telnet.WONT, telnet.Binary})
	f.Fuzz(func(t *testing.T, one, two []byte) {
		s := NewServer(Options{})
		ours, theirs := net.Pipe()
		other, theirsToo := net.Pipe()
		s.accept(ours)
		s.accept(other)
		var wg sync.WaitGroup
		for conn, said := range map[net.Conn][]byte{theirs: one, theirsToo: two} {
			wg.Go(func() { _, _ = io.Copy(io.Discard, conn) }) // until the server hangs up
			wg.Go(func() {
				_, _ = conn.Write(said) // likewise
				_ = conn.Close()
			})
		}
		wg.Wait()
		s.wg.Wait()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if left := len(s.lines) + len(s.slots) + s.strangers.Len() + s.idle.Len(); left != 0 {
			t.Fatalf("%d things are left", left)
		}
	})
}
