package vmdk

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"vic/bench/oracle"
)

// TestCreateExtentAsQEMU compares with what qemu-img creates: apart from its
// embedded descriptor, and the offsets that follow from it, the files agree.
func TestCreateExtentAsQEMU(t *testing.T) {
	oracle.Need(t, "qemu-img")
	dir := t.TempDir()
	for _, capacity := range []int64{512, 1 << 20, 32 << 20, 32<<20 + 512, 5 << 30, 64 << 30} {
		name := filepath.Join(dir, "qemu.vmdk")
		tool(t, "qemu-img", "create", "-q", "-f", "vmdk", name, fmt.Sprint(capacity))
		qemu := openLink(t, name, os.O_RDONLY).Extents[0]
		f := createFile(t, filepath.Join(dir, "ours"))
		if err := CreateExtent(f, capacity); err != nil {
			t.Fatal(err)
		}
		ours := openExtentFile(t, f)
		want := qemu.h
		want.descriptorOffset, want.descriptorSize = 0, 0
		want.rgdOffset, want.gdOffset = want.rgdOffset-20, want.gdOffset-20
		want.overHead = ours.h.overHead // checked below: it depends on rounding
		if ours.h != want {
			t.Errorf("capacity %d: header %+v, want %+v", capacity, ours.h, want)
		}
		for i := range qemu.gd {
			if ours.gd[i] != qemu.gd[i]-20 {
				t.Errorf("capacity %d: table %d at sector %d, of qemu-img at %d", capacity, i, ours.gd[i], qemu.gd[i])
			}
		}
		if end := uint64(ours.gd[len(ours.gd)-1]) + tableSectors; ours.h.overHead < end || ours.h.overHead-end >= 128 || ours.size != int64(ours.h.overHead)*SectorSize {
			t.Errorf("capacity %d: tables end at sector %d, overhead is %d, the file has %d bytes", capacity, end, ours.h.overHead, ours.size)
		}
		if err := ours.Check(); err != nil {
			t.Errorf("capacity %d: %v", capacity, err)
		}
		if err := qemu.Check(); err != nil {
			t.Errorf("capacity %d, by qemu-img: %v", capacity, err)
		}
		if n := blocks(t, f); n > 256<<10 {
			t.Errorf("capacity %d: the empty extent file takes %d bytes", capacity, n)
		}
	}
}

func openExtentFile(t testing.TB, f *os.File) *Extent {
	t.Helper()
	fi, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	e, err := OpenExtent(f, fi.Size())
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestCreateExtentErrors(t *testing.T) {
	for _, capacity := range []int64{-512, 0, 1, 32<<40 + 512} {
		wantFormatError(t, CreateExtent(new(memFile), capacity), "capacity")
	}
	f := &memFile{limit: 1}
	if err := CreateExtent(f, 1<<30); err != nil {
		t.Errorf("Truncate reserves all there is to write: %v", err)
	}
}

// newQEMUDisk makes an empty disk, or a delta over parent, and returns the name
// of its descriptor.
func newQEMUDisk(t testing.TB, dir, name string, capacity int64, parent string) string {
	t.Helper()
	if err := CreateExtent(createFile(t, filepath.Join(dir, name+"-delta.vmdk")), capacity); err != nil {
		t.Fatal(err)
	}
	writeDescriptor(t, filepath.Join(dir, name+".vmdk"), newDescriptor(t, dir, name, capacity, parent))
	return filepath.Join(dir, name+".vmdk")
}

func newDescriptor(t testing.TB, dir, name string, capacity int64, parent string) *Descriptor {
	t.Helper()
	if parent == "" {
		return NewDescriptor(name+"-delta.vmdk", capacity, CIDFor(name))
	}
	b, err := os.ReadFile(filepath.Join(dir, parent+".vmdk"))
	if err != nil {
		t.Fatal(err)
	}
	d, err := ParseDescriptor(b)
	if err != nil {
		t.Fatal(err)
	}
	return d.Child(name+"-delta.vmdk", parent+".vmdk", CIDFor(name))
}

// TestQEMUWritesOurs lets qemu-io write all over a disk from CreateExtent.
func TestQEMUWritesOurs(t *testing.T) {
	oracle.Need(t, "qemu-io")
	dir := t.TempDir()
	const capacity = 150<<20 + 7*SectorSize
	disk := newQEMUDisk(t, dir, "a", capacity, "")
	raw := make([]byte, capacity)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	args := []string{"-f", "vmdk", "-t", "unsafe"}
	for i := range 60 {
		off := r.Int64N(capacity/SectorSize-1) * SectorSize
		n := min((1+r.Int64N(600))*SectorSize, capacity-off)
		args = append(args, "-c", fmt.Sprintf("write -P %d %d %d", i+1, off, n))
		copy(raw[off:], bytes.Repeat([]byte{byte(i + 1)}, int(n)))
	}
	// The very last sector and a piece over the border of two tables.
	args = append(args, "-c", fmt.Sprintf("write -P 200 %d 512", capacity-512), "-c", fmt.Sprintf("write -P 201 %d 128k", 32<<20-grain))
	copy(raw[capacity-512:], bytes.Repeat([]byte{200}, 512))
	copy(raw[32<<20-grain:], bytes.Repeat([]byte{201}, 2*grain))
	tool(t, "qemu-io", append(args, disk)...)

	rawFile := filepath.Join(dir, "raw")
	if err := os.WriteFile(rawFile, raw, 0o666); err != nil {
		t.Fatal(err)
	}
	links := openChain(t, disk, os.O_RDONLY)
	if err := Check(links); err != nil {
		t.Error(err)
	}
	sameAsRaw(t, openDisk(t, links), rawFile)
	qemuSame(t, disk, rawFile)
	tool(t, "qemu-img", "check", "-f", "vmdk", disk)
	converted := filepath.Join(dir, "converted")
	tool(t, "qemu-img", "convert", "-f", "vmdk", "-O", "raw", disk, converted)
	got, err := os.ReadFile(converted)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, raw) {
		t.Error("qemu-img convert gives another disk")
	}
}
