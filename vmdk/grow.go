package vmdk

import (
	"encoding/binary"
	"fmt"
)

// GrowExtent enlarges a hosted sparse extent file of size bytes, made by CreateExtent, to a
// capacity that must be a multiple of SectorSize and larger than before. New directories and
// tables, with what is in the old ones, come behind all grains; commit then writes the header,
// one sector, by which they are there. The caller syncs before commit and after. Until
// commit nothing that reads the file sees a change. Nothing else may write it meanwhile.
func GrowExtent(f File, size, capacity int64) (commit func() error, err error) {
	e, err := OpenExtent(f, size)
	if err != nil {
		return nil, err
	}
	h := e.h
	grown, err := newHeader(capacity)
	if err != nil {
		return nil, err
	}
	switch {
	case capacity <= e.Capacity():
		return nil, fmt.Errorf("grow extent of %d bytes to %d", e.Capacity(), capacity)
	case e.cowd != nil || e.isCompressed() || h.flags&flagRedundant == 0 || h.grainSize != grown.grainSize:
		return nil, formatErrorf(0x08, "flags", "%#x, grains of %d sectors: not made to be written", h.flags, h.grainSize)
	}
	h.capacity = grown.capacity
	n := h.numTables()
	dir := directorySectors(n)
	rgd := roundUp(size, e.grain) / SectorSize
	gd := rgd + dir + n*tableSectors
	end := roundUp(gd+dir+n*tableSectors, int64(h.grainSize))
	if end > maxSectors {
		return nil, formatErrorf(-1, "extent file", "tables up to byte %d, the format ends at 2 TiB", end*SectorSize)
	}
	h.rgdOffset, h.gdOffset = uint64(rgd), uint64(gd)
	if err := f.Truncate(end * SectorSize); err != nil {
		return nil, fmt.Errorf("reserve %d grain tables: %w", 2*n, err)
	}
	b := make([]byte, dir*SectorSize)
	for _, at := range []int64{rgd, gd} {
		for i := range n {
			binary.LittleEndian.PutUint32(b[4*i:], uint32(at+dir+i*tableSectors))
		}
		if _, err := f.WriteAt(b, at*SectorSize); err != nil {
			return nil, fmt.Errorf("write grain directory: %w", err)
		}
	}
	for i := range e.gd {
		t, err := e.table(int64(i))
		if err != nil {
			return nil, err
		}
		if t == e.none {
			continue
		}
		var table [tableSize]byte
		for k, v := range *t {
			binary.LittleEndian.PutUint32(table[4*k:], v)
		}
		for _, at := range []int64{rgd, gd} {
			if _, err := f.WriteAt(table[:], (at+dir+int64(i)*tableSectors)*SectorSize); err != nil {
				return nil, fmt.Errorf("write grain table %d: %w", i, err)
			}
		}
	}
	return func() error {
		if _, err := f.WriteAt(h.marshal(), 0); err != nil {
			return fmt.Errorf("write header: %w", err)
		}
		return nil
	}, nil
}
