package vmdk

import (
	"encoding/binary"
	"errors"
	"slices"
	"testing"
)

// FuzzGrainTables opens an extent file in which some 32-bit words have changed
// and which was cut, reads, lists, checks and writes it. Whatever happens ends
// in data or in an error, and what could be written reads back.
//
// The input is a list of 6 bytes each: which word, counted in the metadata, and
// what it becomes.
func FuzzGrainTables(f *testing.F) {
	const capacity = 2 * tableEntries * minGrain * SectorSize
	var seeds [][]byte
	var regions [][]int // byte offsets of the words that are changed
	add := func(b []byte) {
		e, err := OpenExtent(&memFile{b: b}, int64(len(b)))
		if err != nil {
			f.Fatal(err)
		}
		var words []int
		span := func(lba uint64, n int64) {
			for off := int64(0); off < n; off += 4 {
				words = append(words, int(int64(lba)*SectorSize+off))
			}
		}
		span(0, 0x50)
		for _, dir := range []uint64{e.h.gdOffset, e.h.rgdOffset} {
			if dir == 0 {
				continue
			}
			span(dir, 4*int64(len(e.gd)))
			gd, err := e.readDirectory(dir, "directory")
			if err != nil {
				f.Fatal(err)
			}
			for _, lba := range gd {
				if lba != 0 {
					span(uint64(lba), 64) // as good as the other entries
				}
			}
		}
		if e.headerOff != 0 {
			span(uint64(e.headerOff/SectorSize), 0x50)
		}
		seeds, regions = append(seeds, b), append(regions, words)
	}
	// An empty disk that has been written, with small grains and tables.
	h := header{version: 2, flags: flagNewline | flagRedundant | flagZeroGrain, capacity: capacity / SectorSize, grainSize: minGrain,
		numGTEsPerGT: tableEntries, rgdOffset: 1, gdOffset: 10, overHead: 24}
	b := make([]byte, 40*SectorSize)
	copy(b, h.marshal())
	le := binary.LittleEndian
	for i, lba := range []uint32{2, 6} {
		le.PutUint32(b[1*SectorSize+4*i:], lba)
		le.PutUint32(b[10*SectorSize+4*i:], lba+9)
	}
	for _, gt := range []int{2, 11} {
		le.PutUint32(b[gt*SectorSize:], 24)
		le.PutUint32(b[gt*SectorSize+4:], 1)
		le.PutUint32(b[gt*SectorSize+8:], 32)
	}
	add(b)
	add(sampleLayerOf(f, 4).b)
	stream, _ := sampleStream(f)
	add(stream)
	sample := sampleLayerOf(f, 4)
	c, err := openDisk(f, []Link{{NewDescriptor("x", sampleCapacity, 1), []*Extent{sample.extent(f)}}}).COWD(1)
	if err != nil {
		f.Fatal(err)
	}
	add(cowdFile(f, c))

	for i := range seeds {
		f.Add(byte(i), uint16(0), []byte{})
		f.Add(byte(i), uint16(1), []byte{3, 0, 0, 0, 0, 1})
		f.Add(byte(i), uint16(0), []byte{20, 0, 1, 0, 0, 0, 21, 0, 255, 255, 255, 255})
		f.Add(byte(i), uint16(600), []byte{5, 0, 8, 0, 0, 0})
	}
	f.Fuzz(func(t *testing.T, seed byte, cut uint16, changes []byte) {
		k := int(seed) % len(seeds)
		b := append([]byte(nil), seeds[k]...)
		for ; len(changes) >= 6; changes = changes[6:] {
			word := regions[k][int(le.Uint16(changes))%len(regions[k])]
			copy(b[word:], changes[2:6])
		}
		b = b[:len(b)-min(len(b), int(cut))]
		tryExtent(t, &memFile{b: b, limit: int64(len(b)) + 4<<20})
	})
}

// sampleLayerOf is a layer of n grains.
func sampleLayerOf(t testing.TB, n int64) *memFile {
	t.Helper()
	f := new(memFile)
	w, err := NewLayerWriter(f, sampleCapacity)
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		if err := w.WriteGrain(i*300, pattern(grain, "fuzz")); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	return f
}

// tryExtent does everything with an extent file that may be damaged.
func tryExtent(t *testing.T, f *memFile) {
	e, err := OpenExtent(f, int64(len(f.b)))
	if err != nil {
		wantDamage(t, err)
		return
	}
	if len(e.gd) > 1<<12 {
		return // valid, and slow to read in full
	}
	checked := e.Check()
	wantDamage(t, checked)
	desc := NewDescriptor("x", e.Capacity(), 1)
	if e.cowd != nil {
		desc.Extents[0].Type = "VMFSSPARSE"
	}
	d, err := OpenDisk([]Link{{desc, []*Extent{e}}})
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 300<<10)
	for _, off := range []int64{0, 1, e.grain*tableEntries - 1000, e.Capacity() / 2, e.Capacity() - 1} {
		if off < 0 || off >= e.Capacity() {
			continue
		}
		p := p[:min(int64(len(p)), e.Capacity()-off)]
		n, err := d.ReadAt(p, off)
		if checked == nil && (err != nil || n != len(p)) {
			t.Fatalf("ReadAt(%d) = %d, %v, but Check found nothing", off, n, err)
		}
		wantDamage(t, err)
	}
	n := 0
	for run, err := range d.Runs(0) {
		wantDamage(t, err)
		if err == nil && (run.Len <= 0 || run.Off < 0 || run.Off+run.Len > e.Capacity()) {
			t.Fatalf("run %+v of a disk of %d bytes", run, e.Capacity())
		}
		if n++; n > 1000 {
			break
		}
	}
	if checked != nil {
		return // what is written may show in two places
	}
	if e.Capacity() < maxSectors*SectorSize {
		sameAsCOWD(t, d)
	}
	off := min(int64(5000), e.Capacity()-1)
	q := pattern(int(min(1000, e.Capacity()-off)), "new")
	if _, err := d.WriteAt(q, off); err != nil {
		if !errors.Is(err, errReadOnly) && !errors.Is(err, errFull) {
			t.Fatalf("WriteAt: %v, but Check found nothing", err)
		}
		return
	}
	got := make([]byte, len(q))
	if _, err := d.ReadAt(got, off); err != nil || string(got) != string(q) {
		t.Fatalf("what was written does not read back: %v", err)
	}
	if err := f.extent(t).Check(); err != nil {
		t.Fatalf("Check after WriteAt: %v", err)
	}
}

// sameAsCOWD makes a disk of one extent COWD, and wants the same runs.
func sameAsCOWD(t *testing.T, d *Disk) {
	t.Helper()
	c := newCOWD(t, d, 1)
	e := (&memFile{b: cowdFile(t, c)}).extent(t)
	if err := e.Check(); err != nil {
		t.Fatalf("Check of the disk as COWD: %v", err)
	}
	desc := NewDescriptor("x", d.Capacity(), 1)
	desc.Extents[0].Type = "VMFSSPARSE"
	if got, want := runsOf(t, openDisk(t, []Link{{desc, []*Extent{e}}}), 0), runsOf(t, d, 0); !slices.Equal(got, want) {
		t.Fatalf("runs as COWD %v, want %v", got, want)
	}
}

// wantDamage: an error must be a *FormatError.
func wantDamage(t *testing.T, err error) {
	t.Helper()
	if _, ok := errors.AsType[*FormatError](err); err != nil && !ok {
		t.Fatalf("not a FormatError: %v", err)
	}
}
