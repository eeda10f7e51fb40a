package main

import (
	"bytes"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/creack/pty"
)

// fakeTerminal returns a terminal to write to, and what has been written to it once it is closed.
func fakeTerminal(t *testing.T) (w *os.File, read func() string) {
	t.Helper()
	master, slave, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	done := make(chan string)
	go func() {
		b, _ := io.ReadAll(master) // ends with an error when the other side is closed
		done <- string(b)
	}()
	return slave, func() string {
		if err := slave.Close(); err != nil {
			t.Fatal(err)
		}
		return <-done
	}
}

func TestMeter(t *testing.T) {
	tty, read := fakeTerminal(t)
	var file bytes.Buffer
	for _, w := range []io.Writer{tty, &file} {
		m := newMeter(w, "copy")
		m.set(1, 2) // too early to be shown
		m.every = 0
		m.set(1000, 3000)
		if _, err := m.Write(make([]byte, 2000)); err != nil {
			t.Fatal(err)
		}
		m.clear()
		m.clear()
	}
	if got, want := file.String(), "copy: 1kB of 3kB\ncopy: 2kB\n"; got != want {
		t.Errorf("to a file: %q, want %q", got, want)
	}
	if got, want := read(), eraseLine+"copy: 1kB of 3kB"+eraseLine+"copy: 2kB"+eraseLine; got != want {
		t.Errorf("to a terminal: %q, want %q", got, want)
	}
}

// TestTerminal: names do nothing to a terminal, and it gets no tar.
func TestTerminal(t *testing.T) {
	d := listing{Entries: []fileEntry{{Name: "esc\x1b[2J", Type: "file"}, {Name: "café", Type: "symlink", Target: "\r"}, {Name: "\xff", Type: "file"}}}
	tty, read := fakeTerminal(t)
	if err := d.print(tty, true); err != nil {
		t.Fatal(err)
	}
	got := read()
	for _, want := range []string{` "esc\x1b[2J"`, ` café -> "\r"`, ` "\xff"`} {
		if !strings.Contains(got, want) {
			t.Errorf("terminal shows %q, want %q", got, want)
		}
	}
	var b bytes.Buffer
	if err := d.print(&b, false); err != nil || b.String() != "esc\x1b[2J\ncafé\n\xff\n" {
		t.Errorf("elsewhere: %q, %v", b.String(), err)
	}
	tty, read = fakeTerminal(t)
	cmd := exportCommand()
	cmd.SetOut(tty)
	if err := writeOutput(cmd, "", func(io.Writer) error { return nil }); err == nil || !strings.Contains(err.Error(), "is a terminal") {
		t.Errorf("tar to a terminal: %v", err)
	}
	read()
}
