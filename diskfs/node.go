package diskfs

import "io/fs"

// RootInode is the inode number of the root directory.
const RootInode = rootInode

// A Node is a file known by its inode number, for who resolves paths himself, as a kernel
// does. Its methods may run concurrently with all that reads the FS. A number that no file
// has gives a *FormatError.
type Node struct {
	fs  *FS
	ino uint32
}

// Node returns the file with an inode number. It reads nothing.
func (f *FS) Node(ino uint32) Node { return Node{f, ino} }

// A Name is one name in a directory.
type Name struct {
	Name  string
	Inode uint32
	Type  uint16 // as in stat(2)'s mode: S_IFREG, S_IFDIR, …; 0 if the directory does not tell
}

// Stat describes the file.
func (n Node) Stat() (Stat, error) {
	n.fs.mu.Lock()
	defer n.fs.mu.Unlock()
	info, err := n.fs.info("", n.ino)
	return info.stat, err
}

// Lookup returns the inode number that a name has in the directory. The error is
// fs.ErrNotExist if there is no such name.
func (n Node) Lookup(name string) (uint32, error) {
	n.fs.mu.Lock()
	defer n.fs.mu.Unlock()
	d, err := n.fs.dir(n.ino)
	if err != nil {
		return 0, err
	}
	i := d.lookup(name)
	if i < 0 {
		return 0, fs.ErrNotExist
	}
	e := d.ents[i]
	if e.typ == fileTypeDir {
		_, err = n.fs.subdir(d, e)
	}
	return e.ino, err
}

// Names lists the directory in the order of the disk, and returns its parent. A name that
// leads to a directory may turn out to be damaged when it is looked up.
func (n Node) Names() (names []Name, parent uint32, err error) {
	n.fs.mu.Lock()
	defer n.fs.mu.Unlock()
	d, err := n.fs.dir(n.ino)
	if err != nil {
		return nil, 0, err
	}
	names = make([]Name, 0, d.live())
	for _, e := range d.ents {
		if e.ino != 0 {
			names = append(names, Name{e.name, e.ino, modeOf(e.typ)})
		}
	}
	return names, d.parent, nil
}

// ReadLink returns the target of the symlink as it stands.
func (n Node) ReadLink() (string, error) {
	n.fs.mu.Lock()
	defer n.fs.mu.Unlock()
	return n.fs.readLink(n.ino)
}

// Xattrs returns the file's extended attributes in the order of the disk, in which the
// kernel lists them.
func (n Node) Xattrs() ([]Xattr, error) {
	n.fs.mu.Lock()
	defer n.fs.mu.Unlock()
	in, err := n.fs.inode(n.ino)
	if err != nil {
		return nil, err
	}
	return n.fs.xattrs(n.ino, in)
}

// Open opens a regular file for reading; its File has no name.
func (n Node) Open() (*File, error) {
	n.fs.mu.Lock()
	defer n.fs.mu.Unlock()
	return n.fs.openInode("", n.ino)
}
