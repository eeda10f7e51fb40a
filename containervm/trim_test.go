package containervm

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"vic/tether/wire"
)

// takes waits until the container's log takes no more than so many bytes of the file system: the head moves
// before what is ahead of it is given back.
func (s *site) takes(c *Container, most int64) {
	s.t.Helper()
	var got int64
	for over := time.Now().Add(time.Minute); time.Now().Before(over); time.Sleep(time.Millisecond) {
		st, err := os.Stat(filepath.Join(c.dir, logFile))
		if err != nil {
			s.t.Fatal(err)
		}
		if got = st.Sys().(*syscall.Stat_t).Blocks * 512; got <= most {
			return
		}
	}
	s.t.Errorf("the log takes %d bytes, not %d", got, most)
}

// trimmed waits until the log's head is behind off.
func (s *site) trimmed(c *Container, off int64) {
	s.t.Helper()
	for over := time.Now().Add(time.Minute); time.Now().Before(over); time.Sleep(time.Millisecond) {
		c.mu.Lock()
		head := c.logHead
		c.mu.Unlock()
		if head > off {
			return
		}
	}
	s.t.Fatalf("the log is not given back up to %d", off)
}

func TestBoundedLog(t *testing.T) {
	t.Parallel()
	s, ctx := newSite(t), t.Context()
	const room, lines = 256 << 10, 1000
	c := s.run(Spec{Name: "one", Args: []string{"idle"}, Log: LogSpec{Room: room}})
	v := s.rack.vm(c.ID())
	line := func(i int) string { return fmt.Sprintf("%06d%s\n", i, strings.Repeat(".", 1000)) }
	next := 0
	write := func() (text string) {
		for range lines {
			v.record(wire.Stdout, line(next))
			text += line(next)
			next++
		}
		return text
	}
	check := func(what string) {
		t.Helper()
		out := strings.ReplaceAll(s.logs(c, LogOptions{Stdout: true}), "o:", "")
		if len(out) < room/2 || len(out) > room+room/8 {
			t.Errorf("%s: the log has %d bytes", what, len(out))
		}
		n := strings.Count(out, "\n")
		want := ""
		for i := next - n; i < next; i++ {
			want += line(i)
		}
		if out != want {
			t.Errorf("%s: the log does not have the last %d lines", what, n)
		}
		tail := 3
		if got, want := s.logs(c, LogOptions{Stdout: true, Tail: &tail}), "o:"+line(next-3)+"o:"+line(next-2)+"o:"+line(next-1); got != want {
			t.Errorf("%s: the last lines are %.40q", what, got)
		}
		s.takes(c, room+128<<10)
	}

	// What is attached misses nothing, and holds the log until it has read.
	a, err := c.Attach(AttachOptions{Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	text := write()
	read, end := context.WithCancel(ctx)
	defer end()
	var got bytes.Buffer
	err = a.Stream(read, nil, writerFunc(func(p []byte) (int, error) {
		got.Write(p)
		if got.Len() == len(text) {
			end()
		}
		return len(p), nil
	}), nil)
	if err != context.Canceled || got.String() != text {
		t.Errorf("attached: %d bytes of %d, %v", got.Len(), len(text), err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	size := c.logSize()
	write()
	s.trimmed(c, size+lines*1000-2*room)
	s.trimmed(c, c.logSize()-room-1) // nothing more goes then
	check("bounded")

	// Nobody looked, and the log is caught up with.
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	write()
	s.open()
	if c, err = s.Container("one"); err != nil {
		t.Fatal(err)
	}
	s.trimmed(c, c.logSize()-room-1) // nothing more goes then
	check("after a restart of the VCH")
	v.exit(7)
	if code := s.wait(c, NotRunning); code != 7 {
		t.Errorf("exit code %d", code)
	}
	check("ended")
	s.reopen()
	if c, err = s.Container("one"); err != nil {
		t.Fatal(err)
	}
	check("ended, found")
	if st := c.Info().State; st.ExitCode != 7 {
		t.Errorf("found: %+v", st)
	}

	// The next run goes on.
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	v = s.rack.vm(c.ID())
	write()
	s.trimmed(c, c.logSize()-room-1) // nothing more goes then
	check("started again")
}

// A guest whose log has no records gets no more room.
func TestBoundedRubbish(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	const room = 64 << 10
	c := s.run(Spec{Args: []string{"idle"}, Log: LogSpec{Room: room}})
	v := s.rack.vm(c.ID())
	for range 64 {
		v.raw(strings.Repeat("rubbish ", 8<<10))
	}
	s.trimmed(c, c.logSize()-room-1)
	s.takes(c, room+128<<10)
	v.record(wire.Stdout, "sorry\n")
	v.exit(3)
	if code := s.wait(c, NotRunning); code != 3 {
		t.Errorf("exit code %d", code)
	}
	if got := s.logs(c, LogOptions{Stdout: true}); got != "o:sorry\n" {
		t.Errorf("log %.40q", got)
	}
}

// writerFunc is an io.Writer.
type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
