package vmdk

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
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
	back := make([]byte, len(data))
	if n, err := w.ReadAt(back, 0); n != len(data) || err != nil {
		t.Fatalf("ReadAt = %d, %v", n, err)
	}
	if !bytes.Equal(back, data) {
		t.Fatal("the stream does not read back")
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
	sameAsRaw(t, openDisk(t, openChain(t, top, os.O_RDONLY)), rawFile)
	qemuSame(t, top, rawFile)
	tool(t, "qemu-img", "check", "-f", "vmdk", top)
}
