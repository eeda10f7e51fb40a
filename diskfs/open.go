package diskfs

import (
	"fmt"
	"io"
	"sync"
)

// maxCachedNames bounds the directory entries kept in memory while nothing changes.
const maxCachedNames = 1 << 20

// An FS is an ext4 file system on a disk. Its methods for reading may run
// concurrently; Apply and Rebase run alone.
type FS struct {
	disk io.ReaderAt

	mu       sync.Mutex // guards all below while reading; Apply holds it throughout
	sb       superblock
	seed     uint32 // of metadata checksums
	groups   []group
	blocks   map[int64]*block // metadata blocks by address
	cold     map[int64][]byte // packed ones, all of them dirty: see cool
	hot      int              // bounds blocks while a changeset is applied
	dirs     map[uint32]*dir  // by inode
	dirEnts  int              // names in dirs
	tables   map[int64]uint32 // changed inode table blocks and their first inode
	dirZone  zone
	fileZone zone
	applying bool
	err      error // of an Apply: what is in memory matches no disk any more

	maxBlocks, maxNames int // kept in blocks and dirs while nothing changes
}

// Open reads the file system on a disk of capacity bytes. It reads what it needs when
// it needs it, from disk, which must stay readable as long as the FS is used. Whatever
// the disk holds, reading ends, in bounded memory; damage gives a *FormatError.
//
// It takes what other programs made too, if it has blocks of 4096 bytes and no feature
// unknown here. Changes that only the journal has are not seen; Apply refuses such a disk.
func Open(disk io.ReaderAt, capacity int64) (*FS, error) {
	f := newFS(disk)
	var sb [superSize]byte
	if err := readFull(disk, sb[:], superOffset); err != nil {
		return nil, fmt.Errorf("read superblock: %w", err)
	}
	if err := f.sb.unmarshal(sb[:]); err != nil {
		return nil, err
	}
	if f.sb.blocksCount > capacity/BlockSize {
		return nil, &FormatError{Off: superOffset, Field: "superblock",
			Msg: fmt.Sprintf("%d blocks on a disk of %d bytes", f.sb.blocksCount, capacity)}
	}
	f.seed = f.sb.checksumSeed()
	if err := f.readGroups(); err != nil {
		return nil, err
	}
	return f, nil
}

func newFS(disk io.ReaderAt) *FS {
	return &FS{disk: disk, blocks: make(map[int64]*block), cold: make(map[int64][]byte), hot: hotBlocks,
		dirs: make(map[uint32]*dir), tables: make(map[int64]uint32), maxBlocks: cacheBlocks, maxNames: maxCachedNames}
}

// LimitCache bounds what is kept in memory of what was read: bytes of metadata, and names
// of directories. It is for who keeps many file systems open; the defaults, 64 MiB and a
// million names, are for who goes through one.
func (f *FS) LimitCache(bytes int64, names int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.maxBlocks, f.maxNames = int(bytes/BlockSize), names
	if !f.applying {
		f.clean()
		f.trimDirs()
	}
}

func (f *FS) readGroups() error {
	n := int((f.sb.blocksCount + blocksPerGroup - 1) / blocksPerGroup)
	wide := f.sb.incompat&incompat64bit != 0
	size := groupDescSize
	if !wide {
		size = groupDescSize / 2
	}
	table, err := f.readDescriptors(n, size)
	if err != nil {
		return fmt.Errorf("read group descriptors: %w", err)
	}
	f.groups = make([]group, n)
	tableLen := int64(f.sb.inodesPerGroup / inodesPerBlock)
	for i := range f.groups {
		p := table[i*size : (i+1)*size]
		g := &f.groups[i]
		g.unmarshal(p, wide)
		bad := func(msg string) error {
			return &FormatError{Off: BlockSize + int64(i*size), Field: fmt.Sprintf("descriptor of group %d", i), Msg: msg}
		}
		switch {
		case f.sb.roCompat&roMetadataCsum != 0 && groupChecksum(f.seed, i, p) != le.Uint16(p[0x1e:]):
			return bad("checksum mismatch")
		case g.blockBitmap <= 0 || g.blockBitmap >= f.sb.blocksCount, g.inodeBitmap <= 0 || g.inodeBitmap >= f.sb.blocksCount,
			g.inodeTable <= 0 || g.inodeTable+tableLen > f.sb.blocksCount:
			return bad("bitmaps or inode table outside the file system")
		}
	}
	return nil
}

// readDescriptors reads n group descriptors of size bytes. They follow the superblock; with meta_bg, which a kernel sets
// when it enlarges a file system, those from block s_first_meta_bg of them on are in the groups that they describe, a
// block at the beginning of the first.
func (f *FS) readDescriptors(n, size int) ([]byte, error) {
	table := make([]byte, n*size)
	front := int64(len(table))
	if f.sb.incompat&incompatMetaBG != 0 {
		front = min(front, int64(le.Uint32(f.sb.raw[0x104:]))*BlockSize)
	}
	if err := readFull(f.disk, table[:front], BlockSize); err != nil {
		return nil, err
	}
	for off := int(front); off < len(table); off += BlockSize {
		group := off / size
		at := int64(group) * blocksPerGroup
		if f.sb.roCompat&roSparseSuper == 0 || hasBackup(group) {
			at++
		}
		if err := readFull(f.disk, table[off:min(off+BlockSize, len(table))], at*BlockSize); err != nil {
			return nil, err
		}
	}
	return table, nil
}

// Capacity returns the size of the file system in bytes.
func (f *FS) Capacity() int64 { return f.sb.blocksCount * BlockSize }

// Unclean tells whether the file system was not unmounted: its journal may hold changes.
func (f *FS) Unclean() bool { return f.sb.incompat&incompatRecover != 0 }

// Foreign tells whether the file system has parts that Format does not make, such as a kernel's that enlarged it: Check
// and Apply refuse it.
func (f *FS) Foreign() bool { return !f.Unclean() && f.sb.writable() != nil }

// Rebase tells the FS that the last Delta has been written: disk is what it describes
// now, and blocks not in memory come from there.
func (f *FS) Rebase(disk io.ReaderAt) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.disk, f.applying = disk, false
	f.clean()
	for ino, d := range f.dirs {
		if d.layout != nil && d.layout.indexed {
			delete(f.dirs, ino) // its names stand in another order on the disk
		}
		d.layout = nil
	}
	f.trimDirs()
}

// trimDirs forgets the directories in memory when they have become many.
func (f *FS) trimDirs() {
	n := 0
	for _, d := range f.dirs {
		n += len(d.ents) + 1
	}
	f.dirEnts = n
	if n > f.maxNames {
		f.dirs, f.dirEnts = make(map[uint32]*dir), 0
	}
}
