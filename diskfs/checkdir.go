package diskfs

import (
	"fmt"
	"slices"
)

// allDirs reads every directory: what it names must be in use and of the type it says.
func (c *checker) allDirs() {
	for i := range c.dirs {
		ino := c.dirs[i].ino
		d, err := c.readDir(ino)
		if err == nil {
			c.dirs[i].dotdot = d.parent
			c.names(d)
			err = c.index(ino)
		}
		if err != nil && !c.fail(err) {
			return
		}
	}
}

// names counts what one directory names.
func (c *checker) names(d *dir) {
	types := [...]uint16{fileTypeFile: modeFile, fileTypeDir: modeDir, fileTypeChar: modeChar, fileTypeBlk: modeBlock,
		fileTypeFIFO: modeFIFO, fileTypeSock: modeSocket, fileTypeLink: modeLink}
	for _, e := range d.ents {
		s := c.state(e.ino)
		switch {
		case s == nil || s.kind == 0 || e.ino == journalInode:
			c.fail(badInode(d.ino, "names %q inode %d, which is not in use", e.name, e.ino))
		case int(e.typ) >= len(types) || types[e.typ] != s.kind:
			c.fail(badInode(d.ino, "gives %q type %d, but inode %d has mode %#o", e.name, e.typ, e.ino, s.kind))
		case s.kind != modeDir:
			s.names++
		case e.ino == rootInode || c.parent[e.ino] != 0:
			c.fail(badInode(d.ino, "names %q directory %d, which has another name", e.name, e.ino))
		default:
			c.parent[e.ino] = d.ino
			c.state(d.ino).names++
		}
		if c.err != nil {
			return
		}
	}
}

// tree wants every directory below the root, and its ".." to be the one that names it.
func (c *checker) tree() {
	below := map[uint32]bool{rootInode: true}
	for _, d := range c.dirs {
		want := c.parent[d.ino]
		if d.ino == rootInode {
			want = rootInode
		}
		switch {
		case want == 0:
			c.fail(badInode(d.ino, "directory without a name"))
		case d.dotdot != 0 && d.dotdot != want:
			c.fail(badInode(d.ino, "its parent is inode %d, it says %d", want, d.dotdot))
		}
		var path []uint32
		at := d.ino
		for ; at != 0 && !below[at]; at = c.parent[at] {
			if len(path) > len(c.dirs) {
				c.fail(badInode(d.ino, "directory that is its own ancestor"))
				break
			}
			path = append(path, at)
		}
		for _, ino := range path {
			below[ino] = true // or reported
		}
		if c.err != nil {
			return
		}
	}
}

// dirIndex is the index of a directory under examination.
type dirIndex struct {
	*checker
	ino  uint32
	seed uint32
	runs []run
	seen []bool // blocks that something leads to
	last uint32 // hash of the entry seen last
}

// index wants the index of a directory, if it has one, to lead to every name.
func (c *checker) index(ino uint32) error {
	in, err := c.inode(ino)
	if err != nil || in.flags()&inodeIndexed == 0 {
		return err
	}
	x := dirIndex{checker: c, ino: ino, seed: c.inodeSeed(ino, in.generation()), seen: make([]bool, in.size()/BlockSize)}
	if len(x.seen) == 1 {
		return nil // not split yet: the kernel does not look at it
	}
	err = c.extents(ino, append(rawInode(nil), in...), func(r run, _ bool) error {
		x.runs = append(x.runs, r)
		return nil
	}, nil)
	if err != nil {
		return err
	}
	p, err := x.block(0)
	if err != nil {
		return err
	}
	if p[28] != hashHalfMD4 || p[29] != 8 || p[30] > 1 {
		return badInode(ino, "index with hash %d, header of %d bytes, %d levels", p[28], p[29], p[30])
	}
	if err := x.node(p, true, int(p[30]), 0, 1<<32-1); err != nil {
		return err
	}
	if i := slices.Index(x.seen, false); i >= 0 {
		return badInode(ino, "index does not lead to block %d", i)
	}
	return nil
}

// block returns a block that must not have been seen before.
func (x *dirIndex) block(n uint32) ([]byte, error) {
	if int64(n) >= int64(len(x.seen)) || x.seen[n] {
		return nil, badInode(x.ino, "index leads to block %d of %d, or does so twice", n, len(x.seen))
	}
	x.seen[n] = true
	i, _ := slices.BinarySearchFunc(x.runs, int64(n), func(r run, n int64) int { return int(r.at + r.n - 1 - n) })
	b, err := x.load(x.runs[i].where + int64(n) - x.runs[i].at)
	if err != nil {
		return nil, err
	}
	return b.data[:], nil
}

// node looks at an index block whose names hash to [low, high]. Bit 0 of a bound says
// that names with this hash stand on both sides of it.
func (x *dirIndex) node(p []byte, root bool, levels int, low, high uint32) error {
	off := dxNodeOff
	if root {
		off = dxRootOff
	}
	is, err := checkIndexBlock(x.ino, p, root, x.seed)
	if err != nil {
		return err
	}
	count := int(le.Uint16(p[off+2:]))
	if !is || count == 0 {
		return badInode(x.ino, "index block without entries")
	}
	p = append([]byte(nil), p...)
	for i := range count {
		from, to := low, high
		if i > 0 {
			from = le.Uint32(p[off+8*i:])
		}
		if i+1 < count {
			to = le.Uint32(p[off+8*(i+1):])
		}
		if from < x.last || to < from {
			return badInode(x.ino, "index is not in order")
		}
		x.last = from
		child, err := x.block(le.Uint32(p[off+8*i+4:]))
		if err != nil {
			return err
		}
		if levels > 0 {
			err = x.node(child, false, levels-1, from, to)
		} else {
			err = x.leaf(child, from, to)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// leaf wants the hashes of a block's names between the bounds. readDir has been there:
// its entries are known to be well-formed.
func (x *dirIndex) leaf(p []byte, low, high uint32) error {
	for off := 0; off < BlockSize; off += int(le.Uint16(p[off+4:])) {
		if le.Uint32(p[off:]) == 0 {
			continue
		}
		name := string(p[off+8 : off+8+int(p[off+6])])
		if h, _ := dirHash(x.sb.hashSeed, name); h < low&^1 || h > high || h == high&^1 && high&1 == 0 {
			return &FormatError{Off: -1, Field: fmt.Sprintf("directory %d", x.ino),
				Msg: fmt.Sprintf("index does not lead to the name %q", name)}
		}
	}
	return nil
}
