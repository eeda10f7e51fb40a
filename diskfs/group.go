package diskfs

import (
	"fmt"
	"math/bits"
)

const (
	groupInodeUninit = 0x1 // inode bitmap and table are not initialised
	groupBlockUninit = 0x2 // block bitmap is not initialised: the group is all free
	groupInodeZeroed = 0x4 // the table's unused part reads as zeros: no lazy initialisation

	dirGroupStride = 16 // every 16th group's inodes are kept for directories
)

// group is one group descriptor, struct ext4_group_desc; lo and hi halves joined.
type group struct {
	blockBitmap int64  // 0x00, 0x20
	inodeBitmap int64  // 0x04, 0x24
	inodeTable  int64  // 0x08, 0x28
	freeBlocks  uint32 // 0x0c, 0x2c
	freeInodes  uint32 // 0x0e, 0x2e
	usedDirs    uint32 // 0x10, 0x30
	flags       uint16 // 0x12
	bbCsum      uint32 // 0x18, 0x38
	ibCsum      uint32 // 0x1a, 0x3a
	unusedTable uint32 // 0x1c, 0x32: inodes at the table's end never used
	changed     bool
}

func (g *group) unmarshal(p []byte, wide bool) {
	g.blockBitmap = int64(le.Uint32(p[0x00:]))
	g.inodeBitmap = int64(le.Uint32(p[0x04:]))
	g.inodeTable = int64(le.Uint32(p[0x08:]))
	g.freeBlocks = uint32(le.Uint16(p[0x0c:]))
	g.freeInodes = uint32(le.Uint16(p[0x0e:]))
	g.usedDirs = uint32(le.Uint16(p[0x10:]))
	g.flags = le.Uint16(p[0x12:])
	g.bbCsum = uint32(le.Uint16(p[0x18:]))
	g.ibCsum = uint32(le.Uint16(p[0x1a:]))
	g.unusedTable = uint32(le.Uint16(p[0x1c:]))
	if wide {
		g.blockBitmap |= int64(le.Uint32(p[0x20:])) << 32
		g.inodeBitmap |= int64(le.Uint32(p[0x24:])) << 32
		g.inodeTable |= int64(le.Uint32(p[0x28:])) << 32
		g.freeBlocks |= uint32(le.Uint16(p[0x2c:])) << 16
		g.freeInodes |= uint32(le.Uint16(p[0x2e:])) << 16
		g.usedDirs |= uint32(le.Uint16(p[0x30:])) << 16
		g.unusedTable |= uint32(le.Uint16(p[0x32:])) << 16
		g.bbCsum |= uint32(le.Uint16(p[0x38:])) << 16
		g.ibCsum |= uint32(le.Uint16(p[0x3a:])) << 16
	}
}

// marshal writes the 64-byte descriptor of group n with its checksum.
func (g *group) marshal(p []byte, seed uint32, n int) {
	p = p[:groupDescSize]
	clear(p)
	le.PutUint32(p[0x00:], uint32(g.blockBitmap))
	le.PutUint32(p[0x04:], uint32(g.inodeBitmap))
	le.PutUint32(p[0x08:], uint32(g.inodeTable))
	le.PutUint16(p[0x0c:], uint16(g.freeBlocks))
	le.PutUint16(p[0x0e:], uint16(g.freeInodes))
	le.PutUint16(p[0x10:], uint16(g.usedDirs))
	le.PutUint16(p[0x12:], g.flags)
	le.PutUint16(p[0x18:], uint16(g.bbCsum))
	le.PutUint16(p[0x1a:], uint16(g.ibCsum))
	le.PutUint16(p[0x1c:], uint16(g.unusedTable))
	le.PutUint32(p[0x20:], uint32(g.blockBitmap>>32))
	le.PutUint32(p[0x24:], uint32(g.inodeBitmap>>32))
	le.PutUint32(p[0x28:], uint32(g.inodeTable>>32))
	le.PutUint16(p[0x2c:], uint16(g.freeBlocks>>16))
	le.PutUint16(p[0x2e:], uint16(g.freeInodes>>16))
	le.PutUint16(p[0x30:], uint16(g.usedDirs>>16))
	le.PutUint16(p[0x32:], uint16(g.unusedTable>>16))
	le.PutUint16(p[0x38:], uint16(g.bbCsum>>16))
	le.PutUint16(p[0x3a:], uint16(g.ibCsum>>16))
	le.PutUint16(p[0x1e:], groupChecksum(seed, n, p))
}

func groupChecksum(seed uint32, n int, p []byte) uint16 {
	c := crc32cU32(seed, uint32(n))
	c = crc32c(c, p[:0x1e])
	c = crc32c(c, []byte{0, 0})
	return uint16(crc32c(c, p[0x20:])) // 64 bytes in all, 32 without the 64bit feature
}

// blockBitmap returns group n's block bitmap for changing.
func (f *FS) blockBitmap(n int) (*block, error) {
	g := &f.groups[n]
	g.changed = true
	if g.flags&groupBlockUninit != 0 {
		g.flags &^= groupBlockUninit
		return f.fresh(g.blockBitmap), nil // such a group holds no metadata: see Format
	}
	b, err := f.bitmap(g.blockBitmap, g.bbCsum, blocksPerGroup/8, "block", n)
	if err == nil {
		b.dirty = true
	}
	return b, err
}

// inodeBitmap returns group n's inode bitmap for changing.
func (f *FS) inodeBitmap(n int) (*block, error) {
	g := &f.groups[n]
	g.changed = true
	if g.flags&groupInodeUninit != 0 {
		g.flags &^= groupInodeUninit
		b := f.fresh(g.inodeBitmap)
		setBits(b.data[:], inodesPerGroup, blocksPerGroup)
		return b, nil
	}
	b, err := f.bitmap(g.inodeBitmap, g.ibCsum, inodesPerGroup/8, "inode", n)
	if err == nil {
		b.dirty = true
	}
	return b, err
}

// bitmap returns a bitmap of group n, of which the checksum covers size bytes.
func (f *FS) bitmap(at int64, sum uint32, size int, kind string, n int) (*block, error) {
	b, err := f.load(at)
	if err != nil {
		return nil, err
	}
	if b.dirty || f.sb.roCompat&roMetadataCsum == 0 {
		return b, nil
	}
	got := crc32c(f.seed, b.data[:size])
	if f.sb.incompat&incompat64bit == 0 { // there is room for a half
		got &= 0xffff
	}
	if got != sum {
		return nil, &FormatError{Off: at * BlockSize, Field: fmt.Sprintf("%s bitmap of group %d", kind, n), Msg: "checksum mismatch"}
	}
	return b, nil
}

// markBlocks sets (or clears) the bitmap bits of disk blocks [at, at+n) and keeps the
// free counts. A bit that has the value already means the file system is damaged.
func (f *FS) markBlocks(at, n int64, used bool) error {
	for n > 0 {
		gi := int(at / blocksPerGroup)
		first := int(at % blocksPerGroup)
		span := int(min(n, int64(blocksPerGroup-first)))
		if at < 0 || gi >= len(f.groups) || at+int64(span) > f.sb.blocksCount {
			return &FormatError{Off: -1, Field: fmt.Sprintf("block %d", at), Msg: "outside the file system"}
		}
		b, err := f.blockBitmap(gi)
		if err != nil {
			return err
		}
		g := &f.groups[gi]
		if used {
			if countBits(b.data[:], first, first+span) != 0 {
				return &FormatError{Off: at * BlockSize, Field: fmt.Sprintf("block bitmap of group %d", gi), Msg: "a free block is marked used"}
			}
			setBits(b.data[:], first, first+span)
			g.freeBlocks -= uint32(span)
			f.sb.freeBlocks -= int64(span)
		} else {
			if countBits(b.data[:], first, first+span) != span {
				return &FormatError{Off: at * BlockSize, Field: fmt.Sprintf("block bitmap of group %d", gi), Msg: "a block in use is marked free"}
			}
			clearBits(b.data[:], first, first+span)
			g.freeBlocks += uint32(span)
			f.sb.freeBlocks += int64(span)
		}
		at, n = at+int64(span), n-int64(span)
	}
	return nil
}

// A zone hands out inode numbers of one kind, lowest free first. It moves forward
// only, so one Apply looks at each bitmap once; the next starts over.
type zone struct {
	dirs  bool // the groups kept for directories, or all the others
	group int
	bit   int
}

func (z *zone) owns(group int) bool { return (group%dirGroupStride == 0) == z.dirs }

// newInode allocates an inode number from the zone, or from the other one if it is full.
func (f *FS) newInode(dir bool) (uint32, error) {
	for range 2 {
		first, second := &f.fileZone, &f.dirZone
		if dir {
			first, second = second, first
		}
		for _, z := range [2]*zone{first, second} {
			ino, err := f.nextInode(z)
			if err != nil || ino != 0 {
				if err == nil && dir {
					f.groups[(ino-1)/inodesPerGroup].usedDirs++
				}
				return ino, err
			}
		}
		f.resetZones() // any left were given back by this layer, behind the search
	}
	return 0, fmt.Errorf("%w: all %d inodes are in use", ErrNoSpace, f.sb.inodesCount)
}

func (f *FS) resetZones() { f.dirZone, f.fileZone = zone{dirs: true}, zone{} }

func (f *FS) nextInode(z *zone) (uint32, error) {
	for ; z.group < len(f.groups); z.group, z.bit = z.group+1, 0 {
		g := &f.groups[z.group]
		if !z.owns(z.group) || g.freeInodes == 0 {
			continue
		}
		b, err := f.inodeBitmap(z.group)
		if err != nil {
			return 0, err
		}
		i := nextZero(b.data[:], z.bit, inodesPerGroup)
		if i < 0 {
			continue
		}
		setBits(b.data[:], i, i+1)
		z.bit = i + 1
		g.freeInodes--
		f.sb.freeInodes--
		g.unusedTable = min(g.unusedTable, uint32(inodesPerGroup-i-1))
		return uint32(z.group*inodesPerGroup+i) + 1, nil
	}
	return 0, nil
}

// freeInode clears the inode's bit; the caller has zeroed the inode itself.
func (f *FS) freeInode(ino uint32, dir bool) error {
	gi, i := int((ino-1)/inodesPerGroup), int((ino-1)%inodesPerGroup)
	b, err := f.inodeBitmap(gi)
	if err != nil {
		return err
	}
	if countBits(b.data[:], i, i+1) == 0 {
		return badInode(ino, "in use but free in its bitmap")
	}
	clearBits(b.data[:], i, i+1)
	g := &f.groups[gi]
	g.freeInodes++
	f.sb.freeInodes++
	if dir {
		g.usedDirs--
	}
	return nil
}

// finishGroups renders the descriptors of changed groups, with their bitmaps' checksums.
func (f *FS) finishGroups() error {
	for n := range f.groups {
		g := &f.groups[n]
		if !g.changed {
			continue
		}
		g.changed = false
		if b := f.cached(g.blockBitmap); b != nil && g.flags&groupBlockUninit == 0 {
			g.bbCsum = crc32c(f.seed, b.data[:blocksPerGroup/8])
		}
		if b := f.cached(g.inodeBitmap); b != nil && g.flags&groupInodeUninit == 0 {
			g.ibCsum = crc32c(f.seed, b.data[:inodesPerGroup/8])
		}
		b, err := f.touch(1 + int64(n/descsPerBlock))
		if err != nil {
			return err
		}
		g.marshal(b.data[n%descsPerBlock*groupDescSize:], f.seed, n)
	}
	return nil
}

func setBits(p []byte, from, to int) {
	for ; from < to && from%8 != 0; from++ {
		p[from/8] |= 1 << (from % 8)
	}
	for ; from+8 <= to; from += 8 {
		p[from/8] = 0xff
	}
	for ; from < to; from++ {
		p[from/8] |= 1 << (from % 8)
	}
}

func clearBits(p []byte, from, to int) {
	for ; from < to && from%8 != 0; from++ {
		p[from/8] &^= 1 << (from % 8)
	}
	for ; from+8 <= to; from += 8 {
		p[from/8] = 0
	}
	for ; from < to; from++ {
		p[from/8] &^= 1 << (from % 8)
	}
}

func countBits(p []byte, from, to int) int {
	n := 0
	for ; from < to && from%8 != 0; from++ {
		n += int(p[from/8] >> (from % 8) & 1)
	}
	for ; from+8 <= to; from += 8 {
		n += bits.OnesCount8(p[from/8])
	}
	for ; from < to; from++ {
		n += int(p[from/8] >> (from % 8) & 1)
	}
	return n
}

// nextZero returns the index of the first clear bit in [from, to), -1 if there is none.
func nextZero(p []byte, from, to int) int {
	for from < to {
		if from%8 == 0 && p[from/8] == 0xff {
			from += 8
			continue
		}
		if p[from/8]>>(from%8)&1 == 0 {
			return from
		}
		from++
	}
	return -1
}
