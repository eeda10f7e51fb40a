package diskfs

import (
	"errors"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"
)

// An FS is an io/fs.FS with symlinks. Names are as io/fs wants them, "etc/passwd", "."
// for the root, but any bytes that ext4 can hold: they need not be UTF-8. Symlinks are
// followed inside the root.
var (
	_ fs.ReadDirFS  = (*FS)(nil)
	_ fs.StatFS     = (*FS)(nil)
	_ fs.ReadLinkFS = (*FS)(nil)
)

// FileInfo implements fs.FileInfo; Sys returns a *Stat.
type FileInfo struct {
	name string
	ino  uint32
	stat Stat
}

// Stat is what an inode tells beyond fs.FileInfo.
type Stat struct {
	Inode        uint32
	Mode         uint16 // as in stat(2): type, setuid, setgid, sticky, permissions
	Links        uint16 // names of the inode; 1 for directories with more than 64997 subdirectories
	UID, GID     uint32
	Major, Minor uint32 // of devices
	Size         int64  // bytes
	Blocks       int64  // of 512 bytes, with extent and xattr blocks
	Mtime        time.Time
	Atime, Ctime time.Time
}

func (i FileInfo) Name() string       { return i.name }
func (i FileInfo) Size() int64        { return i.stat.Size }
func (i FileInfo) ModTime() time.Time { return i.stat.Mtime }
func (i FileInfo) IsDir() bool        { return i.stat.Mode&modeType == modeDir }
func (i FileInfo) Sys() any           { return &i.stat }

// Mode translates the inode's mode.
func (i FileInfo) Mode() fs.FileMode {
	m := fs.FileMode(i.stat.Mode & 0777)
	switch i.stat.Mode & modeType {
	case modeDir:
		m |= fs.ModeDir
	case modeLink:
		m |= fs.ModeSymlink
	case modeChar:
		m |= fs.ModeDevice | fs.ModeCharDevice
	case modeBlock:
		m |= fs.ModeDevice
	case modeFIFO:
		m |= fs.ModeNamedPipe
	case modeSocket:
		m |= fs.ModeSocket
	}
	for bit, f := range map[uint16]fs.FileMode{04000: fs.ModeSetuid, 02000: fs.ModeSetgid, 01000: fs.ModeSticky} {
		if i.stat.Mode&bit != 0 {
			m |= f
		}
	}
	return m
}

// validPath is fs.ValidPath for names of any bytes.
func validPath(name string) bool {
	if name == "." {
		return true
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == "" || part == "." || part == ".." {
			return false
		}
	}
	return true
}

// lookup resolves a name to an inode, following the last symlink if follow is set. The
// caller holds f.mu.
func (f *FS) lookup(name string, follow bool) (uint32, error) {
	if !validPath(name) {
		return 0, fs.ErrInvalid
	}
	if name == "." {
		return rootInode, nil
	}
	cur, err := f.dir(rootInode)
	if err != nil {
		return 0, err
	}
	for links := 0; ; {
		part, rest, more := strings.Cut(name, "/")
		switch part {
		case "", ".":
			if !more {
				return cur.ino, nil
			}
			name = rest
			continue
		case "..":
			if cur, err = f.dir(cur.parent); err != nil || !more {
				return cur.inoOrZero(), err
			}
			name = rest
			continue
		}
		i := cur.lookup(part)
		if i < 0 {
			return 0, fs.ErrNotExist
		}
		e := cur.ents[i]
		last := strings.Trim(rest, "/") == ""
		switch {
		case e.typ == fileTypeLink && (!last || follow):
			if links++; links > maxSymlinks {
				return 0, errLoop
			}
			target, err := f.readLink(e.ino)
			if err != nil {
				return 0, err
			}
			if strings.HasPrefix(target, "/") {
				if cur, err = f.dir(rootInode); err != nil {
					return 0, err
				}
			}
			name = target + "/" + rest
		case last:
			return e.ino, nil
		case e.typ != fileTypeDir:
			return 0, errNotDir
		default:
			if cur, err = f.subdir(cur, e); err != nil {
				return 0, err
			}
			name = rest
		}
	}
}

func (d *dir) inoOrZero() uint32 {
	if d == nil {
		return 0
	}
	return d.ino
}

func (f *FS) info(name string, ino uint32) (FileInfo, error) {
	in, err := f.inode(ino)
	if err != nil {
		return FileInfo{}, err
	}
	if !in.inUse() {
		return FileInfo{}, badInode(ino, "named %q but not in use", name)
	}
	s := Stat{
		Inode: ino, Mode: in.mode(), Links: in.links(), UID: in.uid(), GID: in.gid(), Size: in.size(), Blocks: in.sectors(),
		Mtime: in.time(inoMtime, inoMtimeX), Atime: in.time(inoAtime, inoAtimeX), Ctime: in.time(inoCtime, inoCtimeX),
	}
	if k := in.kind(); k == modeChar || k == modeBlock {
		s.Major, s.Minor = in.device()
	}
	if s.Size < 0 {
		return FileInfo{}, badInode(ino, "size %d", s.Size)
	}
	return FileInfo{name: path.Base(name), ino: ino, stat: s}, nil
}

// pathError wraps what an operation on a name met.
func pathError(op, name string, err error) error {
	if errors.Is(err, errNotExist) {
		err = fs.ErrNotExist
	}
	return &fs.PathError{Op: op, Path: name, Err: err}
}

// Open opens a file or directory for reading. The file may be used as long as the FS
// is not given to Apply.
func (f *FS) Open(name string) (fs.File, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	ino, err := f.lookup(name, true)
	if err != nil {
		return nil, pathError("open", name, err)
	}
	file, err := f.openInode(name, ino)
	if err != nil {
		return nil, pathError("open", name, err)
	}
	return file, nil
}

// openInode opens a file by its number. The caller holds f.mu.
func (f *FS) openInode(name string, ino uint32) (*File, error) {
	info, err := f.info(name, ino)
	if err != nil {
		return nil, err
	}
	file := &File{info: info, fs: f}
	if info.stat.Mode&modeType == modeFile {
		in, err := f.inode(ino)
		if err != nil {
			return nil, err
		}
		if file.data, err = f.newFileReader(ino, in); err != nil {
			return nil, err
		}
	}
	return file, nil
}

func (f *FS) statName(name string, follow bool) (fs.FileInfo, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	ino, err := f.lookup(name, follow)
	if err != nil {
		return nil, pathError("stat", name, err)
	}
	info, err := f.info(name, ino)
	if err != nil {
		return nil, pathError("stat", name, err)
	}
	return info, nil
}

// Stat describes what the name leads to; Sys of the result is a *Stat.
func (f *FS) Stat(name string) (fs.FileInfo, error) { return f.statName(name, true) }

// Lstat is Stat without following a symlink in the last place.
func (f *FS) Lstat(name string) (fs.FileInfo, error) { return f.statName(name, false) }

// ReadLink returns the target of a symlink as it stands.
func (f *FS) ReadLink(name string) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	ino, err := f.lookup(name, false)
	if err != nil {
		return "", pathError("readlink", name, err)
	}
	target, err := f.readLink(ino)
	if err != nil {
		return "", pathError("readlink", name, err)
	}
	return target, nil
}

// Xattrs returns the extended attributes of a file, a symlink in the last place not
// followed, sorted by name.
func (f *FS) Xattrs(name string) ([]Xattr, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	ino, err := f.lookup(name, false)
	if err != nil {
		return nil, pathError("xattrs", name, err)
	}
	in, err := f.inode(ino)
	if err != nil {
		return nil, pathError("xattrs", name, err)
	}
	list, err := f.sortedXattrs(ino, in)
	if err != nil {
		return nil, pathError("xattrs", name, err)
	}
	return list, nil
}

func (f *FS) sortedXattrs(ino uint32, in rawInode) ([]Xattr, error) {
	list, err := f.xattrs(ino, in)
	slices.SortFunc(list, func(a, b Xattr) int { return strings.Compare(a.Name, b.Name) })
	return list, err
}

// ReadDir lists a directory, sorted by name.
func (f *FS) ReadDir(name string) ([]fs.DirEntry, error) {
	f.mu.Lock()
	ino, err := f.lookup(name, true)
	f.mu.Unlock()
	if err == nil {
		var list []fs.DirEntry
		if list, err = f.readDirEntries(ino); err == nil {
			return list, nil
		}
	}
	return nil, pathError("readdir", name, err)
}

func (f *FS) readDirEntries(ino uint32) ([]fs.DirEntry, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	in, err := f.inode(ino)
	if err != nil {
		return nil, err
	}
	if in.kind() != modeDir {
		return nil, errNotDir
	}
	d, err := f.dir(ino)
	if err != nil {
		return nil, err
	}
	list := make([]fs.DirEntry, 0, d.live())
	for _, e := range d.ents {
		if e.ino != 0 {
			list = append(list, dirEntry{f, e})
		}
	}
	slices.SortFunc(list, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return list, nil
}

// dirEntry implements fs.DirEntry.
type dirEntry struct {
	fs *FS
	e  dirent
}

func (d dirEntry) Name() string { return d.e.name }
func (d dirEntry) IsDir() bool  { return d.e.typ == fileTypeDir }

func (d dirEntry) Type() fs.FileMode {
	return FileInfo{stat: Stat{Mode: modeOf(d.e.typ)}}.Mode().Type()
}

// modeOf translates the file type of a directory entry to that of an inode's mode.
func modeOf(typ byte) uint16 {
	switch typ {
	case fileTypeFile:
		return modeFile
	case fileTypeDir:
		return modeDir
	case fileTypeLink:
		return modeLink
	case fileTypeChar:
		return modeChar
	case fileTypeBlk:
		return modeBlock
	case fileTypeFIFO:
		return modeFIFO
	case fileTypeSock:
		return modeSocket
	}
	return 0
}

func (d dirEntry) Info() (fs.FileInfo, error) {
	d.fs.mu.Lock()
	defer d.fs.mu.Unlock()
	return d.fs.info(d.e.name, d.e.ino)
}

// Empty tells whether there is nothing in the root directory. A guest may have made that of any size; one that ever was
// large is not asked for its names, and taken for one that has some.
func (f *FS) Empty() (bool, error) {
	const most = 64 << 10
	info, err := f.Lstat(".")
	if err != nil || info.Size() > most {
		return false, err
	}
	entries, err := f.ReadDir(".")
	return len(entries) == 0, err
}
