package vmdk

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// A disk that has grown shows what it had, then zeros, can be written everywhere, and is sound to us and to qemu-img.
func TestGrowExtent(t *testing.T) {
	const before, after = 40 << 20, 3 << 30
	dir := t.TempDir()
	f, err := os.OpenFile(filepath.Join(dir, "disk-delta.vmdk"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := CreateExtent(f, before); err != nil {
		t.Fatal(err)
	}
	open := func(capacity int64) *Disk {
		t.Helper()
		fi, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		e, err := OpenExtent(f, fi.Size())
		if err != nil {
			t.Fatal(err)
		}
		links := []Link{{Descriptor: NewDescriptor("disk-delta.vmdk", capacity, 1), Extents: []*Extent{e}}}
		if err := Check(links); err != nil {
			t.Error(err)
		}
		d, err := OpenDisk(links)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	data := make([]byte, 100_000)
	rand.NewChaCha8([32]byte{1}).Read(data)
	d := open(before)
	offs := []int64{0, 33<<20 + 12345, before - int64(len(data))}
	for _, off := range offs {
		if _, err := d.WriteAt(data, off); err != nil {
			t.Fatal(err)
		}
	}
	fi, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []int64{before, before / 2, after + 1, 1 << 60} {
		if _, err := GrowExtent(f, fi.Size(), bad); err == nil {
			t.Errorf("grown to %d bytes", bad)
		}
	}
	commit, err := GrowExtent(f, fi.Size(), after)
	if err != nil {
		t.Fatal(err)
	}
	open(before) // nothing has changed yet
	if err := commit(); err != nil {
		t.Fatal(err)
	}
	d = open(after)
	offs = append(offs, before+(1<<20), after-int64(len(data)))
	for _, off := range offs[3:] {
		if _, err := d.WriteAt(data, off); err != nil {
			t.Fatal(err)
		}
	}
	d = open(after)
	got := make([]byte, len(data))
	for _, off := range offs {
		if _, err := d.ReadAt(got, off); err != nil || !bytes.Equal(got, data) {
			t.Errorf("at %d: other data, %v", off, err)
		}
	}
	if _, err := d.ReadAt(got, 1<<30); err != nil || !bytes.Equal(got, make([]byte, len(got))) {
		t.Errorf("the new part is not zeros: %v", err)
	}
	text, err := NewDescriptor("disk-delta.vmdk", after, 1).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "disk.vmdk")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	tool(t, "qemu-img", "check", path)
	raw := filepath.Join(dir, "raw")
	tool(t, "qemu-img", "convert", "-O", "raw", path, raw)
	r, err := os.Open(raw)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, off := range offs {
		if _, err := r.ReadAt(got, off); err != nil || !bytes.Equal(got, data) {
			t.Errorf("qemu-img at %d: other data, %v", off, err)
		}
	}
}
