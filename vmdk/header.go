package vmdk

import (
	"encoding/binary"
)

const (
	magicSparse = 0x564d444b // "KDMV"

	flagNewline    = 1 << 0
	flagRedundant  = 1 << 1
	flagZeroGrain  = 1 << 2
	flagCompressed = 1 << 16
	flagMarkers    = 1 << 17
	knownFlags     = flagNewline | flagRedundant | flagZeroGrain | flagCompressed | flagMarkers

	headerSize    = SectorSize
	tableEntries  = 512
	tableSize     = tableEntries * 4
	tableSectors  = tableSize / SectorSize
	gdAtEnd       = 0xffffffffffffffff
	newlineCheck  = "\n \r\n"
	zeroGrain     = 1       // grain table entry of a zeroed grain, given flagZeroGrain
	maxSectors    = 1 << 32 // extent files end before 2 TiB: entries are 32 bits wide
	minGrain      = 8       // sectors; the specification wants more than 8, QEMU's users do not
	maxGrain      = 1 << 15 // sectors, 16 MiB: bounds the buffers of compressed grains and of copy-up
	maxTables     = 1 << 20 // grain directory entries: 32 TiB of 64 KiB grains, 12 MiB of memory
	maxDescriptor = 1 << 20 // bytes of descriptor text
)

// header is the first sector of a hosted sparse extent file.
type header struct {
	version          uint32 // 0x04
	flags            uint32 // 0x08
	capacity         uint64 // 0x0c sectors
	grainSize        uint64 // 0x14 sectors
	descriptorOffset uint64 // 0x1c sector
	descriptorSize   uint64 // 0x24 sectors
	numGTEsPerGT     uint32 // 0x2c
	rgdOffset        uint64 // 0x30 sector
	gdOffset         uint64 // 0x38 sector, or gdAtEnd
	overHead         uint64 // 0x40 sectors
	uncleanShutdown  byte   // 0x48
	compression      uint16 // 0x4d
}

// parseHeader decodes and checks all that can be checked without the rest of
// the file. base is where b lies in the file, for errors.
func parseHeader(b []byte, base int64) (header, error) {
	le := binary.LittleEndian
	if len(b) < headerSize {
		return header{}, formatErrorf(base, "header", "%d bytes, want %d", len(b), headerSize)
	}
	if m := le.Uint32(b); m != magicSparse {
		return header{}, formatErrorf(base, "magic", "%#08x is not that of a sparse extent", m)
	}
	h := header{
		version:          le.Uint32(b[0x04:]),
		flags:            le.Uint32(b[0x08:]),
		capacity:         le.Uint64(b[0x0c:]),
		grainSize:        le.Uint64(b[0x14:]),
		descriptorOffset: le.Uint64(b[0x1c:]),
		descriptorSize:   le.Uint64(b[0x24:]),
		numGTEsPerGT:     le.Uint32(b[0x2c:]),
		rgdOffset:        le.Uint64(b[0x30:]),
		gdOffset:         le.Uint64(b[0x38:]),
		overHead:         le.Uint64(b[0x40:]),
		uncleanShutdown:  b[0x48],
		compression:      le.Uint16(b[0x4d:]),
	}
	bad := func(off int64, field, format string, args ...any) (header, error) {
		return header{}, formatErrorf(base+off, field, format, args...)
	}
	if h.version < 1 || h.version > 3 {
		return bad(0x04, "version", "%d is not 1, 2 or 3", h.version)
	}
	if u := h.flags &^ knownFlags; u != 0 {
		return bad(0x08, "flags", "unknown bits %#x", u)
	}
	if h.flags&flagNewline != 0 && string(b[0x49:0x4d]) != newlineCheck {
		return bad(0x49, "newline check", "% x: the file went through a text-mode transfer", b[0x49:0x4d])
	}
	compressed := h.flags&flagCompressed != 0
	if compressed != (h.compression == 1) || h.compression > 1 {
		return bad(0x4d, "compression", "algorithm %d with flags %#x", h.compression, h.flags)
	}
	if compressed != (h.flags&flagMarkers != 0) {
		return bad(0x08, "flags", "%#x: compressed grains and markers go together", h.flags)
	}
	if g := h.grainSize; g < minGrain || g > maxGrain || g&(g-1) != 0 {
		return bad(0x14, "grain size", "%d sectors is not a power of two from %d to %d", g, minGrain, maxGrain)
	}
	if h.capacity == 0 || h.capacity > maxTables*tableEntries*h.grainSize {
		return bad(0x0c, "capacity", "%d sectors; with this grain size it is 1 to %d", h.capacity, maxTables*tableEntries*h.grainSize)
	}
	if h.numGTEsPerGT != tableEntries {
		return bad(0x2c, "entries of a grain table", "%d, want %d", h.numGTEsPerGT, tableEntries)
	}
	if h.overHead == 0 || h.overHead >= maxSectors {
		return bad(0x40, "overhead", "%d sectors", h.overHead)
	}
	if h.descriptorOffset != 0 && (h.descriptorOffset >= maxSectors || h.descriptorSize > maxDescriptor/SectorSize) {
		return bad(0x1c, "embedded descriptor", "%d sectors at sector %d", h.descriptorSize, h.descriptorOffset)
	}
	if h.gdOffset == gdAtEnd {
		if !compressed {
			return bad(0x38, "grain directory", "at the end of the file, but the grains are not compressed")
		}
	} else if h.gdOffset == 0 || h.gdOffset >= maxSectors {
		return bad(0x38, "grain directory", "at sector %d", h.gdOffset)
	}
	if h.flags&flagRedundant != 0 && h.gdOffset != gdAtEnd && (h.rgdOffset == 0 || h.rgdOffset >= maxSectors) {
		return bad(0x30, "redundant grain directory", "at sector %d", h.rgdOffset)
	}
	return h, nil
}

func (h *header) marshal() []byte {
	le := binary.LittleEndian
	b := make([]byte, headerSize)
	le.PutUint32(b, magicSparse)
	le.PutUint32(b[0x04:], h.version)
	le.PutUint32(b[0x08:], h.flags)
	le.PutUint64(b[0x0c:], h.capacity)
	le.PutUint64(b[0x14:], h.grainSize)
	le.PutUint64(b[0x1c:], h.descriptorOffset)
	le.PutUint64(b[0x24:], h.descriptorSize)
	le.PutUint32(b[0x2c:], h.numGTEsPerGT)
	le.PutUint64(b[0x30:], h.rgdOffset)
	le.PutUint64(b[0x38:], h.gdOffset)
	le.PutUint64(b[0x40:], h.overHead)
	b[0x48] = h.uncleanShutdown
	copy(b[0x49:], newlineCheck)
	le.PutUint16(b[0x4d:], h.compression)
	return b
}

// numTables is the number of grain directory entries.
func (h *header) numTables() int64 {
	covers := int64(h.numGTEsPerGT) * int64(h.grainSize)
	return roundUp(int64(h.capacity), covers) / covers
}

// tableSize is the length of a grain table, bytes.
func (h *header) tableSize() int64 { return int64(h.numGTEsPerGT) * 4 }

// directorySectors is the length of a grain directory.
func directorySectors(numTables int64) int64 { return roundUp(numTables*4, SectorSize) / SectorSize }

// newHeader is the header of an extent file that this package writes; the
// caller sets the offsets.
func newHeader(capacity int64) (header, error) {
	h := header{
		version:      1,
		flags:        flagNewline | flagRedundant,
		capacity:     uint64(capacity) / SectorSize,
		grainSize:    DefaultGrainSize / SectorSize,
		numGTEsPerGT: tableEntries,
	}
	if capacity <= 0 || capacity%SectorSize != 0 || h.numTables() > maxTables {
		return header{}, formatErrorf(-1, "capacity", "%d bytes is not a positive number of sectors up to %d TiB",
			capacity, int64(maxTables)*tableEntries*DefaultGrainSize>>40)
	}
	return h, nil
}
