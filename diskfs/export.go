package diskfs

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"time"
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

// A Graft is a file, or a folder with all that is in it, that is written in the place of another.
type Graft struct {
	At   string // the place, from the folder on that is written
	FS   *FS
	File string // in FS
}

// WriteTree is WriteTar for one file, a folder with all that is in it, under another name. A
// symlink in the last place of file is not followed.
func (f *FS) WriteTree(w io.Writer, file, as string) error { return f.WriteTrees(w, file, as, nil) }

// WriteTrees is WriteTree with grafts, which stand in the folder whether it has something in their place or not, and may stand
// in one another. Folders on the way to them that are not there are written as well.
func (f *FS) WriteTrees(w io.Writer, file, as string, grafts []Graft) error {
	e := f.newExporter(w)
	e.graft(as, grafts)
	_, _, err := f.kindOf(file)
	if errors.Is(err, fs.ErrNotExist) && len(grafts) > 0 {
		err = e.folder(as)
	} else {
		err = e.file(file, as)
	}
	if err == nil {
		err = e.rest(as, grafts)
	}
	if err != nil {
		return fmt.Errorf("write tar of %s: %w", file, err)
	}
	return e.w.Close()
}

func (f *FS) newExporter(w io.Writer) *exporter {
	return &exporter{fs: f, w: tar.NewWriter(w), first: make(map[uint32]string), buf: make([]byte, 1<<20)}
}

// graft prepares for grafts in a tree that is written under a name.
func (e *exporter) graft(as string, grafts []Graft) {
	if len(grafts) == 0 {
		return
	}
	e.grafts, e.above = make(map[string]Graft), make(map[string]bool)
	for _, g := range grafts {
		name := as + "/" + g.At
		e.grafts[name] = g
		for i := len(as) + 1; i < len(name); i++ {
			if name[i] == '/' {
				e.above[name[:i]] = false
			}
		}
	}
}

// grafted writes the graft in the place of a name, if there is one.
func (e *exporter) grafted(name string) (bool, error) {
	g, ok := e.grafts[name]
	if !ok {
		return false, nil
	}
	delete(e.grafts, name)
	of := *e
	of.fs, of.first = g.FS, make(map[uint32]string)
	return true, of.file(g.File, name)
}

// rest writes the grafts for which there was no place, and the folders on the way to them.
func (e *exporter) rest(as string, grafts []Graft) error {
	for _, g := range slices.SortedFunc(slices.Values(grafts), func(a, b Graft) int { return strings.Compare(a.At, b.At) }) {
		name := as + "/" + g.At
		if _, ok := e.grafts[name]; !ok {
			continue
		}
		for i := len(as) + 1; i < len(name); i++ {
			if name[i] == '/' && !e.above[name[:i]] {
				if err := e.folder(name[:i]); err != nil {
					return err
				}
			}
		}
		if _, err := e.grafted(name); err != nil {
			return err
		}
	}
	return nil
}

// folder writes a folder that no file system has.
func (e *exporter) folder(name string) error {
	e.met(name)
	return e.w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0755, ModTime: time.Unix(0, 0), Format: tar.FormatPAX})
}

// met notes that a folder is written.
func (e *exporter) met(name string) {
	if _, ok := e.above[name]; ok {
		e.above[name] = true
	}
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
	e.met(as)
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

	grafts map[string]Graft // not written yet, by name
	above  map[string]bool  // the folders on the way to grafts: have they been written?
}

// An openDir is a directory on the way to the entry being looked at. No tree is so deep
// that a list of them does not fit; calls that nest would not.
type openDir struct {
	d      *dir
	left   []dirent
	prefix int // length of its path, with a slash at the end
}

// tree writes what is in a directory; path is what its names begin with.
func (e *exporter) tree(root *dir, path []byte) error {
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
		sub, err := e.entry(top.d, ent, string(path))
		if err != nil {
			return fmt.Errorf("%q: %w", path, err)
		}
		if sub != nil {
			path = append(path, '/')
			open = append(open, openDir{sub, sub.sorted(), len(path)})
		}
	}
	return nil
}

// entry writes an entry of a directory. If that is one, too, it returns it.
func (e *exporter) entry(d *dir, ent dirent, name string) (*dir, error) {
	if done, err := e.grafted(name); done || err != nil {
		return nil, err
	}
	if ent.typ != fileTypeDir {
		return nil, e.inode(ent.ino, name)
	}
	e.met(name)
	if err := e.inode(ent.ino, name+"/"); err != nil {
		return nil, err
	}
	return e.fs.lockedSubdir(d, ent)
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
