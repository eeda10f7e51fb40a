package vmdk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"vic/bench/oracle"
)

// cowdFile is what a COWD reads as.
func cowdFile(t testing.TB, c *COWD) []byte {
	t.Helper()
	b, err := io.ReadAll(io.NewSectionReader(c, 0, c.Size()))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func newCOWD(t testing.TB, d *Disk, top int) *COWD {
	t.Helper()
	c, err := d.COWD(top)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// writeFlat makes dir/name.vmdk a flat disk that shows what d does.
func writeFlat(t testing.TB, dir, name string, d *Disk) *Descriptor {
	t.Helper()
	f := createFile(t, filepath.Join(dir, name+"-flat.vmdk"))
	if err := f.Truncate(d.Capacity()); err != nil {
		t.Fatal(err)
	}
	if err := d.CopyTo(f, 4096); err != nil {
		t.Fatal(err)
	}
	desc := NewFlatDescriptor(name+"-flat.vmdk", d.Capacity(), CIDFor(name))
	writeDescriptor(t, filepath.Join(dir, name+".vmdk"), desc)
	return desc
}

// writeCOWD makes dir/name.vmdk a delta over parent, which is next to it, in a COWD extent.
func writeCOWD(t testing.TB, dir, name string, parent *Descriptor, hint string, c *COWD) *Descriptor {
	t.Helper()
	f := createFile(t, filepath.Join(dir, name+"-delta.vmdk"))
	if n, err := c.WriteTo(f); n != c.Size() || err != nil {
		t.Fatalf("WriteTo = %d, %v, want %d", n, err, c.Size())
	}
	desc := parent.COWDChild(name+"-delta.vmdk", hint, CIDFor(name))
	writeDescriptor(t, filepath.Join(dir, name+".vmdk"), desc)
	return desc
}

// below is the disk under the top ones, or one of zeros.
func below(t testing.TB, d *Disk, top int) *Disk {
	t.Helper()
	if top == d.Depth() {
		return openDisk(t, memDisk(t, d.Capacity()))
	}
	return &Disk{links: d.links[top:], capacity: d.capacity}
}

// TestCOWD has a chain as COWD over a flat base, cut at each height, and as COWD over COWD,
// judged by QEMU.
func TestCOWD(t *testing.T) {
	oracle.Need(t, "qemu-img")
	const capacity = 9<<20 + 5*SectorSize // QEMU reads COWD grain by grain, 512 bytes at a time
	dir := t.TempDir()
	d, raw := sampleChain(t, dir, capacity)
	check := func(name string, depth int) {
		t.Helper()
		file := filepath.Join(dir, name+".vmdk")
		links := openChain(t, file, os.O_RDONLY)
		if err := errors.Join(Check(links), CheckVSphere(links)); err != nil {
			t.Error(err)
		}
		got := openDisk(t, links)
		if got.Depth() != depth {
			t.Errorf("%s: depth %d, want %d", name, got.Depth(), depth)
		}
		sameAsRaw(t, got, raw)
		qemuSame(t, file, raw)
		tool(t, "qemu-img", "check", "-f", "vmdk", file)
		inBase := func(r Run) bool { return r.Link == depth-1 } // of which QEMU sees the file's holes
		if got, want := slices.DeleteFunc(runsOf(t, got, 0), inBase), slices.DeleteFunc(mapOf(t, file), inBase); !slices.Equal(got, want) {
			t.Errorf("%s: runs differ from qemu-img map:\ngot  %v\nwant %v", name, got, want)
		}
		if info := string(tool(t, "qemu-img", "info", "-f", "vmdk", file)); !strings.Contains(info, fmt.Sprintf("(%d bytes)", capacity)) || !strings.Contains(info, "create type: vmfsSparse") {
			t.Error(info)
		}
		out := filepath.Join(dir, name+".out")
		tool(t, "qemu-img", "convert", "-f", "vmdk", "-O", "raw", file, out)
		tool(t, "cmp", out, raw)
	}
	for top := 1; top <= d.Depth(); top++ {
		name := fmt.Sprint("top", top)
		base := writeFlat(t, dir, "base-"+name, below(t, d, top))
		writeCOWD(t, dir, name, base, "base-"+name+".vmdk", newCOWD(t, d, top))
		check(name, 2)
	}
	empty := writeFlat(t, dir, "empty", openDisk(t, memDisk(t, capacity)))
	lower := writeCOWD(t, dir, "lower", empty, "empty.vmdk", newCOWD(t, below(t, d, 1), 1))
	writeCOWD(t, dir, "upper", lower, "lower.vmdk", newCOWD(t, d, 1))
	check("upper", 3)

	// The runs are those of the source.
	chain := openDisk(t, openChain(t, filepath.Join(dir, "upper.vmdk"), os.O_RDONLY))
	if got, want := runsOf(t, &Disk{links: chain.links[:2], capacity: capacity}, 0), runsOf(t, d, 0); !slices.Equal(got, want) {
		t.Errorf("runs %v, want %v", got, want)
	}

	// A KDMV delta over it, written by QEMU, and a COWD of that delta in turn.
	top := filepath.Join(dir, "kdmv.vmdk")
	if err := CreateExtent(createFile(t, filepath.Join(dir, "kdmv-delta.vmdk")), capacity); err != nil {
		t.Fatal(err)
	}
	upper := openLink(t, filepath.Join(dir, "upper.vmdk"), os.O_RDONLY).Descriptor
	writeDescriptor(t, top, upper.Child("kdmv-delta.vmdk", "upper.vmdk", CIDFor("kdmv")))
	for file, format := range map[string]string{top: "vmdk", raw: "raw"} {
		tool(t, "qemu-io", "-f", format, "-c", "write -P 7 1M 300k", "-c", "write -P 8 512 1k", file)
	}
	qemuSame(t, top, raw)
	mixed := openDisk(t, openChain(t, top, os.O_RDONLY))
	sameAsRaw(t, mixed, raw)
	writeCOWD(t, dir, "third", upper, "upper.vmdk", newCOWD(t, mixed, 1))
	check("third", 4)
}

// TestCOWDBytes reads a COWD in pieces of all kinds.
func TestCOWDBytes(t *testing.T) {
	d, _ := sampleChain(t, t.TempDir(), 9<<20+5*SectorSize)
	c := newCOWD(t, d, 1)
	want := cowdFile(t, c)
	if int64(len(want)) != c.Size() {
		t.Fatalf("%d bytes, Size says %d", len(want), c.Size())
	}
	if err := iotest.TestReader(io.NewSectionReader(c, 0, c.Size()), want); err != nil {
		t.Error(err)
	}
	r := rand.New(rand.NewPCG(3, 4))
	for range 300 {
		off := r.Int64N(c.Size())
		p := make([]byte, 1+r.IntN(100_000))
		n, err := c.ReadAt(p, off)
		if end := min(off+int64(len(p)), c.Size()); int64(n) != end-off || !bytes.Equal(p[:n], want[off:end]) || (err == io.EOF) != (n < len(p)) || err != nil && err != io.EOF {
			t.Fatalf("ReadAt(%d bytes, %d) = %d, %v, or other bytes", len(p), off, n, err)
		}
	}
	if _, err := c.ReadAt(make([]byte, 1), -1); err == nil || err == io.EOF {
		t.Errorf("ReadAt(-1): %v", err)
	}
	if n, err := c.ReadAt(make([]byte, 1), c.Size()); n != 0 || err != io.EOF {
		t.Errorf("ReadAt at the end = %d, %v", n, err)
	}
	if again := cowdFile(t, newCOWD(t, d, 1)); !bytes.Equal(again, want) {
		t.Error("made again: other bytes")
	}
	if n, err := c.WriteTo(&shortWriter{100_000}); !errors.Is(err, errFull) {
		t.Errorf("with room for 100000 bytes WriteTo = %d, %v", n, err)
	}

	// As the format's document has it.
	le := binary.LittleEndian
	for _, f := range []struct {
		name string
		off  int
		want uint32
	}{
		{"magic", 0, 'C' | 'O'<<8 | 'W'<<16 | 'D'<<24}, {"version", 4, 1}, {"flags", 8, 3},
		{"capacity", 12, uint32(d.Capacity() / SectorSize)}, {"grain size", 16, 1}, {"gdOffset", 20, 4}, {"numGDEntries", 24, 5},
		{"freeSector", 28, uint32(c.Size()/SectorSize) - 1}, {"uncleanShutdown", 1648, 0},
	} {
		if got := le.Uint32(want[f.off:]); got != f.want {
			t.Errorf("%s is %#x, want %#x", f.name, got, f.want)
		}
	}
	if !bytes.Equal(want[32:2048], make([]byte, 2048-32)) {
		t.Error("the rest of the header is not zeros")
	}
}

// TestCOWDZeroedGrains: zeros over data are written out, zeros over nothing are not there.
func TestCOWDZeroedGrains(t *testing.T) {
	oracle.Need(t, "qemu-io")
	dir := t.TempDir()
	base, top := filepath.Join(dir, "base.vmdk"), filepath.Join(dir, "top.vmdk")
	tool(t, "qemu-img", "create", "-q", "-f", "vmdk", "-o", "zeroed_grain=on", base, "40M")
	tool(t, "qemu-io", "-f", "vmdk", "-c", "write -P 1 1M 256k", "-c", "write -P 2 36M 64k", "-c", "write -z 5M 192k", base)
	tool(t, "qemu-img", "create", "-q", "-f", "vmdk", "-o", "zeroed_grain=on", "-b", base, "-F", "vmdk", top)
	tool(t, "qemu-io", "-f", "vmdk", "-c", "write -z 1088k 1M", "-c", "write -P 3 10M 1000", "-c", "write -z 20M 640k", top)
	raw := filepath.Join(dir, "raw")
	tool(t, "qemu-img", "convert", "-f", "vmdk", "-O", "raw", top, raw)
	d := openDisk(t, []Link{openLink(t, top, os.O_RDONLY), openLink(t, base, os.O_RDONLY)})

	c := newCOWD(t, d, 1)
	e := (&memFile{b: cowdFile(t, c)}).extent(t)
	desc := NewFlatDescriptor("x", d.Capacity(), 1).COWDChild("x", "y", 2)
	desc.ParentCID = NoParent
	alone := openDisk(t, []Link{{desc, []*Extent{e}}})
	got := runsOf(t, alone, 0)
	if want := []Run{{1088 << 10, 192 << 10, 0}, {10 << 20, 64 << 10, 0}}; !slices.Equal(got, want) {
		t.Errorf("runs of the delta %v, want %v", got, want)
	}
	flat := writeFlat(t, dir, "flat", below(t, d, 1))
	writeCOWD(t, dir, "delta", flat, "flat.vmdk", c)
	qemuSame(t, filepath.Join(dir, "delta.vmdk"), raw)
	empty := writeFlat(t, dir, "empty", openDisk(t, memDisk(t, d.Capacity())))
	writeCOWD(t, dir, "all", empty, "empty.vmdk", newCOWD(t, d, 2))
	qemuSame(t, filepath.Join(dir, "all.vmdk"), raw)
}

// TestCOWDOfCompressed sends a stream-optimized disk on as COWD.
func TestCOWDOfCompressed(t *testing.T) {
	dir := t.TempDir()
	d, raw := sampleChain(t, dir, 9<<20+5*SectorSize)
	var b bytes.Buffer
	if err := d.WriteStream(&b, "x", 7); err != nil {
		t.Fatal(err)
	}
	stream := openDisk(t, []Link{{Extents: []*Extent{(&memFile{b: b.Bytes()}).extent(t)}}})
	empty := writeFlat(t, dir, "empty", openDisk(t, memDisk(t, d.Capacity())))
	writeCOWD(t, dir, "delta", empty, "empty.vmdk", newCOWD(t, stream, 1))
	sameAsRaw(t, openDisk(t, openChain(t, filepath.Join(dir, "delta.vmdk"), os.O_RDONLY)), raw)
	qemuSame(t, filepath.Join(dir, "delta.vmdk"), raw)
}

// TestCOWDWritten: QEMU adds grains to a COWD extent where freeSector says that nothing is,
// which reads well here and would not where ESXi adds the next. This package writes none.
func TestCOWDWritten(t *testing.T) {
	oracle.Need(t, "qemu-io")
	dir := t.TempDir()
	d, raw := sampleChain(t, dir, 9<<20+5*SectorSize)
	name := filepath.Join(dir, "delta.vmdk")
	empty := writeFlat(t, dir, "empty", openDisk(t, memDisk(t, d.Capacity())))
	writeCOWD(t, dir, "delta", empty, "empty.vmdk", newCOWD(t, d, 2))
	// In a grain table that is there: where none is, QEMU writes over the header.
	off := runsOf(t, d, 0)[0].Len / 512 * 512
	for file, format := range map[string]string{name: "vmdk", raw: "raw"} {
		tool(t, "qemu-io", "-f", format, "-c", fmt.Sprintf("write -P 9 %d 1k", off), file)
	}
	links := openChain(t, name, os.O_RDWR)
	sameAsRaw(t, openDisk(t, links), raw)
	wantFormatError(t, Check(links), "freeSector")
	if n, err := openDisk(t, links).WriteAt([]byte{1}, off); n != 0 || !errors.Is(err, errReadOnly) {
		t.Errorf("WriteAt = %d, %v, want %v", n, err, errReadOnly)
	}
	if _, err := GrowExtent(new(memFile), 0, 1<<20); err == nil {
		t.Error("an empty file grew")
	}
	f := &memFile{b: cowdFile(t, newCOWD(t, d, 1))}
	if _, err := GrowExtent(f, int64(len(f.b)), 64<<20); err == nil {
		t.Error("a COWD extent grew")
	}
}

// TestCOWDReadConcurrently has many readers of more grain tables than are kept.
func TestCOWDReadConcurrently(t *testing.T) {
	const tables, apart = 200, 4096 * SectorSize
	f := new(memFile)
	w, err := NewLayerWriter(f, tables*apart)
	if err != nil {
		t.Fatal(err)
	}
	for i := range int64(tables) {
		if err := w.WriteGrain(i*apart/grain, bytes.Repeat([]byte{byte(i) + 1}, grain)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	c := newCOWD(t, openDisk(t, []Link{{NewDescriptor("x", tables*apart, 1), []*Extent{f.extent(t)}}}), 1)
	e, err := OpenExtent(c, c.Size()) // both are read at once
	if err != nil {
		t.Fatal(err)
	}
	desc := NewDescriptor("x", tables*apart, 1)
	desc.Extents[0].Type = "VMFSSPARSE"
	d := openDisk(t, []Link{{desc, []*Extent{e}}})
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(g), 1))
			for range 1000 {
				i := r.Int64N(tables)
				p := make([]byte, 2)
				if _, err := d.ReadAt(p, i*apart+grain-1); err != nil || p[0] != byte(i)+1 || p[1] != 0 {
					t.Errorf("table %d: %v, %v", i, p, err)
					return
				}
			}
		})
	}
	wg.Wait()
	if n := len(e.cached); n != cachedTables*tableEntries/cowdTableEntries {
		t.Errorf("%d tables are kept", n)
	}
}

func TestCOWDEmpty(t *testing.T) {
	d := openDisk(t, memDisk(t, 1<<20))
	c := newCOWD(t, d, 1)
	if c.Size() != (4+1+1)*SectorSize {
		t.Errorf("%d bytes", c.Size())
	}
	e := (&memFile{b: cowdFile(t, c)}).extent(t)
	if err := e.Check(); err != nil || e.Capacity() != 1<<20 {
		t.Errorf("capacity %d, %v", e.Capacity(), err)
	}
}

func TestCOWDTooLarge(t *testing.T) {
	for _, c := range []struct {
		capacity int64
		field    string
	}{{1<<41 - SectorSize, ""}, {1 << 41, "capacity"}} {
		f := new(memFile)
		w, err := NewLayerWriter(f, c.capacity)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.WriteGrain(c.capacity/grain-1, make([]byte, grain)); err != nil {
			t.Fatal(err)
		}
		if err := w.Finish(); err != nil {
			t.Fatal(err)
		}
		_, err = openDisk(t, []Link{{NewDescriptor("x", c.capacity, 1), []*Extent{f.extent(t)}}}).COWD(1)
		wantFormatError(t, err, c.field)
	}
	_, err := newCOWDHeader(1000)
	wantFormatError(t, err, "capacity")
}

// TestCOWDReadErrors: an error of a file of the chain is the error of the reader.
func TestCOWDReadErrors(t *testing.T) {
	f := sampleLayer(t)
	r := &failingReader{ReaderAt: f}
	e, err := OpenExtent(r, int64(len(f.b)))
	if err != nil {
		t.Fatal(err)
	}
	d := openDisk(t, []Link{{NewDescriptor("x", sampleCapacity, 1), []*Extent{e}}})
	c := newCOWD(t, d, 1)
	r.err = errors.New("the cable is out")
	if n, err := c.WriteTo(io.Discard); !errors.Is(err, r.err) {
		t.Errorf("WriteTo = %d, %v", n, err)
	}
	e, err = OpenExtent(f, int64(len(f.b)))
	if err != nil {
		t.Fatal(err)
	}
	e.r = r
	d = openDisk(t, []Link{{NewDescriptor("x", sampleCapacity, 1), []*Extent{e}}})
	if _, err := d.COWD(1); !errors.Is(err, r.err) {
		t.Errorf("COWD: %v", err)
	}
}

func TestParseCOWDHeader(t *testing.T) {
	good := cowdHeader{capacity: 8 << 21, grainSize: 1, gdOffset: 4, numGDEntries: 4096, freeSector: 36}
	for _, c := range []struct {
		name   string
		change func(h *cowdHeader)
		field  string
	}{
		{"as it is", func(h *cowdHeader) {}, ""},
		{"4 KiB grains", func(h *cowdHeader) { h.grainSize = 8 }, ""},
		{"directory with room", func(h *cowdHeader) { h.numGDEntries += 100 }, ""},
		{"left open", func(h *cowdHeader) { h.uncleanShutdown = 1 }, ""},
		{"no capacity", func(h *cowdHeader) { h.capacity = 0 }, "capacity"},
		{"no grain", func(h *cowdHeader) { h.grainSize = 0 }, "grain size"},
		{"odd grain", func(h *cowdHeader) { h.grainSize = 3 }, "grain size"},
		{"huge grain", func(h *cowdHeader) { h.grainSize = 1 << 16 }, "grain size"},
		{"directory in the header", func(h *cowdHeader) { h.gdOffset = 3 }, "grain directory"},
		{"directory too short", func(h *cowdHeader) { h.numGDEntries-- }, "grain directory"},
	} {
		t.Run(c.name, func(t *testing.T) {
			want := good
			c.change(&want)
			got, err := parseCOWDHeader(want.marshal())
			wantFormatError(t, err, c.field)
			if err == nil && got != want {
				t.Errorf("got %+v, want %+v", got, want)
			}
		})
	}
	for _, c := range []struct {
		name  string
		off   int
		b     string
		field string
	}{
		{"version 2", 4, "\x02", "version"},
		{"flags", 8, "\x01", "flags"},
		{"KDMV", 0, "KDMV", "magic"},
	} {
		b := good.marshal()
		copy(b[c.off:], c.b)
		_, err := parseCOWDHeader(b)
		wantFormatError(t, err, c.field)
	}
	_, err := parseCOWDHeader(good.marshal()[:2047])
	wantFormatError(t, err, "header")
	_, err = OpenExtent(&memFile{b: good.marshal()[:2047]}, 2047)
	wantFormatError(t, err, "header")
}

func FuzzCOWDHeader(f *testing.F) {
	h := cowdHeader{capacity: 8 << 21, grainSize: 1, gdOffset: 4, numGDEntries: 4096, freeSector: 36}
	f.Add(h.marshal())
	f.Add([]byte("COWD"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseCOWDHeader(b)
		wantDamage(t, err)
		if err != nil {
			return
		}
		again, err := parseCOWDHeader(h.marshal())
		if err != nil || again != h {
			t.Fatalf("%+v reads back as %+v, %v", h, again, err)
		}
		if e := h.extent(); e.numTables() < 1 || e.numTables() > maxTables {
			t.Fatalf("%d grain tables", e.numTables())
		}
	})
}

// TestCOWDLibvmdk has libvmdk, which knows COWD from VMware's document and not from QEMU,
// show the disks as files.
func TestCOWDLibvmdk(t *testing.T) {
	oracle.Need(t, "vmdkinfo")
	oracle.Need(t, "vmdkmount")
	oracle.Need(t, "fusermount")
	dir := t.TempDir()
	const capacity = 9 << 20
	d, raw := sampleChain(t, dir, capacity)
	desc := NewFlatDescriptor("all-delta.vmdk", capacity, CIDFor("all"))
	desc.CreateType, desc.Extents[0].Type = "vmfsSparse", "VMFSSPARSE"
	if _, err := newCOWD(t, d, 2).WriteTo(createFile(t, filepath.Join(dir, "all-delta.vmdk"))); err != nil {
		t.Fatal(err)
	}
	writeDescriptor(t, filepath.Join(dir, "all.vmdk"), desc)
	flat := writeFlat(t, dir, "flat", below(t, d, 1))
	writeCOWD(t, dir, "delta", flat, "flat.vmdk", newCOWD(t, d, 1))
	for _, c := range []struct{ name, file string }{{"all", "vmdk1"}, {"delta", "vmdk2"}} { // a parent comes first
		t.Run(c.name, func(t *testing.T) {
			file := filepath.Join(dir, c.name+".vmdk")
			info := string(tool(t, "vmdkinfo", file))
			for _, want := range []string{"vmfs sparse", fmt.Sprintf("%08x", CIDFor(c.name))} {
				if !strings.Contains(strings.ToLower(info), want) {
					t.Errorf("vmdkinfo does not say %q:\n%s", want, info)
				}
			}
			mnt := t.TempDir()
			tool(t, "vmdkmount", file, mnt) // leaves a process behind, which ends with the mount
			t.Cleanup(func() {
				if out, err := exec.Command("fusermount", "-u", mnt).CombinedOutput(); err != nil {
					t.Errorf("fusermount: %v: %s", err, out)
				}
			})
			tool(t, "cmp", filepath.Join(mnt, c.file), raw)
		})
	}
}
