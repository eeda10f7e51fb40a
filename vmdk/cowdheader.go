package vmdk

import (
	"encoding/binary"
	"fmt"
	"math/bits"
)

const (
	magicCOWD         = 0x44574f43 // "COWD"
	cowdHeaderSize    = 2048
	cowdHeaderSectors = cowdHeaderSize / SectorSize
	cowdTableEntries  = 4096
	cowdTableSize     = cowdTableEntries * 4
	cowdTableSectors  = cowdTableSize / SectorSize
	cowdFlags         = 3
	cowdGrain         = SectorSize // of what this package writes, as ESXi does
)

// cowdHeader is the first four sectors of a vmfsSparse (COWD) extent file. The
// words and names between freeSector and uncleanShutdown, which recent ESXi
// leaves empty, are not kept.
type cowdHeader struct {
	capacity        uint32 // 0x0c sectors
	grainSize       uint32 // 0x10 sectors
	gdOffset        uint32 // 0x14 sector
	numGDEntries    uint32 // 0x18
	freeSector      uint32 // 0x1c sector where the next grain or table goes
	uncleanShutdown uint32 // 0x670
}

// parseCOWDHeader decodes and checks all that can be checked without the rest
// of the file.
func parseCOWDHeader(b []byte) (cowdHeader, error) {
	le := binary.LittleEndian
	bad := func(off int64, field, format string, args ...any) (cowdHeader, error) {
		return cowdHeader{}, formatErrorf(off, field, format, args...)
	}
	if len(b) < cowdHeaderSize {
		return bad(0, "header", "%d bytes, want %d", len(b), cowdHeaderSize)
	}
	if m := le.Uint32(b); m != magicCOWD {
		return bad(0, "magic", "%#08x is not that of a COWD extent", m)
	}
	if v := le.Uint32(b[0x04:]); v != 1 {
		return bad(0x04, "version", "%d is not 1", v)
	}
	if f := le.Uint32(b[0x08:]); f != cowdFlags {
		return bad(0x08, "flags", "%#x is not %d", f, cowdFlags)
	}
	h := cowdHeader{
		capacity:        le.Uint32(b[0x0c:]),
		grainSize:       le.Uint32(b[0x10:]),
		gdOffset:        le.Uint32(b[0x14:]),
		numGDEntries:    le.Uint32(b[0x18:]),
		freeSector:      le.Uint32(b[0x1c:]),
		uncleanShutdown: le.Uint32(b[0x670:]),
	}
	if h.capacity == 0 {
		return bad(0x0c, "capacity", "no sectors")
	}
	if g := h.grainSize; g == 0 || g > maxGrain || g&(g-1) != 0 {
		return bad(0x10, "grain size", "%d sectors is not a power of two from 1 to %d", g, maxGrain)
	}
	if h.gdOffset < cowdHeaderSectors {
		return bad(0x14, "grain directory", "at sector %d, in the header", h.gdOffset)
	}
	if e := h.extent(); int64(h.numGDEntries) < e.numTables() {
		return bad(0x18, "grain directory", "%d entries, %d sectors need %d", h.numGDEntries, h.capacity, e.numTables())
	}
	return h, nil
}

func (h *cowdHeader) marshal() []byte {
	le := binary.LittleEndian
	b := make([]byte, cowdHeaderSize)
	le.PutUint32(b, magicCOWD)
	le.PutUint32(b[0x04:], 1)
	le.PutUint32(b[0x08:], cowdFlags)
	le.PutUint32(b[0x0c:], h.capacity)
	le.PutUint32(b[0x10:], h.grainSize)
	le.PutUint32(b[0x14:], h.gdOffset)
	le.PutUint32(b[0x18:], h.numGDEntries)
	le.PutUint32(b[0x1c:], h.freeSector)
	le.PutUint32(b[0x670:], h.uncleanShutdown)
	return b
}

// extent returns the header that a hosted sparse extent with the same tables
// would have. Grains and tables may come in any order, so all behind the header
// may be a grain.
func (h *cowdHeader) extent() header {
	return header{
		version:      1,
		capacity:     uint64(h.capacity),
		grainSize:    uint64(h.grainSize),
		numGTEsPerGT: cowdTableEntries,
		gdOffset:     uint64(h.gdOffset),
		overHead:     cowdHeaderSectors,
	}
}

// newCOWDHeader is the header of a COWD extent that this package writes, but
// for freeSector.
func newCOWDHeader(capacity int64) (cowdHeader, error) {
	if capacity <= 0 || capacity%SectorSize != 0 || capacity/SectorSize >= maxSectors {
		return cowdHeader{}, formatErrorf(-1, "capacity", "%d bytes; a vmfsSparse (COWD) extent has whole sectors and less than 2 TiB", capacity)
	}
	h := cowdHeader{capacity: uint32(capacity / SectorSize), grainSize: cowdGrain / SectorSize, gdOffset: cowdHeaderSectors}
	e := h.extent()
	h.numGDEntries = uint32(e.numTables())
	return h, nil
}

// readCOWDHeader makes e a COWD extent.
func (e *Extent) readCOWDHeader() error {
	if e.size < cowdHeaderSize {
		return formatErrorf(0, "header", "the file has only %d bytes", e.size)
	}
	b := make([]byte, cowdHeaderSize)
	if err := readFull(e.r, b, 0); err != nil {
		return fmt.Errorf("read extent header: %w", err)
	}
	h, err := parseCOWDHeader(b)
	if err != nil {
		return err
	}
	e.cowd, e.h = &h, h.extent()
	e.shift, e.none = uint(bits.TrailingZeros(cowdTableEntries)), noCOWDGrains
	return nil
}

// headerSectors is the length of the header.
func (e *Extent) headerSectors() int64 {
	if e.cowd != nil {
		return cowdHeaderSectors
	}
	return headerSize / SectorSize
}
