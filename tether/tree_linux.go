package tether

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vic/tether/wire"
)

// absolute makes a path as docker cp takes it one from the root on. A slash or a dot at its
// end stays: it decides what a symlink before it means.
func absolute(p string) string {
	if strings.HasPrefix(p, "/") {
		return p
	}
	return "/" + p
}

// fileError gives an error about a file the kind that the host asks for.
func fileError(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return &wire.Error{Kind: wire.NotFound, Message: err.Error()}
	}
	return err
}

// statPath describes a file as docker does: a symlink as itself, with where it leads.
func statPath(p string) (wire.PathStat, error) {
	p = absolute(p)
	fi, err := os.Lstat(p)
	if err != nil {
		return wire.PathStat{}, err
	}
	st := wire.PathStat{Name: path.Base(p), Size: fi.Size(), Mode: uint32(fi.Mode()), Mtime: fi.ModTime().UnixNano()}
	if fi.Mode()&fs.ModeSymlink != 0 {
		if st.LinkTarget, err = follow(p); err != nil {
			return wire.PathStat{}, err
		}
	}
	return st, nil
}

// readPath writes what is at a path as a tar, whose names begin with the path's last part.
func readPath(w io.Writer, p string) error {
	p = absolute(p)
	base := path.Base(p)
	if base == "/" {
		base = ""
	}
	return writeTree(w, p, base, base+"/")
}

// readRoot writes the root file system as a tar: what is under its mount points, which only a
// copy of the mount shows.
func readRoot(w io.Writer) error {
	fd, err := unix.OpenTree(unix.AT_FDCWD, "/", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open the root file system: %w", err)
	}
	root := os.NewFile(uintptr(fd), "/")
	defer root.Close()
	return writeTree(w, ownProc(fmt.Sprintf("self/fd/%d/.", fd)), ".", "")
}

// A treeWriter writes files as a tar.
type treeWriter struct {
	w     *tar.Writer
	first map[[2]uint64]string // the name of each inode that has several, by device and number
	buf   []byte
}

// writeTree writes a file, or a folder with all that is in it, under a name. The names of what
// is in the folder begin with prefix.
func writeTree(w io.Writer, file, name, prefix string) error {
	t := &treeWriter{w: tar.NewWriter(w), first: map[[2]uint64]string{}, buf: make([]byte, taskBuffer)}
	if err := t.entry(file, name, prefix); err != nil {
		return err
	}
	return t.w.Close()
}

// entry writes one file and, if it is a folder, all in it. Files that vanish meanwhile are
// left out.
func (t *treeWriter) entry(file, name, prefix string) error {
	fi, err := os.Lstat(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if fi.Mode().IsRegular() {
		return t.regular(file, name)
	}
	h, err := header(fi, file, name)
	if err != nil || h == nil {
		return err
	}
	if t.linked(fi, h) {
		return t.w.WriteHeader(h)
	}
	if err := t.w.WriteHeader(h); err != nil || !fi.IsDir() {
		return err
	}
	return t.folder(file, fi, prefix)
}

// folder writes what is in a folder, but for a file system that the kernel makes up.
func (t *treeWriter) folder(dir string, fi fs.FileInfo, prefix string) error {
	if above, err := os.Lstat(path.Join(dir, "..")); err == nil && device(above) != device(fi) && isMadeUp(dir) {
		return nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := t.entry(path.Join(dir, e.Name()), prefix+e.Name(), prefix+e.Name()+"/"); err != nil {
			return err
		}
	}
	return nil
}

// isMadeUp says whether a mount point has files without end: /proc, /sys, /dev.
func isMadeUp(dir string) bool {
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) != nil {
		return false
	}
	switch st.Type {
	case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.CGROUP2_SUPER_MAGIC, unix.DEVPTS_SUPER_MAGIC:
		return true
	}
	return path.Clean(dir) == "/dev"
}

// regular writes a file as long as it was when it was opened: what comes later is left out,
// what goes meanwhile are zeros.
func (t *treeWriter) regular(file, name string) error {
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOATIME, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() {
		return fmt.Errorf("%s: changed while it was read", file)
	}
	h, err := header(fi, file, name)
	if err != nil {
		return err
	}
	linked := t.linked(fi, h)
	if err := t.w.WriteHeader(h); err != nil || linked {
		return err
	}
	n, err := io.CopyBuffer(struct{ io.Writer }{t.w}, io.LimitReader(f, h.Size), t.buf)
	if err != nil {
		return err
	}
	clear(t.buf)
	for left := h.Size - n; left > 0; {
		k, err := t.w.Write(t.buf[:min(left, int64(len(t.buf)))])
		if err != nil {
			return err
		}
		left -= int64(k)
	}
	return nil
}

// linked makes h a hard link if it is a further name of a file that has been written.
func (t *treeWriter) linked(fi fs.FileInfo, h *tar.Header) bool {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok || st.Nlink < 2 || fi.IsDir() {
		return false
	}
	key := [2]uint64{st.Dev, st.Ino}
	first, ok := t.first[key]
	if !ok {
		t.first[key] = h.Name
		return false
	}
	h.Typeflag, h.Linkname, h.Size, h.PAXRecords = tar.TypeLink, first, 0, nil
	return true
}

func device(fi fs.FileInfo) uint64 {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return st.Dev
	}
	return 0
}

// header describes a file; nil if it is a socket, which a tar cannot have. Times are whole
// seconds, as in docker's.
func header(fi fs.FileInfo, file, name string) (*tar.Header, error) {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok || fi.Mode()&fs.ModeSocket != 0 {
		return nil, nil
	}
	h := &tar.Header{
		Name: name, Mode: int64(st.Mode & 07777), Uid: int(st.Uid), Gid: int(st.Gid),
		ModTime: fi.ModTime().Truncate(time.Second), Format: tar.FormatPAX,
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		h.Typeflag, h.Name = tar.TypeDir, strings.TrimSuffix(name, "/")+"/"
	case unix.S_IFREG:
		h.Typeflag, h.Size = tar.TypeReg, fi.Size()
	case unix.S_IFLNK:
		target, err := os.Readlink(file)
		if err != nil {
			return nil, err
		}
		h.Typeflag, h.Linkname = tar.TypeSymlink, target
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Typeflag, h.Devmajor, h.Devminor = tar.TypeChar, int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	}
	return h, addXattrs(h, file)
}

// paxXattr begins the name of a PAX record that is an extended attribute.
const paxXattr = "SCHILY.xattr."

// addXattrs adds a file's extended attributes; one whose name a PAX record cannot have is
// left out.
func addXattrs(h *tar.Header, file string) error {
	list := make([]byte, 64<<10) // the kernel's limit
	n, err := unix.Llistxattr(file, list)
	if err == unix.ENOTSUP || err == unix.ENOENT {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "llistxattr", Path: file, Err: err}
	}
	for name := range strings.SplitSeq(strings.TrimRight(string(list[:n]), "\x00"), "\x00") {
		if name == "" || strings.Contains(name, "=") {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(file, name, value)
		if err == unix.ENODATA || err == unix.ENOTSUP || err == unix.ENOENT {
			continue // gone meanwhile, or made up by the file system
		}
		if err != nil {
			return &os.PathError{Op: "lgetxattr", Path: file, Err: err}
		}
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[paxXattr+name] = string(value[:n])
	}
	return nil
}
