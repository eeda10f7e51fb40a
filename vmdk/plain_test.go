package vmdk

import (
	"bytes"
	"io"
	"testing"
)

// samePlain reads a whole disk going by Plain and wants what ReadAt reads.
func samePlain(t testing.TB, d *Disk, limit int64) {
	t.Helper()
	want := make([]byte, d.Capacity())
	if _, err := d.ReadAt(want, 0); err != nil {
		t.Fatal(err)
	}
	var off int64
	for off < d.Capacity() {
		f, pos, n, err := d.Plain(off, limit)
		if err != nil || n <= 0 || n > limit {
			t.Fatalf("Plain(%d, %d): %d bytes, %v", off, limit, n, err)
		}
		got := make([]byte, n)
		if f != nil {
			if k, err := f.ReadAt(got, pos); int64(k) != n {
				t.Fatalf("Plain(%d, %d): %d bytes at %d of a file, of which %d are there: %v", off, limit, n, pos, k, err)
			}
		}
		if !bytes.Equal(got, want[off:off+n]) {
			t.Fatalf("Plain(%d, %d): other bytes than ReadAt", off, limit)
		}
		off += n
	}
}

func TestPlain(t *testing.T) {
	const capacity = 40 << 20
	base := memDisk(t, capacity)
	write := func(links []Link, offs ...int64) {
		t.Helper()
		d := openDisk(t, links)
		for _, off := range offs {
			if _, err := d.WriteAt(bytes.Repeat([]byte{byte(off), 7}, 5000), off*grain+17); err != nil {
				t.Fatal(err)
			}
		}
	}
	write(base, 0, 1, 2, 511, 512, 513, 630)
	top := memDisk(t, capacity, base...)
	write(top, 1, 512, 600)
	d := openDisk(t, top)
	for _, limit := range []int64{capacity, 1 << 20, grain, 4096, 100_001} {
		samePlain(t, d, limit)
	}
	for _, off := range []int64{capacity, capacity + 1} {
		if _, _, n, err := d.Plain(off, 10); n != 0 || err != nil {
			t.Errorf("Plain(%d): %d bytes, %v", off, n, err)
		}
	}
	if _, _, _, err := d.Plain(-1, 10); err == nil {
		t.Error("a negative offset")
	}
	if _, _, n, err := d.Plain(0, 0); n != 0 || err != nil {
		t.Errorf("Plain(0, 0): %d bytes, %v", n, err)
	}
}

// TestPlainCut: a last grain that is cut short reads as zeros past the file's end.
func TestPlainCut(t *testing.T) {
	links := memDisk(t, 10<<20)
	if _, err := openDisk(t, links).WriteAt(bytes.Repeat([]byte{9}, grain), 3*grain); err != nil {
		t.Fatal(err)
	}
	e := links[0].Extents[0]
	b := make([]byte, e.size)
	if _, err := e.r.ReadAt(b, 0); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	b = b[:len(b)-1000]
	cut, err := OpenExtent(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	samePlain(t, openDisk(t, []Link{{Descriptor: links[0].Descriptor, Extents: []*Extent{cut}}}), 1<<20)
}
