package vmdk

import (
	"encoding/binary"
	"fmt"
)

// CreateExtent makes f an empty hosted sparse extent file for a disk, or a
// delta over one, of capacity bytes, which must be a multiple of SectorSize.
// It has every grain table, so QEMU and Disk.WriteAt may write it. What f held
// is lost. Table space is left sparse: f takes a few kilobytes, whatever the
// capacity. After an error f is not a disk.
func CreateExtent(f File, capacity int64) error {
	_, err := createExtent(f, capacity, nil)
	return err
}

// createExtent is CreateExtent with an embedded descriptor, whole sectors, between the
// header and the tables. It returns the size of the file.
func createExtent(f File, capacity int64, descriptor []byte) (int64, error) {
	h, err := newHeader(capacity)
	if err != nil {
		return 0, err
	}
	n := h.numTables()
	dir := directorySectors(n)
	rgd := 1 + int64(len(descriptor))/SectorSize
	gd := rgd + dir + n*tableSectors
	h.rgdOffset, h.gdOffset = uint64(rgd), uint64(gd)
	h.overHead = uint64(roundUp(gd+dir+n*tableSectors, int64(h.grainSize)))
	if descriptor != nil {
		h.descriptorOffset, h.descriptorSize = 1, uint64(rgd-1)
	}
	size := int64(h.overHead) * SectorSize

	if err := f.Truncate(0); err != nil {
		return 0, fmt.Errorf("empty extent file: %w", err)
	}
	if err := f.Truncate(size); err != nil {
		return 0, fmt.Errorf("reserve %d grain tables: %w", 2*n, err)
	}
	b := make([]byte, dir*SectorSize)
	for _, at := range []int64{rgd, gd} {
		for i := range n {
			binary.LittleEndian.PutUint32(b[4*i:], uint32(at+dir+i*tableSectors))
		}
		if _, err := f.WriteAt(b, at*SectorSize); err != nil {
			return 0, fmt.Errorf("write grain directory: %w", err)
		}
	}
	if _, err := f.WriteAt(append(h.marshal(), descriptor...), 0); err != nil {
		return 0, fmt.Errorf("write header: %w", err)
	}
	return size, nil
}
