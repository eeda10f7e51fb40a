package vsphere

import (
	"bytes"

	"vic/vmdk"
)

// probeCapacity is that of the disks that are tried.
const probeCapacity = 64 << 20

// probeDisk is a disk with some data, over an empty one: what images' disks are.
func probeDisk() (*vmdk.Disk, error) {
	var empty, data memory
	if err := vmdk.CreateExtent(&empty, probeCapacity); err != nil {
		return nil, err
	}
	w, err := vmdk.NewLayerWriter(&data, probeCapacity)
	if err != nil {
		return nil, err
	}
	grains := int64(probeCapacity / vmdk.DefaultGrainSize)
	for i, at := range []int64{0, 1, grains / 2, grains - 1} {
		if _, err := w.Write(bytes.Repeat([]byte{byte(i + 1)}, vmdk.DefaultGrainSize)); err != nil {
			return nil, err
		}
		if err := w.Map(int64(i), at, 1); err != nil {
			return nil, err
		}
	}
	if err := w.Finish(); err != nil {
		return nil, err
	}
	below := vmdk.NewDescriptor("empty", probeCapacity, vmdk.CIDFor("empty"))
	links := []vmdk.Link{{Descriptor: below.Child("data", "empty.vmdk", vmdk.CIDFor("data"))}, {Descriptor: below}}
	for i, f := range []*memory{&data, &empty} {
		e, err := vmdk.OpenExtent(f, int64(len(f.b)))
		if err != nil {
			return nil, err
		}
		links[i].Extents = []*vmdk.Extent{e}
	}
	return vmdk.OpenDisk(links)
}

// memory is a vmdk.File of a few hundred KiB.
type memory struct{ b []byte }

func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(m.b).ReadAt(p, off)
}

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	if end := off + int64(len(p)); end > int64(len(m.b)) {
		if err := m.Truncate(end); err != nil {
			return 0, err
		}
	}
	return copy(m.b[off:], p), nil
}

func (m *memory) Truncate(size int64) error {
	if size < int64(len(m.b)) {
		m.b = m.b[:size]
	} else {
		m.b = append(m.b, make([]byte, size-int64(len(m.b)))...)
	}
	return nil
}
