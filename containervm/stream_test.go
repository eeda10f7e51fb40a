package containervm

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"vic/tether/wire"
)

// randomText cannot be compressed much.
func randomText(n int) string {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+-"
	r := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, n)
	for i := range b {
		b[i] = letters[r.IntN(len(letters))]
	}
	return string(b)
}

func (s *site) attach(c *Container, o AttachOptions) *Attachment {
	s.t.Helper()
	a, err := c.Attach(o)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { a.Close() })
	return a
}

func TestAttach(t *testing.T) {
	t.Parallel()
	s, ctx := newSite(t), t.Context()
	c := s.create(Spec{Args: []string{"print", "out 1\n", "err 1\n", "out 2"}})
	both := s.attach(c, AttachOptions{Stdout: true, Stderr: true})
	one := s.attach(c, AttachOptions{Stderr: true})
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	s.wait(c, NotRunning)
	var out, errOut, only bytes.Buffer
	if err := both.Stream(ctx, nil, &out, &errOut); err != nil || out.String() != "out 1\nout 2" || errOut.String() != "err 1\n" {
		t.Errorf("%q, %q, %v", out.String(), errOut.String(), err)
	}
	if err := one.Stream(ctx, nil, &only, &only); err != nil || only.String() != "err 1\n" {
		t.Errorf("%q, %v", only.String(), err)
	}
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	s.wait(c, NotRunning)
	var all bytes.Buffer
	old := s.attach(c, AttachOptions{Stdout: true, Logs: true, LogsOnly: true})
	if err := old.Stream(ctx, nil, &all, nil); err != nil || all.String() != strings.Repeat("out 1\nout 2", 2) {
		t.Errorf("%q, %v", all.String(), err)
	}
	failure := errors.New("client is gone")
	if err := s.attach(c, AttachOptions{Stdout: true, Logs: true}).Stream(ctx, nil, failingWriter{failure}, nil); err != failure {
		t.Errorf("a writer's error: %v", err)
	}
}

type failingWriter struct{ err error }

func (w failingWriter) Write([]byte) (int, error) { return 0, w.err }

func TestStdin(t *testing.T) {
	t.Parallel()
	s, ctx := newSite(t), t.Context()
	text := randomText(100_000)
	c := s.create(Spec{Args: []string{"cat"}, OpenStdin: true, StdinOnce: true})
	a := s.attach(c, AttachOptions{Stdin: true, Stdout: true})
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := a.Stream(ctx, strings.NewReader(text), &out, nil); err != nil || out.String() != text {
		t.Errorf("%d bytes came back of %d, %v", out.Len(), len(text), err)
	}
	if code := s.wait(c, NotRunning); code != 0 {
		t.Errorf("exit code %d", code)
	}

	// One who leaves by keys or goes away leaves the process alone.
	c = s.run(Spec{Args: []string{"cat"}, OpenStdin: true, StdinOnce: true})
	a = s.attach(c, AttachOptions{Stdin: true, Stdout: true, DetachKeys: []byte{16, 17}})
	if err := a.Stream(ctx, io.MultiReader(strings.NewReader("typed\n\x10\x11"), neverEnds{ctx}), io.Discard, nil); err != ErrDetached {
		t.Errorf("detach keys: %v", err)
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if err := s.attach(c, AttachOptions{Stdout: true}).Stream(gone, nil, io.Discard, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("gone: %v", err)
	}
	if err := s.attach(c, AttachOptions{Stdin: true}).Stream(ctx, strings.NewReader("more\n"), nil, nil); err != nil {
		t.Errorf("input ended: %v", err)
	}
	if got := s.logs(c, LogOptions{Stdout: true}); got != "o:typed\no:more\n" {
		t.Errorf("log: %q", got)
	}
	if got := s.happened(); !strings.Contains(got, "detach") {
		t.Errorf("events %s", got)
	}

	c = s.run(Spec{Args: []string{"sleep"}})
	a = s.attach(c, AttachOptions{Stdout: true})
	ended := make(chan error)
	go func() { ended <- a.Stream(ctx, nil, io.Discard, nil) }()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != ErrClosed {
		t.Errorf("closed: %v", err)
	}
}

// neverEnds is a client that says nothing more.
type neverEnds struct{ ctx context.Context }

func (n neverEnds) Read([]byte) (int, error) {
	<-n.ctx.Done()
	return 0, n.ctx.Err()
}

func TestExec(t *testing.T) {
	t.Parallel()
	s, ctx := newSite(t), t.Context()
	c := s.create(Spec{Args: []string{"sleep"}})
	_, err := c.CreateExec(ExecSpec{Args: []string{"echo"}})
	wantError(t, err, ErrNotRunning, "is not running")
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	_, err = c.CreateExec(ExecSpec{})
	wantError(t, err, ErrInvalid, "No exec command")
	exec := func(spec ExecSpec) *Exec {
		t.Helper()
		e, err := c.CreateExec(spec)
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	e := exec(ExecSpec{Args: []string{"echo", "hello"}, Stdout: true, Stderr: true})
	if i := e.Info(); i.Started || i.Running || i.ExitCode != nil || i.ContainerID != c.ID() {
		t.Errorf("created: %+v", i)
	}
	if ids := c.Execs(); !slices.Equal(ids, []string{e.ID()}) {
		t.Errorf("created: the container has execs %v", ids)
	}
	if found, err := s.Exec(e.ID()); err != nil || found != e {
		t.Errorf("found %v, %v", found, err)
	}
	wantError(t, e.Stream(ctx, nil, nil, nil), ErrConflict, "does not run")
	if err := e.Start(ctx, ExecStartOptions{}); err != nil {
		t.Fatal(err)
	}
	wantError(t, e.Start(ctx, ExecStartOptions{}), ErrConflict, "started already")
	var out, errOut bytes.Buffer
	if err := e.Stream(ctx, nil, &out, &errOut); err != nil || out.String() != "hello" || errOut.String() != "warning" {
		t.Errorf("%q, %q, %v", out.String(), errOut.String(), err)
	}
	if i := e.Info(); i.Running || i.ExitCode == nil || *i.ExitCode != 0 || i.PID != 77 {
		t.Errorf("ended: %+v", i)
	}
	wantError(t, e.Resize(ctx, Size{Rows: 1, Cols: 1}), ErrConflict, "is not running")
	if ids := c.Execs(); len(ids) > 0 {
		t.Errorf("ended: the container has execs %v", ids)
	}

	text := randomText(300_000)
	e = exec(ExecSpec{Args: []string{"cat"}, Stdin: true, Stdout: true})
	if err := e.Start(ctx, ExecStartOptions{}); err != nil {
		t.Fatal(err)
	}
	out.Reset()
	if err := e.Stream(ctx, strings.NewReader(text), &out, nil); err != nil || out.String() != text {
		t.Errorf("%d bytes came back of %d, %v", out.Len(), len(text), err)
	}

	e = exec(ExecSpec{Args: []string{"nope"}})
	var start *StartError
	if err := e.Start(ctx, ExecStartOptions{}); !errors.As(err, &start) || start.ExitCode != 127 {
		t.Errorf("nope: %v", err)
	}
	if code := e.Info().ExitCode; code == nil || *code != 127 {
		t.Errorf("nope: exit code %v", code)
	}

	e = exec(ExecSpec{Args: []string{"cat"}, TTY: true, Stdin: true, Stdout: true, DetachKeys: []byte("q")})
	if err := e.Start(ctx, ExecStartOptions{Size: Size{Rows: 5, Cols: 6}}); err != nil {
		t.Fatal(err)
	}
	if err := e.Resize(ctx, Size{Rows: 7, Cols: 8}); err != nil {
		t.Error(err)
	}
	if err := e.Stream(ctx, io.MultiReader(strings.NewReader("q"), neverEnds{ctx}), io.Discard, nil); err != ErrDetached {
		t.Errorf("detach keys: %v", err)
	}
	last := exec(ExecSpec{Args: []string{"exit", "4"}})
	if err := last.Start(ctx, ExecStartOptions{Detach: true}); err != nil {
		t.Fatal(err)
	}
	for last.Info().ExitCode == nil { // told by an event alone
		last.mu.Lock()
		changed, exit := last.changed, last.exit
		last.mu.Unlock()
		if exit == nil {
			<-changed
		}
	}
	if code := *last.Info().ExitCode; code != 4 {
		t.Errorf("exit code %d", code)
	}
	if err := c.Kill(ctx, 9); err != nil {
		t.Fatal(err)
	}
	wantError(t, exec2(c), ErrNotRunning, "is not running")
	v := s.rack.vm(c.ID())
	if v.mu.Lock(); len(v.sizes) != 1 || v.sizes[0] != (Size{Rows: 7, Cols: 8}) {
		t.Errorf("sizes %v", v.sizes)
	}
	v.mu.Unlock()
}

func exec2(c *Container) error {
	_, err := c.CreateExec(ExecSpec{Args: []string{"echo"}})
	return err
}

// TestLogsSinceStart: what a process writes is not older than its start, of the first run and of
// another, however late the VCH sees that one.
func TestLogsSinceStart(t *testing.T) {
	t.Parallel()
	s, ctx := newSite(t), t.Context()
	c := s.create(Spec{Args: []string{"print", "ready\n"}})
	for range 2 {
		if err := c.Start(ctx); err != nil {
			t.Fatal(err)
		}
		s.wait(c, NotRunning)
		st := c.Info().State
		if got := s.logs(c, LogOptions{Stdout: true, Since: st.Started}); got != "o:ready\n" {
			t.Errorf("%q since %v", got, st.Started)
		}
		if st.Finished.Before(st.Started) {
			t.Errorf("it ended at %v and started at %v", st.Finished, st.Started)
		}
	}
}

func TestResize(t *testing.T) {
	t.Parallel()
	s, ctx := newSite(t), t.Context()
	plain := s.run(Spec{Args: []string{"sleep"}})
	wantError(t, plain.Resize(ctx, Size{Rows: 1, Cols: 1}), ErrInvalid, "no terminal")
	c := s.run(Spec{Args: []string{"sleep"}, TTY: true})
	if err := c.Resize(ctx, Size{Rows: 30, Cols: 100}); err != nil {
		t.Fatal(err)
	}
	if got := s.rack.vm(c.ID()).sizes; len(got) != 1 || got[0].Rows != 30 || got[0].Cols != 100 {
		t.Errorf("%v", got)
	}
}

func TestLogs(t *testing.T) {
	t.Parallel()
	s, ctx := newSite(t), t.Context()
	c := s.create(Spec{Args: []string{"sleep"}})
	wantError(t, c.Logs(ctx, LogOptions{}, nil), ErrInvalid, "choose at least one stream")
	if got := s.logs(c, LogOptions{Stdout: true, Follow: true}); got != "" {
		t.Errorf("of one that never ran: %q", got)
	}
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	v := s.rack.vm(c.ID())
	long := strings.Repeat("x", maxLine)
	v.record(wire.Stdout, "one\ntw")
	v.record(wire.Stderr, "bad\n")
	v.record(wire.Stdout, "o\n")
	v.raw("\x00garbage of a hostile guest\xff" + strings.Repeat("\xa5", 5000))
	v.record(wire.Diagnostic, "not the process's\n")
	v.record(wire.Stdout, long+"tail\n")
	middle := time.Now()
	v.record(wire.Stdout, "no end")
	v.exit(0)
	s.wait(c, NotRunning)
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	s.rack.vm(c.ID()).record(wire.Stdout, "again\n")

	two, none, negative := 2, 0, -1
	for _, tt := range []struct {
		name string
		o    LogOptions
		want string
	}{
		{"all", LogOptions{Stdout: true, Stderr: true}, "o:one\ne:bad\no:two\no:" + long + "+o:tail\no:no endo:again\n"},
		{"stderr", LogOptions{Stderr: true}, "e:bad\n"},
		{"tail 2", LogOptions{Stdout: true, Tail: &two}, "o:no endo:again\n"},
		{"tail 0", LogOptions{Stdout: true, Tail: &none}, ""},
		{"tail all", LogOptions{Stderr: true, Tail: &negative}, "e:bad\n"},
		{"since", LogOptions{Stdout: true, Since: middle}, "o:no endo:again\n"},
		{"until", LogOptions{Stdout: true, Until: middle, Tail: &two}, "o:" + long + "+o:tail\n"},
		{"follow until", LogOptions{Stdout: true, Follow: true, Until: middle}, "o:one\no:two\no:" + long + "+o:tail\n"},
	} {
		if got := s.logs(c, tt.o); got != tt.want {
			t.Errorf("%s: %.200q, want %.200q", tt.name, got, tt.want)
		}
	}

	followed, began := make(chan string, 1), make(chan bool)
	go func() {
		text := ""
		err := c.Logs(ctx, LogOptions{Stdout: true, Follow: true, Tail: &two}, func(e LogEntry) error {
			if text += string(e.Data); text == "no endagain\n" {
				close(began)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		followed <- text
	}()
	<-began
	s.rack.vm(c.ID()).record(wire.Stdout, "later\nand la")
	s.rack.vm(c.ID()).record(wire.Stdout, "ter")
	s.rack.vm(c.ID()).exit(0)
	if got := <-followed; got != "no endagain\nlater\nand later" {
		t.Errorf("followed: %q", got)
	}
	failure := errors.New("client is gone")
	if err := c.Logs(ctx, LogOptions{Stdout: true}, func(LogEntry) error { return failure }); err != failure {
		t.Errorf("%v", err)
	}
}

// FuzzDetach: what is typed passes, up to the detach keys, however it comes in pieces.
func FuzzDetach(f *testing.F) {
	f.Add([]byte("hello\x10\x11world"), []byte{16, 17}, 3)
	f.Add([]byte("aaab"), []byte("aab"), 1)
	f.Add([]byte("\x10\x10"), []byte{16, 17}, 7)
	f.Fuzz(func(t *testing.T, typed, keys []byte, piece int) {
		if len(keys) == 0 || len(keys) > 16 {
			return
		}
		size := 1 + piece&63
		d := &detachReader{r: &pieces{typed, size}, keys: keys}
		got, err := io.ReadAll(d)
		switch {
		case err == ErrDetached:
			if !bytes.HasPrefix(typed[len(got):], keys) {
				t.Errorf("%q ended after %q", typed, got)
			}
		case err != nil:
			t.Error(err)
		case !bytes.Equal(got, typed):
			t.Errorf("got %q of %q", got, typed)
		case len(keys) == 1 && bytes.Contains(typed, keys):
			t.Errorf("%q did not end %q", keys, typed)
		}
		if !bytes.HasPrefix(typed, got) {
			t.Errorf("got %q of %q", got, typed)
		}
	})
}

// pieces gives out a few bytes at a time.
type pieces struct {
	data []byte
	size int
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.data) == 0 {
		return 0, io.EOF
	}
	n := copy(b, p.data[:min(p.size, len(p.data))])
	p.data = p.data[n:]
	return n, nil
}

// FuzzLines: lines are the output cut at newlines, whatever records it comes in.
func FuzzLines(f *testing.F) {
	f.Add([]byte("a\nb\n\nc"), 2)
	f.Add(bytes.Repeat([]byte("x"), 40000), 20000)
	f.Fuzz(func(t *testing.T, out []byte, size int) {
		size = 1 + size&0xffff
		var got []byte
		partial := false
		l := lines{o: LogOptions{Stdout: true}, fn: func(e LogEntry) error {
			whole := bytes.HasSuffix(e.Data, []byte("\n"))
			if len(e.Data) == 0 || len(e.Data) > maxLine || bytes.Count(e.Data, []byte("\n")) > 1 || e.Partial && whole {
				t.Errorf("entry %.50q, partial %v", e.Data, e.Partial)
			}
			if !whole && !e.Partial {
				partial = true
			} else if partial {
				t.Error("a line without an end is not the last")
			}
			got = append(got, e.Data...)
			return nil
		}}
		for rest := out; len(rest) > 0; {
			n := min(size, len(rest))
			if err := l.add(wire.Record{Type: wire.Stdout, Data: rest[:n]}); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		if err := l.end(); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, out) {
			t.Errorf("%d bytes came of %d", len(got), len(out))
		}
	})
}
