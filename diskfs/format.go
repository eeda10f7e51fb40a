package diskfs

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
)

const (
	defaultJournal = 16 << 20
	minJournal     = 1024 * BlockSize // JBD2_MIN_JOURNAL_BLOCKS
	minCapacity    = 16 << 20
)

// FormatOptions say what an empty file system looks like. The zero value is the
// default of every image store.
type FormatOptions struct {
	Capacity int64 // bytes; 0 means DefaultCapacity. At least 16 MiB, at most 16 TiB
	Journal  int64 // bytes; 0 means 16 MiB, or 4 MiB on disks below 256 MiB
	// NoJournal leaves the journal out: guests lose what a power cut leaves half written.
	NoJournal bool
	// UUID of the file system; zero means one that Capacity and Journal determine, the same
	// for all disks of one shape.
	UUID [16]byte
}

// Format makes an empty file system. The Delta, written to a disk that reads as zeros,
// is that file system; the FS stands on it and can be given to Apply after Rebase.
func Format(o FormatOptions) (*FS, *Delta, error) {
	if o.Capacity == 0 {
		o.Capacity = DefaultCapacity
	}
	blocks := o.Capacity / BlockSize
	if o.Capacity < minCapacity || blocks > 1<<32 {
		return nil, nil, fmt.Errorf("format a disk of %d bytes: ext4 takes %d bytes to 16 TiB", o.Capacity, minCapacity)
	}
	journal := o.Journal
	switch {
	case o.NoJournal:
		journal = 0
	case journal == 0 && o.Capacity < 256<<20:
		journal = minJournal
	case journal == 0:
		journal = defaultJournal
	case journal < minJournal || journal%BlockSize != 0 || journal > o.Capacity/2 || journal > 64<<20:
		return nil, nil, fmt.Errorf("journal of %d bytes: 4 MiB to 64 MiB in blocks of %d, at most half the disk", journal, BlockSize)
	}
	f := newFS(zeros{})
	f.applying = true
	f.initGroups(blocks)
	f.initSuper(journal/BlockSize, o.UUID)
	data, err := f.layOut(journal / BlockSize)
	if err != nil {
		return nil, nil, fmt.Errorf("format a disk of %d bytes: %w", o.Capacity, err)
	}
	if err := f.initInodes(); err != nil {
		return nil, nil, err
	}
	a := &apply{FS: f, cs: &Changeset{}, place: newPlacer((data+clusterBlocks-1)/clusterBlocks, f.reservedClusters())}
	d, err := a.finish()
	return f, d, err
}

// zeros is an empty disk.
type zeros struct{}

func (zeros) ReadAt(p []byte, _ int64) (int, error) {
	clear(p)
	return len(p), nil
}

func (f *FS) initGroups(blocks int64) {
	n := (blocks + blocksPerGroup - 1) / blocksPerGroup
	// A last group without room for its backups and a little data is left out.
	if tail := blocks % blocksPerGroup; n > 1 && tail > 0 && tail < 1+(n+descsPerBlock-1)/descsPerBlock+64 {
		blocks -= tail
		n--
	}
	f.sb.blocksCount, f.sb.freeBlocks = blocks, blocks
	f.sb.inodesPerGroup = inodesPerGroup
	f.sb.inodesCount = uint32(n) * inodesPerGroup
	f.sb.freeInodes = f.sb.inodesCount
	f.groups = make([]group, n)
	for i := range f.groups {
		f.groups[i] = group{
			flags:       groupInodeUninit | groupBlockUninit | groupInodeZeroed,
			freeBlocks:  uint32(min(blocksPerGroup, blocks-int64(i)*blocksPerGroup)),
			freeInodes:  inodesPerGroup,
			unusedTable: inodesPerGroup,
			changed:     true,
		}
	}
}

func (f *FS) initSuper(journal int64, uuid [16]byte) {
	s := &f.sb
	s.state = 1
	s.compat, s.incompat, s.roCompat = ourCompat, ourIncompat, ourRO
	s.hashVersion = hashHalfMD4
	s.flags = flagSignedHash
	// One UUID for all disks of one shape: layers of one store stack on one empty disk.
	id := sha256.Sum256(fmt.Appendf(nil, "vic root disk, ext4 format 1, %d blocks, journal %d", s.blocksCount, journal))
	copy(s.uuid[:], id[:16])
	s.uuid[6], s.uuid[8] = s.uuid[6]&0x0f|0x80, s.uuid[8]&0x3f|0x80 // RFC 9562 version 8
	if uuid != [16]byte{} {
		s.uuid = uuid
	}
	for i := range s.hashSeed {
		s.hashSeed[i] = le.Uint32(id[16+4*i:])
	}
	f.seed = s.checksumSeed()

	p := s.raw[:]
	le.PutUint32(p[0x18:], 2) // log2(block size / 1024)
	le.PutUint32(p[0x1c:], 2)
	le.PutUint32(p[0x20:], blocksPerGroup)
	le.PutUint32(p[0x24:], blocksPerGroup)
	le.PutUint16(p[0x36:], 0xffff) // no mount count after which to check
	le.PutUint16(p[0x38:], superMagic)
	le.PutUint16(p[0x3c:], 2) // on errors: remount read-only
	le.PutUint32(p[0x4c:], 1) // dynamic revision
	le.PutUint32(p[0x54:], firstInode)
	le.PutUint16(p[0x58:], inodeSize)
	copy(p[0x78:0x88], "vic")
	le.PutUint16(p[0xfe:], groupDescSize)
	le.PutUint32(p[0x100:], 0x000c) // default mount options: user_xattr, acl
	le.PutUint16(p[0x15c:], extraSize)
	le.PutUint16(p[0x15e:], extraSize)
	p[0x174] = 4 // log2 of groups per flex group
	p[0x175] = 1 // checksum type: crc32c
	if journal > 0 {
		s.compat |= compatHasJournal
		le.PutUint32(p[0xe0:], journalInode)
	}
}

// layOut gives the metadata its place, marks it used, writes the journal, and returns
// the first block after it all. Bitmaps come in the order in which small layers touch
// them, so that those share the first cluster with the superblock.
func (f *FS) layOut(journal int64) (int64, error) {
	groups := len(f.groups)
	reserved := f.reservedClusters()
	var used []run
	for _, r := range reserved {
		used = append(used, run{where: r.first * clusterBlocks, n: 1 + f.descBlocks()})
	}
	next := int64(0)
	take := func(n int64) int64 { // n blocks in a row, clear of the backups
		at := next
		for _, r := range reserved {
			if first := r.first * clusterBlocks; at < first+r.n*clusterBlocks && at+n > first {
				at = first + r.n*clusterBlocks
			}
		}
		next = at + n
		used = append(used, run{where: at, n: n})
		return at
	}
	take(1 + f.descBlocks())
	for g := range min(2, groups) {
		f.groups[g].inodeBitmap = take(1)
	}
	metadata := next + int64(2*groups) + journal + int64(groups)*tableBlocks
	for i := range f.groups { // from the first group with room for data
		f.groups[(int(metadata/blocksPerGroup)+i)%groups].blockBitmap = take(1)
	}
	for g := 2; g < groups; g++ {
		f.groups[g].inodeBitmap = take(1)
	}
	var journalAt int64
	if journal > 0 {
		journalAt = take(journal)
	}
	for g := range f.groups {
		f.groups[g].inodeTable = take(tableBlocks)
	}
	if next+4*clusterBlocks > f.sb.blocksCount {
		return 0, fmt.Errorf("metadata takes %d of %d blocks", next, f.sb.blocksCount)
	}

	last := &f.groups[groups-1] // its bitmap has bits beyond the disk's end
	last.flags &^= groupBlockUninit
	if b := f.fresh(last.blockBitmap); f.sb.blocksCount%blocksPerGroup > 0 {
		setBits(b.data[:], int(f.sb.blocksCount%blocksPerGroup), blocksPerGroup)
	}
	overhead := int64(0)
	for _, r := range used {
		overhead += r.n
		if err := f.markBlocks(r.where, r.n, true); err != nil {
			return 0, err
		}
	}
	// A kernel that counts another number writes its own to every superblock, also the absent ones.
	le.PutUint32(f.sb.raw[0x248:], uint32(overhead))
	if journal > 0 {
		f.putJournal(journalAt, journal)
	}
	return next, nil
}

// putJournal writes an empty journal's superblock (big endian, jbd2 journal_superblock_s)
// and remembers where it is; the rest of it reads as zeros.
func (f *FS) putJournal(at, n int64) {
	be := binary.BigEndian
	p := f.fresh(at).data[:]
	be.PutUint32(p[0x00:], 0xC03B3998)
	be.PutUint32(p[0x04:], 4) // superblock, version 2
	be.PutUint32(p[0x0c:], BlockSize)
	be.PutUint32(p[0x10:], uint32(n))
	be.PutUint32(p[0x14:], 1) // first block of the log
	be.PutUint32(p[0x18:], 1) // first commit expected; start 0: nothing to replay
	copy(p[0x30:], f.sb.uuid[:])
	be.PutUint32(p[0x40:], 1) // users

	in := make(rawInode, inodeSize)
	var e [extentEntry]byte
	le.PutUint16(e[4:], uint16(n))
	le.PutUint32(e[8:], uint32(at))
	putExtentNode(in.blockArea(), [][extentEntry]byte{e}, rootExtents, 0)
	p = f.sb.raw[:]
	p[0xfd] = 1 // the inode's blocks and size are kept here as well
	copy(p[0x10c:], in.blockArea())
	le.PutUint32(p[0x14c:], uint32(n*BlockSize))
}

// initInodes writes the root directory and the journal's inode.
func (f *FS) initInodes() error {
	b, err := f.inodeBitmap(0)
	if err != nil {
		return err
	}
	g := &f.groups[0]
	setBits(b.data[:], 0, firstInode-1)
	g.freeInodes -= firstInode - 1
	f.sb.freeInodes -= firstInode - 1
	g.unusedTable = inodesPerGroup - (firstInode - 1)
	g.usedDirs = 1

	in, err := f.changeInode(rootInode)
	if err != nil {
		return err
	}
	in.setMode(modeDir | 0755)
	le.PutUint16(in[inoExtraSize:], extraSize)
	putExtentNode(in.blockArea(), nil, rootExtents, 0)
	in.setFlags(inodeExtents)
	f.dirs[rootInode] = &dir{ino: rootInode, parent: rootInode, changed: true}

	if f.sb.compat&compatHasJournal == 0 {
		return nil
	}
	if in, err = f.changeInode(journalInode); err != nil {
		return err
	}
	n := int64(le.Uint32(f.sb.raw[0x14c:]))
	in.setMode(modeFile | 0600)
	in.setLinks(1)
	in.setSize(n)
	in.setBlocks(n / BlockSize)
	in.setFlags(inodeExtents)
	le.PutUint16(in[inoExtraSize:], extraSize)
	copy(in.blockArea(), f.sb.raw[0x10c:])
	return nil
}
