package vmdk

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vic/bench/oracle"
)

// rawSample writes a raw file with data, zeros and holes, and what a grain may
// have of each.
func rawSample(t testing.TB, dir string, capacity int64) string {
	t.Helper()
	name := filepath.Join(dir, "sample.raw")
	f := createFile(t, name)
	if err := f.Truncate(capacity); err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 2))
	noise := make([]byte, 3*grain)
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	text := pattern(5*grain, "text")
	for i, off := 0, int64(0); off < capacity; i++ {
		p := noise
		if i%2 == 0 {
			p = text
		}
		p = p[:min(int64(len(p)), capacity-off)]
		p = p[:1+r.IntN(len(p))]
		if _, err := f.WriteAt(p, off); err != nil {
			t.Fatal(err)
		}
		off += int64(len(p)) + r.Int64N(40*grain)
	}
	if _, err := f.WriteAt([]byte("the end"), capacity-7); err != nil {
		t.Fatal(err)
	}
	return name
}

// TestReadQEMU reads every kind of VMDK that qemu-img writes.
func TestReadQEMU(t *testing.T) {
	oracle.Need(t, "qemu-img")
	for _, options := range []string{
		"subformat=monolithicSparse",
		"subformat=monolithicSparse,zeroed_grain=on",
		"subformat=monolithicFlat",
		"subformat=twoGbMaxExtentSparse",
		"subformat=twoGbMaxExtentFlat",
		"subformat=streamOptimized",
		"subformat=monolithicSparse,compat6=on,adapter_type=ide",
	} {
		for _, capacity := range []int64{70 << 20, 33<<20 + 5*SectorSize} {
			t.Run(fmt.Sprint(options, ",", capacity), func(t *testing.T) {
				t.Parallel()
				dir := t.TempDir()
				raw := rawSample(t, dir, capacity)
				disk := filepath.Join(dir, "disk.vmdk")
				tool(t, "qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", options, raw, disk)
				links := openChain(t, disk, os.O_RDONLY)
				if err := Check(links); err != nil {
					t.Error(err)
				}
				d := openDisk(t, links)
				if d.Capacity() != capacity || d.Depth() != 1 {
					t.Errorf("capacity %d, depth %d", d.Capacity(), d.Depth())
				}
				sameAsRaw(t, d, raw)
				if !strings.Contains(options, "Flat") {
					sameAsMap(t, d, disk)
				}
			})
		}
	}
}

// TestReadQEMUParts reads a disk of several extent files, a whole one and the
// rest, with data at the border.
func TestReadQEMUParts(t *testing.T) {
	oracle.Need(t, "qemu-io")
	for _, subformat := range []string{"twoGbMaxExtentSparse", "twoGbMaxExtentFlat"} {
		t.Run(subformat, func(t *testing.T) {
			dir := t.TempDir()
			disk := filepath.Join(dir, "disk.vmdk")
			tool(t, "qemu-img", "create", "-q", "-f", "vmdk", "-o", "subformat="+subformat, disk, "5G")
			tool(t, "qemu-io", "-f", "vmdk", "-c", "write -P 1 2147400k 200k", "-c", "write -P 2 4294960k 100k", "-c", "write -P 3 0 512", disk)
			links := openChain(t, disk, os.O_RDWR)
			if n := len(links[0].Extents); n != 3 {
				t.Fatalf("%d extent files, want 3", n)
			}
			d := openDisk(t, links)
			for _, c := range []struct {
				off  int64
				want byte
			}{{0, 3}, {511, 3}, {512, 0}, {2147400<<10 - 1, 0}, {2147400 << 10, 1}, {2147600<<10 - 1, 1}, {2147600 << 10, 0}, {4294960 << 10, 2}, {4295060<<10 - 1, 2}} {
				b := make([]byte, 1)
				if _, err := d.ReadAt(b, c.off); err != nil || b[0] != c.want {
					t.Errorf("byte %d is %d, %v, want %d", c.off, b[0], err, c.want)
				}
			}
			// And back: a write over both borders at once.
			p := bytes.Repeat([]byte{0x5a}, 300<<10)
			for _, off := range []int64{2<<30 - 150<<10, 4<<30 - 1} {
				if n, err := d.WriteAt(p, off); n != len(p) || err != nil {
					t.Fatalf("WriteAt(%d) = %d, %v", off, n, err)
				}
				got := make([]byte, len(p))
				if _, err := d.ReadAt(got, off); err != nil || !bytes.Equal(got, p) {
					t.Errorf("what was written at %d does not read back: %v", off, err)
				}
				out := tool(t, "qemu-io", "-r", "-f", "vmdk", "-c", fmt.Sprintf("read -P 0x5a %d %d", off, len(p)), disk)
				if !bytes.Contains(out, []byte("read 307200/307200")) || bytes.Contains(out, []byte("verification failed")) {
					t.Errorf("QEMU at %d: %s", off, out)
				}
			}
			if err := Check(links); err != nil {
				t.Error(err)
			}
		})
	}
}
