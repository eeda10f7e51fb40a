package vmdk

import (
	"bytes"
	"fmt"
	"io"
)

// CopyTo writes what the chain shows to dst, which reads as zeros: pieces of unit bytes, a
// power of two, that are all zeros are left out.
func (d *Disk) CopyTo(dst io.WriterAt, unit int64) error {
	zeros := make([]byte, unit)
	buf := make([]byte, max(unit, 1<<20))
	var done int64 // the disk is copied up to here
	for r, err := range d.Runs(0) {
		if err != nil {
			return fmt.Errorf("copy disk: %w", err)
		}
		// Whole units, of which a run may have parts only.
		off, end := max(done, r.Off/unit*unit), min(roundUp(r.Off+r.Len, unit), d.capacity)
		for ; off < end; off += int64(len(buf)) {
			p := buf[:min(int64(len(buf)), end-off)]
			if _, err := d.ReadAt(p, off); err != nil {
				return fmt.Errorf("copy disk: %w", err)
			}
			if err := writeData(dst, p, off, zeros); err != nil {
				return fmt.Errorf("copy disk: write at byte %d: %w", off, err)
			}
		}
		done = end
	}
	return nil
}

// writeData writes the pieces of p, each as long as zeros, that are not zeros, neighbours
// at once.
func writeData(dst io.WriterAt, p []byte, off int64, zeros []byte) error {
	for i := 0; i < len(p); {
		j := i
		for j < len(p) {
			q := p[j:min(j+len(zeros), len(p))]
			if bytes.Equal(q, zeros[:len(q)]) {
				break
			}
			j += len(q)
		}
		if j > i {
			if _, err := dst.WriteAt(p[i:j], off+int64(i)); err != nil {
				return err
			}
			i = j
		} else {
			i += min(len(zeros), len(p)-i)
		}
	}
	return nil
}

// WriteMonolithic makes f a disk in one file, descriptor and all, that shows what the chain
// shows, has no parent, and may be written. name is what the file is called, for the
// descriptor. What f held is lost. After an error f is not a disk.
func (d *Disk) WriteMonolithic(f File, name string, cid uint32) error {
	desc := NewDescriptor(name, d.capacity, cid)
	desc.CreateType = "monolithicSparse"
	text, err := embedded(desc)
	if err != nil {
		return err
	}
	size, err := createExtent(f, d.capacity, text)
	if err != nil {
		return err
	}
	e, err := OpenExtent(f, size)
	if err != nil {
		return err
	}
	to, err := OpenDisk([]Link{{Extents: []*Extent{e}}})
	if err != nil {
		return err
	}
	return d.CopyTo(to, DefaultGrainSize)
}

// embedded returns a descriptor as it stands in an extent file: with room for changes, since
// QEMU rewrites 20 sectors at once.
func embedded(desc *Descriptor) ([]byte, error) {
	text, err := desc.Marshal()
	if err != nil {
		return nil, err
	}
	if len(text) >= headLimit {
		return nil, formatErrorf(-1, "descriptor", "%d bytes, %d have room in the file", len(text), headLimit)
	}
	return append(text, make([]byte, headLimit-len(text))...), nil
}
