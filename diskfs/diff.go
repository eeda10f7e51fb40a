package diskfs

import (
	"bytes"
	"fmt"
	"io"
	"slices"
)

// A ChangeKind is what happened at a path, by the letter that docker diff has for it.
type ChangeKind byte

const (
	Changed ChangeKind = 'C'
	Added   ChangeKind = 'A'
	Deleted ChangeKind = 'D'
)

func (k ChangeKind) String() string { return string(rune(k)) }

// A Change is one path at which two file systems differ.
type Change struct {
	Path string // from "/" on
	Kind ChangeKind
	// What tells, if the kind is Changed, what differs: "type", "mode", "owner", "device",
	// "size", "time", "target", "xattrs", or, where nothing else does, "content". It is
	// empty for a directory in which something changed.
	What []string
}

// DiffOptions are what Diff may rely on.
type DiffOptions struct {
	// Shared is how many bytes at the beginning of both disks hold the same file data, if
	// the same file blocks are there: up to where the lowest common layer's data ends.
	// What lies there is not read. 0 means that nothing is known.
	Shared int64
	// Same, if it is not nil, tells whether n bytes at byte off are the same on both disks, as far as that is known without reading them:
	// what is not read either.
	Same func(off, n int64) (bool, error)
	// Descends says that the new file system is the old one, written to by a kernel: a file
	// that it changed, or was made to believe that it did, has another change time, whatever
	// else is the same, and one that it did not is not read.
	Descends bool
}

// Diff tells fn, in ascending order of paths, how to come from one file system to another,
// as docker diff tells it: a directory that is new comes with all that is in it, one that
// is gone comes alone, and one in which something changed counts as changed itself, if it
// is not the root. The times of directories do not count, nor which names are hard links
// of each other. Contents are read only of files that are otherwise the same and have
// their data in different places. It ends with fn's error.
func Diff(old, new *FS, o DiffOptions, fn func(Change) error) error {
	d := differ{o: o, fn: fn, buf: make([]byte, 2*diffStep)}
	a, err := old.root()
	if err != nil {
		return err
	}
	b, err := new.root()
	if err != nil {
		return err
	}
	what, err := d.compare(a, b)
	if err == nil && len(what) > 0 {
		err = fn(Change{"/", Changed, what})
	}
	if err != nil {
		return err
	}
	d.path = []byte("/")
	d.enter(a, b, true)
	for len(d.open) > 0 && err == nil {
		err = d.next()
	}
	return err
}

// diffStep is how many bytes of two files are compared at once.
const diffStep = 256 << 10

type differ struct {
	o    DiffOptions
	fn   func(Change) error
	buf  []byte
	open []openPair // from the root to where it is
	path []byte     // of what is being looked at
}

// An openPair is a name that is a directory in one file system or both, being compared.
// See openDir for why these are in a list.
type openPair struct {
	a, b     *diffNode // nil: there is no directory
	old, new []dirent  // that are left
	prefix   int       // length of its path, with a slash at the end
	told     bool      // that it changed, or is new
}

// enter begins with what is in two nodes, either of which may be no directory or nil.
func (d *differ) enter(a, b *diffNode, told bool) {
	if n := len(d.path); d.path[n-1] != '/' {
		d.path = append(d.path, '/')
	}
	d.open = append(d.open, openPair{a, b, a.entries(), b.entries(), len(d.path), told})
}

// tell reports a change, and before it the directories in which it is.
func (d *differ) tell(kind ChangeKind, what []string) error {
	for i := range d.open {
		p := &d.open[i]
		if !p.told {
			p.told = true
			if err := d.fn(Change{Path: string(d.path[:p.prefix-1]), Kind: Changed}); err != nil {
				return err
			}
		}
	}
	return d.fn(Change{string(d.path), kind, what})
}

// next looks at one name, or leaves a directory.
func (d *differ) next() error {
	p := &d.open[len(d.open)-1]
	old, new := p.old, p.new
	switch {
	case len(old) == 0 && len(new) == 0:
		d.open = d.open[:len(d.open)-1]
		return nil
	case len(new) == 0 || len(old) > 0 && old[0].name < new[0].name:
		p.old = old[1:]
		d.path = append(d.path[:p.prefix], old[0].name...)
		return d.tell(Deleted, nil)
	case len(old) == 0 || new[0].name < old[0].name:
		p.new = new[1:]
		d.path = append(d.path[:p.prefix], new[0].name...)
		return d.added(p.b, new[0])
	default:
		p.old, p.new = old[1:], new[1:]
		d.path = append(d.path[:p.prefix], old[0].name...)
		return d.both(p.a, p.b, old[0], new[0])
	}
}

// A diffNode is an inode of one of the file systems.
type diffNode struct {
	fs  *FS
	ino uint32
	raw rawInode
	dir *dir // nil if it is none
}

func (f *FS) root() (*diffNode, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	d, err := f.dir(rootInode)
	if err != nil {
		return nil, err
	}
	return f.diffNode(rootInode, d)
}

// diffNode copies the inode's bytes. The caller holds f.mu.
func (f *FS) diffNode(ino uint32, d *dir) (*diffNode, error) {
	in, err := f.inode(ino)
	if err != nil {
		return nil, err
	}
	return &diffNode{f, ino, slices.Clone(in), d}, nil
}

// child returns what an entry of a directory leads to.
func (n *diffNode) child(e dirent) (*diffNode, error) {
	n.fs.mu.Lock()
	defer n.fs.mu.Unlock()
	var sub *dir
	if e.typ == fileTypeDir {
		var err error
		if sub, err = n.fs.subdir(n.dir, e); err != nil {
			return nil, err
		}
	}
	return n.fs.diffNode(e.ino, sub)
}

// entries returns what is in a directory, nothing for what is none.
func (n *diffNode) entries() []dirent {
	if n == nil || n.dir == nil {
		return nil
	}
	return n.dir.sorted()
}

// added tells of a new name, and enters it.
func (d *differ) added(dir *diffNode, e dirent) error {
	if err := d.tell(Added, nil); err != nil || e.typ != fileTypeDir {
		return err
	}
	n, err := dir.child(e)
	if err != nil {
		return fmt.Errorf("%q: %w", d.path, err)
	}
	d.enter(nil, n, true)
	return nil
}

// both compares a name that both file systems have, and enters it.
func (d *differ) both(adir, bdir *diffNode, x, y dirent) error {
	a, err := adir.child(x)
	if err != nil {
		return fmt.Errorf("%q, before: %w", d.path, err)
	}
	b, err := bdir.child(y)
	if err != nil {
		return fmt.Errorf("%q: %w", d.path, err)
	}
	what, err := d.compare(a, b)
	if err != nil {
		return fmt.Errorf("%q: %w", d.path, err)
	}
	if len(what) > 0 {
		if err := d.tell(Changed, what); err != nil {
			return err
		}
	}
	if a.dir != nil || b.dir != nil {
		d.enter(a, b, len(what) > 0)
	}
	return nil
}

// compare tells in what two inodes differ.
func (d *differ) compare(a, b *diffNode) (what []string, err error) {
	x, y := a.raw, b.raw
	if !x.inUse() || !y.inUse() {
		return nil, badInode(b.ino, "named but not in use")
	}
	if x.kind() != y.kind() {
		return []string{"type"}, nil
	}
	differs := func(name string, is bool) {
		if is {
			what = append(what, name)
		}
	}
	kind := x.kind()
	differs("mode", x.mode() != y.mode())
	differs("owner", x.uid() != y.uid() || x.gid() != y.gid())
	if kind == modeChar || kind == modeBlock {
		xmajor, xminor := x.device()
		ymajor, yminor := y.device()
		differs("device", xmajor != ymajor || xminor != yminor)
	}
	differs("size", kind == modeFile && x.size() != y.size())
	differs("time", kind != modeDir && !x.time(inoMtime, inoMtimeX).Equal(y.time(inoMtime, inoMtimeX)))
	if kind == modeLink && !(x.fastLink() && bytes.Equal(x, y)) {
		from, err := a.target()
		if err != nil {
			return nil, err
		}
		to, err := b.target()
		if err != nil {
			return nil, err
		}
		differs("target", from != to)
	}
	if x.xattrBlock() != 0 || y.xattrBlock() != 0 || !bytes.Equal(x[inoXattr:], y[inoXattr:]) {
		from, err := a.xattrs()
		if err != nil {
			return nil, err
		}
		to, err := b.xattrs()
		if err != nil {
			return nil, err
		}
		differs("xattrs", !slices.EqualFunc(from, to, func(p, q Xattr) bool { return p.Name == q.Name && bytes.Equal(p.Value, q.Value) }))
	}
	if d.o.Descends {
		differs("content", kind != modeDir && len(what) == 0 && !x.time(inoCtime, inoCtimeX).Equal(y.time(inoCtime, inoCtimeX)))
		return what, nil
	}
	if kind == modeFile && len(what) == 0 {
		same, err := d.sameContent(a, b)
		if err != nil {
			return nil, err
		}
		differs("content", !same)
	}
	return what, nil
}

func (n *diffNode) target() (string, error) {
	n.fs.mu.Lock()
	defer n.fs.mu.Unlock()
	return n.fs.readLink(n.ino)
}

func (n *diffNode) xattrs() ([]Xattr, error) {
	n.fs.mu.Lock()
	defer n.fs.mu.Unlock()
	return n.fs.sortedXattrs(n.ino, n.raw)
}

func (n *diffNode) content() (*fileReader, error) {
	n.fs.mu.Lock()
	defer n.fs.mu.Unlock()
	return n.fs.newFileReader(n.ino, n.raw)
}

// sharedData tells whether both disks are known to hold the same in all of some runs.
func (d *differ) sharedData(runs []run) (bool, error) {
	for _, r := range runs {
		if (r.where+r.n)*BlockSize <= d.o.Shared {
			continue
		}
		if d.o.Same == nil {
			return false, nil
		}
		if same, err := d.o.Same(r.where*BlockSize, r.n*BlockSize); !same || err != nil {
			return false, err
		}
	}
	return true, nil
}

// sameContent compares two files of equal size, and reads them only if their data is not in
// one place of what the disks share.
func (d *differ) sameContent(a, b *diffNode) (bool, error) {
	x, err := a.content()
	if err != nil {
		return false, err
	}
	y, err := b.content()
	if err != nil {
		return false, err
	}
	if slices.Equal(x.runs, y.runs) {
		if same, err := d.sharedData(x.runs); same || err != nil {
			return same, err
		}
	}
	p, q := d.buf[:diffStep], d.buf[diffStep:]
	for off := int64(0); off < x.size; off += diffStep {
		n, err := x.ReadAt(p, off)
		if err != nil && err != io.EOF {
			return false, fmt.Errorf("before: %w", err)
		}
		if _, err := y.ReadAt(q[:n], off); err != nil && err != io.EOF {
			return false, err
		}
		if !bytes.Equal(p[:n], q[:n]) {
			return false, nil
		}
	}
	return true, nil
}
