//go:build linux

package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"vic/tether/wire"
)

func TestLineWriter(t *testing.T) {
	for _, c := range []struct {
		name   string
		writes []string
		want   []string
		last   string
	}{
		{"whole lines", []string{"a\nb\n"}, []string{"a", "b"}, "b"},
		{"in pieces", []string{"a", "b\nc", "", "d", "\n"}, []string{"ab", "cd"}, "cd"},
		{"without an end", []string{"a\nb"}, []string{"a", "b"}, "b"},
		{"empty lines", []string{"a\n\n \n"}, []string{"a", "", " "}, "a"},
		{"a long line", []string{strings.Repeat("x", maxLine), "yz\n"}, []string{strings.Repeat("x", maxLine), "yz"}, "yz"},
		{"a very long line", []string{strings.Repeat("x", 2*maxLine+1)}, []string{strings.Repeat("x", maxLine), strings.Repeat("x", maxLine), "x"}, "x"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got []string
			w := &lineWriter{line: func(p []byte) { got = append(got, string(p)) }}
			for _, p := range c.writes {
				if n, err := w.Write([]byte(p)); n != len(p) || err != nil {
					t.Errorf("wrote %d of %d bytes, %v", n, len(p), err)
				}
			}
			w.flush()
			if !slices.Equal(got, c.want) || w.last != c.last {
				t.Errorf("got %q, the last %q", got, w.last)
			}
		})
	}
}

func TestLogFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l, err := openLog(path, 100)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 25 {
		if err := l.write(fmt.Appendf(nil, "line %3d\n", i)); err != nil { // of 9 bytes
			t.Fatal(err)
		}
		if i == 12 { // as at a boot
			if err := l.close(); err != nil {
				t.Fatal(err)
			}
			if l, err = openLog(path, 100); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := l.close(); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][2]int{path: {22, 24}, path + ".1": {11, 21}} {
		p, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSpace(string(p)), "\n")
		if first, last := fmt.Sprintf("line %3d", want[0]), fmt.Sprintf("line %3d", want[1]); lines[0] != first || lines[len(lines)-1] != last {
			t.Errorf("%s has %q", filepath.Base(name), lines)
		}
	}
}

// TestOutput has the file hold what was said before there was one.
func TestOutput(t *testing.T) {
	var console bytes.Buffer
	o := newOutput(&console)
	fmt.Fprintf(o, "early\n")
	path := filepath.Join(t.TempDir(), "log")
	if err := o.openFile(path); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(o, "one\ntwo\n")
	o.close()
	fmt.Fprintf(o, "late\n")
	if got, want := console.String(), "early\none\ntwo\nlate\n"; got != want {
		t.Errorf("console has %q", got)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "early\none\ntwo\n" {
		t.Errorf("file has %q, %v", got, err)
	}
}

// TestSyslogAway has a server come late: what was said before is sent, or counted.
func TestSyslogAway(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	failed := make(chan error, 1)
	s := newSyslog("tcp", address, "host", func(err error) { failed <- err })
	for i := range maxWaiting + 10 {
		s.send(fmt.Sprintf("line %d level=ERROR", i))
	}
	go s.run(t.Context())
	<-failed
	if l, err = net.Listen("tcp", address); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	seen := ""
	for b := make([]byte, 64<<10); !strings.Contains(seen, fmt.Sprintf("line %d level", maxWaiting-1)); {
		n, err := conn.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		seen += string(b[:n])
	}
	if first, _, _ := strings.Cut(seen, "\n"); !strings.Contains(first, "<27>1 ") || !strings.Contains(first, " host vic ") || !strings.Contains(first, " - - line 0 level=ERROR") {
		t.Errorf("the first message is %.100q", first)
	}
	s.send("after")
	for b := make([]byte, 64<<10); !strings.Contains(seen, "after"); {
		n, err := conn.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		seen += string(b[:n])
	}
	if !strings.HasSuffix(seen, "(10 lines before this were lost) after") {
		t.Errorf("at the end is %q", seen[len(seen)-100:])
	}
	s.close()
}

func TestSyslogDatagrams(t *testing.T) {
	l, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s := newSyslog("udp", l.LocalAddr().String(), "host", func(err error) { t.Error(err) })
	s.send("level=WARN " + strings.Repeat("x", 2*maxDatagram))
	s.close()
	s.run(t.Context())
	b := make([]byte, 64<<10)
	n, _, err := l.ReadFrom(b)
	if err != nil || n != maxDatagram || !bytes.HasPrefix(b, []byte("<28>1 ")) {
		t.Errorf("got %d bytes, %.40q, %v", n, b[:n], err)
	}
}

func TestEnding(t *testing.T) {
	for _, c := range []struct {
		exit wire.Exit
		last string
		want string
	}{
		{wire.Exit{Code: 1}, "Error: no store", "vic serve: exit code 1: Error: no store"},
		{wire.Exit{Code: 137, Signal: 9}, "", "vic serve: killed by signal 9"},
	} {
		if err := ending(c.exit, c.last); err.Error() != c.want {
			t.Errorf("got %q, want %q", err, c.want)
		}
	}
	if got := reason(errors.New(strings.Repeat("ü", maxReason))); len(got) > maxReason+3 || !strings.HasSuffix(got, "ü...") {
		t.Errorf("a long reason is %d bytes, ending in %q", len(got), got[len(got)-10:])
	}
}
