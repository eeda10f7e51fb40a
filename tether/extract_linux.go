package tether

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vic/tether/wire"
)

// An extraction puts the files of a tar into a folder. The root of this process is the
// container's, so wherever a name leads, it stays in the container.
type extraction struct {
	dir   string
	task  *wire.Task
	owner *owner // of all files; nil leaves what the tar says
	buf   []byte
	dirs  []folderTime
}

type owner struct{ uid, gid int }

// folderTime is when a folder is to have been changed: set last, for what is put into it changes that.
type folderTime struct {
	path  string
	mtime time.Time
}

// newExtraction refuses what docker refuses.
func (g *guest) newExtraction(t *wire.Task) (*extraction, error) {
	dir, err := filepath.EvalSymlinks(path.Join("/", t.Path))
	if err != nil {
		return nil, fileError(err)
	}
	fi, err := os.Lstat(dir)
	if err != nil {
		return nil, fileError(err)
	}
	if !fi.IsDir() {
		return nil, &wire.Error{Kind: wire.Invalid, Message: "extraction point is not a directory"}
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return nil, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	if st.Flags&unix.ST_RDONLY != 0 {
		what := "mounted volume"
		if root, err := os.Lstat("/"); err == nil && device(root) == device(fi) {
			what = "container rootfs"
		}
		return nil, &wire.Error{Kind: wire.Invalid, Message: what + " is marked read-only"}
	}
	x := &extraction{dir: dir, task: t, buf: make([]byte, taskBuffer)}
	if t.Own {
		cred, _, err := lookUpUser(g.conf.User, nil)
		if err != nil {
			return nil, &wire.Error{Kind: wire.Invalid, Message: err.Error()}
		}
		x.owner = &owner{int(cred.Uid), int(cred.Gid)}
	}
	return x, nil
}

// run extracts all entries.
func (x *extraction) run(r *tar.Reader) error {
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("read tar: %w", err)
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		if err := x.entry(h, r); err != nil {
			return err
		}
	}
	for _, d := range x.dirs {
		if err := setTime(d.path, d.mtime); err != nil {
			return err
		}
	}
	return nil
}

// target is where a name of the tar leads; it may not leave the folder by "..".
func (x *extraction) target(name string) (string, error) {
	p := path.Join(x.dir, name)
	if x.dir != "/" && p != x.dir && !strings.HasPrefix(p, x.dir+"/") || strings.HasPrefix(path.Clean(name), "..") {
		return "", fmt.Errorf("%q is outside of %q", name, x.dir)
	}
	return p, nil
}

func (x *extraction) entry(h *tar.Header, data io.Reader) error {
	p, err := x.target(h.Name)
	if err != nil {
		return err
	}
	if p == x.dir && h.Typeflag == tar.TypeDir {
		return nil // it stays as it is
	}
	if err := os.MkdirAll(path.Dir(p), 0755); err != nil {
		return err
	}
	if err := x.clear(p, h); err != nil {
		return err
	}
	if err := x.create(p, h, data); err != nil {
		return err
	}
	if h.Typeflag == tar.TypeLink {
		return nil
	}
	return x.dress(p, h)
}

// clear removes what stands where an entry is to be, unless both are folders.
func (x *extraction) clear(p string, h *tar.Header) error {
	fi, err := os.Lstat(p)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	isDir := h.Typeflag == tar.TypeDir
	switch {
	case fi.IsDir() && isDir:
		return nil
	case x.task.KeepKinds && fi.IsDir():
		return fmt.Errorf("cannot overwrite directory %q with non-directory %q", p, x.dir)
	case x.task.KeepKinds && isDir:
		return fmt.Errorf("cannot overwrite non-directory %q with directory %q", p, x.dir)
	case p == x.dir:
		return fmt.Errorf("%q is the folder to extract to", h.Name)
	}
	return os.RemoveAll(p)
}

func (x *extraction) create(p string, h *tar.Header, data io.Reader) error {
	switch h.Typeflag {
	case tar.TypeDir:
		if err := os.Mkdir(p, 0700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		return nil
	case tar.TypeReg, tar.TypeGNUSparse:
		return x.file(p, data)
	case tar.TypeSymlink:
		return os.Symlink(h.Linkname, p)
	case tar.TypeLink:
		to, err := x.target(h.Linkname)
		if err != nil {
			return err
		}
		return os.Link(to, p)
	case tar.TypeChar:
		return mknod(p, unix.S_IFCHR, h)
	case tar.TypeBlock:
		return mknod(p, unix.S_IFBLK, h)
	case tar.TypeFifo:
		return mknod(p, unix.S_IFIFO, h)
	}
	return fmt.Errorf("%q is of a kind that is not known: %q", h.Name, h.Typeflag)
}

func (x *extraction) file(p string, data io.Reader) error {
	f, err := os.OpenFile(p, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0600)
	if err != nil {
		return err
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{f}, struct{ io.Reader }{data}, x.buf)
	return errors.Join(err, f.Close())
}

func mknod(p string, kind uint32, h *tar.Header) error {
	if h.Devmajor < 0 || h.Devmajor >= 1<<12 || h.Devminor < 0 || h.Devminor >= 1<<20 {
		return fmt.Errorf("%q: no device has the numbers %d and %d", h.Name, h.Devmajor, h.Devminor)
	}
	if err := unix.Mknod(p, kind|0600, int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor)))); err != nil {
		return &os.PathError{Op: "mknod", Path: p, Err: err}
	}
	return nil
}

// dress gives a file its owner, extended attributes, mode and time, in an order in which none
// takes another away.
func (x *extraction) dress(p string, h *tar.Header) error {
	o := owner{h.Uid, h.Gid}
	if x.owner != nil {
		o = *x.owner
	}
	if err := os.Lchown(p, o.uid, o.gid); err != nil {
		return err
	}
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, paxXattr)
		if !ok {
			continue
		}
		if err := unix.Lsetxattr(p, name, []byte(value), 0); err != nil && err != unix.ENOTSUP {
			return &os.PathError{Op: "set " + name + " of", Path: p, Err: err}
		}
	}
	if h.Typeflag != tar.TypeSymlink {
		if err := unix.Chmod(p, uint32(h.Mode&07777)); err != nil {
			return &os.PathError{Op: "chmod", Path: p, Err: err}
		}
	}
	if h.Typeflag == tar.TypeDir {
		x.dirs = append(x.dirs, folderTime{p, h.ModTime})
		return nil
	}
	return setTime(p, h.ModTime)
}

// setTime sets when a file, or a symlink itself, was changed. A time that the kernel does not
// take is the beginning of time.
func setTime(p string, mtime time.Time) error {
	ts, err := unix.TimeToTimespec(mtime)
	if err != nil || mtime.Unix() < 0 {
		ts = unix.Timespec{}
	}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "set time of", Path: p, Err: err}
	}
	return nil
}
