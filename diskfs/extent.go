package diskfs

import (
	"fmt"
)

const (
	extentMagic   = 0xF30A
	extentEntry   = 12
	rootExtents   = 4   // fit in an inode
	blockExtents  = 340 // fit in a block, with its checksum
	maxExtentLen  = 32768
	maxExtentTree = 5 // levels: EXT4_MAX_EXTENT_DEPTH
)

// A run is a piece of a file: n blocks from file block at, held by blocks from where:
// blocks of the stream while a changeset is read, of the disk once it is bound.
type run struct {
	at, where, n int64
}

// extents calls fn for each file extent of the inode in ascending order, and node for
// each block of the tree itself; either may be nil. Unwritten extents read as zeros
// and are given to fn with the third argument true.
func (f *FS) extents(ino uint32, in rawInode, fn func(r run, unwritten bool) error, node func(block int64) error) error {
	if in.flags()&inodeExtents == 0 {
		return badInode(ino, "maps its blocks without extents")
	}
	w := extentWalk{f: f, ino: ino, seed: f.inodeSeed(ino, in.generation()), fn: fn, node: node}
	return w.walk(in.blockArea(), rootExtents, -1)
}

type extentWalk struct {
	f    *FS
	ino  uint32
	seed uint32
	next int64 // first file block not seen yet
	fn   func(run, bool) error
	node func(int64) error
}

// walk visits one node of the tree; depth is what its header must say, -1 for the root.
func (w *extentWalk) walk(p []byte, limit, depth int) error {
	n, levels := int(le.Uint16(p[2:])), int(le.Uint16(p[6:]))
	switch {
	case le.Uint16(p) != extentMagic:
		return badInode(w.ino, "extent node magic %#04x", le.Uint16(p))
	case n > limit, n == 0 && depth >= 0:
		return badInode(w.ino, "extent node with %d entries, %d fit", n, limit)
	case depth < 0 && levels > maxExtentTree, depth >= 0 && levels != depth:
		return badInode(w.ino, "extent tree depth %d", levels)
	}
	for i := range n {
		e := p[extentEntry*(i+1):]
		at := int64(le.Uint32(e))
		if at < w.next {
			return badInode(w.ino, "extents overlap at file block %d", at)
		}
		if levels > 0 {
			if err := w.child(int64(le.Uint32(e[4:]))|int64(le.Uint16(e[8:]))<<32, levels-1); err != nil {
				return err
			}
			continue
		}
		r := run{at: at, n: int64(le.Uint16(e[4:])), where: int64(le.Uint32(e[8:])) | int64(le.Uint16(e[6:]))<<32}
		unwritten := r.n > maxExtentLen
		if unwritten {
			r.n -= maxExtentLen
		}
		if r.n == 0 || r.where <= 0 || r.where+r.n > w.f.sb.blocksCount {
			return badInode(w.ino, "extent of blocks %d+%d outside the file system", r.where, r.n)
		}
		w.next = r.at + r.n
		if w.fn != nil {
			if err := w.fn(r, unwritten); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *extentWalk) child(at int64, depth int) error {
	b, err := w.f.load(at)
	if err != nil {
		return fmt.Errorf("extent tree of inode %d: %w", w.ino, err)
	}
	if w.f.sb.roCompat&roMetadataCsum != 0 && !b.dirty {
		end := extentEntry * (blockExtents + 1)
		if int(le.Uint16(b.data[4:])) > blockExtents || crc32c(w.seed, b.data[:end]) != le.Uint32(b.data[end:]) {
			return badInode(w.ino, "checksum mismatch in extent block %d", at)
		}
	}
	if err := w.walk(b.data[:], blockExtents, depth); err != nil {
		return err
	}
	if w.node != nil {
		return w.node(at)
	}
	return nil
}

// splitRuns joins runs that follow each other and cuts those longer than one extent
// may be, in place of the slice's own memory where it can.
func splitRuns(runs []run) []run {
	var out []run
	for _, r := range runs {
		if k := len(out) - 1; k >= 0 && out[k].at+out[k].n == r.at && out[k].where+out[k].n == r.where && out[k].n < maxExtentLen {
			take := min(r.n, maxExtentLen-out[k].n)
			out[k].n += take
			r = run{r.at + take, r.where + take, r.n - take}
		}
		for r.n > 0 {
			take := min(r.n, maxExtentLen)
			out = append(out, run{r.at, r.where, take})
			r = run{r.at + take, r.where + take, r.n - take}
		}
	}
	return out
}

// putExtents writes the extent tree for the runs (disk blocks, ascending) into the
// inode, taking metadata blocks from the stream for what does not fit there. It
// returns how many blocks the tree took.
func (a *apply) putExtents(ino uint32, in rawInode, runs []run) (int64, error) {
	in.setFlags(in.flags() | inodeExtents)
	entries := make([][extentEntry]byte, 0, len(runs))
	firsts := make([]int64, 0, len(runs))
	for _, r := range splitRuns(runs) {
		var e [extentEntry]byte
		le.PutUint32(e[0:], uint32(r.at))
		le.PutUint16(e[4:], uint16(r.n))
		le.PutUint16(e[6:], uint16(r.where>>32))
		le.PutUint32(e[8:], uint32(r.where))
		entries = append(entries, e)
		firsts = append(firsts, r.at)
	}
	var taken int64
	depth := 0
	seed := a.inodeSeed(ino, in.generation())
	for ; len(entries) > rootExtents; depth++ {
		var up [][extentEntry]byte
		var upFirsts []int64
		for i := 0; i < len(entries); i += blockExtents {
			part := entries[i:min(i+blockExtents, len(entries))]
			at, p := a.newMeta()
			taken++
			putExtentNode(p, part, blockExtents, depth)
			end := extentEntry * (blockExtents + 1)
			le.PutUint32(p[end:], crc32c(seed, p[:end]))
			var e [extentEntry]byte
			le.PutUint32(e[0:], uint32(firsts[i]))
			le.PutUint32(e[4:], uint32(at))
			le.PutUint16(e[8:], uint16(at>>32))
			up = append(up, e)
			upFirsts = append(upFirsts, firsts[i])
		}
		entries, firsts = up, upFirsts
	}
	if depth > maxExtentTree {
		return 0, badInode(ino, "needs an extent tree %d levels deep", depth)
	}
	clear(in.blockArea())
	putExtentNode(in.blockArea(), entries, rootExtents, depth)
	return taken, nil
}

func putExtentNode(p []byte, entries [][extentEntry]byte, limit, depth int) {
	le.PutUint16(p[0:], extentMagic)
	le.PutUint16(p[2:], uint16(len(entries)))
	le.PutUint16(p[4:], uint16(limit))
	le.PutUint16(p[6:], uint16(depth))
	for i, e := range entries {
		copy(p[extentEntry*(i+1):], e[:])
	}
}
