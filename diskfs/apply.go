package diskfs

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
)

// ApplyOptions tell Apply what a changeset stands on.
type ApplyOptions struct {
	// Data reads the stream that ReadTar wrote. A file that replaces one of the same path
	// and size is compared with it: if nothing changed, the layer below keeps the data.
	// Nil means no comparison.
	Data io.ReaderAt
	// High is the Delta.High of the layer below: no cluster from there on was ever mapped.
	High int64
	// Reuse is for a file system that a kernel has written to: the stream goes to any clusters in which nothing is in use,
	// whatever High is. Whoever writes the Delta must write its clusters whole: there may be something in them.
	Reuse bool
}

// Apply binds a changeset to the file system, which becomes the one with the changeset
// applied; the Delta says what has to be written. Only metadata is read and changed.
//
// Whiteouts and opaque directories act on the layers below alone, wherever they stand
// in the tar; then the entries are applied in tar order, the last of a name winning.
// Paths are resolved inside the root: a symlink on the way is followed as if the root
// were /, the last name never is.
//
// After an error the FS must not be used any more; the disk is as it was. A changeset
// that cannot be applied gives a *FormatError or an error naming the entry, a full
// disk one that wraps ErrNoSpace.
func (f *FS) Apply(cs *Changeset, o ApplyOptions) (*Delta, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return nil, fmt.Errorf("apply to a file system given up before: %w", f.err)
	}
	if f.applying {
		panic("diskfs: Apply before Rebase")
	}
	if err := f.sb.writable(); err != nil {
		return nil, err
	}
	f.applying = true
	f.resetZones()
	a := &apply{FS: f, cs: cs, data: o.Data}
	var d *Delta
	var err error
	if o.Reuse {
		var used []clusterRange
		used, err = f.usedClusters()
		a.place = newPlacer(0, used)
	} else {
		a.place = newPlacer(o.High, f.reservedClusters())
	}
	if err == nil {
		d, err = a.run()
	}
	f.err = err
	return d, err
}

// apply is one Apply at work.
type apply struct {
	*FS
	cs    *Changeset
	data  io.ReaderAt
	place placer

	meta   []metaItem // what follows the data in the stream, in order
	length int64      // blocks of meta
	dead   []run      // stream blocks nobody refers to (where, n)

	kept map[int][]run // disk runs of the layers below, by the payload that equals them

	shared  map[[sha256.Size]byte]int64 // new xattr blocks by the hash of their content, with one reference
	xattred map[int64]struct{}          // xattr blocks changed

	lastPath string // the directory resolved last, nil if there is none
	lastDir  *dir
}

// metaItem is metadata in the stream: one block that stands in the cache, or all
// blocks of a directory.
type metaItem struct {
	block int64
	dir   *dir
}

// newMeta takes the next block of the stream for metadata and returns its disk
// address and its contents, zeros, to be filled.
func (a *apply) newMeta() (int64, []byte) {
	at := a.place.block(a.cs.blocks + a.length)
	a.meta = append(a.meta, metaItem{block: at})
	a.length++
	return at, a.fresh(at).data[:]
}

func (a *apply) run() (*Delta, error) {
	if err := a.fits(a.cs.blocks); err != nil {
		return nil, err
	}
	a.dead = append(a.dead, a.cs.dead...)
	if err := a.hide(); err != nil {
		return nil, err
	}
	for e := range a.cs.entries.all() {
		if err := a.entry(e); err != nil {
			return nil, fmt.Errorf("apply %q: %w", e.path, err)
		}
		a.cool()
	}
	for _, p := range a.cs.opaques { // a directory that only an opaque whiteout names
		if _, err := a.walk(p, true, nil); err != nil && !errors.Is(err, errNotDir) {
			return nil, fmt.Errorf("apply opaque whiteout in %q: %w", p, err)
		}
	}
	return a.finish()
}

// fits says whether a stream of so many blocks ends on the disk.
func (a *apply) fits(blocks int64) error {
	if blocks == 0 || (a.place.cluster((blocks-1)/clusterBlocks)+1)*clusterBlocks <= a.sb.blocksCount {
		return nil
	}
	left := a.place.room(a.sb.blocksCount/clusterBlocks) * ClusterSize
	return fmt.Errorf("%w: the layer takes at least %d bytes, %d are left", ErrNoSpace, blocks*BlockSize, left)
}

// hide removes what the layer's whiteouts hide. All of them are resolved before the
// first removal, so that their order does not matter.
func (a *apply) hide() error {
	type victim struct {
		d    *dir
		name string
	}
	var victims []victim
	for _, p := range a.cs.whiteouts {
		parent, base := splitPath(p)
		d, err := a.walk(parent, false, a.cs.dirs)
		if err == nil {
			victims = append(victims, victim{d, base})
		} else if !isAbsent(err) {
			return fmt.Errorf("whiteout of %q: %w", p, err)
		}
	}
	for _, p := range a.cs.opaques {
		d, err := a.walk(p, false, a.cs.dirs)
		if err != nil && !isAbsent(err) {
			return fmt.Errorf("opaque whiteout in %q: %w", p, err)
		}
		if err == nil {
			for _, e := range d.ents {
				victims = append(victims, victim{d, e.name})
			}
		}
	}
	for _, v := range victims {
		if i := v.d.lookup(v.name); i >= 0 && v.name != "" {
			if err := a.removeAt(v.d, i); err != nil {
				return fmt.Errorf("whiteout of %q: %w", v.name, err)
			}
		}
	}
	return nil
}

// entry applies one entry of the tar.
func (a *apply) entry(e *entry) error {
	if e.path == "" {
		return a.setAttributes(rootInode, e)
	}
	parent, base := splitPath(e.path)
	d, err := a.parent(parent)
	if err != nil {
		return err
	}
	if e.kind == kindHardlink {
		return a.hardlink(d, base, e)
	}
	i := d.lookup(base)
	if i < 0 {
		return a.create(d, base, e)
	}
	old := &d.ents[i]
	oldDir := old.typ == fileTypeDir
	switch {
	case oldDir && e.kind == kindDir:
		return a.setAttributes(old.ino, e)
	case oldDir || e.kind == kindDir:
		if err := a.removeAt(d, i); err != nil {
			return err
		}
		return a.create(d, base, e)
	}
	return a.replace(d, old, e)
}

// replace puts a new non-directory in the place of another. The new one takes over the
// inode number of an old one that dies: the directory, and the index of the next layer's
// readers, then stay as they are.
func (a *apply) replace(d *dir, old *dirent, e *entry) error {
	in, err := a.changeInode(old.ino)
	if err != nil {
		return err
	}
	if old.typ == fileTypeLink {
		a.lastDir = nil
	}
	ino := old.ino
	if in.links() > 1 {
		in.setLinks(in.links() - 1)
		if ino, err = a.newInode(false); err != nil {
			return err
		}
	} else {
		below, same, err := a.sameData(ino, in, e)
		if err != nil {
			return err
		}
		if same {
			a.dead = append(a.dead, e.runs...)
			if e.payload > 0 {
				if a.kept == nil {
					a.kept = make(map[int][]run)
				}
				a.kept[e.payload-1] = below
			}
			return a.setAttributes(ino, e)
		}
		if err := a.releaseContents(ino, in); err != nil {
			return err
		}
	}
	if old.ino != ino || old.typ != e.kind.dirtype() {
		old.ino, old.typ = ino, e.kind.dirtype()
		d.changed = true
	}
	return a.fill(ino, e)
}

// create adds a name and its inode.
func (a *apply) create(d *dir, name string, e *entry) error {
	ino, err := a.newInode(e.kind == kindDir)
	if err != nil {
		return err
	}
	if e.kind == kindDir {
		a.dirs[ino] = &dir{ino: ino, parent: d.ino, changed: true}
	}
	d.insert(name, ino, e.kind.dirtype())
	return a.fill(ino, e)
}

// fill writes a new inode, whatever stood there before.
func (a *apply) fill(ino uint32, e *entry) error {
	in, err := a.changeInode(ino)
	if err != nil {
		return err
	}
	clear(in)
	in.setMode(e.kind.format())
	in.setLinks(1)
	le.PutUint16(in[inoExtraSize:], extraSize)
	switch e.kind {
	case kindFile:
		in.setSize(e.size)
		var disk []run
		for _, r := range e.runs {
			disk = a.place.runs(disk, r.at, r.where, r.n)
		}
		if err := a.setContents(ino, in, disk); err != nil {
			return err
		}
	case kindDir:
		in.setFlags(inodeExtents)
		putExtentNode(in.blockArea(), nil, rootExtents, 0)
	case kindSymlink:
		in.setSize(int64(len(e.link)))
		if len(e.link) < inoBlockLen {
			copy(in.blockArea(), e.link)
			break
		}
		at, p := a.newMeta()
		copy(p, e.link)
		if err := a.setContents(ino, in, []run{{where: at, n: 1}}); err != nil {
			return err
		}
	case kindChar, kindBlock:
		in.setDevice(e.major, e.minor)
	}
	return a.setAttributes(ino, e)
}

// setContents maps the disk runs and counts what they and their tree occupy.
func (a *apply) setContents(ino uint32, in rawInode, disk []run) error {
	n, err := a.putExtents(ino, in, disk)
	if err != nil {
		return err
	}
	for _, r := range disk {
		n += r.n
	}
	if in.xattrBlock() != 0 {
		n++
	}
	in.setBlocks(n)
	return nil
}

// setAttributes writes mode, owner, times and extended attributes, replacing what was.
func (a *apply) setAttributes(ino uint32, e *entry) error {
	in, err := a.changeInode(ino)
	if err != nil {
		return err
	}
	in.setMode(in.kind() | e.mode)
	in.setOwner(e.uid, e.gid)
	in.setTimes(e.sec, e.nsec)
	return a.setXattrs(ino, in, e.xattrs)
}

// hardlink makes name another name of the file at e.link. As the archivers do that
// write such headers, it applies the header's owner, mode and time to the file.
func (a *apply) hardlink(d *dir, name string, e *entry) error {
	parent, base := splitPath(e.link)
	td, err := a.walk(parent, false, nil)
	if err != nil && !isAbsent(err) {
		return err
	}
	t := -1
	if err == nil && base != "" {
		t = td.lookup(base)
	}
	if t < 0 {
		return fmt.Errorf("hard link to %q, which does not exist", e.link)
	}
	target := td.ents[t]
	if target.typ == fileTypeDir {
		return fmt.Errorf("hard link to %q, a directory", e.link)
	}
	i := d.lookup(name)
	if i < 0 || d.ents[i].ino != target.ino {
		in, err := a.changeInode(target.ino)
		if err != nil {
			return err
		}
		if in.links() >= maxLinks {
			return fmt.Errorf("hard link to %q, which has %d links already", e.link, maxLinks)
		}
		in.setLinks(in.links() + 1) // before the removal: that may hit the target
		if i >= 0 {
			if err := a.removeAt(d, i); err != nil {
				return err
			}
		}
		d.insert(name, target.ino, target.typ)
	}
	in, err := a.changeInode(target.ino)
	if err != nil {
		return err
	}
	if in.kind() != modeLink {
		in.setMode(in.kind() | e.mode)
	}
	in.setOwner(e.uid, e.gid)
	in.setTimes(e.sec, e.nsec)
	if len(e.xattrs) == 0 {
		return nil // archivers write them with the first name only
	}
	return a.setXattrs(target.ino, in, e.xattrs)
}

// setXattrs gives the inode these extended attributes and no others.
func (a *apply) setXattrs(ino uint32, in rawInode, list []Xattr) error {
	clear(in[inoXattr:inodeSize])
	blocks := in.sectors() / (BlockSize / 512)
	if in.xattrBlock() != 0 {
		if err := a.dropXattrBlock(ino, in.xattrBlock()); err != nil {
			return err
		}
		in.setXattrBlock(0)
		blocks--
	}
	if len(list) > 0 {
		inode, content, err := encodeXattrs(list)
		if err != nil {
			return err
		}
		copy(in[inoXattr:], inode)
		if content != nil {
			in.setXattrBlock(a.putXattrBlock(content))
			blocks++
		}
	}
	in.setBlocks(blocks)
	return nil
}

// putXattrBlock returns the address of a block with the content, shared if there is one.
func (a *apply) putXattrBlock(content []byte) int64 {
	key := sha256.Sum256(content)
	if at, ok := a.shared[key]; ok {
		p := a.cached(at).data[:]
		if n := le.Uint32(p[4:]); n < maxXattrRefs {
			le.PutUint32(p[4:], n+1)
			return at
		}
	}
	at, p := a.newMeta()
	copy(p, content)
	if a.shared == nil {
		a.shared = make(map[[sha256.Size]byte]int64)
	}
	a.shared[key] = at
	a.markXattr(at)
	return at
}

func (a *apply) markXattr(at int64) {
	if a.xattred == nil {
		a.xattred = make(map[int64]struct{})
	}
	a.xattred[at] = struct{}{}
}

// dropXattrBlock takes one reference from the block and frees it with the last.
func (a *apply) dropXattrBlock(ino uint32, at int64) error {
	b, err := a.xattrBlockAt(ino, at)
	if err != nil {
		return err
	}
	switch refs := le.Uint32(b.data[4:]); refs {
	case 0:
		return badInode(ino, "extended attribute block %d without references", at)
	case 1:
		delete(a.xattred, at)
		if key := sha256.Sum256(b.data[:]); a.shared[key] == at {
			delete(a.shared, key)
		}
		return a.freeMeta(at)
	default:
		b.dirty = true
		le.PutUint32(b.data[4:], refs-1)
		a.markXattr(at)
		return nil
	}
}
