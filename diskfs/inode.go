package diskfs

import (
	"maps"
	"slices"
	"time"
)

// Offsets in an inode, struct ext4_inode.
const (
	inoMode       = 0x00
	inoUIDLo      = 0x02
	inoSizeLo     = 0x04
	inoAtime      = 0x08
	inoCtime      = 0x0c
	inoMtime      = 0x10
	inoGIDLo      = 0x18
	inoLinks      = 0x1a
	inoBlocksLo   = 0x1c // 512-byte units
	inoFlags      = 0x20
	inoBlock      = 0x28 // 60 bytes: extent tree root, fast symlink or device number
	inoGeneration = 0x64
	inoACLLo      = 0x68
	inoSizeHi     = 0x6c
	inoBlocksHi   = 0x74
	inoACLHi      = 0x76
	inoUIDHi      = 0x78
	inoGIDHi      = 0x7a
	inoChecksumLo = 0x7c
	inoExtraSize  = 0x80
	inoChecksumHi = 0x82
	inoCtimeX     = 0x84
	inoMtimeX     = 0x88
	inoAtimeX     = 0x8c
	inoCrtime     = 0x90
	inoCrtimeX    = 0x94
	inoXattr      = 0xa0 // 96 bytes, as i_extra_isize is 32

	inoBlockLen = 60
	extraSize   = 32

	inodeIndexed = 0x1000  // EXT4_INDEX_FL: a directory with an htree
	inodeHuge    = 0x40000 // EXT4_HUGE_FILE_FL: i_blocks in file system blocks
	inodeExtents = 0x80000 // EXT4_EXTENTS_FL
	inodeInline  = 0x10000000
	inodeEAFlag  = 0x200000

	modeType   = 0xf000
	modeFIFO   = 0x1000
	modeChar   = 0x2000
	modeDir    = 0x4000
	modeBlock  = 0x6000
	modeFile   = 0x8000
	modeLink   = 0xa000
	modeSocket = 0xc000
)

// A rawInode is the 256 bytes of an inode where they stand in its table's block.
type rawInode []byte

func (in rawInode) mode() uint16       { return le.Uint16(in[inoMode:]) }
func (in rawInode) kind() uint16       { return in.mode() & modeType }
func (in rawInode) links() uint16      { return le.Uint16(in[inoLinks:]) }
func (in rawInode) flags() uint32      { return le.Uint32(in[inoFlags:]) }
func (in rawInode) generation() uint32 { return le.Uint32(in[inoGeneration:]) }
func (in rawInode) uid() uint32 {
	return uint32(le.Uint16(in[inoUIDLo:])) | uint32(le.Uint16(in[inoUIDHi:]))<<16
}
func (in rawInode) gid() uint32 {
	return uint32(le.Uint16(in[inoGIDLo:])) | uint32(le.Uint16(in[inoGIDHi:]))<<16
}
func (in rawInode) size() int64 {
	return int64(le.Uint32(in[inoSizeLo:])) | int64(le.Uint32(in[inoSizeHi:]))<<32
}
func (in rawInode) sectors() int64 {
	n := int64(le.Uint32(in[inoBlocksLo:])) | int64(le.Uint16(in[inoBlocksHi:]))<<32
	if in.flags()&inodeHuge != 0 {
		n *= BlockSize / 512
	}
	return n
}
func (in rawInode) xattrBlock() int64 {
	return int64(le.Uint32(in[inoACLLo:])) | int64(le.Uint16(in[inoACLHi:]))<<32
}
func (in rawInode) blockArea() []byte { return in[inoBlock : inoBlock+inoBlockLen] }
func (in rawInode) inUse() bool       { return in.mode() != 0 }

// fastLink says that a symlink's target stands in the inode itself.
func (in rawInode) fastLink() bool {
	return in.kind() == modeLink && in.size() < inoBlockLen && in.flags()&inodeExtents == 0
}

func (in rawInode) setMode(m uint16)   { le.PutUint16(in[inoMode:], m) }
func (in rawInode) setLinks(n uint16)  { le.PutUint16(in[inoLinks:], n) }
func (in rawInode) setFlags(fl uint32) { le.PutUint32(in[inoFlags:], fl) }
func (in rawInode) setOwner(uid, gid uint32) {
	le.PutUint16(in[inoUIDLo:], uint16(uid))
	le.PutUint16(in[inoUIDHi:], uint16(uid>>16))
	le.PutUint16(in[inoGIDLo:], uint16(gid))
	le.PutUint16(in[inoGIDHi:], uint16(gid>>16))
}
func (in rawInode) setSize(n int64) {
	le.PutUint32(in[inoSizeLo:], uint32(n))
	le.PutUint32(in[inoSizeHi:], uint32(n>>32))
}

// setBlocks counts what the inode occupies: data, extent blocks, xattr block.
func (in rawInode) setBlocks(n int64) {
	n *= BlockSize / 512
	le.PutUint32(in[inoBlocksLo:], uint32(n))
	le.PutUint16(in[inoBlocksHi:], uint16(n>>32))
}
func (in rawInode) setXattrBlock(n int64) {
	le.PutUint32(in[inoACLLo:], uint32(n))
	le.PutUint16(in[inoACLHi:], uint16(n>>32))
}

// Times ext4 can hold: 34 bits of seconds, the lower 32 of them signed.
const (
	minSeconds = -1 << 31
	maxSeconds = 1<<34 - 1 - 1<<31
)

// clampTime moves a time into ext4's range, 1901-12-13 to 2446-05-10.
func clampTime(sec int64, nsec int32) (int64, int32) {
	switch {
	case sec < minSeconds:
		return minSeconds, 0
	case sec > maxSeconds:
		return maxSeconds, 999999999
	}
	return sec, nsec
}

func (in rawInode) setTime(off, offX int, sec int64, nsec int32) {
	lo := int32(sec)
	le.PutUint32(in[off:], uint32(lo))
	le.PutUint32(in[offX:], uint32(nsec)<<2|uint32((sec-int64(lo))>>32)&3)
}

// setTimes sets all four times to one instant: a layer records no other.
func (in rawInode) setTimes(sec int64, nsec int32) {
	sec, nsec = clampTime(sec, nsec)
	in.setTime(inoAtime, inoAtimeX, sec, nsec)
	in.setTime(inoCtime, inoCtimeX, sec, nsec)
	in.setTime(inoMtime, inoMtimeX, sec, nsec)
	in.setTime(inoCrtime, inoCrtimeX, sec, nsec)
}

func (in rawInode) time(off, offX int) time.Time {
	sec := int64(int32(le.Uint32(in[off:])))
	var nsec int64
	if int(le.Uint16(in[inoExtraSize:]))+0x80 >= offX+4 {
		x := le.Uint32(in[offX:])
		sec += int64(x&3) << 32
		nsec = int64(x >> 2)
	}
	return time.Unix(sec, nsec)
}

// setDevice stores a device number: the old 8+8 bit form where it fits, else the new.
func (in rawInode) setDevice(major, minor uint32) {
	p := in.blockArea()
	if major < 256 && minor < 256 {
		le.PutUint32(p, major<<8|minor)
		return
	}
	le.PutUint32(p[4:], minor&0xff|major<<8|minor&^0xff<<12)
}

func (in rawInode) device() (major, minor uint32) {
	p := in.blockArea()
	if v := le.Uint32(p); v != 0 {
		return v >> 8 & 0xff, v & 0xff
	}
	v := le.Uint32(p[4:])
	return v >> 8 & 0xfff, v&0xff | v>>12&0xfff00
}

// inodeAt locates inode ino: the block of its table, and its offset in that.
func (f *FS) inodeAt(ino uint32) (int64, int, error) {
	if ino == 0 || ino > f.sb.inodesCount {
		return 0, 0, badInode(ino, "no such number: the file system has %d", f.sb.inodesCount)
	}
	g := &f.groups[(ino-1)/f.sb.inodesPerGroup]
	i := int64((ino - 1) % f.sb.inodesPerGroup)
	return g.inodeTable + i/inodesPerBlock, int(i%inodesPerBlock) * inodeSize, nil
}

// inode returns the inode's bytes for reading, its checksum verified.
func (f *FS) inode(ino uint32) (rawInode, error) {
	n, off, err := f.inodeAt(ino)
	if err != nil {
		return nil, err
	}
	b, err := f.load(n)
	if err != nil {
		return nil, err
	}
	in := rawInode(b.data[off : off+inodeSize])
	if in.size() < 0 && in.inUse() { // as the kernel's ext4_iget has it
		return nil, badInode(ino, "size %#x is negative", uint64(in.size()))
	}
	if b.dirty || f.sb.roCompat&roMetadataCsum == 0 {
		return in, nil // checksums of dirty blocks are made when they are written
	}
	sum := inodeChecksum(f.inodeSeed(ino, in.generation()), in)
	if in.inUse() && (uint16(sum) != le.Uint16(in[inoChecksumLo:]) || uint16(sum>>16) != le.Uint16(in[inoChecksumHi:])) {
		return nil, badInode(ino, "checksum mismatch")
	}
	return in, nil
}

// changeInode returns the inode's bytes for changing.
func (f *FS) changeInode(ino uint32) (rawInode, error) {
	if _, err := f.inode(ino); err != nil {
		return nil, err
	}
	n, off, _ := f.inodeAt(ino)
	b, err := f.touch(n)
	if err != nil {
		return nil, err
	}
	f.tables[n] = ino - uint32(off/inodeSize)
	return rawInode(b.data[off : off+inodeSize]), nil
}

// finishInodes writes the checksums of all inodes in changed table blocks.
func (f *FS) finishInodes() {
	for _, n := range slices.Sorted(maps.Keys(f.tables)) {
		first, b := f.tables[n], f.cached(n)
		for i := range uint32(inodesPerBlock) {
			in := rawInode(b.data[i*inodeSize : (i+1)*inodeSize])
			if !in.inUse() {
				continue
			}
			sum := inodeChecksum(f.inodeSeed(first+i, in.generation()), in)
			le.PutUint16(in[inoChecksumLo:], uint16(sum))
			le.PutUint16(in[inoChecksumHi:], uint16(sum>>16))
		}
		f.cool()
	}
	clear(f.tables)
}
