package vmdk

import (
	"bytes"
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"vic/bench/oracle"

	"github.com/klauspost/compress/zlib"
	govmdk "github.com/vmware/govmomi/vmdk"
)

// streamFile makes a stream-optimized file whose tables come after its grains.
// The last grain is cut to lastGrain bytes, if that is not 0.
func streamFile(t testing.TB, capacity int64, grains map[int64][]byte) []byte {
	t.Helper()
	le := binary.LittleEndian
	desc := NewDescriptor("disk.vmdk", capacity, 0xabcdef)
	desc.CreateType = "streamOptimized"
	text, err := desc.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	h := header{version: 3, flags: 0x30001, capacity: uint64(capacity / SectorSize), grainSize: 128, descriptorOffset: 1,
		descriptorSize: 20, numGTEsPerGT: 512, gdOffset: gdAtEnd, overHead: 128, compression: 1}
	b := h.marshal()
	b = append(b, text...)
	pad := func(n int) { b = append(b, make([]byte, (n-len(b)%n)%n)...) }
	pad(128 * SectorSize)
	marker := func(sectors uint64, size, typ uint32) {
		b = le.AppendUint64(b, sectors)
		b = le.AppendUint32(b, size)
		b = le.AppendUint32(b, typ)
		pad(SectorSize)
	}
	gd := make([]uint32, h.numTables())
	for i := range gd {
		table := make(grainTable, tableEntries)
		for j := range table {
			g := int64(i*tableEntries + j)
			p := grains[g]
			if p == nil {
				continue
			}
			table[j] = uint32(len(b) / SectorSize)
			var z bytes.Buffer
			w := zlib.NewWriter(&z)
			if _, err := w.Write(p); err != nil {
				t.Fatal(err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			b = le.AppendUint64(b, uint64(g)*128)
			b = le.AppendUint32(b, uint32(z.Len()))
			b = append(b, z.Bytes()...)
			pad(SectorSize)
		}
		if slices.Equal(table, *noGrains) {
			continue
		}
		marker(tableSectors, 0, 1)
		gd[i] = uint32(len(b) / SectorSize)
		for _, v := range table {
			b = le.AppendUint32(b, v)
		}
	}
	marker(uint64(directorySectors(int64(len(gd)))), 0, 2)
	h.gdOffset = uint64(len(b) / SectorSize)
	for _, v := range gd {
		b = le.AppendUint32(b, v)
	}
	pad(SectorSize)
	marker(1, 0, 3)
	b = append(b, h.marshal()...)
	return append(b, make([]byte, SectorSize)...)
}

const streamCapacity = 100<<20 + 3*SectorSize

func sampleStream(t testing.TB) ([]byte, map[int64][]byte) {
	t.Helper()
	grains := map[int64][]byte{
		0:    pattern(grain, "zero"),
		1:    pattern(grain, "one"),
		700:  pattern(grain, "seven"),
		1600: pattern(3*SectorSize, "last"), // short, as the disk is
	}
	return streamFile(t, streamCapacity, grains), grains
}

func TestReadFooter(t *testing.T) {
	oracle.Need(t, "qemu-img")
	dir := t.TempDir()
	b, grains := sampleStream(t)
	disk, rawFile := filepath.Join(dir, "disk.vmdk"), filepath.Join(dir, "raw")
	if err := os.WriteFile(disk, b, 0o666); err != nil {
		t.Fatal(err)
	}
	raw := make([]byte, streamCapacity)
	for g, p := range grains {
		copy(raw[g*grain:], p)
	}
	if err := os.WriteFile(rawFile, raw, 0o666); err != nil {
		t.Fatal(err)
	}
	qemuSame(t, disk, rawFile)
	links := openChain(t, disk, os.O_RDONLY)
	if err := Check(links); err != nil {
		t.Error(err)
	}
	sameAsRaw(t, openDisk(t, links), rawFile)
}

func TestDamagedStream(t *testing.T) {
	good, _ := sampleStream(t)
	end := len(good)
	first := 128 * SectorSize // marker of grain 0
	for _, c := range []struct {
		name   string
		change func(b []byte) []byte
		open   string // field of the error of OpenExtent
		read   string // of ReadAt and Check
	}{
		{"nothing", func(b []byte) []byte { return b }, "", ""},
		{"sector after the end", func(b []byte) []byte { return append(b, make([]byte, SectorSize)...) }, "footer marker", ""},
		{"bytes after the end", func(b []byte) []byte { return append(b, 1, 2) }, "footer", ""},
		{"no end marker", func(b []byte) []byte { return b[:end-SectorSize] }, "footer marker", ""},
		{"end marker is not zeros", func(b []byte) []byte { b[end-1] = 1; return b }, "end marker", ""},
		{"only a header", func(b []byte) []byte { return b[:SectorSize] }, "footer", ""},
		{"no footer marker", func(b []byte) []byte { b[end-3*SectorSize+12] = 2; return b }, "footer marker", ""},
		{"footer of another disk", func(b []byte) []byte { b[end-2*SectorSize+0x0c]++; return b }, "footer", ""},
		{"footer without magic", func(b []byte) []byte { b[end-2*SectorSize] = 0; return b }, "magic", ""},
		{"footer sends on", func(b []byte) []byte {
			copy(b[end-2*SectorSize+0x38:], "\xff\xff\xff\xff\xff\xff\xff\xff")
			return b
		}, "footer", ""},
		{"another grain's marker", func(b []byte) []byte { b[first]++; return b }, "", "grain marker"},
		{"empty grain", func(b []byte) []byte { clear(b[first+8 : first+12]); return b }, "", "compressed size"},
		{"huge grain", func(b []byte) []byte { b[first+11] = 0x7f; return b }, "", "compressed size"},
		{"not zlib", func(b []byte) []byte { b[first+12] = 0; return b }, "", "compressed grain"},
		{"wrong checksum", func(b []byte) []byte {
			n := int(binary.LittleEndian.Uint32(b[first+8:]))
			b[first+12+n-1]++
			return b
		}, "", "compressed grain"},
		{"cut short", func(b []byte) []byte { binary.LittleEndian.PutUint32(b[first+8:], 20); return b }, "", "compressed grain"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := &memFile{b: c.change(slices.Clone(good))}
			e, err := OpenExtent(f, int64(len(f.b)))
			wantFormatError(t, err, c.open)
			if err != nil {
				return
			}
			links := []Link{{Extents: []*Extent{e}}}
			wantFormatError(t, e.Check(), c.read)
			_, err = io.Copy(io.Discard, io.NewSectionReader(openDisk(t, links), 0, streamCapacity))
			wantFormatError(t, err, c.read)
		})
	}
}

func TestInflateBounds(t *testing.T) {
	for _, c := range []struct {
		name  string
		grain []byte
		field string
	}{
		{"short", make([]byte, grain-1), "compressed grain"},
		{"long", make([]byte, grain+1), "compressed grain"},
		{"bomb", make([]byte, 64<<20), "compressed grain"},
		{"right", make([]byte, grain), ""},
	} {
		b := streamFile(t, 1<<20, map[int64][]byte{3: c.grain})
		e := (&memFile{b: b}).extent(t)
		d := openDisk(t, []Link{{Extents: []*Extent{e}}})
		_, err := d.ReadAt(make([]byte, 1), 3*grain)
		t.Run(c.name, func(t *testing.T) { wantFormatError(t, err, c.field) })
	}
}

// TestGovmomiStream: the writer of govmomi v0.55.0 makes directory and table
// entries 64 bits wide and lets grains begin at any byte. qemu-img check finds
// nothing wrong with its files; we must.
func TestGovmomiStream(t *testing.T) {
	const capacity = 4 << 20
	name := filepath.Join(t.TempDir(), "disk.vmdk")
	w, err := govmdk.NewStreamOptimizedWriter(name, capacity)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Write(bytes.NewReader(pattern(capacity, "govmomi"))); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	tool(t, "qemu-img", "check", "-f", "vmdk", name)
	_, err = tryOpenLink(t, name, os.O_RDONLY)
	wantFormatError(t, err, "extent") // its line has an empty file name

	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	text, err := NewDescriptor("disk.vmdk", capacity, 1).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	clear(b[SectorSize : 21*SectorSize])
	copy(b[SectorSize:], text)
	e := (&memFile{b: b}).extent(t)
	if err := e.Check(); err == nil {
		t.Error("Check finds nothing")
	}
	_, err = io.Copy(io.Discard, io.NewSectionReader(openDisk(t, []Link{{Extents: []*Extent{e}}}), 0, capacity))
	wantFormatError(t, err, "grain marker")
}
