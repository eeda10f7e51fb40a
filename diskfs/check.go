package diskfs

import (
	"fmt"
	"maps"
	"slices"
)

// Check reads all metadata and calls report for everything that is damaged or
// contradicts itself: blocks that two owners claim or none, link counts, directories out
// of the tree, indexes that lead to the wrong leaf, bitmaps and free counts, checksums.
// If report returns an error, Check ends with it; otherwise it returns nil once it has
// seen all, whatever it reported.
//
// It takes about 10 bytes of memory for each inode and a bit for each block of the groups
// in use. It judges what Format made and Apply or a guest changed; any other file system,
// and one whose journal holds changes, is reported as such and not looked at. The file
// system may be read meanwhile.
func (f *FS) Check(report func(error) error) error {
	f.mu.Lock()
	if f.applying {
		panic("diskfs: Check before Rebase")
	}
	c := checker{FS: newFS(f.disk), report: report}
	c.sb, c.seed, c.groups = f.sb, f.seed, append([]group(nil), f.groups...)
	f.mu.Unlock()
	return c.run()
}

// A checker is one Check at work, on an FS of its own.
type checker struct {
	*FS
	report func(error) error
	err    error // what report returned

	used   [][]byte          // by group: a bit for each block that has an owner, nil if none has
	inodes [][]checkedInode  // by group, nil if none is in use
	dirs   []checkedDir      // ascending
	refs   map[int64]uint32  // of xattr blocks
	parent map[uint32]uint32 // of each directory: the one that names it
}

// checkedInode is what Check remembers of an inode.
type checkedInode struct {
	kind  uint16 // of its mode; 0 for a free one
	links uint16 // as the inode says
	names uint32 // found; of a directory: subdirectories
}

// checkedDir is what Check remembers of a directory.
type checkedDir struct{ ino, dotdot uint32 }

// fail reports an error; it returns false when the check is to end.
func (c *checker) fail(err error) bool {
	if c.err == nil {
		c.err = c.report(err)
	}
	return c.err == nil
}

func (c *checker) failf(field, format string, args ...any) bool {
	return c.fail(&FormatError{Off: -1, Field: field, Msg: fmt.Sprintf(format, args...)})
}

func (c *checker) run() error {
	if err := c.sb.writable(); err != nil {
		c.fail(err)
		return c.err
	}
	c.used = make([][]byte, len(c.groups))
	c.inodes = make([][]checkedInode, len(c.groups))
	c.refs = make(map[int64]uint32)
	c.parent = make(map[uint32]uint32)
	for _, pass := range []func(){c.fixed, c.allInodes, c.allXattrBlocks, c.allDirs, c.tree, c.linkCounts, c.bitmaps} {
		if pass(); c.err != nil {
			return c.err
		}
	}
	return nil
}

// claim gives blocks an owner.
func (c *checker) claim(at, n int64, owner string) {
	if at < 0 || n < 0 || at+n > c.sb.blocksCount {
		c.failf(owner, "blocks %d+%d outside the file system", at, n)
		return
	}
	for n > 0 {
		g, first := at/blocksPerGroup, int(at%blocksPerGroup)
		span := int(min(n, int64(blocksPerGroup-first)))
		if c.used[g] == nil {
			c.used[g] = make([]byte, blocksPerGroup/8)
		}
		if k := countBits(c.used[g], first, first+span); k > 0 {
			c.failf(owner, "%d of the blocks %d+%d belong to something else as well", k, at, span)
		}
		setBits(c.used[g], first, first+span)
		at, n = at+int64(span), n-int64(span)
	}
}

// fixed claims what stands where Format put it.
func (c *checker) fixed() {
	c.claim(0, 1+c.descBlocks(), "superblock")
	for i := range c.groups {
		g := &c.groups[i]
		if i > 0 && hasBackup(i) {
			c.claim(int64(i)*blocksPerGroup, 1+c.descBlocks(), fmt.Sprintf("backup superblock of group %d", i))
		}
		field := fmt.Sprintf("descriptor of group %d", i)
		c.claim(g.blockBitmap, 1, field)
		c.claim(g.inodeBitmap, 1, field)
		c.claim(g.inodeTable, tableBlocks, field)
		if g.unusedTable > inodesPerGroup || g.freeInodes > inodesPerGroup { // without groupInodeZeroed it came with growth
			c.failf(field, "%d inodes never used, %d free, flags %#x", g.unusedTable, g.freeInodes, g.flags)
		}
	}
}

// allInodes looks at every inode that its bitmap says is in use.
func (c *checker) allInodes() {
	for i := range c.groups {
		g := &c.groups[i]
		if g.flags&groupInodeUninit != 0 {
			if g.freeInodes != inodesPerGroup || g.unusedTable != inodesPerGroup || g.usedDirs != 0 {
				c.failf(fmt.Sprintf("descriptor of group %d", i), "not initialised, but %d inodes free, %d never used, %d directories", g.freeInodes, g.unusedTable, g.usedDirs)
			}
			continue
		}
		field := fmt.Sprintf("inode bitmap of group %d", i)
		b, err := c.bitmap(g.inodeBitmap, g.ibCsum, inodesPerGroup/8, "inode", i)
		if err != nil {
			if !c.fail(err) {
				return
			}
			continue
		}
		bits := b.data
		if free := inodesPerGroup - countBits(bits[:], 0, inodesPerGroup); uint32(free) != g.freeInodes {
			c.failf(field, "%d inodes free, the descriptor says %d", free, g.freeInodes)
		}
		if countBits(bits[:], inodesPerGroup, blocksPerGroup) != blocksPerGroup-inodesPerGroup {
			c.failf(field, "bits behind the last inode are not set")
		}
		c.inodes[i] = make([]checkedInode, inodesPerGroup)
		dirs := uint32(0)
		for k := range uint32(inodesPerGroup) {
			ino := uint32(i)*inodesPerGroup + k + 1
			inUse := countBits(bits[:], int(k), int(k)+1) == 1
			if k >= inodesPerGroup-min(g.unusedTable, inodesPerGroup) {
				if inUse && !c.fail(badInode(ino, "in use, but among those never used")) {
					return
				}
				continue
			}
			if c.oneInode(ino, inUse) {
				dirs++
			}
			if c.err != nil {
				return
			}
		}
		if dirs != g.usedDirs {
			c.failf(field, "%d directories, the descriptor says %d", dirs, g.usedDirs)
		}
	}
}

// oneInode looks at an inode and says whether it is a directory.
func (c *checker) oneInode(ino uint32, inUse bool) bool {
	in, err := c.inode(ino)
	if err != nil {
		c.fail(err)
		return false
	}
	switch reserved := ino < firstInode && ino != rootInode && (ino != journalInode || c.sb.compat&compatHasJournal == 0); {
	case reserved:
		if !inUse {
			c.fail(badInode(ino, "reserved, but free in its bitmap"))
		}
		return false
	case !inUse:
		if in.inUse() && in.links() > 0 {
			c.fail(badInode(ino, "mode %#o and %d links, but free in its bitmap", in.mode(), in.links()))
		}
		return false
	case !in.inUse() || in.links() == 0:
		c.fail(badInode(ino, "mode %#o and %d links, but in use in its bitmap", in.mode(), in.links()))
		return false
	}
	in = append(rawInode(nil), in...) // the block it stands in may leave the cache
	*c.state(ino) = checkedInode{kind: in.kind(), links: in.links()}
	if err := c.contents(ino, in); err != nil {
		c.fail(err)
	}
	if in.kind() != modeDir {
		return false
	}
	c.dirs = append(c.dirs, checkedDir{ino: ino})
	return true
}

// contents claims an inode's blocks and holds its size and count against them.
func (c *checker) contents(ino uint32, in rawInode) error {
	owner := fmt.Sprintf("inode %d", ino)
	var blocks, end, covered int64
	if in.flags()&inodeExtents != 0 {
		err := c.extents(ino, in,
			func(r run, unwritten bool) error {
				c.claim(r.where, r.n, owner)
				blocks += r.n
				covered = r.at + r.n
				if !unwritten {
					end = covered
				}
				return c.err
			},
			func(at int64) error {
				c.claim(at, 1, owner)
				blocks++
				return c.err
			})
		if err != nil {
			return err
		}
	}
	if at := in.xattrBlock(); at != 0 {
		blocks++
		c.refs[at]++
	}
	if _, err := c.xattrs(ino, in); err != nil {
		return err
	}
	size := in.size()
	last := (size + BlockSize - 1) / BlockSize
	switch {
	case size < 0:
		return badInode(ino, "size of %d bytes", size)
	case in.sectors() != blocks*(BlockSize/512):
		return badInode(ino, "occupies %d blocks, says %d sectors", blocks, in.sectors())
	}
	switch in.kind() {
	case modeFile:
		if in.flags()&inodeExtents == 0 || end > last {
			return badInode(ino, "%d blocks of data, size of %d bytes, flags %#x", end, size, in.flags())
		}
	case modeDir:
		if in.flags()&inodeExtents == 0 || size == 0 || size%BlockSize != 0 || end != last || covered != last {
			return badInode(ino, "directory of %d bytes with %d blocks, flags %#x", size, covered, in.flags())
		}
	case modeLink:
		if !in.fastLink() && (end != 1 || covered != 1) {
			return badInode(ino, "symlink of %d bytes with %d blocks", size, covered)
		}
		_, err := c.readLink(ino)
		return err
	case modeChar, modeBlock, modeFIFO, modeSocket:
		if covered > 0 {
			return badInode(ino, "mode %#o with data", in.mode())
		}
	default:
		return badInode(ino, "mode %#o", in.mode())
	}
	return nil
}

// state returns what is known of an inode, nil if its number is none or its group unused.
func (c *checker) state(ino uint32) *checkedInode {
	if ino == 0 || ino > c.sb.inodesCount {
		return nil
	}
	g := c.inodes[(ino-1)/inodesPerGroup]
	if g == nil {
		return nil
	}
	return &g[(ino-1)%inodesPerGroup]
}

// allXattrBlocks claims the shared blocks and compares their reference counts.
func (c *checker) allXattrBlocks() {
	for _, at := range slices.Sorted(maps.Keys(c.refs)) {
		n := c.refs[at]
		owner := fmt.Sprintf("extended attribute block %d", at)
		b, err := c.load(at)
		if err != nil {
			continue // reported with the inode
		}
		if refs := le.Uint32(b.data[4:]); refs != n {
			c.failf(owner, "%d references, says %d", n, refs)
		}
		c.claim(at, 1, owner)
	}
}

// linkCounts compares every inode's link count with the names found.
func (c *checker) linkCounts() {
	for i, g := range c.inodes {
		for k, s := range g {
			ino := uint32(i*inodesPerGroup+k) + 1
			if s.kind == 0 || ino == journalInode {
				continue
			}
			want := s.names
			if s.kind == modeDir {
				if want += 2; want >= maxLinks {
					want = 1
				}
				// A directory that once had too many to count may keep the 1.
				if s.links == 1 {
					continue
				}
			}
			if uint32(s.links) != want && !c.fail(badInode(ino, "%d links, says %d", want, s.links)) {
				return
			}
		}
	}
}

// bitmaps compares every group's block bitmap and free count with the blocks claimed.
func (c *checker) bitmaps() {
	var freeBlocks int64
	var freeInodes uint32
	var none [blocksPerGroup / 8]byte
	for i := range c.groups {
		g := &c.groups[i]
		freeBlocks += int64(g.freeBlocks)
		freeInodes += g.freeInodes
		want := c.used[i]
		if want == nil {
			want = none[:]
		}
		end := int(min(blocksPerGroup, c.sb.blocksCount-int64(i)*blocksPerGroup))
		field := fmt.Sprintf("block bitmap of group %d", i)
		got := none[:]
		if g.flags&groupBlockUninit == 0 {
			b, err := c.bitmap(g.blockBitmap, g.bbCsum, blocksPerGroup/8, "block", i)
			if err != nil {
				if !c.fail(err) {
					return
				}
				continue
			}
			got = b.data[:]
		}
		lost, stolen := 0, 0
		for k := range end {
			switch bit := byte(1) << (k % 8); {
			case got[k/8] == want[k/8]:
			case got[k/8]&bit != 0 && want[k/8]&bit == 0:
				lost++
			case got[k/8]&bit == 0 && want[k/8]&bit != 0:
				stolen++
			}
		}
		if lost > 0 || stolen > 0 {
			c.failf(field, "%d blocks marked used that nothing owns, %d marked free that something does", lost, stolen)
		}
		if free := end - countBits(got, 0, end); uint32(free) != g.freeBlocks {
			c.failf(field, "%d blocks free, the descriptor says %d", free, g.freeBlocks)
		}
		if end < blocksPerGroup && countBits(got, end, blocksPerGroup) != blocksPerGroup-end {
			c.failf(field, "bits behind the disk's end are not set")
		}
		if c.err != nil {
			return
		}
	}
	if freeBlocks != c.sb.freeBlocks || freeInodes != c.sb.freeInodes {
		c.failf("superblock", "%d blocks and %d inodes free, the groups have %d and %d", c.sb.freeBlocks, c.sb.freeInodes, freeBlocks, freeInodes)
	}
}
