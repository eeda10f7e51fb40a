package vspc

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"vic/containervm/vspc/telnet"
)

const (
	biosUUID = "42 0f 11 22 33 44 55 66-77 88 99 aa bb cc dd ee" // as VMware's hosts write it
	vcUUID   = "50 0f 11 22 33 44 55 66-77 88 99 aa bb cc dd ee"
	biosAPI  = "420f1122-3344-5566-7788-99aabbccddee" // as its API does
	vcAPI    = "500F1122-3344-5566-7788-99AABBCCDDEE"
)

// TestServer looks at what a port is known by, and at bytes through it.
func TestServer(t *testing.T) {
	s, address := serve(t)
	for name, x := range map[string]struct{ bios, vc, dial string }{
		"BIOS UUID":              {biosUUID, "", biosAPI},
		"instance UUID":          {"", vcUUID, vcAPI},
		"both, dialled by BIOS":  {biosUUID, vcUUID, biosAPI},
		"both, dialled by other": {biosUUID, vcUUID, vcAPI},
	} {
		t.Run(name, func(t *testing.T) {
			h := testHost(t, address)
			h.bios, h.vc = x.bios, x.vc
			h.connect()
			conn := dial(t, s, x.dial, h.service)
			toGuest, toUser := noise(64<<10), noise(64<<10)
			go func() {
				_, _ = conn.Write(toGuest) // the other end tells whether it came
			}()
			h.send(telnet.AppendData(nil, toUser))
			reads(t, conn, string(toUser))
			h.expect(string(toGuest))
			h.send([]byte("the end"))
			h.conn.Close()
			if got, err := io.ReadAll(conn); string(got) != "the end" || err != nil {
				t.Errorf("at the end %q, %v", got, err)
			}
			if _, err := conn.Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
				t.Errorf("write after the end: %v", err)
			}
		})
	}
}

// TestDial has users come and go.
func TestDial(t *testing.T) {
	s, address := serve(t)
	first := make(chan net.Conn)
	go func() {
		conn, err := s.Dial(t.Context(), biosAPI, "vic.control")
		if err != nil {
			t.Error(err)
		}
		first <- conn
	}()
	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Millisecond, errors.New("impatient"))
	defer cancel()
	if _, err := s.Dial(ctx, biosAPI, "vic.bell"); err == nil || err.Error() != "wait for serial port vic.bell of VM "+biosAPI+": impatient" {
		t.Errorf("nobody there: %v", err)
	}
	if _, err := s.Dial(t.Context(), "a VM", "vic.bell"); err == nil {
		t.Error("no UUID is dialled")
	}
	h := testHost(t, address)
	h.bios = biosUUID
	h.connect()
	h.send([]byte("all of it"))
	one := <-first
	reads(t, one, "all of it")

	second := make(chan net.Conn)
	go func() { second <- dial(t, s, biosAPI, "vic.control") }()
	awaitWaiting(t, s)
	h.send([]byte("part is read, "))
	reads(t, one, "part is ")
	one.Close()
	two := <-second
	h.send([]byte("the rest is the next one's"))
	reads(t, two, "read, the rest is the next one's")
	if _, err := one.Read(make([]byte, 1)); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("read of what is closed: %v", err)
	}
	if _, err := one.Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("write to what is closed: %v", err)
	}
	writes(t, two, "only this")
	h.expect("only this")

	two.Close()
	h.send(append([]byte("nobody hears it"), telnet.AppendVMware(nil, telnet.GetLocationUUID)...))
	h.await(telnet.UnknownSuboption2) // it is through
	three := dial(t, s, biosAPI, "vic.control")
	h.send([]byte("this is heard"))
	reads(t, three, "this is heard")
}

// awaitWaiting waits until somebody waits for a port that is used.
func awaitWaiting(t *testing.T, s *Server) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(time.Millisecond) {
		s.mu.Lock()
		for _, slot := range s.slots {
			if len(slot.waiting) > 0 {
				s.mu.Unlock()
				return
			}
		}
		s.mu.Unlock()
	}
	t.Fatal("nobody waits")
}

// TestDeadlines has writes end at their time.
func TestDeadlines(t *testing.T) {
	s, address := serve(t)
	h := testHost(t, address)
	h.bios = biosUUID
	h.connect()
	conn := dial(t, s, biosAPI, h.service)
	if err := conn.SetWriteDeadline(time.Now().Add(-time.Second)); err != nil {
		t.Fatal(err)
	}
	if n, err := conn.Write([]byte("x")); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("write after its time: %d, %v", n, err)
	}
	if err := conn.SetWriteDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	writes(t, conn, "there is time")
	h.expect("there is time")
	h.vmware(telnet.VMotionBegin, 1)
	h.await(telnet.VMotionGoAhead)
	if err := conn.SetWriteDeadline(time.Now().Add(time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := conn.Write([]byte("x")); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("write while the VM moves: %d, %v", n, err)
	}
	h.vmware(telnet.VMotionAbort)
	if err := conn.SetWriteDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	writes(t, conn, "stays")
	h.expect("stays")
	written := make(chan error)
	go func() {
		_, err := conn.Write(bytes.Repeat([]byte("x"), 32<<20)) // nobody reads so much
		written <- err
	}()
	if err := conn.SetWriteDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if err := <-written; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("write to who does not read: %v", err)
	}
}

// BenchmarkStream passes bytes that need no escape, and bytes of which some do, through a server on loopback.
func BenchmarkStream(b *testing.B) {
	random := make([]byte, 16<<10)
	rand.Read(random)
	for name, piece := range map[string][]byte{"text": bytes.Repeat([]byte("text"), 4<<10), "random": random} {
		b.Run(name, func(b *testing.B) {
			s := NewServer(Options{})
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			go func() { _ = s.Serve(l) }() // until it is closed
			defer s.Close()
			host, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				b.Fatal(err)
			}
			defer host.Close()
			if _, err := host.Write(connecting(biosUUID, "vic.control")); err != nil {
				b.Fatal(err)
			}
			user, err := s.Dial(b.Context(), biosAPI, "vic.control")
			if err != nil {
				b.Fatal(err)
			}
			escaped := telnet.AppendData(nil, piece)
			b.Run("out of the VM", func(b *testing.B) {
				b.SetBytes(int64(len(piece)))
				b.ReportAllocs()
				got := make([]byte, len(piece))
				for b.Loop() {
					if _, err := host.Write(escaped); err != nil {
						b.Fatal(err)
					}
					if _, err := io.ReadFull(user, got); err != nil || !bytes.Equal(got, piece) {
						b.Fatal("not what was sent", err)
					}
				}
			})
			go func() { _, _ = io.Copy(io.Discard, host) }() // until it is closed
			b.Run("into the VM", func(b *testing.B) {
				b.SetBytes(int64(len(piece)))
				b.ReportAllocs()
				for b.Loop() {
					if _, err := user.Write(piece); err != nil {
						b.Fatal(err)
					}
				}
			})
		})
	}
}
