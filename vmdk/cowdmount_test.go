package vmdk

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"vic/bench/oracle"
)

// TestCOWDMount has the kernel mount what a chain of COWD over a flat disk holds: a file
// system, and in the delta what a file written to it has changed.
func TestCOWDMount(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	oracle.Need(t, "mke2fs", "debugfs", "e2fsck", "qemu-img", "mount")
	const capacity = 24 << 20
	dir := t.TempDir()
	files := filepath.Join(dir, "files")
	if err := os.Mkdir(files, 0o755); err != nil {
		t.Fatal(err)
	}
	old, added := pattern(3<<20, "old"), pattern(2<<20+77, "added")
	for name, p := range map[string][]byte{"files/old": old, "added": added} {
		if err := os.WriteFile(filepath.Join(dir, name), p, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	raw := filepath.Join(dir, "raw")
	tool(t, "mke2fs", "-q", "-t", "ext4", "-d", files, raw, "24M")
	before, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	tool(t, "debugfs", "-w", "-R", "write "+filepath.Join(dir, "added")+" added", raw)
	after, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}

	base := memDisk(t, capacity)
	if err := openDisk(t, []Link{{Descriptor: flatDescriptor(capacity), Extents: []*Extent{OpenFlat(bytes.NewReader(before), capacity)}}}).CopyTo(openDisk(t, base), 4096); err != nil {
		t.Fatal(err)
	}
	d := openDisk(t, memDisk(t, capacity, base...))
	for off := 0; off < capacity; off += 4096 {
		if p := after[off : off+4096]; !bytes.Equal(p, before[off:off+4096]) {
			if _, err := d.WriteAt(p, int64(off)); err != nil {
				t.Fatal(err)
			}
		}
	}
	flat := writeFlat(t, dir, "base", below(t, d, 1))
	writeCOWD(t, dir, "delta", flat, "base.vmdk", newCOWD(t, d, 1))

	out := filepath.Join(dir, "out")
	tool(t, "qemu-img", "convert", "-f", "vmdk", "-O", "raw", filepath.Join(dir, "delta.vmdk"), out)
	tool(t, "e2fsck", "-fn", out)
	mnt := t.TempDir()
	tool(t, "mount", "-t", "ext4", "-o", "loop,ro", out, mnt)
	defer func() {
		if out, err := exec.Command("umount", mnt).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	}()
	for name, want := range map[string][]byte{"old": old, "added": added} {
		if got, err := os.ReadFile(filepath.Join(mnt, name)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %v, or other bytes", name, err)
		}
	}
}
