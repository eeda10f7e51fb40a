package diskfs

import (
	"archive/tar"
	"fmt"
	"io"
	"slices"
	"strings"
)

// maxFileSize is how long a file can be that maps its blocks by extents.
const maxFileSize = 1 << 32 * BlockSize

// WriteTar writes the whole file system as one tar, which docker import and GNU tar read:
// the root first, as "./", then all names in ascending order, so that equal file systems
// give equal bytes. A further name of an inode is a hard link to its first one. Times have
// nanoseconds; extended attributes, ACLs among them, are SCHILY.xattr records. Holes are
// written as the zeros that they read as. Sockets are left out: a tar has none.
func (f *FS) WriteTar(w io.Writer) error {
	e := f.newExporter(w)
	root, err := f.lockedDir(rootInode)
	if err == nil {
		if err = e.inode(rootInode, "./"); err == nil {
			err = e.tree(root, nil)
		}
	}
	if err != nil {
		return fmt.Errorf("write tar: %w", err)
	}
	return e.w.Close()
}

// WriteTree is WriteTar for one file, a folder with all that is in it, under another name. A
// symlink in the last place of file is not followed.
func (f *FS) WriteTree(w io.Writer, file, as string) error {
	e := f.newExporter(w)
	if err := e.file(file, as); err != nil {
		return fmt.Errorf("write tar of %s: %w", file, err)
	}
	return e.w.Close()
}

func (f *FS) newExporter(w io.Writer) *exporter {
	return &exporter{fs: f, w: tar.NewWriter(w), first: make(map[uint32]string), buf: make([]byte, 1<<20)}
}

func (e *exporter) file(file, as string) error {
	ino, kind, err := e.fs.kindOf(file)
	if err != nil {
		return err
	}
	if kind != modeDir {
		return e.inode(ino, as)
	}
	d, err := e.fs.lockedDir(ino)
	if err != nil {
		return err
	}
	if err := e.inode(ino, as+"/"); err != nil {
		return err
	}
	return e.tree(d, []byte(as+"/"))
}

// kindOf finds a file and what kind it is of.
func (f *FS) kindOf(file string) (ino uint32, kind uint16, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if ino, err = f.lookup(file, false); err != nil {
		return 0, 0, pathError("stat", file, err)
	}
	in, err := f.inode(ino)
	if err != nil {
		return 0, 0, err
	}
	return ino, in.kind(), nil
}

type exporter struct {
	fs    *FS
	w     *tar.Writer
	first map[uint32]string // the name of each inode that has several
	buf   []byte
}

// An openDir is a directory on the way to the entry being looked at. No tree is so deep
// that a list of them does not fit; calls that nest would not.
type openDir struct {
	d      *dir
	left   []dirent
	prefix int // length of its path, with a slash at the end
}

// tree writes what is in a directory; path is what its names begin with.
func (e *exporter) tree(root *dir, path []byte) (err error) {
	open := []openDir{{root, root.sorted(), len(path)}}
	for len(open) > 0 {
		top := &open[len(open)-1]
		if len(top.left) == 0 {
			open = open[:len(open)-1]
			continue
		}
		ent := top.left[0]
		top.left = top.left[1:]
		path = append(path[:top.prefix], ent.name...)
		if ent.typ != fileTypeDir {
			err = e.inode(ent.ino, string(path))
		} else {
			path = append(path, '/')
			if err = e.inode(ent.ino, string(path)); err == nil {
				var sub *dir
				if sub, err = e.fs.lockedSubdir(top.d, ent); err == nil {
					open = append(open, openDir{sub, sub.sorted(), len(path)})
				}
			}
		}
		if err != nil {
			return fmt.Errorf("%q: %w", path, err)
		}
	}
	return nil
}

func (f *FS) lockedDir(ino uint32) (*dir, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.dir(ino)
}

func (f *FS) lockedSubdir(d *dir, e dirent) (*dir, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.subdir(d, e)
}

// sorted returns the directory's entries by name.
func (d *dir) sorted() []dirent {
	list := make([]dirent, 0, d.live())
	for _, e := range d.ents {
		if e.ino != 0 {
			list = append(list, e)
		}
	}
	slices.SortFunc(list, func(a, b dirent) int { return strings.Compare(a.name, b.name) })
	return list
}

// inode writes the entry of one name; that of a directory ends in a slash.
func (e *exporter) inode(ino uint32, name string) error {
	h, links, data, err := e.fs.tarHeader(ino, name)
	if err != nil || h == nil {
		return err
	}
	if first := e.first[ino]; first != "" {
		h.Typeflag, h.Linkname, h.Size, h.PAXRecords = tar.TypeLink, first, 0, nil
		return e.w.WriteHeader(h)
	}
	if links > 1 && h.Typeflag != tar.TypeDir {
		e.first[ino] = name
	}
	if err := e.w.WriteHeader(h); err != nil || data == nil {
		return err
	}
	return copyRuns(e.w, data.disk, data.runs, data.size, e.buf)
}

// tarHeader describes an inode, and gives the number of its names and a file's data. For a
// socket there is no header.
func (f *FS) tarHeader(ino uint32, name string) (_ *tar.Header, links uint16, _ *fileReader, _ error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	info, err := f.info(name, ino)
	if err != nil {
		return nil, 0, nil, err
	}
	in, err := f.inode(ino)
	if err != nil {
		return nil, 0, nil, err
	}
	h := &tar.Header{
		Name: name, Mode: int64(info.stat.Mode & 07777), Uid: int(info.stat.UID), Gid: int(info.stat.GID),
		ModTime: info.stat.Mtime, Format: tar.FormatPAX,
	}
	var data *fileReader
	switch kind := in.kind(); kind {
	case modeDir:
		h.Typeflag = tar.TypeDir
	case modeFile:
		if info.stat.Size > maxFileSize {
			return nil, 0, nil, badInode(ino, "file of %d bytes", info.stat.Size)
		}
		h.Typeflag, h.Size = tar.TypeReg, info.stat.Size
		data, err = f.newFileReader(ino, in)
	case modeLink:
		h.Typeflag = tar.TypeSymlink
		h.Linkname, err = f.readLink(ino)
	case modeChar, modeBlock:
		h.Typeflag, h.Devmajor, h.Devminor = tar.TypeChar, int64(info.stat.Major), int64(info.stat.Minor)
		if kind == modeBlock {
			h.Typeflag = tar.TypeBlock
		}
	case modeFIFO:
		h.Typeflag = tar.TypeFifo
	case modeSocket:
		return nil, 0, nil, nil
	default:
		return nil, 0, nil, badInode(ino, "mode %06o is of no kind of file", in.mode())
	}
	if err != nil {
		return nil, 0, nil, err
	}
	if isDir := strings.HasSuffix(name, "/"); isDir != (h.Typeflag == tar.TypeDir) {
		return nil, 0, nil, badInode(ino, "not of the kind that its name says")
	}
	list, err := f.xattrs(ino, in)
	if err != nil {
		return nil, 0, nil, err
	}
	for _, x := range list {
		if h.PAXRecords == nil {
			h.PAXRecords = make(map[string]string)
		}
		h.PAXRecords[paxXattr+paxKey(x.Name)] = string(x.Value)
	}
	return h, in.links(), data, nil
}

// paxKey returns an attribute's name as GNU tar writes it, if it cannot stand in a PAX
// record as it is.
func paxKey(name string) string {
	if !strings.Contains(name, "=") {
		return name
	}
	return strings.NewReplacer("%", "%25", "=", "%3D").Replace(name)
}
