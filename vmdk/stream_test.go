package vmdk

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"

	"vic/bench/oracle"

	govmdk "github.com/vmware/govmomi/vmdk"
)

// sampleChain returns a disk of two links and a raw file with what it shows.
func sampleChain(t testing.TB, dir string, capacity int64) (*Disk, string) {
	t.Helper()
	raw := rawSample(t, dir, capacity)
	b, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	base := memDisk(t, capacity)
	if err := openDisk(t, []Link{{Descriptor: flatDescriptor(capacity), Extents: []*Extent{OpenFlat(bytes.NewReader(b), capacity)}}}).CopyTo(openDisk(t, base), 4096); err != nil {
		t.Fatal(err)
	}
	top := openDisk(t, memDisk(t, capacity, base...))
	f, err := os.OpenFile(raw, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, w := range []struct {
		p   []byte
		off int64
	}{
		{pattern(3*grain+100, "top"), 7*grain + 5},
		{make([]byte, 20*grain), 20 * grain}, // zeros over data
		{pattern(10, "end"), capacity - 10},
	} {
		for _, dst := range []io.WriterAt{top, f} {
			if _, err := dst.WriteAt(w.p, w.off); err != nil {
				t.Fatal(err)
			}
		}
	}
	return top, raw
}

func flatDescriptor(capacity int64) *Descriptor {
	d := NewDescriptor("x", capacity, 7)
	d.Extents[0].Type = "FLAT"
	return d
}

func TestWriteStream(t *testing.T) {
	oracle.Need(t, "qemu-img")
	for _, capacity := range []int64{70 << 20, 33<<20 + 5*SectorSize} {
		t.Run(fmt.Sprint(capacity), func(t *testing.T) {
			dir := t.TempDir()
			d, raw := sampleChain(t, dir, capacity)
			var b bytes.Buffer
			if err := d.WriteStream(&b, "disk.vmdk", 0xabc); err != nil {
				t.Fatal(err)
			}
			name := filepath.Join(dir, "disk.vmdk")
			if err := os.WriteFile(name, b.Bytes(), 0o666); err != nil {
				t.Fatal(err)
			}
			tool(t, "qemu-img", "check", "-f", "vmdk", name)
			qemuSame(t, name, raw)
			var info struct {
				Specific struct {
					Data struct {
						CreateType string `json:"create-type"`
					} `json:"data"`
				} `json:"format-specific"`
				Size int64 `json:"virtual-size"`
			}
			if err := json.Unmarshal(tool(t, "qemu-img", "info", "--output=json", "-f", "vmdk", name), &info); err != nil {
				t.Fatal(err)
			}
			if info.Size != capacity || info.Specific.Data.CreateType != "streamOptimized" {
				t.Errorf("qemu-img info: %+v", info)
			}
			if v, err := govmdk.Stat(name); err != nil || v.Capacity != capacity {
				t.Errorf("govmomi: %+v, %v", v, err)
			}
			links := openChain(t, name, os.O_RDONLY)
			if err := Check(links); err != nil {
				t.Error(err)
			}
			sameAsRaw(t, openDisk(t, links), raw)

			if bound, err := d.StreamBound(); err != nil || int64(b.Len()) > bound {
				t.Errorf("%d bytes, the bound is %d, %v", b.Len(), bound, err)
			}

			var again bytes.Buffer
			if err := d.WriteStream(&again, "disk.vmdk", 0xabc); err != nil || !bytes.Equal(b.Bytes(), again.Bytes()) {
				t.Errorf("written again: %v, or other bytes", err)
			}
			for _, n := range []int{0, 600, 70_000, b.Len() - 1} {
				if err := d.WriteStream(&shortWriter{n}, "disk.vmdk", 0xabc); !errors.Is(err, errFull) {
					t.Errorf("with room for %d bytes: %v", n, err)
				}
			}
		})
	}
}

// TestStreamBound: nothing compresses, and the bound is met but for what zlib puts
// around a grain.
func TestStreamBound(t *testing.T) {
	const capacity = 100<<20 + 3*SectorSize
	noise := make([]byte, 40*grain)
	r := rand.New(rand.NewPCG(5, 6))
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	links := memDisk(t, capacity)
	d := openDisk(t, links)
	// Over the borders of grain tables, in two disks, and in the short last grain.
	for _, off := range []int64{0, 500 * grain, 1024*grain + 5} {
		if _, err := d.WriteAt(noise, off); err != nil {
			t.Fatal(err)
		}
	}
	d = openDisk(t, memDisk(t, capacity, links...))
	for _, off := range []int64{490*grain + 7, capacity - int64(len(noise))} {
		if _, err := d.WriteAt(noise, off); err != nil {
			t.Fatal(err)
		}
	}
	bound, err := d.StreamBound()
	if err != nil {
		t.Fatal(err)
	}
	var n countingWriter
	if err := d.WriteStream(&n, "x", 1); err != nil {
		t.Fatal(err)
	}
	if int64(n) > bound || int64(n) < bound-2*grain { // two grains have a few bytes
		t.Errorf("%d bytes, the bound is %d", n, bound)
	}
	empty, err := openDisk(t, memDisk(t, capacity)).StreamBound()
	if err != nil {
		t.Fatal(err)
	}
	n = 0
	if err := openDisk(t, memDisk(t, capacity)).WriteStream(&n, "x", 1); err != nil || int64(n) != empty {
		t.Errorf("an empty disk: %d bytes, the bound is %d, %v", n, empty, err)
	}
}

type countingWriter int64

func (w *countingWriter) Write(p []byte) (int, error) {
	*w += countingWriter(len(p))
	return len(p), nil
}

// TestWriteStreamConcurrently: any number of processors gives the same bytes, and none keeps
// compressing after an error.
func TestWriteStreamConcurrently(t *testing.T) {
	d, _ := sampleChain(t, t.TempDir(), 9<<20+5*SectorSize)
	var want bytes.Buffer
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	for _, n := range []int{1, 2, 7, 40} {
		runtime.GOMAXPROCS(n)
		var b bytes.Buffer
		if err := d.WriteStream(&b, "x", 1); err != nil {
			t.Fatal(err)
		}
		if n == 1 {
			want = b
		}
		if !bytes.Equal(b.Bytes(), want.Bytes()) {
			t.Errorf("with %d processors: other bytes", n)
		}
		synctest.Test(t, func(t *testing.T) { // which fails if a goroutine stays
			if err := d.WriteStream(&shortWriter{200_000}, "x", 1); !errors.Is(err, errFull) {
				t.Error(err)
			}
		})
	}
}

// TestWriteStreamEmpty: a disk without data is a valid one.
func TestWriteStreamEmpty(t *testing.T) {
	oracle.Need(t, "qemu-img")
	dir := t.TempDir()
	name, raw := filepath.Join(dir, "disk.vmdk"), filepath.Join(dir, "raw")
	var b bytes.Buffer
	if err := openDisk(t, memDisk(t, 64<<30)).WriteStream(&b, "disk.vmdk", 5); err != nil {
		t.Fatal(err)
	}
	if b.Len() > 100_000 {
		t.Errorf("%d bytes", b.Len())
	}
	if err := os.WriteFile(name, b.Bytes(), 0o666); err != nil {
		t.Fatal(err)
	}
	if err := createFile(t, raw).Truncate(64 << 30); err != nil {
		t.Fatal(err)
	}
	tool(t, "qemu-img", "check", "-f", "vmdk", name)
	qemuSame(t, name, raw)
}

type shortWriter struct{ left int }

func (w *shortWriter) Write(p []byte) (int, error) {
	if w.left -= len(p); w.left < 0 {
		return 0, errFull
	}
	return len(p), nil
}

func TestWriteMonolithic(t *testing.T) {
	oracle.Need(t, "qemu-img")
	oracle.Need(t, "qemu-io")
	for _, capacity := range []int64{70 << 20, 33<<20 + 5*SectorSize} {
		t.Run(fmt.Sprint(capacity), func(t *testing.T) {
			dir := t.TempDir()
			d, raw := sampleChain(t, dir, capacity)
			name := filepath.Join(dir, "disk.vmdk")
			f := createFile(t, name)
			if err := d.WriteMonolithic(f, "disk.vmdk", 0xabc); err != nil {
				t.Fatal(err)
			}
			tool(t, "qemu-img", "check", "-f", "vmdk", name)
			qemuSame(t, name, raw)
			if v, err := govmdk.ParseDescriptor(strings.NewReader(string(tool(t, "dd", "status=none", "if="+name, "bs=512", "skip=1", "count=20")))); err != nil || v.Type != "monolithicSparse" {
				t.Errorf("govmomi: %+v, %v", v, err)
			}
			links := openChain(t, name, os.O_RDONLY)
			if err := Check(links); err != nil {
				t.Error(err)
			}
			sameAsRaw(t, openDisk(t, links), raw)
			// It may be written.
			for file, format := range map[string]string{name: "vmdk", raw: "raw"} {
				tool(t, "qemu-io", "-f", format, "-c", "write -P 7 1M 300k", "-c", "write -P 8 0 1k", file)
			}
			qemuSame(t, name, raw)
			if err := d.WriteMonolithic(&memFile{limit: 1 << 20}, "disk.vmdk", 0xabc); !errors.Is(err, errFull) && capacity > 64<<20 {
				t.Errorf("on a full datastore: %v", err)
			}
			wantFormatError(t, d.WriteMonolithic(new(memFile), "a\"b", 0xabc), "extent")
		})
	}
}

// TestCopyTo: a raw copy has no more data than the disk.
func TestCopyTo(t *testing.T) {
	const capacity = 70 << 20
	dir := t.TempDir()
	d, raw := sampleChain(t, dir, capacity)
	for _, unit := range []int64{512, 4096, 64 << 10, 2 << 20} {
		f := &memFile{}
		if err := d.CopyTo(f, unit); err != nil {
			t.Fatal(err)
		}
		want, err := os.ReadFile(raw)
		if err != nil {
			t.Fatal(err)
		}
		if n := len(f.b); !bytes.Equal(f.b, want[:n]) || !bytes.Equal(want[n:], make([]byte, len(want)-n)) {
			t.Errorf("unit %d: other data", unit)
		}
		var written, data int64
		for _, n := range f.writes {
			written += int64(n)
		}
		for off := int64(0); off < capacity; off += unit {
			if p := want[off:min(off+unit, capacity)]; !bytes.Equal(p, make([]byte, len(p))) {
				data += int64(len(p))
			}
		}
		if written != data {
			t.Errorf("unit %d: %d bytes written, %d are in units with data", unit, written, data)
		}
	}
}
