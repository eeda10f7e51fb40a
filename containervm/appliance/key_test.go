package appliance

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"vic/bench/oracle"
)

// discWith makes an ISO of these files by somebody else's program.
func discWith(t *testing.T, files map[string][]byte) []byte {
	t.Helper()
	oracle.Need(t, "xorriso")
	dir := t.TempDir()
	for name, p := range files {
		if err := os.WriteFile(filepath.Join(dir, name), p, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	out := filepath.Join(t.TempDir(), "iso")
	if msg, err := exec.Command("xorriso", "-as", "mkisofs", "-quiet", "-o", out, dir).CombinedOutput(); err != nil {
		t.Fatalf("xorriso: %v\n%s", err, msg)
	}
	p, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestKey puts a key into an ISO, and has xorriso and cpio find it where the guest's kernel does.
func TestKey(t *testing.T) {
	oracle.Need(t, "cpio")
	iso := discWith(t, map[string][]byte{KeyFile: EmptyKey(), releaseFile: []byte("v1.2.3\n"), "INITRD": make([]byte, 100_000), "VMLINUZ": []byte("x")})
	if _, err := ReadKey(bytes.NewReader(iso)); !errors.Is(err, errNoKey) {
		t.Errorf("key of nobody's ISO: %v", err)
	}
	if got, err := ReadRelease(bytes.NewReader(iso)); err != nil || got != "v1.2.3" {
		t.Errorf("release %q, %v", got, err)
	}
	k := NewKey()
	r, err := WithKey(bytes.NewReader(iso), k)
	if err != nil {
		t.Fatal(err)
	}
	whole, err := io.ReadAll(io.NewSectionReader(r, 0, int64(len(iso))))
	if err != nil || len(whole) != len(iso) {
		t.Fatalf("%d of %d bytes, %v", len(whole), len(iso), err)
	}
	for _, size := range []int{1, 7, 100} { // read in any pieces it is the same
		var pieces bytes.Buffer
		if _, err := io.CopyBuffer(struct{ io.Writer }{&pieces}, struct{ io.Reader }{io.NewSectionReader(r, 0, int64(len(iso)))}, make([]byte, size)); err != nil || !bytes.Equal(pieces.Bytes(), whole) {
			t.Errorf("in pieces of %d bytes it is another, %v", size, err)
		}
	}
	if got, err := ReadKey(bytes.NewReader(whole)); err != nil || got != k {
		t.Errorf("read %x, %v, want %x", got, err, k)
	}
	if again, err := WithKey(bytes.NewReader(whole), Key{1}); err != nil {
		t.Error(err)
	} else if got, err := ReadKey(again); err != nil || got != (Key{1}) {
		t.Errorf("a second key in place of the first: %x, %v", got, err)
	}

	dir := t.TempDir()
	disc := filepath.Join(dir, "iso")
	if err := os.WriteFile(disc, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	if msg, err := exec.Command("xorriso", "-osirrox", "on", "-indev", disc, "-extract", "/"+KeyFile, filepath.Join(dir, KeyFile)).CombinedOutput(); err != nil {
		t.Fatalf("xorriso: %v\n%s", err, msg)
	}
	cmd := exec.Command("cpio", "-i", "--quiet", "--to-stdout", "key")
	if cmd.Stdin, err = os.Open(filepath.Join(dir, KeyFile)); err != nil {
		t.Fatal(err)
	}
	if got, err := cmd.Output(); err != nil || !bytes.Equal(got, k[:]) {
		t.Errorf("cpio found %x, %v", got, err)
	}
}

func TestNotAppliance(t *testing.T) {
	for name, iso := range map[string][]byte{
		"nothing":       nil,
		"zeros":         make([]byte, 1<<20),
		"another ISO":   discWith(t, map[string][]byte{"VMLINUZ": []byte("x")}),
		"another's KEY": discWith(t, map[string][]byte{KeyFile: make([]byte, isoBlock)}),
		"cut off":       discWith(t, map[string][]byte{KeyFile: EmptyKey()})[:17*isoBlock],
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := WithKey(bytes.NewReader(iso), NewKey()); !errors.Is(err, errNotAppliance) {
				t.Errorf("got %v", err)
			}
		})
	}
	if _, err := WithKey(bytes.NewReader(nil), Key{}); !errors.Is(err, errNoKey) {
		t.Errorf("no key: %v", err)
	}
}

// FuzzReadKey reads what comes in place of the root directory.
func FuzzReadKey(f *testing.F) {
	head := make([]byte, 17*isoBlock)
	copy(head[16*isoBlock:], "\x01CD001")
	copy(head[16*isoBlock+156+2:], []byte{17, 0, 0, 0}) // the block of the root directory
	copy(head[16*isoBlock+156+10:], []byte{0, 8, 0, 0}) // its length
	record := make([]byte, 40)
	record[0], record[2], record[11], record[32] = 40, 18, 8, 3
	copy(record[33:], KeyFile)
	f.Add(record, EmptyKey())
	f.Add([]byte{33}, []byte{})
	f.Fuzz(func(t *testing.T, dir, key []byte) {
		iso := append([]byte(nil), head...)
		iso = append(iso, make([]byte, 2*isoBlock)...)
		copy(iso[17*isoBlock:18*isoBlock], dir)
		copy(iso[18*isoBlock:], key)
		r, err := WithKey(bytes.NewReader(iso), Key{1})
		if err != nil {
			return
		}
		if k, err := ReadKey(r); err != nil || k != (Key{1}) {
			t.Errorf("read %x, %v", k, err)
		}
	})
}
