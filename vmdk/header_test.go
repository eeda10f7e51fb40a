package vmdk

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the files in testdata that tests compare with")

// golden compares got with a file in testdata.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	name = filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(name, got, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("got:\n%swant, from %s:\n%s", got, name, want)
	}
}

// wantFormatError checks that err is a *FormatError for field, or, for "", that
// there is none.
func wantFormatError(t *testing.T, err error, field string) {
	t.Helper()
	fe, ok := errors.AsType[*FormatError](err)
	switch {
	case field == "" && err != nil:
		t.Errorf("error %v, want none", err)
	case field != "" && !ok:
		t.Errorf("error %v, want a FormatError of the %s", err, field)
	case field != "" && fe.Field != field:
		t.Errorf("error %v, want one of the %s", err, field)
	}
}

// sampleHeader is that of an empty disk of 1 GiB.
func sampleHeader() header {
	return header{version: 1, flags: 3, capacity: 2 << 20, grainSize: 128, descriptorOffset: 1, descriptorSize: 20,
		numGTEsPerGT: 512, rgdOffset: 21, gdOffset: 150, overHead: 384}
}

func TestHeaderGolden(t *testing.T) {
	h := sampleHeader()
	golden(t, "header.hex", []byte(hex.Dump(h.marshal()[:0x60])))
}

func TestParseHeader(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(h *header)
		field  string // "" is valid
	}{
		{"as qemu-img writes it", func(h *header) {}, ""},
		{"zeroed grains", func(h *header) { h.version, h.flags = 2, 7 }, ""},
		{"no redundant directory", func(h *header) { h.flags, h.rgdOffset = 1, 0 }, ""},
		{"version 3, not compressed", func(h *header) { h.version = 3 }, ""},
		{"compressed", func(h *header) { h.version, h.flags, h.compression = 3, 0x30001, 1 }, ""},
		{"compressed, directory at end", func(h *header) { h.version, h.flags, h.compression, h.gdOffset = 3, 0x30003, 1, gdAtEnd }, ""},
		{"grains of 4 KiB", func(h *header) { h.grainSize = 8 }, ""},
		{"version 0", func(h *header) { h.version = 0 }, "version"},
		{"version 4", func(h *header) { h.version = 4 }, "version"},
		{"unknown flag", func(h *header) { h.flags |= 8 }, "flags"},
		{"compressed without markers", func(h *header) { h.flags, h.compression = 0x10001, 1 }, "flags"},
		{"compressed without algorithm", func(h *header) { h.flags = 0x30001 }, "compression"},
		{"algorithm 2", func(h *header) { h.flags, h.compression = 0x30001, 2 }, "compression"},
		{"algorithm without flag", func(h *header) { h.compression = 1 }, "compression"},
		{"no capacity", func(h *header) { h.capacity = 0 }, "capacity"},
		{"largest capacity", func(h *header) { h.capacity = 1 << 36 }, ""},
		{"more than the largest capacity", func(h *header) { h.capacity = 1<<36 + 1 }, "capacity"},
		{"negative capacity", func(h *header) { h.capacity = 1 << 63 }, "capacity"},
		{"no grain size", func(h *header) { h.grainSize = 0 }, "grain size"},
		{"grains of 2 KiB", func(h *header) { h.grainSize = 4 }, "grain size"},
		{"grains of 24 sectors", func(h *header) { h.grainSize = 24 }, "grain size"},
		{"grains of 32 MiB", func(h *header) { h.grainSize = 1 << 16 }, "grain size"},
		{"256 entries a table", func(h *header) { h.numGTEsPerGT = 256 }, "entries of a grain table"},
		{"no directory", func(h *header) { h.gdOffset = 0 }, "grain directory"},
		{"directory past 2 TiB", func(h *header) { h.gdOffset = 1 << 32 }, "grain directory"},
		{"directory at end, not compressed", func(h *header) { h.gdOffset = gdAtEnd }, "grain directory"},
		{"flag but no redundant directory", func(h *header) { h.rgdOffset = 0 }, "redundant grain directory"},
		{"no overhead", func(h *header) { h.overHead = 0 }, "overhead"},
		{"overhead past 2 TiB", func(h *header) { h.overHead = 1 << 32 }, "overhead"},
		{"descriptor of 2 MiB", func(h *header) { h.descriptorSize = 4096 }, "embedded descriptor"},
		{"descriptor past 2 TiB", func(h *header) { h.descriptorOffset = 1 << 60 }, "embedded descriptor"},
	} {
		t.Run(c.name, func(t *testing.T) {
			want := sampleHeader()
			c.change(&want)
			got, err := parseHeader(want.marshal(), 0)
			wantFormatError(t, err, c.field)
			if err == nil && got != want {
				t.Errorf("got %+v, want %+v", got, want)
			}
		})
	}
}

func TestParseHeaderBytes(t *testing.T) {
	sample := sampleHeader()
	good := sample.marshal()
	change := func(off int, b string) []byte {
		p := bytes.Clone(good)
		copy(p[off:], b)
		return p
	}
	for _, c := range []struct {
		name  string
		b     []byte
		field string
	}{
		{"short", good[:511], "header"},
		{"empty", nil, "header"},
		{"COWD", change(0, "COWD"), "magic"},
		{"text", change(0, "# Disk DescriptorFile"), "magic"},
		{"line feeds became CRLF", change(0x49, "\r\n \r"), "newline check"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := parseHeader(c.b, 0)
			wantFormatError(t, err, c.field)
		})
	}
}

func TestFormatErrorSaysWhere(t *testing.T) {
	_, err := parseHeader(make([]byte, 512), 4096)
	if got, want := err.Error(), "magic at byte 4096"; !strings.Contains(got, want) {
		t.Errorf("error %q, want one with %q", got, want)
	}
}

func FuzzHeader(f *testing.F) {
	h := sampleHeader()
	f.Add(h.marshal())
	h.version, h.flags, h.compression, h.gdOffset = 3, 0x30003, 1, gdAtEnd
	f.Add(h.marshal())
	f.Add([]byte("COWD"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseHeader(b, 0)
		if err != nil {
			if _, ok := errors.AsType[*FormatError](err); !ok {
				t.Fatalf("not a FormatError: %v", err)
			}
			return
		}
		again, err := parseHeader(h.marshal(), 0)
		if err != nil || again != h {
			t.Fatalf("%+v reads back as %+v, %v", h, again, err)
		}
		if h.numTables() < 1 || h.numTables() > maxTables {
			t.Fatalf("%d grain tables", h.numTables())
		}
	})
}
