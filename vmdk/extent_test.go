package vmdk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"vic/bench/oracle"
)

// sampleLayer is a finished layer of five grains in two tables.
func sampleLayer(t testing.TB) *memFile {
	t.Helper()
	f := new(memFile)
	w, err := NewLayerWriter(f, sampleCapacity)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(pattern(4*grain, "layer")); err != nil {
		t.Fatal(err)
	}
	if err := w.Map(0, 2, 3); err != nil {
		t.Fatal(err)
	}
	if err := w.Map(3, 600, 1); err != nil {
		t.Fatal(err)
	}
	if err := w.WriteGrain(1023, pattern(grain, "fixed")); err != nil {
		t.Fatal(err)
	}
	if err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	return f
}

const sampleCapacity = 3*tableEntries*grain - 10*grain

// damage is a file with a layer or an empty disk in it, about to be damaged.
type damage struct {
	b  []byte
	h  header
	gd []uint32
}

func newDamage(t testing.TB, f *memFile) *damage {
	e := f.extent(t)
	return &damage{slices.Clone(f.b), e.h, e.gd}
}

func (d *damage) put(off int64, v uint32) { binary.LittleEndian.PutUint32(d.b[off:], v) }

// entry returns where entry i of a grain directory is.
func entry(dir uint64, i int64) int64 { return int64(dir)*SectorSize + 4*i }

func (d *damage) header(change func(h *header)) {
	change(&d.h)
	copy(d.b, d.h.marshal())
}

func TestDamagedExtent(t *testing.T) {
	layer := sampleLayer(t)
	for _, c := range []struct {
		name   string
		change func(d *damage)
		open   string // field of the error of OpenExtent
		read   string // of ReadAt
		check  string // of the first problem that Check finds
	}{
		{"nothing", func(d *damage) {}, "", "", ""},
		{"empty", func(d *damage) { d.b = nil }, "header", "", ""},
		{"no header", func(d *damage) { clear(d.b[:SectorSize]) }, "magic", "", ""},
		{"cut in the last table", func(d *damage) { d.b = d.b[:len(d.b)-1] }, "grain directory", "", ""},
		{"cut in the directory", func(d *damage) { d.b = d.b[:d.h.gdOffset*SectorSize+8] }, "grain directory", "", ""},
		{"cut in the grains", func(d *damage) { d.b = d.b[:2*grain] }, "grain directory", "", ""},
		{"cut in the overhead", func(d *damage) { d.b = d.b[:grain-1] }, "overhead", "", ""},
		{"directory past the end", func(d *damage) { d.header(func(h *header) { h.gdOffset = maxSectors - 1 }) }, "grain directory", "", ""},
		{"table past the end", func(d *damage) { d.put(entry(d.h.gdOffset, 1), 0xffffffff) }, "grain directory", "", ""},
		{"table past the end, redundant", func(d *damage) { d.put(entry(d.h.rgdOffset, 1), 0xffffffff) }, "", "", "redundant grain directory"},
		{"redundant directory past the end", func(d *damage) { d.header(func(h *header) { h.rgdOffset = maxSectors - 1 }) }, "", "", "redundant grain directory"},
		{"table only in the directory", func(d *damage) { d.put(entry(d.h.rgdOffset, 1), 0) }, "", "", "redundant grain directory"},
		{"table only in the redundant directory", func(d *damage) { d.put(entry(d.h.gdOffset, 1), 0) }, "", "", "redundant grain directory"},
		{"redundant table differs", func(d *damage) {
			d.put(int64(binary.LittleEndian.Uint32(d.b[entry(d.h.rgdOffset, 0):]))*SectorSize+4*2, 0)
		}, "", "", "redundant grain table"},
		{"descriptor past the end", func(d *damage) {
			d.header(func(h *header) { h.descriptorOffset, h.descriptorSize = maxSectors-1, 20 })
		}, "embedded descriptor", "", ""},
		{"descriptor that is none", func(d *damage) {
			d.header(func(h *header) { h.descriptorOffset, h.descriptorSize = 128, 20 })
		}, "descriptor", "", ""},
		{"grain past the end", func(d *damage) { d.put(int64(d.gd[0])*SectorSize+4*2, uint32(len(d.b)/SectorSize)) }, "", "grain table entry", "redundant grain table"},
		{"grain far past the end", func(d *damage) { d.put(int64(d.gd[0])*SectorSize+4*7, 0xffffffff) }, "", "grain table entry", "redundant grain table"},
		{"grain 1 without the flag", func(d *damage) { d.put(int64(d.gd[0])*SectorSize+4*7, 1) }, "", "grain table entry", "redundant grain table"},
		{"grain in the overhead", func(d *damage) { d.put(int64(d.gd[0])*SectorSize+4*7, 127) }, "", "grain table entry", "redundant grain table"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newDamage(t, layer)
			c.change(d)
			f := &memFile{b: d.b}
			e, err := OpenExtent(f, int64(len(f.b)))
			wantFormatError(t, err, c.open)
			if err != nil {
				return
			}
			wantFormatError(t, e.Check(), c.check)
			disk := openDisk(t, []Link{{NewDescriptor("x", sampleCapacity, 1), []*Extent{e}}})
			_, err = io.Copy(io.Discard, io.NewSectionReader(disk, 0, sampleCapacity))
			wantFormatError(t, err, c.read)
			if c.read == "" {
				return
			}
			// Nothing is written into an extent file with such a table, wherever.
			_, err = disk.WriteAt([]byte{1}, 40<<20)
			wantFormatError(t, err, c.read)
			if !bytes.Equal(f.b, d.b) {
				t.Error("WriteAt changed the file")
			}
		})
	}
}

// TestCheckOverlaps sets pairs of entries, in both copies of a table, as no
// other reader would mind and a writer would rue.
func TestCheckOverlaps(t *testing.T) {
	layer := sampleLayer(t)
	both := func(d *damage, table, i int64, v uint32) {
		d.put(int64(d.gd[table])*SectorSize+4*i, v)
		d.put(int64(binary.LittleEndian.Uint32(d.b[entry(d.h.rgdOffset, table):]))*SectorSize+4*i, v)
	}
	for _, c := range []struct {
		name   string
		change func(d *damage)
		field  string
	}{
		{"two grains in one place", func(d *damage) { both(d, 0, 100, 128) }, "grain"},
		{"half a grain shared", func(d *damage) { both(d, 0, 100, 128+64) }, "grain"},
		{"grain in a table", func(d *damage) { both(d, 0, 100, d.gd[0]) }, "grain"},
		{"grain before the directory", func(d *damage) { both(d, 0, 100, uint32(d.h.rgdOffset)-1) }, "grain"},
		{"one table twice", func(d *damage) {
			d.put(entry(d.h.gdOffset, 2), d.gd[0])
			d.put(entry(d.h.rgdOffset, 2), binary.LittleEndian.Uint32(d.b[entry(d.h.rgdOffset, 0):]))
		}, "redundant grain table"},
		{"one directory twice", func(d *damage) { d.header(func(h *header) { h.rgdOffset = h.gdOffset }) }, "redundant grain directory"},
		{"grain past the end of the disk", func(d *damage) {
			// The third table has room for 512 grains, the disk ends after 502.
			at := uint32(len(d.b) / SectorSize)
			d.b = append(d.b, make([]byte, 2*tableSize)...)
			d.put(entry(d.h.gdOffset, 2), at)
			d.put(entry(d.h.rgdOffset, 2), at+tableSectors)
			d.gd[2] = at
			both(d, 2, 502, 128)
		}, "grain table entry"},
		{"grain cut short", func(d *damage) {
			at := uint32(len(d.b) / SectorSize)
			d.b = append(d.b, make([]byte, grain/2)...)
			both(d, 0, 100, at)
		}, "grain"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newDamage(t, layer)
			c.change(d)
			wantFormatError(t, (&memFile{b: d.b}).extent(t).Check(), c.field)
		})
	}
}

// TestCheckCounts: of very many problems Check lists only some.
func TestCheckCounts(t *testing.T) {
	d := newDamage(t, sampleLayer(t))
	for i := range int64(400) {
		d.put(int64(d.gd[0])*SectorSize+4*i, 128)
		d.put(int64(binary.LittleEndian.Uint32(d.b[entry(d.h.rgdOffset, 0):]))*SectorSize+4*i, 128)
	}
	err := (&memFile{b: d.b}).extent(t).Check()
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok || len(joined.Unwrap()) != maxProblems+1 {
		t.Errorf("Check: %v", err)
	}
}

// TestShortLastGrain reads and then writes a disk whose file ends within its
// last grain, which begins at no multiple of the grain size.
func TestShortLastGrain(t *testing.T) {
	oracle.Need(t, "qemu-img")
	dir := t.TempDir()
	const capacity = 64 << 20
	disk := newQEMUDisk(t, dir, "a", capacity, "")
	name := filepath.Join(dir, "a-delta.vmdk")
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	e := (&memFile{b: b}).extent(t)
	raw := make([]byte, capacity)
	at := uint32(len(b)/SectorSize) + 1
	d := &damage{b: append(b, make([]byte, SectorSize)...), h: e.h}
	d.b = append(d.b, pattern(100*SectorSize, "short")...)
	copy(raw[10*grain:], pattern(100*SectorSize, "short"))
	d.b = append(d.b, make([]byte, 27*SectorSize)...) // the file ends where a grain could begin
	for _, dir := range []uint64{d.h.gdOffset, d.h.rgdOffset} {
		d.put(int64(binary.LittleEndian.Uint32(d.b[entry(dir, 0):]))*SectorSize+4*10, at)
	}
	if err := os.WriteFile(name, d.b, 0o666); err != nil {
		t.Fatal(err)
	}
	rawFile := filepath.Join(dir, "raw")
	if err := os.WriteFile(rawFile, raw, 0o666); err != nil {
		t.Fatal(err)
	}
	links := openChain(t, disk, os.O_RDWR)
	top := openDisk(t, links)
	sameAsRaw(t, top, rawFile)
	qemuSame(t, disk, rawFile)
	wantFormatError(t, Check(links), "grain")

	for _, off := range []int64{0, 11*grain - 5} {
		p := pattern(grain, "new")
		if _, err := top.WriteAt(p, off); err != nil {
			t.Fatal(err)
		}
		copy(raw[off:], p)
	}
	if err := os.WriteFile(rawFile, raw, 0o666); err != nil {
		t.Fatal(err)
	}
	sameAsRaw(t, top, rawFile)
	qemuSame(t, disk, rawFile)
	if err := Check(openChain(t, disk, os.O_RDONLY)); err != nil {
		t.Error(err)
	}
}

// failingReader fails once its file is open.
type failingReader struct {
	io.ReaderAt
	err error
}

func (r *failingReader) ReadAt(p []byte, off int64) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	return r.ReaderAt.ReadAt(p, off)
}

// TestReadErrors: an error of the file is not one of the format.
func TestReadErrors(t *testing.T) {
	f := sampleLayer(t)
	r := &failingReader{ReaderAt: f}
	e, err := OpenExtent(r, int64(len(f.b)))
	if err != nil {
		t.Fatal(err)
	}
	d := openDisk(t, []Link{{NewDescriptor("x", sampleCapacity, 1), []*Extent{e}}})
	if _, err := d.ReadAt(make([]byte, 1), 2*grain); err != nil {
		t.Fatal(err)
	}
	r.err = errors.New("the cable is out")
	calls := map[string]func() error{
		"OpenExtent":        func() error { _, err := OpenExtent(r, int64(len(f.b))); return err },
		"ReadAt":            func() error { _, err := d.ReadAt(make([]byte, 1), 2*grain); return err },
		"ReadAt of a table": func() error { _, err := d.ReadAt(make([]byte, 1), 600*grain); return err },
		"Check":             e.Check,
		"Runs": func() error {
			for _, err := range d.Runs(0) {
				if err != nil {
					return err
				}
			}
			return nil
		},
	}
	for name, call := range calls {
		if err := call(); !errors.Is(err, r.err) {
			t.Errorf("%s: %v, want %v", name, err, r.err)
		}
	}
	r.err = io.EOF // the file was cut behind our back
	if _, err := d.ReadAt(make([]byte, 1), 2*grain); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("ReadAt of a file that shrank: %v", err)
	}
}
