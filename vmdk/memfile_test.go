package vmdk

import (
	"errors"
	"io"
	"testing"
)

// A memFile is a File in memory that knows how it was used.
type memFile struct {
	b      []byte
	limit  int64 // writes that would make it longer than this fail; 0 is no limit
	writes []int // lengths, in order
}

var errFull = errors.New("no space left on memFile")

func (f *memFile) ReadAt(p []byte, off int64) (int, error) {
	if off >= int64(len(f.b)) {
		return 0, io.EOF
	}
	n := copy(p, f.b[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memFile) WriteAt(p []byte, off int64) (int, error) {
	if end := off + int64(len(p)); end > int64(len(f.b)) {
		if f.limit > 0 && end > f.limit {
			return 0, errFull
		}
		f.b = append(f.b, make([]byte, end-int64(len(f.b)))...)
	}
	f.writes = append(f.writes, len(p))
	return copy(f.b[off:], p), nil
}

func (f *memFile) Truncate(size int64) error {
	if size < int64(len(f.b)) {
		f.b = f.b[:size]
	} else {
		f.b = append(f.b, make([]byte, size-int64(len(f.b)))...)
	}
	return nil
}

// extent opens what f holds.
func (f *memFile) extent(t testing.TB) *Extent {
	t.Helper()
	e, err := OpenExtent(f, int64(len(f.b)))
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// memDisk makes an empty disk, or a delta over parent, that can be written.
func memDisk(t testing.TB, capacity int64, parent ...Link) []Link {
	t.Helper()
	f := new(memFile)
	if err := CreateExtent(f, capacity); err != nil {
		t.Fatal(err)
	}
	return append([]Link{{Descriptor: memDescriptor(capacity, parent), Extents: []*Extent{f.extent(t)}}}, parent...)
}

func memDescriptor(capacity int64, parent []Link) *Descriptor {
	cid := uint32(len(parent) + 1)
	if len(parent) > 0 {
		return parent[0].Descriptor.Child("x-delta.vmdk", "parent.vmdk", cid)
	}
	return NewDescriptor("x-delta.vmdk", capacity, cid)
}
