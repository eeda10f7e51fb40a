package vmdk

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

const grain = DefaultGrainSize

// TestLayerWriterQEMU writes one layer over an empty disk, its grains mapped
// out of order, and lets QEMU read it.
func TestLayerWriterQEMU(t *testing.T) {
	dir := t.TempDir()
	const capacity = 200<<20 + 3*SectorSize // neither whole grains nor whole tables
	base := NewDescriptor("base-delta.vmdk", capacity, CIDFor("base"))
	if err := CreateExtent(createFile(t, filepath.Join(dir, "base-delta.vmdk")), capacity); err != nil {
		t.Fatal(err)
	}
	writeDescriptor(t, filepath.Join(dir, "base.vmdk"), base)

	f := createFile(t, filepath.Join(dir, "top-delta.vmdk"))
	w, err := NewLayerWriter(f, capacity)
	if err != nil {
		t.Fatal(err)
	}
	data := pattern(3<<20+grain+5000, "stream")
	for p := data; len(p) > 0; {
		n := min(len(p), 70001)
		if _, err := w.Write(p[:n]); err != nil {
			t.Fatal(err)
		}
		p = p[n:]
	}
	last := int64(capacity / grain)
	raw := make([]byte, (last+1)*grain)
	for _, m := range []struct{ stream, disk, n int64 }{{0, 600, 10}, {10, 3, 20}, {40, 505, 9}, {49, last, 1}} {
		if err := w.Map(m.stream, m.disk, m.n); err != nil {
			t.Fatal(err)
		}
		copy(raw[m.disk*grain:], data[m.stream*grain:min(int64(len(data)), (m.stream+m.n)*grain)])
	}
	p := pattern(grain, "fixed")
	if err := w.WriteGrain(0, p); err != nil {
		t.Fatal(err)
	}
	copy(raw, p)
	if err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	top := filepath.Join(dir, "top.vmdk")
	writeDescriptor(t, top, base.Child("top-delta.vmdk", "base.vmdk", CIDFor("top")))
	rawFile := filepath.Join(dir, "raw")
	if err := os.WriteFile(rawFile, raw[:capacity], 0o666); err != nil {
		t.Fatal(err)
	}
	links := openChain(t, top, os.O_RDONLY)
	if n := countTables(links[0].Extents[0]); n != 3 { // grains 0 to 511, 512 to 1023, and the last
		t.Errorf("%d grain tables, want 3", n)
	}
	if err := Check(links); err != nil {
		t.Error(err)
	}
	sameAsRaw(t, openDisk(t, links), rawFile)
	qemuSame(t, top, rawFile)
	tool(t, "qemu-img", "check", "-f", "vmdk", top)
}

func countTables(e *Extent) (n int) {
	for _, lba := range e.gd {
		if lba != 0 {
			n++
		}
	}
	return n
}

// TestLayerWriterStream writes and reads a stream back in pieces of many sizes.
func TestLayerWriterStream(t *testing.T) {
	data := pattern(7<<20+123, "stream")
	for _, size := range []int{1 << 12, 4096*3 + 1, grain, bufferSize - grain, bufferSize - grain + 1, bufferSize, 3*bufferSize + 5, len(data)} {
		f := new(memFile)
		w, err := NewLayerWriter(f, 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		for off := 0; off < len(data); {
			n, err := w.Write(data[off:min(off+size, len(data))])
			if err != nil {
				t.Fatal(err)
			}
			if off += n; w.Size() != int64(off) {
				t.Fatalf("pieces of %d: Size() = %d, want %d", size, w.Size(), off)
			}
			// The last bytes are in the buffer, those before in the file.
			back := make([]byte, min(off, 2*bufferSize))
			if n, err := w.ReadAt(back, int64(off-len(back))); n != len(back) || err != nil {
				t.Fatalf("pieces of %d: ReadAt = %d, %v", size, n, err)
			}
			if !bytes.Equal(back, data[off-len(back):off]) {
				t.Fatalf("pieces of %d: the stream does not read back at %d", size, off)
			}
		}
		for i, n := range f.writes {
			if end := streamStart + sum(f.writes[:i+1]); end%bufferSize != 0 {
				t.Errorf("pieces of %d: write %d, of %d bytes, ends at %d", size, i, n, end)
			}
		}
		if want := len(data)/bufferSize + 1; len(f.writes) > want {
			t.Errorf("pieces of %d: %d writes, want at most %d", size, len(f.writes), want)
		}
		b := make([]byte, 10)
		if n, err := w.ReadAt(b, w.Size()-3); n != 3 || err != io.EOF {
			t.Errorf("ReadAt near the end = %d, %v, want 3, EOF", n, err)
		}
		if n, err := w.ReadAt(b, w.Size()); n != 0 || err != io.EOF {
			t.Errorf("ReadAt at the end = %d, %v, want 0, EOF", n, err)
		}
	}
}

func sum(ns []int) (total int) {
	for _, n := range ns {
		total += n
	}
	return total
}

func TestLayerWriterMap(t *testing.T) {
	w, err := NewLayerWriter(new(memFile), 10*grain+512)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(make([]byte, 8*grain+1)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name            string
		stream, disk, n int64
		ok              bool
	}{
		{"first", 2, 4, 2, true},
		{"disk grain again", 5, 5, 1, false},
		{"overlap from below", 5, 3, 2, false},
		{"stream grain again", 3, 8, 1, false},
		{"nothing", 5, 8, 0, false},
		{"negative number", 5, 8, -1, false},
		{"huge number", 5, 8, 1 << 62, false},
		{"negative stream grain", -1, 8, 1, false},
		{"negative disk grain", 5, -1, 1, false},
		{"past the stream", 8, 8, 2, false},
		{"far past the stream", 1 << 62, 8, 1, false},
		{"past the disk", 5, 10, 2, false},
		{"short last grains of both", 8, 10, 1, true},
		{"below the first", 0, 2, 2, true},
		{"what a refused call asked for", 4, 3, 1, false},
		{"what no call got", 4, 6, 2, true},
	} {
		if err := w.Map(c.stream, c.disk, c.n); (err == nil) != c.ok {
			t.Errorf("%s: Map(%d, %d, %d) = %v", c.name, c.stream, c.disk, c.n, err)
		}
	}
	if err := w.WriteGrain(0, make([]byte, grain-1)); err == nil {
		t.Error("WriteGrain took less than a grain")
	}
	if err := w.WriteGrain(4, make([]byte, grain)); err == nil {
		t.Error("WriteGrain took a disk grain that was mapped")
	}
}

func TestNewLayerWriterCapacity(t *testing.T) {
	for _, c := range []struct {
		capacity int64
		ok       bool
	}{{0, false}, {-512, false}, {511, false}, {513, false}, {512, true}, {64 << 30, true}, {32 << 40, true}, {32<<40 + 512, false}} {
		_, err := NewLayerWriter(new(memFile), c.capacity)
		if (err == nil) != c.ok {
			t.Errorf("NewLayerWriter of %d bytes: %v", c.capacity, err)
		}
	}
}

// punchFile is a File that gives storage back.
type punchFile struct{ *os.File }

func (f punchFile) PunchHole(off, n int64) error {
	return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

// noPunchFile has the method but cannot do it, as on a file system without holes.
type noPunchFile struct{ *memFile }

func (noPunchFile) PunchHole(off, n int64) error { return errors.ErrUnsupported }

func TestLayerWriterZero(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		name string
		file File
	}{
		{"without holes", new(memFile)},
		{"holes not supported", noPunchFile{new(memFile)}},
		{"with holes", punchFile{createFile(t, filepath.Join(dir, "a"))}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, err := NewLayerWriter(c.file, 1<<30)
			if err != nil {
				t.Fatal(err)
			}
			data := pattern(4<<20+100, "data")
			if _, err := w.Write(data); err != nil {
				t.Fatal(err)
			}
			size := w.Size()
			for _, z := range []struct{ off, n int64 }{
				{0, 0}, {size, 0}, {4096, 4096}, {100, 1}, {1<<20 - 4096, 2 << 20}, // in the file
				{size - 4096, 4000},                          // in the buffer
				{4<<20 - grain - 8192, 16384}, {size - 1, 1}, // in both
			} {
				if err := w.Zero(z.off, z.n); err != nil {
					t.Fatal(err)
				}
				clear(data[z.off : z.off+z.n])
			}
			for _, z := range []struct{ off, n int64 }{{-1, 1}, {0, -1}, {0, size + 1}, {size + 1, 0}, {1, 1<<63 - 1}} {
				if err := w.Zero(z.off, z.n); err == nil {
					t.Errorf("Zero(%d, %d) succeeded", z.off, z.n)
				}
			}
			got := make([]byte, len(data))
			if _, err := w.ReadAt(got, 0); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, data) {
				t.Error("the stream is not zero where it should be, or is where it should not")
			}
		})
	}
}

func TestLayerWriterZeroFreesStorage(t *testing.T) {
	f := punchFile{createFile(t, filepath.Join(t.TempDir(), "a"))}
	w, err := NewLayerWriter(f, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(pattern(8<<20, "data")); err != nil {
		t.Fatal(err)
	}
	before := blocks(t, f.File)
	if err := w.Zero(0, 4<<20); err != nil {
		t.Fatal(err)
	}
	if freed := before - blocks(t, f.File); freed < 4<<20 {
		t.Errorf("%d bytes freed, want %d", freed, 4<<20)
	}
}

// blocks returns the storage of a file in bytes.
func blocks(t *testing.T, f *os.File) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

// TestLayerWriterUnfinished: until Finish succeeded there is no disk.
func TestLayerWriterUnfinished(t *testing.T) {
	f := new(memFile)
	w, err := NewLayerWriter(f, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.WriteGrain(0, make([]byte, grain)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(make([]byte, 2<<20)); err != nil {
		t.Fatal(err)
	}
	_, err = OpenExtent(f, int64(len(f.b)))
	wantFormatError(t, err, "magic")
	f.limit = int64(len(f.b)) + 1
	for range 2 {
		if err := w.Finish(); !errors.Is(err, errFull) {
			t.Errorf("Finish on a full disk: %v", err)
		}
		f.limit = 0 // space comes back; the writer stays failed
	}
	if _, err := w.Write([]byte{1}); !errors.Is(err, errFull) {
		t.Errorf("Write after an error: %v", err)
	}
	_, err = OpenExtent(f, int64(len(f.b)))
	wantFormatError(t, err, "magic")
}

func TestLayerWriterSpentAfterFinish(t *testing.T) {
	f := new(memFile)
	w, err := NewLayerWriter(f, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Finish(); err != nil { // a layer may be empty
		t.Fatal(err)
	}
	if err := f.extent(t).Check(); err != nil {
		t.Error(err)
	}
	if _, err := w.Write(nil); err == nil {
		t.Error("Write succeeded after Finish")
	}
	if err := w.Map(0, 0, 1); err == nil {
		t.Error("Map succeeded after Finish")
	}
	if err := w.Finish(); err == nil {
		t.Error("Finish succeeded twice")
	}
}

// TestLayerWriterDeterministic: the same stream and map give the same file,
// however the stream came and in whatever order it was mapped.
func TestLayerWriterDeterministic(t *testing.T) {
	data := pattern(9<<20, "same")
	var want [32]byte
	for seed := range uint64(4) {
		r := rand.New(rand.NewPCG(seed, 0))
		f := new(memFile)
		w, err := NewLayerWriter(f, 4<<30)
		if err != nil {
			t.Fatal(err)
		}
		for p := data; len(p) > 0; {
			n := min(len(p), 1+r.IntN(3<<20))
			if _, err := w.Write(p[:n]); err != nil {
				t.Fatal(err)
			}
			p = p[n:]
		}
		for _, i := range r.Perm(len(data) / grain) {
			if err := w.Map(int64(i), int64(i*i), 1); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Finish(); err != nil {
			t.Fatal(err)
		}
		got := sha256.Sum256(f.b)
		if seed == 0 {
			want = got
		} else if got != want {
			t.Errorf("seed %d gives another file", seed)
		}
	}
}
