package vmdk

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/zlib"
)

// grainMarker precedes a compressed grain.
const grainMarker = 12

// An inflatedGrain is the grain that was decompressed last.
type inflatedGrain struct {
	grain int64
	data  []byte // a whole grain; never changed
}

var inflaters sync.Pool // of io.ReadCloser that are zlib.Resetter

// readCompressed fills p from byte in of the extent, inside the grain whose
// marker is at sector lba.
func (e *Extent) readCompressed(p []byte, in, lba int64) error {
	g := in / e.grain
	last := e.inflated.Load()
	if last == nil || last.grain != g {
		data, err := e.inflate(g, lba)
		if err != nil {
			return err
		}
		last = &inflatedGrain{g, data}
		e.inflated.Store(last)
	}
	copy(p, last.data[in-g*e.grain:])
	return nil
}

// readMarker reads the marker of grain g at sector lba and returns the number
// of compressed bytes that follow it.
func (e *Extent) readMarker(g, lba int64) (int64, error) {
	off := lba * SectorSize
	if off+grainMarker > e.size {
		return 0, formatErrorf(off, "grain marker", "past the end of the file")
	}
	var marker [grainMarker]byte
	if err := readFull(e.r, marker[:], off); err != nil {
		return 0, fmt.Errorf("read marker of grain %d: %w", g, err)
	}
	first, n := binary.LittleEndian.Uint64(marker[:]), int64(binary.LittleEndian.Uint32(marker[8:]))
	if first != uint64(g)*e.h.grainSize {
		return 0, formatErrorf(off, "grain marker", "of disk sector %d, want %d", first, uint64(g)*e.h.grainSize)
	}
	// Data that does not compress grows a little; QEMU reads up to two grains.
	if n == 0 || n > 2*e.grain || n > e.size-off-grainMarker {
		return 0, formatErrorf(off+8, "compressed size", "%d bytes for a grain of %d, %d left in the file", n, e.grain, e.size-off-grainMarker)
	}
	return n, nil
}

// inflate reads and decompresses grain g. The last grain of an extent may be
// stored short; the rest is zeros.
func (e *Extent) inflate(g, lba int64) ([]byte, error) {
	n, err := e.readMarker(g, lba)
	if err != nil {
		return nil, err
	}
	off := lba * SectorSize
	b := make([]byte, n)
	if err := readFull(e.r, b, off+grainMarker); err != nil {
		return nil, fmt.Errorf("read compressed grain %d: %w", g, err)
	}
	data := make([]byte, e.grain)
	m, err := inflateInto(data, b)
	if err != nil {
		return nil, formatErrorf(off+grainMarker, "compressed grain", "%v", err)
	}
	if need := min(e.grain, e.Capacity()-g*e.grain); int64(m) < need {
		return nil, formatErrorf(off+grainMarker, "compressed grain", "has %d bytes, want %d", m, need)
	}
	return data, nil
}

// inflateInto decompresses b and returns how much of dst it filled.
func inflateInto(dst, b []byte) (int, error) {
	src := bytes.NewReader(b)
	z, _ := inflaters.Get().(io.ReadCloser)
	var err error
	if z == nil {
		z, err = zlib.NewReader(src)
	} else {
		err = z.(zlib.Resetter).Reset(src, nil)
	}
	if err != nil {
		return 0, err
	}
	n, err := io.ReadFull(z, dst)
	switch err {
	case io.EOF, io.ErrUnexpectedEOF:
		// Either the stream is over, its checksum right, or b is cut short.
		if _, err = z.Read(make([]byte, 1)); err == io.EOF {
			err = nil
		}
	case nil:
		var more [1]byte
		var m int
		if m, err = z.Read(more[:]); m != 0 {
			err = fmt.Errorf("more than a grain")
		} else if err == io.EOF {
			err = nil
		}
	}
	if err == nil {
		inflaters.Put(z)
	}
	return n, err
}
