package diskfs

import (
	"fmt"
	"slices"
	"strings"
)

const (
	fileTypeFile = 1
	fileTypeDir  = 2
	fileTypeChar = 3
	fileTypeBlk  = 4
	fileTypeFIFO = 5
	fileTypeSock = 6
	fileTypeLink = 7
	fileTypeTail = 0xDE

	// linearBlocks is the size up to which a directory is a plain list of names; a
	// larger one gets an index. Most are one block.
	linearBlocks = 8
	// indexDirEntries is the size from which a directory in memory has a map.
	indexDirEntries = 16
	// maxDirBlocks bounds what is read of one directory (2 GiB).
	maxDirBlocks = 1 << 19
)

// dirent is one name. ino is 0 once it has been removed.
type dirent struct {
	name string
	ino  uint32
	typ  byte
}

// dir is a directory in memory: the names in the order of the disk, new ones last.
type dir struct {
	ino, parent uint32
	ents        []dirent
	index       map[string]int32 // nil while there are few names
	removed     int              // entries with ino 0
	changed     bool
	layout      *dirLayout
}

// dirLayout says how a changed directory will be written.
type dirLayout struct {
	blocks  int
	indexed bool
	order   []hashed // indexed: names by hash; else nil and ents is the order
	starts  []int    // first name of each leaf
	nodes   int      // indexed: index nodes below the root
}

func (d *dir) live() int { return len(d.ents) - d.removed }

// lookup returns the position of name in d.ents, -1 if it is not there.
func (d *dir) lookup(name string) int {
	if d.index != nil {
		if i, ok := d.index[name]; ok {
			return int(i)
		}
		return -1
	}
	for i := range d.ents {
		if d.ents[i].ino != 0 && d.ents[i].name == name {
			return i
		}
	}
	return -1
}

// insert adds a name that is not there yet. The name's bytes are copied: a name of a
// changeset may share the memory of a long path.
func (d *dir) insert(name string, ino uint32, typ byte) {
	d.ents = append(d.ents, dirent{strings.Clone(name), ino, typ})
	d.changed = true
	d.indexLast()
}

func (d *dir) indexLast() {
	last := len(d.ents) - 1
	switch {
	case d.index != nil:
		d.index[d.ents[last].name] = int32(last)
	case last >= indexDirEntries:
		d.index = make(map[string]int32, 2*len(d.ents))
		for i, e := range d.ents {
			if e.ino != 0 {
				d.index[e.name] = int32(i)
			}
		}
	}
}

// remove drops the name at position i.
func (d *dir) remove(i int) {
	if d.index != nil {
		delete(d.index, d.ents[i].name)
	}
	d.ents[i] = dirent{}
	d.removed++
	d.changed = true
}

// compact drops removed names. Positions change.
func (d *dir) compact() {
	if d.removed == 0 {
		return
	}
	ents := d.ents
	d.ents, d.index, d.removed = make([]dirent, 0, d.live()), nil, 0
	for _, e := range ents {
		if e.ino != 0 {
			d.ents = append(d.ents, e)
			d.indexLast()
		}
	}
}

// subdirs counts the directories in d.
func (d *dir) subdirs() int {
	n := 0
	for _, e := range d.ents {
		if e.ino != 0 && e.typ == fileTypeDir {
			n++
		}
	}
	return n
}

// dir returns the directory with number ino, reading it if it is not in memory.
func (f *FS) dir(ino uint32) (*dir, error) {
	if d := f.dirs[ino]; d != nil {
		return d, nil
	}
	d, err := f.readDir(ino)
	if err != nil {
		return nil, fmt.Errorf("read directory %d: %w", ino, err)
	}
	if f.dirEnts += len(d.ents) + 1; f.dirEnts > f.maxNames && !f.applying {
		f.dirs, f.dirEnts = make(map[uint32]*dir), len(d.ents)+1
	}
	f.dirs[ino] = d
	return d, nil
}

// subdir returns the directory that e names in d. The one it leads to must agree, and
// readDir sees to it that it has one name there: on a damaged disk too, directories are a
// tree, and whoever walks it comes to an end.
func (f *FS) subdir(d *dir, e dirent) (*dir, error) {
	sub, err := f.dir(e.ino)
	if err == nil && (sub.parent != d.ino || sub.ino == rootInode) {
		err = badInode(e.ino, "named in directory %d, but its parent is %d", d.ino, sub.parent)
	}
	return sub, err
}

func (f *FS) readDir(ino uint32) (*dir, error) {
	in, err := f.inode(ino)
	if err != nil {
		return nil, err
	}
	switch {
	case in.kind() != modeDir:
		return nil, badInode(ino, "not a directory")
	case in.flags()&inodeInline != 0:
		return nil, badInode(ino, "inline directories are not supported")
	case in.size()%BlockSize != 0 || in.size()/BlockSize > maxDirBlocks:
		return nil, badInode(ino, "directory of %d bytes", in.size())
	}
	d := &dir{ino: ino}
	blocks := in.size() / BlockSize
	seed := f.inodeSeed(ino, in.generation())
	indexed := in.flags()&inodeIndexed != 0
	buf := make([]byte, min(max(blocks, 1)*BlockSize, 1<<20))
	err = f.extents(ino, in, func(r run, unwritten bool) error {
		if unwritten || r.at+r.n > blocks {
			return badInode(ino, "directory extent beyond its size")
		}
		for r.n > 0 {
			n := min(r.n, int64(len(buf)/BlockSize))
			if err := readFull(f.disk, buf[:n*BlockSize], r.where*BlockSize); err != nil {
				return err
			}
			for i := range n {
				if err := f.readDirBlock(d, buf[i*BlockSize:(i+1)*BlockSize], r.at+i, indexed, seed); err != nil {
					return err
				}
			}
			r = run{r.at + n, r.where + n, r.n - n}
		}
		return nil
	}, nil)
	if err != nil {
		return nil, err
	}
	if d.parent == 0 {
		return nil, badInode(ino, "directory without an entry for its parent")
	}
	return d, d.checkSubdirs()
}

// checkSubdirs wants every subdirectory to have one name.
func (d *dir) checkSubdirs() error {
	subs := make([]uint32, 0, 64)
	for _, e := range d.ents {
		if e.typ == fileTypeDir {
			subs = append(subs, e.ino)
		}
	}
	slices.Sort(subs)
	for i := 1; i < len(subs); i++ {
		if subs[i] == subs[i-1] {
			return badInode(d.ino, "names directory %d twice", subs[i])
		}
	}
	return nil
}

func (f *FS) readDirBlock(d *dir, p []byte, n int64, indexed bool, seed uint32) error {
	sums := f.sb.roCompat&roMetadataCsum != 0
	isIndex := false
	if indexed {
		var err error
		if isIndex, err = checkIndexBlock(d.ino, p, n == 0, seed); err != nil && sums {
			return err
		}
	}
	if !isIndex && sums && (p[dirTail+7] != fileTypeTail || dirChecksum(seed, p) != le.Uint32(p[dirTail+8:])) {
		return &FormatError{Off: -1, Field: fmt.Sprintf("directory %d", d.ino), Msg: fmt.Sprintf("checksum mismatch in block %d", n)}
	}
	for off, k := 0, 0; off < BlockSize; k++ {
		if off > BlockSize-12 {
			return badInode(d.ino, "directory entry cut off at byte %d of block %d", off, n)
		}
		ino, recLen, nameLen, typ := le.Uint32(p[off:]), int(le.Uint16(p[off+4:])), int(p[off+6]), p[off+7]
		if recLen%4 != 0 || recLen < 8+nameLen || recLen < 12 || off+recLen > BlockSize {
			return badInode(d.ino, "directory entry of %d bytes at byte %d of block %d", recLen, off, n)
		}
		name := p[off+8 : off+8+nameLen]
		off += recLen
		switch {
		case n == 0 && k < 2:
			if dots := ".."[:k+1]; string(name) != dots || ino == 0 || k == 0 && ino != d.ino {
				return badInode(d.ino, "directory with entry %q, inode %d, where %q belongs", name, ino, dots)
			}
			d.parent = ino
		case ino == 0:
		case !validName(string(name)):
			return badInode(d.ino, "directory holds the name %q", name)
		case d.lookup(string(name)) >= 0:
			return badInode(d.ino, "directory holds the name %q twice", name)
		default:
			d.ents = append(d.ents, dirent{string(name), ino, typ})
			d.indexLast()
		}
	}
	return nil
}

// validName says whether s can be a name in a directory.
func validName(s string) bool {
	return s != "" && len(s) <= maxNameLen && s != "." && s != ".." && !strings.ContainsAny(s, "/\x00")
}

// lay decides how a changed directory will be written and how many blocks that takes.
func (d *dir) lay(hashSeed [4]uint32) error {
	d.compact()
	l := &dirLayout{starts: []int{0}}
	used := 24 // "." and ".."
	for i := range d.ents {
		n := entryLen(d.ents[i].name)
		if used+n > dirTail {
			l.starts = append(l.starts, i)
			used = 0
		}
		used += n
	}
	if len(l.starts) > linearBlocks {
		return d.layoutIndexed(hashSeed)
	}
	l.blocks = len(l.starts)
	d.layout = l
	return nil
}

// render gives the laid-out directory's blocks in order to emit, which must not keep them.
func (d *dir) render(seed uint32, emit func(p []byte) error) error {
	if d.layout.indexed {
		return d.renderIndexed(seed, emit)
	}
	p := make([]byte, BlockSize)
	for i, from := range d.layout.starts {
		to := len(d.ents)
		if i+1 < len(d.layout.starts) {
			to = d.layout.starts[i+1]
		}
		clear(p)
		w := leafWriter{p: p}
		if i == 0 {
			w.add(dirent{".", d.ino, fileTypeDir})
			w.add(dirent{"..", d.parent, fileTypeDir})
		}
		for _, e := range d.ents[from:to] {
			w.add(e)
		}
		w.finish(seed)
		if err := emit(p); err != nil {
			return err
		}
	}
	return nil
}

// entryLen is the size of a directory entry: 8 bytes and the name, in units of 4.
func entryLen(name string) int { return (8 + len(name) + 3) &^ 3 }

func putEntry(p []byte, ino uint32, recLen int, name string, typ byte) {
	le.PutUint32(p[0:], ino)
	le.PutUint16(p[4:], uint16(recLen))
	p[6] = byte(len(name))
	p[7] = typ
	copy(p[8:], name)
}

// A leafWriter fills one block of names.
type leafWriter struct {
	p         []byte
	last, off int
}

func (w *leafWriter) add(e dirent) {
	n := entryLen(e.name)
	putEntry(w.p[w.off:], e.ino, n, e.name, e.typ)
	w.last, w.off = w.off, w.off+n
}

// finish stretches the last entry to the tail and writes that.
func (w *leafWriter) finish(seed uint32) {
	le.PutUint16(w.p[w.last+4:], uint16(dirTail-w.last))
	le.PutUint16(w.p[dirTail+4:], 12)
	w.p[dirTail+7] = fileTypeTail
	le.PutUint32(w.p[dirTail+8:], dirChecksum(seed, w.p))
}
