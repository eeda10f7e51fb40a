package mount

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"vic/diskfs"
)

// A listing is an open directory: its names as they were when it was opened.
type listing struct {
	tree  tree // nil: of the catalog
	num   uint32
	names []listed // "." and ".." first
}

type listed struct {
	name string
	mode uint32 // type alone, 0 if it is not known
	ino  uint64 // that stat(2) gives
	file uint32 // in the tree
}

// OpenDir reads a directory.
func (s *server) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	num, ino := split(in.NodeId)
	l := &listing{num: num}
	var err error
	if num == 0 {
		err = s.listCatalog(l, ino)
	} else {
		err = s.listTree(l, ino)
		out.OpenFlags = fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_CACHE_DIR
	}
	if err != nil {
		return s.status("opendir", in.NodeId, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.handle++
	s.listings[s.handle] = l
	out.Fh = s.handle
	return fuse.OK
}

func (s *server) listCatalog(l *listing, ino uint32) error {
	dir, err := s.catalogNode(ino)
	if err != nil {
		return err
	}
	list, items, err := s.catalog.list(dir)
	if err != nil {
		return err
	}
	own := inode(dir.path)
	l.names = append(l.names, listed{name: ".", mode: unix.S_IFDIR, ino: own}, listed{name: "..", mode: unix.S_IFDIR, ino: own})
	for _, name := range list {
		l.names = append(l.names, listed{name: name, mode: uint32(items[name].mode & unix.S_IFMT), ino: inode(dir.path + "/" + name)})
	}
	return nil
}

func (s *server) listTree(l *listing, ino uint32) error {
	t, err := s.treeOf(l.num)
	if err != nil {
		return err
	}
	names, parent, err := t.names(ino)
	if err != nil {
		return err
	}
	l.tree = t
	l.names = make([]listed, 0, len(names)+2)
	add := func(n diskfs.Name) {
		l.names = append(l.names, listed{n.Name, uint32(n.Type), nodeID(l.num, n.Inode), n.Inode})
	}
	add(diskfs.Name{Name: ".", Inode: ino, Type: unix.S_IFDIR})
	add(diskfs.Name{Name: "..", Inode: parent, Type: unix.S_IFDIR})
	for _, n := range names {
		add(n)
	}
	return nil
}

// ReleaseDir closes a directory.
func (s *server) ReleaseDir(in *fuse.ReleaseIn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.listings, in.Fh)
}

// rest returns what follows a place in a directory.
func (s *server) rest(in *fuse.ReadIn) (*listing, []listed, error) {
	s.mu.Lock()
	l := s.listings[in.Fh]
	s.mu.Unlock()
	if l == nil {
		return nil, nil, errStale
	}
	return l, l.names[min(in.Offset, uint64(len(l.names))):], nil
}

// ReadDir lists names.
func (s *server) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	l, names, err := s.rest(in)
	for i, n := range names {
		if l.tree != nil && in.Offset+uint64(i) >= 2 {
			if st, err := l.tree.stat(n.file); err == nil {
				n.ino = statInode(l.num, n.file, st)
			}
		}
		if !out.AddDirEntry(fuse.DirEntry{Name: n.name, Mode: n.mode, Ino: n.ino}) {
			break
		}
	}
	return s.status("readdir", in.NodeId, err)
}

// ReadDirPlus lists names, with the attributes of a tree's files.
func (s *server) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	l, names, err := s.rest(in)
	for i, n := range names {
		var st diskfs.Stat
		known := false
		if l.tree != nil && in.Offset+uint64(i) >= 2 {
			var err error
			if st, err = l.tree.stat(n.file); err == nil {
				n.ino, n.mode, known = statInode(l.num, n.file, st), uint32(st.Mode), true
			} // else the kernel will look it up, and be told why
		}
		e := out.AddDirLookupEntry(fuse.DirEntry{Name: n.name, Mode: n.mode, Ino: n.ino})
		if e == nil {
			break
		}
		if known {
			s.fill(l.num, n.file, st, e)
		}
	}
	return s.status("readdir", in.NodeId, err)
}
