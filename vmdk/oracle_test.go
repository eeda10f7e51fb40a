package vmdk

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"vic/bench/oracle"
)

// tool runs a program that must succeed, and returns what it printed.
func tool(t testing.TB, name string, args ...string) []byte {
	t.Helper()
	oracle.Need(t, name)
	cmd := exec.CommandContext(t.Context(), name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s%s", name, args, err, out, stderr.Bytes())
	}
	return out
}

// toolFails runs a program that must fail.
func toolFails(t testing.TB, name string, args ...string) {
	t.Helper()
	oracle.Need(t, name)
	if out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err == nil {
		t.Fatalf("%s %q succeeded:\n%s", name, args, out)
	}
}

// qemuSame asks QEMU whether the VMDK at disk reads like the raw file.
func qemuSame(t testing.TB, disk, raw string) {
	t.Helper()
	tool(t, "qemu-img", "compare", "-q", "-f", "vmdk", "-F", "raw", disk, raw)
}

// qemuMap is one line of qemu-img map.
type qemuMap struct {
	Start, Length int64
	Depth         int
	Present       bool
	Zero, Data    bool
}

func qemuMapOf(t testing.TB, disk string) []qemuMap {
	t.Helper()
	var m []qemuMap
	if err := json.Unmarshal(tool(t, "qemu-img", "map", "--output=json", "-f", "vmdk", disk), &m); err != nil {
		t.Fatal(err)
	}
	return m
}

// createFile makes a file that lives as long as the test.
func createFile(t testing.TB, name string) *os.File {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func writeDescriptor(t testing.TB, name string, d *Descriptor) {
	t.Helper()
	b, err := d.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, b, 0o666); err != nil {
		t.Fatal(err)
	}
}

// openLink opens one disk by the name of its descriptor, or of the extent file
// that has it embedded, as a caller of this package would.
func openLink(t testing.TB, name string, flag int) Link {
	t.Helper()
	l, err := tryOpenLink(t, name, flag)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func tryOpenLink(t testing.TB, name string, flag int) (Link, error) {
	t.Helper()
	open := func(name string) (*os.File, int64) {
		f, err := os.OpenFile(name, flag, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		fi, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		return f, fi.Size()
	}
	var magic [4]byte
	f, size := open(name)
	if _, err := f.ReadAt(magic[:], 0); err != nil {
		t.Fatal(err)
	}
	if string(magic[:]) == "KDMV" {
		e, err := OpenExtent(f, size)
		return Link{Extents: []*Extent{e}}, err
	}
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	d, err := ParseDescriptor(b)
	if err != nil {
		return Link{}, err
	}
	l := Link{Descriptor: d}
	for _, x := range d.Extents {
		if x.Type == "ZERO" {
			continue
		}
		f, size := open(filepath.Join(filepath.Dir(name), x.File))
		e := OpenFlat(f, size)
		if x.Type == "SPARSE" || x.Type == "VMFSSPARSE" {
			if e, err = OpenExtent(f, size); err != nil {
				return Link{}, err
			}
		}
		l.Extents = append(l.Extents, e)
	}
	return l, nil
}

// openChain opens a disk and its parents, going by the hints.
func openChain(t testing.TB, name string, flag int) []Link {
	t.Helper()
	l := openLink(t, name, flag)
	d := l.Descriptor
	if d == nil {
		d = l.Extents[0].Descriptor()
	}
	if d == nil || d.ParentFileNameHint == "" {
		return []Link{l}
	}
	return append([]Link{l}, openChain(t, filepath.Join(filepath.Dir(name), d.ParentFileNameHint), os.O_RDONLY)...)
}

func openDisk(t testing.TB, links []Link) *Disk {
	t.Helper()
	d, err := OpenDisk(links)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// sameAsRaw compares a disk with a raw file through ReadAt, in pieces of an odd
// size.
func sameAsRaw(t testing.TB, d *Disk, raw string) {
	t.Helper()
	f, err := os.Open(raw)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got, want := make([]byte, 3<<20+12345), make([]byte, 3<<20+12345)
	for off := int64(0); off < d.Capacity(); off += int64(len(got)) {
		n := min(int64(len(got)), d.Capacity()-off)
		if m, err := d.ReadAt(got[:n], off); int64(m) != n || err != nil {
			t.Fatalf("ReadAt(%d bytes, %d) = %d, %v", n, off, m, err)
		}
		clear(want)
		if _, err := f.ReadAt(want[:n], off); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got[:n], want[:n]) {
			for i := range got {
				if got[i] != want[i] {
					t.Fatalf("disk byte %d is %#x, want %#x", off+int64(i), got[i], want[i])
				}
			}
		}
	}
}

// pattern is data that says where it belongs.
func pattern(n int, tag string) []byte {
	var b bytes.Buffer
	for i := 0; b.Len() < n; i += 16 {
		fmt.Fprintf(&b, "%-7.7s%08x\n", tag, i)
	}
	return b.Bytes()[:n]
}
