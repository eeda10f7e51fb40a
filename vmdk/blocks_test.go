package vmdk

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"vic/bench/oracle"
)

// TestBlocks writes blocks over what shows the disks below, as ESXi's child of their top does.
func TestBlocks(t *testing.T) {
	for _, capacity := range []int64{70 << 20, 33<<20 + 5*SectorSize} {
		dir := t.TempDir()
		d, raw := sampleChain(t, dir, capacity)
		want, err := os.ReadFile(raw)
		if err != nil {
			t.Fatal(err)
		}
		for top := 1; top <= d.Depth(); top++ {
			held := make([]bool, capacity/SectorSize+1) // sectors that the disks below store
			for _, r := range runsOf(t, below(t, d, top), 0) {
				for i := range r.Len / SectorSize {
					held[r.Off/SectorSize+i] = true
				}
			}
			under := make([]byte, capacity)
			if _, err := below(t, d, top).ReadAt(under, 0); err != nil {
				t.Fatal(err)
			}
			for _, unit := range []int64{512, 4096, 64 << 10, 2 << 20} {
				t.Run(fmt.Sprintf("%d/%d/%d", capacity, top, unit), func(t *testing.T) {
					device := bytes.Clone(under)
					var last int64
					for b, err := range d.Blocks(top, unit) {
						if err != nil {
							t.Fatal(err)
						}
						end := b.Off + int64(len(b.Data))
						if b.Off < last || b.Off%unit != 0 || end%unit != 0 && end != capacity || len(b.Data) == 0 || int64(len(b.Data)) > max(unit, blockBuffer) {
							t.Fatalf("block of %d bytes at %d, after one that ends at %d", len(b.Data), b.Off, last)
						}
						last = end
						for off := b.Off; off < end; off += unit {
							n := min(unit, end-off)
							if bytes.Equal(b.Data[off-b.Off:][:n], make([]byte, n)) && !slices.Contains(held[off/SectorSize:(off+n)/SectorSize], true) {
								t.Errorf("zeros over nothing at %d", off)
							}
						}
						copy(device[b.Off:], b.Data)
					}
					if !bytes.Equal(device, want) {
						t.Error("the device does not show the chain")
					}
				})
			}
		}
	}
}

// TestBlocksLoop writes a layer to a block device.
func TestBlocksLoop(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	oracle.Need(t, "losetup")
	oracle.Need(t, "qemu-img")
	const capacity = 70 << 20
	dir := t.TempDir()
	d, raw := sampleChain(t, dir, capacity)
	writeFlat(t, dir, "base", below(t, d, 1))
	file := filepath.Join(dir, "base-flat.vmdk")
	dev := strings.TrimSpace(string(tool(t, "losetup", "-f", "--show", file)))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "-d", dev).CombinedOutput(); err != nil {
			t.Errorf("losetup -d: %v: %s", err, out)
		}
	})
	f, err := os.OpenFile(dev, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for b, err := range d.Blocks(1, 4096) {
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(b.Data, b.Off); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	tool(t, "qemu-img", "compare", "-q", "-f", "raw", "-F", "raw", dev, raw)
	qemuSame(t, filepath.Join(dir, "base.vmdk"), raw)
}

// TestBlocksOfSmallGrains: units larger than the grains hold what the whole chain shows.
func TestBlocksOfSmallGrains(t *testing.T) {
	const capacity = 1 << 20
	base := memDisk(t, capacity)
	if _, err := openDisk(t, base).WriteAt(pattern(300<<10, "base"), 100<<10); err != nil {
		t.Fatal(err)
	}
	flat := make([]byte, 10*SectorSize)
	copy(flat, pattern(3*SectorSize, "mid"))
	top := base[0].Descriptor.Child("x", "y", 2)
	top.Extents = []ExtentLine{
		{Access: "RW", Sectors: 333, Type: "SPARSE", File: "a"},
		{Access: "RW", Sectors: 10, Type: "FLAT", File: "b"},
		{Access: "RW", Sectors: capacity/SectorSize - 343, Type: "SPARSE", File: "c"},
	}
	part := func(sectors int64) *Extent {
		f := new(memFile)
		if err := CreateExtent(f, sectors*SectorSize); err != nil {
			t.Fatal(err)
		}
		return f.extent(t)
	}
	d := openDisk(t, append([]Link{{top, []*Extent{part(333), OpenFlat(bytes.NewReader(flat), int64(len(flat))), part(capacity/SectorSize - 343)}}}, base...))
	want, got := make([]byte, capacity), make([]byte, capacity)
	if _, err := d.ReadAt(want, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := below(t, d, 1).ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	n := 0
	for b, err := range d.Blocks(1, 4096) {
		if err != nil {
			t.Fatal(err)
		}
		n += len(b.Data)
		copy(got[b.Off:], b.Data)
	}
	if !bytes.Equal(got, want) || n != 8192 { // sectors 333 to 343 are in two units
		t.Errorf("%d bytes written, or others than the chain shows", n)
	}
}

func TestBlocksErrors(t *testing.T) {
	f := sampleLayer(t)
	r := &failingReader{ReaderAt: f}
	e, err := OpenExtent(r, int64(len(f.b)))
	if err != nil {
		t.Fatal(err)
	}
	d := openDisk(t, []Link{{NewDescriptor("x", sampleCapacity, 1), []*Extent{e}}})
	n := 0
	for _, err := range d.Blocks(1, 4096) {
		n++
		if n == 1 && err == nil {
			r.err = errors.New("the cable is out")
			continue
		}
		if n > 2 || !errors.Is(err, r.err) {
			t.Fatalf("block %d: %v", n, err)
		}
	}
	if n != 2 {
		t.Errorf("%d blocks", n)
	}
	r.err = nil
	for range d.Blocks(1, 4096) {
		break
	}
	if err := d.CopyTo(&memFile{limit: 1000}, 4096); !errors.Is(err, errFull) {
		t.Errorf("CopyTo: %v", err)
	}
	r.err = io.EOF
	if err := d.CopyTo(new(memFile), 4096); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("CopyTo of a file that shrank: %v", err)
	}
}
