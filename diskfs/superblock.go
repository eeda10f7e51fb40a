package diskfs

import (
	"fmt"
	"strings"
)

const (
	superOffset = 1024
	superSize   = 1024
	superMagic  = 0xEF53

	compatHasJournal = 0x4
	compatExtAttr    = 0x8
	compatDirIndex   = 0x20

	incompatFiletype = 0x2
	incompatRecover  = 0x4
	incompatMetaBG   = 0x10
	incompatExtents  = 0x40
	incompat64bit    = 0x80
	incompatFlexBG   = 0x200
	incompatCsumSeed = 0x2000

	roSparseSuper  = 0x1
	roLargeFile    = 0x2
	roHugeFile     = 0x8
	roDirNlink     = 0x20
	roExtraIsize   = 0x40
	roMetadataCsum = 0x400
	roOrphanInUse  = 0x10000

	ourCompat   = compatExtAttr | compatDirIndex // and compatHasJournal if there is a journal
	ourIncompat = incompatFiletype | incompatExtents | incompat64bit | incompatFlexBG
	ourRO       = roSparseSuper | roLargeFile | roHugeFile | roDirNlink | roExtraIsize | roMetadataCsum

	flagSignedHash = 0x1 // directory hashes take bytes as signed
)

// superblock holds the fields we read or write; the rest of the 1024 bytes is kept
// as it was found. Fields as in struct ext4_super_block, in the order of the disk.
type superblock struct {
	inodesCount    uint32    // 0x00
	blocksCount    int64     // 0x04 lo, 0x150 hi
	freeBlocks     int64     // 0x0c lo, 0x158 hi
	freeInodes     uint32    // 0x10
	inodesPerGroup uint32    // 0x28
	state          uint16    // 0x3a
	compat         uint32    // 0x5c
	incompat       uint32    // 0x60
	roCompat       uint32    // 0x64
	uuid           [16]byte  // 0x68
	lastOrphan     uint32    // 0xe8
	hashSeed       [4]uint32 // 0xec
	hashVersion    byte      // 0xfc
	flags          uint32    // 0x160
	raw            [superSize]byte
}

func (s *superblock) unmarshal(p []byte) error {
	copy(s.raw[:], p)
	bad := func(format string, args ...any) error {
		return &FormatError{Off: superOffset, Field: "superblock", Msg: fmt.Sprintf(format, args...)}
	}
	if m := le.Uint16(p[0x38:]); m != superMagic {
		return bad("magic %#04x, want %#04x", m, superMagic)
	}
	s.incompat = le.Uint32(p[0x60:])
	s.roCompat = le.Uint32(p[0x64:])
	if s.roCompat&roMetadataCsum != 0 {
		if got, want := le.Uint32(p[0x3FC:]), crc32c(^uint32(0), p[:0x3FC]); got != want {
			return bad("checksum %#08x, want %#08x", got, want)
		}
	}
	s.inodesCount = le.Uint32(p[0x00:])
	s.blocksCount = int64(le.Uint32(p[0x04:])) | int64(le.Uint32(p[0x150:]))<<32
	s.freeBlocks = int64(le.Uint32(p[0x0c:])) | int64(le.Uint32(p[0x158:]))<<32
	s.freeInodes = le.Uint32(p[0x10:])
	s.inodesPerGroup = le.Uint32(p[0x28:])
	s.state = le.Uint16(p[0x3a:])
	s.compat = le.Uint32(p[0x5c:])
	copy(s.uuid[:], p[0x68:])
	s.lastOrphan = le.Uint32(p[0xe8:])
	for i := range s.hashSeed {
		s.hashSeed[i] = le.Uint32(p[0xec+4*i:])
	}
	s.hashVersion = p[0xfc]
	s.flags = le.Uint32(p[0x160:])

	const known = ourIncompat | incompatRecover | incompatCsumSeed | incompatMetaBG
	switch {
	case s.incompat&^known != 0:
		return bad("incompatible features are not supported: %s", featureNames(s.incompat&^known))
	case s.incompat&(incompatExtents|incompatFiletype) != incompatExtents|incompatFiletype:
		return bad("extents and filetype are required")
	case le.Uint32(p[0x18:]) != 2 || le.Uint32(p[0x14:]) != 0:
		return bad("block size is not 4096")
	case le.Uint32(p[0x20:]) != blocksPerGroup:
		return bad("%d blocks per group, want %d", le.Uint32(p[0x20:]), blocksPerGroup)
	case le.Uint16(p[0x58:]) != inodeSize:
		return bad("inode size %d, want %d", le.Uint16(p[0x58:]), inodeSize)
	case s.inodesPerGroup == 0 || s.inodesPerGroup > blocksPerGroup || s.inodesPerGroup%inodesPerBlock != 0:
		return bad("%d inodes per group", s.inodesPerGroup)
	case s.incompat&incompat64bit != 0 && le.Uint16(p[0xfe:]) != groupDescSize:
		return bad("group descriptor size %d, want %d", le.Uint16(p[0xfe:]), groupDescSize)
	case s.blocksCount <= 0 || s.blocksCount > 1<<32:
		return bad("%d blocks", s.blocksCount)
	}
	groups := (s.blocksCount + blocksPerGroup - 1) / blocksPerGroup
	if int64(s.inodesCount) != groups*int64(s.inodesPerGroup) {
		return bad("%d inodes in %d groups of %d", s.inodesCount, groups, s.inodesPerGroup)
	}
	return nil
}

// featureNames names incompatible features as mke2fs does.
func featureNames(bits uint32) string {
	var names []string
	for _, f := range []struct {
		bit  uint32
		name string
	}{
		{0x1, "compression"}, {0x8, "journal_dev"}, {0x100, "mmp"}, {0x400, "ea_inode"}, {0x1000, "dirdata"},
		{0x4000, "large_dir"}, {0x8000, "inline_data"}, {0x10000, "encrypt"}, {0x20000, "casefold"},
	} {
		if bits&f.bit != 0 {
			names = append(names, f.name)
			bits &^= f.bit
		}
	}
	if bits != 0 {
		names = append(names, fmt.Sprintf("%#x", bits))
	}
	return strings.Join(names, ", ")
}

// marshal writes the fields that Format and Apply change back over the bytes found.
func (s *superblock) marshal() []byte {
	p := s.raw[:]
	le.PutUint32(p[0x00:], s.inodesCount)
	le.PutUint32(p[0x04:], uint32(s.blocksCount))
	le.PutUint32(p[0x150:], uint32(s.blocksCount>>32))
	le.PutUint32(p[0x0c:], uint32(s.freeBlocks))
	le.PutUint32(p[0x158:], uint32(s.freeBlocks>>32))
	le.PutUint32(p[0x10:], s.freeInodes)
	le.PutUint32(p[0x28:], s.inodesPerGroup)
	le.PutUint16(p[0x3a:], s.state)
	le.PutUint32(p[0x5c:], s.compat)
	le.PutUint32(p[0x60:], s.incompat)
	le.PutUint32(p[0x64:], s.roCompat)
	copy(p[0x68:], s.uuid[:])
	le.PutUint32(p[0xe8:], s.lastOrphan)
	for i, v := range s.hashSeed {
		le.PutUint32(p[0xec+4*i:], v)
	}
	p[0xfc] = s.hashVersion
	le.PutUint32(p[0x160:], s.flags)
	le.PutUint32(p[0x3FC:], crc32c(^uint32(0), p[:0x3FC]))
	return p
}

// checksumSeed is the seed of all metadata checksums but the superblock's own.
func (s *superblock) checksumSeed() uint32 {
	if s.incompat&incompatCsumSeed != 0 {
		return le.Uint32(s.raw[0x270:])
	}
	return crc32c(^uint32(0), s.uuid[:])
}

// writable says why Apply must not build on this file system, nil if it may: only what
// Format made, cleanly unmounted, is known well enough to be changed.
func (s *superblock) writable() error {
	switch {
	case s.incompat&incompatRecover != 0, s.state != 1, s.lastOrphan != 0, s.roCompat&roOrphanInUse != 0:
		return &FormatError{Off: superOffset, Field: "superblock", Msg: "not cleanly unmounted: its journal holds changes"}
	case s.incompat != ourIncompat, s.roCompat != ourRO, s.compat&^compatHasJournal != ourCompat,
		s.inodesPerGroup != inodesPerGroup, s.flags&flagSignedHash == 0, s.hashVersion != hashHalfMD4:
		return &FormatError{Off: superOffset, Field: "superblock", Msg: "not made by diskfs.Format: layers cannot be applied to it"}
	}
	return nil
}
