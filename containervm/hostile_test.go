package containervm

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"vic/tether/wire"
)

// controlFrame is one of the control protocol, by the drawing in wire's package comment.
func controlFrame(typ byte, channel uint16, stamp uint64, payload []byte) []byte {
	b := wire.AppendRecord(nil, wire.RecordType(typ), time.Unix(0, int64(stamp)), payload)
	binary.LittleEndian.PutUint16(b[6:], channel)
	binary.LittleEndian.PutUint32(b[24:], crc32.Checksum(b[:24], crc32.MakeTable(crc32.Castagnoli)))
	return b
}

const (
	headerBytes                            = 28
	typeHello, typeData, typeCredit        = 16, 17, 18
	sessionOf                       uint64 = 0xffffffff << 32
)

// A speaker sends frames of one session, numbered as they should be.
type speaker struct {
	net.Conn
	stamp uint64
}

func (s *speaker) say(typ byte, channel uint16, payload []byte) error {
	s.stamp++
	_, err := s.Write(controlFrame(typ, channel, s.stamp, payload))
	return err
}

// greeted answers the host's hello, and then goes on by f until that fails.
func greeted(f func(*speaker) error) func(net.Conn, *fakeVM) {
	return func(conn net.Conn, v *fakeVM) {
		defer conn.Close()
		head := make([]byte, headerBytes)
		if _, err := io.ReadFull(conn, head); err != nil {
			return
		}
		go io.Copy(io.Discard, conn)
		s := &speaker{conn, binary.LittleEndian.Uint64(head[8:]) & sessionOf}
		if s.say(typeHello, 0, fmt.Appendf(nil, `{"version":1,"id":%q}`, v.vm.ID)) != nil {
			return
		}
		for f(s) == nil {
		}
	}
}

// message is one of channel 0.
func message(text string) []byte {
	return append(binary.LittleEndian.AppendUint32(nil, uint32(len(text))), text...)
}

// logLines is a log that can be waited for.
type logLines struct {
	mu   sync.Mutex
	text strings.Builder
	more chan struct{} // closed, and replaced, with each line
}

func (l *logLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.more)
	l.more = make(chan struct{})
	return l.text.Write(p)
}

// await waits for a line that has all of the texts.
func (l *logLines) await(t *testing.T, texts ...string) {
	t.Helper()
	for over := time.After(time.Minute); ; {
		l.mu.Lock()
		all, more := l.text.String(), l.more
		l.mu.Unlock()
	next:
		for line := range strings.Lines(all) {
			for _, text := range texts {
				if !strings.Contains(line, text) {
					continue next
				}
			}
			return
		}
		select {
		case <-more:
		case <-over:
			t.Fatalf("no line with %q in\n%s", texts, all)
		}
	}
}

func memory() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse
}

// A guest that speaks garbage on its control port is told by name; it takes no memory, holds up nobody
// else, and can be got rid of.
func TestHostileControl(t *testing.T) {
	seed := [32]byte{byte(rand.Uint32()), byte(rand.Uint32())}
	t.Logf("seed %v", seed)
	for _, tt := range []struct {
		name string
		wild func(net.Conn, *fakeVM)
		want string // in the log
	}{
		{"random bytes", func(conn net.Conn, _ *fakeVM) {
			go io.Copy(io.Discard, conn)
			io.Copy(conn, rand.NewChaCha8(seed))
		}, "bytes that are no frames"},
		{"beginnings of frames", func(conn net.Conn, _ *fakeVM) {
			go io.Copy(io.Discard, conn)
			for b := bytes.Repeat([]byte("\xf5VIC"), 1<<12); ; {
				if _, err := conn.Write(b); err != nil {
					return
				}
			}
		}, "bytes that are no frames"},
		{"another session", func(conn net.Conn, _ *fakeVM) {
			go io.Copy(io.Discard, conn)
			for s := (&speaker{conn, 1 << 32}); s.say(typeData, 0, make([]byte, wire.MaxPayload)) == nil; {
			}
		}, "bytes of other sessions"},
		{"the host's own words", func(conn net.Conn, _ *fakeVM) { io.Copy(conn, conn) }, ""},
		{"hello that is no JSON", func(conn net.Conn, _ *fakeVM) {
			head := make([]byte, headerBytes)
			if _, err := io.ReadFull(conn, head); err == nil {
				go io.Copy(io.Discard, conn)
				(&speaker{conn, binary.LittleEndian.Uint64(head[8:]) & sessionOf}).say(typeHello, 0, []byte("["))
			}
		}, "parse hello"},
		{"random after the hello", greeted(func(s *speaker) error {
			_, err := io.Copy(s, rand.NewChaCha8(seed))
			return err
		}), "bytes that are no frames"},
		{"frames of every type", greeted(func(s *speaker) error {
			return s.say(byte(rand.Uint32()), 0, []byte{1, 2, 3})
		}), "protocol broken"},
		{"more than the window", greeted(func(s *speaker) error {
			return s.say(typeData, 1, make([]byte, wire.MaxPayload))
		}), "more than its credit"},
		{"credit without end", greeted(func(s *speaker) error {
			return s.say(typeCredit, 1, []byte{0xff, 0xff, 0xff, 0x7f})
		}), "more credit than its window"},
		{"message of 4 GiB", greeted(func(s *speaker) error {
			return s.say(typeData, 0, []byte{0xff, 0xff, 0xff, 0xff})
		}), "at most 1048576 may come"},
		{"message that is no JSON", greeted(func(s *speaker) error { return s.say(typeData, 0, message("{]")) }), "parse message"},
		{"exit code of an exec", greeted(func(s *speaker) error {
			return s.say(typeData, 0, message(`{"process":"x","exit":{"code":-5}}`))
		}), "exit code -5"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSite(t)
			s.Close()
			log := &logLines{more: make(chan struct{})}
			s.o.Log = slog.New(slog.NewTextHandler(log, nil))
			s.open()
			s.rack.wild = tt.wild
			good := s.run(Spec{Args: []string{"cat"}})
			before := memory()
			bad := s.run(Spec{Args: []string{"wild"}})
			if tt.want != "" {
				log.await(t, `msg="guest misbehaves"`, "container="+bad.ID(), tt.want)
				if err := bad.Info().State.Error; !strings.HasPrefix(err, "its guest misbehaves: ") {
					t.Errorf("error in the state: %q", err)
				}
			}
			if after := memory(); after > before+32<<20 {
				t.Errorf("%d bytes of memory in use, %d before", after, before)
			}
			e, err := good.CreateExec(ExecSpec{Args: []string{"echo", "hello"}, Stdout: true})
			if err != nil {
				t.Fatal(err)
			}
			if err := e.Start(t.Context(), ExecStartOptions{}); err != nil {
				t.Fatal(err)
			}
			var out strings.Builder
			if err := e.Stream(t.Context(), nil, &out, io.Discard); err != nil || out.String() != "hello" {
				t.Errorf("exec beside it: %q, %v", out.String(), err)
			}
			s.rack.vm(bad.ID()).end()
			s.wait(bad, NotRunning)
			if err := bad.Remove(t.Context(), RemoveOptions{}); err != nil {
				t.Error(err)
			}
			if st := good.Info().State; st.Status != Running || st.Error != "" {
				t.Errorf("the good guest: %+v", st)
			}
		})
	}
}

// What a guest writes to its log is only its word.
func TestHostileLog(t *testing.T) {
	seed := [32]byte{byte(rand.Uint32()), byte(rand.Uint32())}
	t.Logf("seed %v", seed)
	s := newSite(t)
	s.Close()
	log := &logLines{more: make(chan struct{})}
	s.o.Log = slog.New(slog.NewTextHandler(log, nil))
	s.open()
	c := s.run(Spec{Args: []string{"wild"}})
	v := s.rack.vm(c.ID())
	v.record(wire.Stdout, "before\n")
	noise := make([]byte, 4<<20)
	rand.NewChaCha8(seed).Read(noise)
	v.raw(string(noise))
	v.record(wire.RecStarted, "no JSON")
	v.record(wire.RecExit, `{"code":1e99}`)
	v.record(wire.Stdout, "after\n")
	v.record(wire.RecExit, `{"code":-1}`)
	before := memory()
	if got := s.logs(c, LogOptions{Stdout: true, Stderr: true}); got != "o:before\no:after\n" {
		t.Errorf("log: %q", got)
	}
	if after := memory(); after > before+16<<20 {
		t.Errorf("%d bytes of memory in use, %d before", after, before)
	}
	log.await(t, "guest misbehaves: its log has bytes that are no records", "container="+c.ID())
	v.end()
	if code := s.wait(c, NotRunning); code != 137 {
		t.Errorf("exit code %d", code)
	}
}

// A guest that claims to have ended before its process ran, and goes on, is unplugged.
func TestLiar(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	if err := s.create(Spec{Args: []string{"liar", "4711"}}).Start(t.Context()); err == nil || !strings.Contains(err.Error(), "exit code 4711") {
		t.Errorf("an exit code that is none: %v", err)
	}
	c := s.create(Spec{Args: []string{"liar", "3"}})
	if err := c.Start(t.Context()); err == nil {
		t.Error("started")
	}
	if st := c.Info().State; st.Status != Created || st.ExitCode != 3 {
		t.Errorf("%+v", st)
	}
}
