package diskfs

import (
	"encoding/binary"
	"hash/crc32"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var le = binary.LittleEndian

// crc32c is ext4's checksum: the raw Castagnoli register, no inversion at either end
// (e2fsprogs lib/ext2fs/crc32c.c). Pieces are chained by passing the result as seed.
func crc32c(seed uint32, p []byte) uint32 { return ^crc32.Update(^seed, castagnoli, p) }

func crc32cU32(seed, v uint32) uint32 {
	var b [4]byte
	le.PutUint32(b[:], v)
	return crc32c(seed, b[:])
}

// inodeSeed is the seed of everything that belongs to one inode: its own checksum,
// its extent blocks and its directory blocks.
func (f *FS) inodeSeed(ino, generation uint32) uint32 {
	return crc32cU32(crc32cU32(f.seed, ino), generation)
}

// inodeChecksum covers the 256 bytes with both checksum fields taken as zero.
func inodeChecksum(seed uint32, in rawInode) uint32 {
	var zero [2]byte
	c := crc32c(seed, in[:inoChecksumLo])
	c = crc32c(c, zero[:])
	c = crc32c(c, in[inoChecksumLo+2:inoChecksumHi])
	c = crc32c(c, zero[:])
	return crc32c(c, in[inoChecksumHi+2:inodeSize])
}

// dirTail is the fake entry that ends each leaf block of a directory.
const dirTail = BlockSize - 12

func dirChecksum(seed uint32, block []byte) uint32 { return crc32c(seed, block[:dirTail]) }

// dxChecksum covers an htree block's header and entries, then its tail with the
// checksum taken as zero. off is where {limit, count} stands: 32 in a root, 8 in a node.
func dxChecksum(seed uint32, block []byte, off, count, limit int) uint32 {
	c := crc32c(seed, block[:off+8*count])
	tail := off + 8*limit
	c = crc32c(c, block[tail:tail+4])
	var zero [4]byte
	return crc32c(c, zero[:])
}

// xattrChecksum covers the block's number and its bytes with h_checksum as zero.
func xattrChecksum(seed uint32, block int64, p []byte) uint32 {
	var b [8]byte
	le.PutUint64(b[:], uint64(block))
	c := crc32c(seed, b[:])
	c = crc32c(c, p[:16])
	var zero [4]byte
	c = crc32c(c, zero[:])
	return crc32c(c, p[20:])
}
