package vmdk

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"vic/bench/oracle"
)

// TestChain builds a chain of 40 disks, by LayerWriter, by WriteAt and by QEMU
// in turn, and lets QEMU read it at each of several depths.
func TestChain(t *testing.T) {
	oracle.Need(t, "qemu-io")
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	dir := t.TempDir()
	const capacity = 100<<20 + SectorSize
	const grains = capacity/grain + 1
	rawFile := filepath.Join(dir, "raw")
	raw := createFile(t, rawFile)
	if err := raw.Truncate(capacity); err != nil {
		t.Fatal(err)
	}
	putRaw := func(p []byte, off int64) {
		if _, err := raw.WriteAt(p[:min(int64(len(p)), capacity-off)], off); err != nil {
			t.Fatal(err)
		}
	}
	parent := ""
	for depth := 1; depth <= 40; depth++ {
		name := fmt.Sprint("d", depth)
		disk := filepath.Join(dir, name+".vmdk")
		switch depth % 3 {
		case 1: // written by QEMU
			newQEMUDisk(t, dir, name, capacity, parent)
			for range 3 {
				off, n, b := r.Int64N(capacity-grain), 1+r.Int64N(grain), byte(depth)
				tool(t, "qemu-io", "-f", "vmdk", "-t", "unsafe", "-c", fmt.Sprintf("write -P %d %d %d", b, off, n), disk)
				putRaw(bytes.Repeat([]byte{b}, int(n)), off)
			}
		case 2: // a layer
			w, err := NewLayerWriter(createFile(t, filepath.Join(dir, name+"-delta.vmdk")), capacity)
			if err != nil {
				t.Fatal(err)
			}
			for _, g := range r.Perm(grains)[:5] {
				p := pattern(grain, fmt.Sprint(depth, " ", g))
				if err := w.WriteGrain(int64(g), p); err != nil {
					t.Fatal(err)
				}
				putRaw(p, int64(g)*grain)
			}
			if err := w.Finish(); err != nil {
				t.Fatal(err)
			}
			writeDescriptor(t, disk, newDescriptor(t, dir, name, capacity, parent))
		case 0:
			newQEMUDisk(t, dir, name, capacity, parent)
			d := openDisk(t, openChain(t, disk, os.O_RDWR))
			for range 5 {
				p := pattern(1+r.IntN(2*grain), name)
				off := r.Int64N(capacity - int64(len(p)))
				if _, err := d.WriteAt(p, off); err != nil {
					t.Fatal(err)
				}
				putRaw(p, off)
			}
		}
		parent = name
		if depth > 3 && depth%9 != 4 {
			continue // 1, 2, 3, 4, 13, 22, 31, 40
		}
		links := openChain(t, disk, os.O_RDONLY)
		if err := Check(links); err != nil {
			t.Fatal(err)
		}
		d := openDisk(t, links)
		if d.Depth() != depth {
			t.Errorf("depth %d, want %d", d.Depth(), depth)
		}
		sameAsRaw(t, d, rawFile)
		qemuSame(t, disk, rawFile)
		sameAsMap(t, d, disk)
	}
}

func TestReadAtBounds(t *testing.T) {
	const capacity = 1<<20 + SectorSize
	links := memDisk(t, capacity)
	d := openDisk(t, links)
	if _, err := d.WriteAt([]byte{1, 2, 3}, capacity-3); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		off  int64
		want []byte
		err  error
	}{
		{capacity - 3, []byte{1, 2, 3}, io.EOF},
		{capacity - 4, []byte{0, 1, 2, 3}, nil},
		{capacity - 1, []byte{3}, io.EOF},
		{capacity, nil, io.EOF},
		{1<<63 - 1, nil, io.EOF},
	} {
		p := make([]byte, 4)
		n, err := d.ReadAt(p, c.off)
		if !bytes.Equal(p[:n], c.want) || err != c.err {
			t.Errorf("ReadAt(%d) = %v, %v, want %v, %v", c.off, p[:n], err, c.want, c.err)
		}
	}
	if _, err := d.ReadAt(make([]byte, 1), -1); err == nil || err == io.EOF {
		t.Errorf("ReadAt(-1): %v", err)
	}
}

func TestOpenDiskRefuses(t *testing.T) {
	const capacity = 1 << 20
	base := memDisk(t, capacity)
	child := memDisk(t, capacity, base...)
	flat := OpenFlat(&memFile{b: make([]byte, capacity)}, capacity)
	change := func(l Link, change func(d *Descriptor)) Link {
		d := *l.Descriptor
		d.Extents = slices.Clone(d.Extents)
		change(&d)
		l.Descriptor = &d
		return l
	}
	for _, c := range []struct {
		name  string
		links []Link
		field string
	}{
		{"whole", child, ""},
		{"no disk", nil, "chain"},
		{"parent missing", child[:1], "parentCID"},
		{"parent of a disk that has none", []Link{base[0], base[0]}, "parentCID"},
		{"another parent", []Link{child[0], change(base[0], func(d *Descriptor) { d.CID = 9 })}, "parentCID"},
		{"smaller parent", []Link{child[0], change(memDisk(t, capacity-512)[0], func(d *Descriptor) { d.CID = 1 })}, "capacity"},
		{"larger parent", []Link{child[0], memDisk(t, capacity+512)[0]}, "capacity"},
		{"no descriptor", []Link{{Extents: base[0].Extents}}, "descriptor"},
		{"nothing at all", []Link{{}}, "descriptor"},
		{"no file", []Link{{Descriptor: base[0].Descriptor}}, "extent"},
		{"two files for one line", []Link{{base[0].Descriptor, []*Extent{flat, flat}}}, "extent"},
		{"no lines", []Link{change(base[0], func(d *Descriptor) { d.Extents = nil })}, "extent"},
		{"flat file for SPARSE", []Link{{base[0].Descriptor, []*Extent{flat}}}, "extent"},
		{"sparse file for FLAT", []Link{change(base[0], func(d *Descriptor) { d.Extents[0].Type = "FLAT" })}, "extent"},
		{"type that is not read", []Link{change(base[0], func(d *Descriptor) { d.Extents[0].Type = "SESPARSE" })}, "extent"},
		{"NOACCESS", []Link{change(base[0], func(d *Descriptor) { d.Extents[0].Access = "NOACCESS" })}, "extent"},
		{"line of another size", []Link{change(base[0], func(d *Descriptor) { d.Extents[0].Sectors++ })}, "capacity"},
		{"line of no sectors", []Link{change(base[0], func(d *Descriptor) { d.Extents[0].Sectors = 0 })}, "extent"},
		{"huge line", []Link{change(base[0], func(d *Descriptor) { d.Extents[0].Sectors = 1 << 60 })}, "extent"},
		{"flat file too short", []Link{change(Link{base[0].Descriptor, []*Extent{flat}}, func(d *Descriptor) { d.Extents[0].Type, d.Extents[0].Offset = "FLAT", 1 })}, "extent"},
		{"flat file at a negative offset", []Link{change(Link{base[0].Descriptor, []*Extent{flat}}, func(d *Descriptor) { d.Extents[0].Type, d.Extents[0].Offset = "FLAT", -1 })}, "extent"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := OpenDisk(c.links)
			wantFormatError(t, err, c.field)
			if err := Check(c.links); (err == nil) != (c.field == "") {
				t.Errorf("Check: %v", err)
			}
		})
	}
}

// TestQEMUChecksCIDs shows why OpenDisk does: QEMU opens a chain whose parent
// has changed and fails only when a read gets there.
func TestQEMUChecksCIDs(t *testing.T) {
	dir := t.TempDir()
	const capacity = 1 << 20
	base := newQEMUDisk(t, dir, "base", capacity, "")
	top := newQEMUDisk(t, dir, "top", capacity, "base")
	tool(t, "qemu-io", "-f", "vmdk", "-c", "write -P 1 0 64k", base) // gives it a new CID
	tool(t, "qemu-img", "info", "-f", "vmdk", top)
	toolFails(t, "qemu-img", "convert", "-f", "vmdk", "-O", "raw", top, filepath.Join(dir, "raw"))
	_, err := OpenDisk(openChain(t, top, os.O_RDONLY))
	wantFormatError(t, err, "parentCID")
}

// TestDescriptorParts opens a disk of parts that our own descriptor names:
// sparse, flat at an offset, and read-only.
func TestDescriptorParts(t *testing.T) {
	dir := t.TempDir()
	const sparse, flat = 40 << 20, 1 << 20
	if err := CreateExtent(createFile(t, filepath.Join(dir, "a")), sparse); err != nil {
		t.Fatal(err)
	}
	if err := createFile(t, filepath.Join(dir, "b")).Truncate(3 * flat); err != nil {
		t.Fatal(err)
	}
	desc := NewDescriptor("a", sparse, 7)
	desc.Extents = append(desc.Extents, ExtentLine{"RW", flat / SectorSize, "FLAT", "b", flat / SectorSize})
	disk := filepath.Join(dir, "disk.vmdk")
	writeDescriptor(t, disk, desc)
	d := openDisk(t, openChain(t, disk, os.O_RDWR))
	p := pattern(300<<10, "border")
	raw := make([]byte, sparse+flat)
	for _, off := range []int64{sparse - 100<<10, 0, sparse + flat - 300<<10} {
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
	qemuSame(t, disk, rawFile)
	if err := Check(openChain(t, disk, os.O_RDONLY)); err != nil {
		t.Error(err)
	}

	// RDONLY and ZERO lines, which QEMU leaves out.
	desc.Extents[1].Access = "RDONLY"
	desc.Extents = append(desc.Extents, ExtentLine{Access: "RW", Sectors: 16, Type: "ZERO"})
	writeDescriptor(t, disk, desc)
	d = openDisk(t, openChain(t, disk, os.O_RDWR))
	if n, err := d.WriteAt(p, sparse-1000); n != 1000 || err == nil {
		t.Errorf("WriteAt into RDONLY = %d, %v, want 1000 and an error", n, err)
	}
	copy(raw[sparse-1000:], p[:1000])
	if err := os.WriteFile(rawFile, append(raw, make([]byte, 16*SectorSize)...), 0o666); err != nil {
		t.Fatal(err)
	}
	sameAsRaw(t, d, rawFile)
}

// TestReadAtConcurrently has many readers of one chain, more tables than the
// cache holds, and a model to compare with.
func TestReadAtConcurrently(t *testing.T) {
	const tables = cachedTables + 200
	const capacity = tables * tableEntries * grain
	links := memDisk(t, capacity)
	d := openDisk(t, links)
	for i := range int64(tables) {
		if _, err := d.WriteAt([]byte{byte(i), byte(i >> 8), 1}, i*tableEntries*grain); err != nil {
			t.Fatal(err)
		}
	}
	links[0].Extents[0] = links[0].Extents[0].r.(*memFile).extent(t)
	d = openDisk(t, links)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(g), 0))
			for range 5000 {
				i := r.Int64N(tables)
				p := make([]byte, 4)
				if _, err := d.ReadAt(p, i*tableEntries*grain); err != nil {
					t.Error(err)
					return
				}
				if want := []byte{byte(i), byte(i >> 8), 1, 0}; !bytes.Equal(p, want) {
					t.Errorf("table %d: %v, want %v", i, p, want)
				}
			}
		})
	}
	wg.Wait()
	e := links[0].Extents[0]
	n := 0
	for i := range e.tables {
		if e.tables[i].Load() != nil {
			n++
		}
	}
	if n > cachedTables {
		t.Errorf("%d tables are cached, the bound is %d", n, cachedTables)
	}
}
