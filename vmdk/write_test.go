package vmdk

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"vic/bench/oracle"
)

// TestWriteAtModel writes at random into the top of a chain, reopens it now and
// then, and compares with a flat file, by our reads and by QEMU's.
func TestWriteAtModel(t *testing.T) {
	oracle.Need(t, "qemu-img")
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	dir := t.TempDir()
	const capacity = 70<<20 + 9*SectorSize
	rawFile := filepath.Join(dir, "raw")
	raw := createFile(t, rawFile)
	if err := raw.Truncate(capacity); err != nil {
		t.Fatal(err)
	}
	parent := ""
	for depth := range 3 {
		name := fmt.Sprint("d", depth)
		disk := newQEMUDisk(t, dir, name, capacity, parent)
		parent = name
		var links []Link
		var d *Disk
		for i := range 60 {
			if i%20 == 0 {
				links = openChain(t, disk, os.O_RDWR)
				d = openDisk(t, links)
			}
			off := r.Int64N(capacity)
			if r.IntN(3) == 0 {
				off = r.Int64N(capacity/grain) * grain
			}
			n := min(1+r.Int64N(1<<r.IntN(22)), capacity-off)
			p := make([]byte, n)
			if r.IntN(5) > 0 {
				p = pattern(int(n), fmt.Sprint(depth, " ", i))
			}
			if m, err := d.WriteAt(p, off); int64(m) != n || err != nil {
				t.Fatalf("WriteAt(%d bytes, %d) = %d, %v", n, off, m, err)
			}
			if _, err := raw.WriteAt(p, off); err != nil {
				t.Fatal(err)
			}
		}
		if err := Check(links); err != nil {
			t.Error(err)
		}
		sameAsRaw(t, d, rawFile)
		if err := Check(openChain(t, disk, os.O_RDONLY)); err != nil {
			t.Error(err)
		}
		qemuSame(t, disk, rawFile)
		sameAsMap(t, openDisk(t, openChain(t, disk, os.O_RDONLY)), disk)
		tool(t, "qemu-img", "check", "-f", "vmdk", disk)
	}
}

// TestWriteAtAddsTables writes into a layer that LayerWriter left without grain
// tables. QEMU would write over its header.
func TestWriteAtAddsTables(t *testing.T) {
	oracle.Need(t, "qemu-img")
	dir := t.TempDir()
	const capacity = 200 << 20
	newQEMUDisk(t, dir, "base", capacity, "")
	f := createFile(t, filepath.Join(dir, "top-delta.vmdk"))
	w, err := NewLayerWriter(f, capacity)
	if err != nil {
		t.Fatal(err)
	}
	raw := make([]byte, capacity)
	copy(raw[grain:], pattern(grain, "layer"))
	if err := w.WriteGrain(1, raw[grain:2*grain]); err != nil {
		t.Fatal(err)
	}
	if err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	disk := filepath.Join(dir, "top.vmdk")
	writeDescriptor(t, disk, newDescriptor(t, dir, "top", capacity, "base"))
	links := openChain(t, disk, os.O_RDWR)
	d := openDisk(t, links)
	for _, off := range []int64{0, 100 << 20, 64<<20 - 1000, 199 << 20} {
		p := pattern(2000, "new")
		if _, err := d.WriteAt(p, off); err != nil {
			t.Fatal(err)
		}
		copy(raw[off:], p)
	}
	rawFile := filepath.Join(dir, "raw")
	if err := os.WriteFile(rawFile, raw, 0o666); err != nil {
		t.Fatal(err)
	}
	sameAsRaw(t, d, rawFile)
	if err := Check(links); err != nil {
		t.Error(err)
	}
	qemuSame(t, disk, rawFile)
}

// readOnlyFile hides WriteAt.
type readOnlyFile struct{ io.ReaderAt }

func TestWriteAtReadOnly(t *testing.T) {
	const capacity = 1 << 20
	file := new(memFile)
	if err := CreateExtent(file, capacity); err != nil {
		t.Fatal(err)
	}
	sparse := func(change func(h *header)) *Extent {
		f := &memFile{b: bytes.Clone(file.b)}
		h, err := parseHeader(f.b, 0)
		if err != nil {
			t.Fatal(err)
		}
		change(&h)
		copy(f.b, h.marshal())
		return f.extent(t)
	}
	same := func(*header) {}
	line := func(access, typ string) *Descriptor {
		d := NewDescriptor("x", capacity, 1)
		d.Extents[0].Access, d.Extents[0].Type = access, typ
		return d
	}
	hidden, err := OpenExtent(readOnlyFile{file}, int64(len(file.b)))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		link Link
		want error
	}{
		{"can be written", Link{line("RW", "SPARSE"), []*Extent{sparse(same)}}, nil},
		{"RDONLY", Link{line("RDONLY", "SPARSE"), []*Extent{sparse(same)}}, errReadOnly},
		{"no WriterAt", Link{line("RW", "SPARSE"), []*Extent{hidden}}, errReadOnly},
		{"version 3", Link{line("RW", "SPARSE"), []*Extent{sparse(func(h *header) { h.version = 3 })}}, errReadOnly},
		{"compressed", Link{line("RW", "SPARSE"), []*Extent{sparse(func(h *header) { h.version, h.flags, h.compression = 3, 0x30003, 1 })}}, errReadOnly},
		{"flat", Link{line("RW", "FLAT"), []*Extent{OpenFlat(&memFile{b: make([]byte, capacity)}, capacity)}}, nil},
		{"flat RDONLY", Link{line("RDONLY", "FLAT"), []*Extent{OpenFlat(&memFile{b: make([]byte, capacity)}, capacity)}}, errReadOnly},
		{"zeros", Link{line("RW", "ZERO"), nil}, errReadOnly},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := openDisk(t, []Link{c.link})
			if _, err := d.WriteAt([]byte("hello"), 1000); !errors.Is(err, c.want) {
				t.Fatalf("WriteAt: %v, want %v", err, c.want)
			}
			want := make([]byte, 1200)
			if c.want == nil {
				copy(want[1000:], "hello")
			}
			got := make([]byte, 1200)
			if _, err := d.ReadAt(got, 0); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Error("reads back wrongly")
			}
		})
	}
}

func TestWriteAtBounds(t *testing.T) {
	d := openDisk(t, memDisk(t, 1<<20))
	for _, c := range []struct {
		off int64
		n   int
	}{{-1, 1}, {1 << 20, 1}, {1<<20 - 1, 2}, {1<<63 - 1, 1}} {
		if n, err := d.WriteAt(make([]byte, c.n), c.off); n != 0 || err == nil {
			t.Errorf("WriteAt(%d bytes, %d) = %d, %v", c.n, c.off, n, err)
		}
	}
	if n, err := d.WriteAt(nil, 1<<20); n != 0 || err != nil {
		t.Errorf("empty WriteAt at the end = %d, %v", n, err)
	}
}

// TestWriteAtStaysFailed: after the file failed once, nothing is written.
func TestWriteAtStaysFailed(t *testing.T) {
	links := memDisk(t, 64<<20)
	f := links[0].Extents[0].r.(*memFile)
	d := openDisk(t, links)
	if _, err := d.WriteAt([]byte{1}, 0); err != nil {
		t.Fatal(err)
	}
	f.limit = int64(len(f.b))
	if _, err := d.WriteAt([]byte{1}, grain); !errors.Is(err, errFull) {
		t.Fatalf("WriteAt on a full file: %v", err)
	}
	f.limit = 0
	if _, err := d.WriteAt([]byte{1}, 0); !errors.Is(err, errFull) {
		t.Errorf("WriteAt after an error: %v", err)
	}
	if err := f.extent(t).Check(); err != nil {
		t.Error(err)
	}
}

// TestWriteAtZeroedGrain writes a part of a grain that a table says is zeros:
// the rest stays zeros and does not come from the parent.
func TestWriteAtZeroedGrain(t *testing.T) {
	oracle.Need(t, "qemu-io")
	dir := t.TempDir()
	base, top := filepath.Join(dir, "base.vmdk"), filepath.Join(dir, "top.vmdk")
	tool(t, "qemu-img", "create", "-q", "-f", "vmdk", base, "64M")
	tool(t, "qemu-io", "-f", "vmdk", "-c", "write -P 1 0 1M", base)
	tool(t, "qemu-img", "create", "-q", "-f", "vmdk", "-F", "vmdk", "-o", "zeroed_grain=on", "-b", base, top)
	tool(t, "qemu-io", "-f", "vmdk", "-c", "write -z 64k 256k", top)
	open := func(flag int) []Link {
		l := openLink(t, top, flag)
		return []Link{l, openLink(t, base, os.O_RDONLY)}
	}
	d := openDisk(t, open(os.O_RDWR))
	raw := bytes.Repeat([]byte{1}, 1<<20)
	clear(raw[grain : 5*grain])
	for _, off := range []int64{2*grain + 5, 5*grain + 7} {
		if _, err := d.WriteAt([]byte("xyz"), off); err != nil {
			t.Fatal(err)
		}
		copy(raw[off:], "xyz")
	}
	got := make([]byte, len(raw))
	if _, err := d.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, raw) {
		t.Error("reads back wrongly")
	}
	rawFile := filepath.Join(dir, "raw")
	if err := os.WriteFile(rawFile, append(raw, make([]byte, 63<<20)...), 0o666); err != nil {
		t.Fatal(err)
	}
	qemuSame(t, top, rawFile)
	if err := Check(open(os.O_RDONLY)); err != nil {
		t.Error(err)
	}
	sameAsMap(t, openDisk(t, open(os.O_RDONLY)), top)
}
