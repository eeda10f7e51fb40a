package tether

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"vic/tether/wire"
)

// fill copies what the root has where empty volumes are to be mounted, before anything is: so volumes that are
// mounted inside of each other all get the image's files.
func (vs volumes) fill(mounts []wire.Mount) error {
	for _, m := range mounts {
		if m.Type != "disk" || !m.Copy {
			continue
		}
		if err := vs[m.Serial].fill(m.Target); err != nil {
			return fmt.Errorf("copy the image's %s into the volume: %w", m.Target, err)
		}
	}
	return nil
}

func (v *volume) fill(target string) error {
	from, err := follow(target)
	if err != nil {
		return err
	}
	fi, err := os.Lstat(from)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !fi.IsDir() {
		return nil // nothing will be mounted there either
	}
	if image, err := os.Lstat("/"); err != nil || deviceOf(image) != deviceOf(fi) {
		return err // /proc, /sys or /dev: nothing of the image's
	}
	f, err := v.open(false)
	if err != nil {
		return err
	}
	defer f.Close()
	root := ownProc(fmt.Sprintf("self/fd/%d", f.Fd()))
	empty, err := clearCopy(root)
	if err != nil || !empty {
		return err
	}
	if err := makeFile(path.Join(root, wire.Copying)); err != nil {
		return err
	}
	if err := syncFS(f); err != nil {
		return err
	}
	c := copier{dev: deviceOf(fi), links: map[uint64]string{}}
	if err := c.children(from, root); err != nil {
		return err
	}
	if err := c.attributes(from, root+"/.", fi); err != nil {
		return err
	}
	if err := syncFS(f); err != nil {
		return err
	}
	if err := os.Remove(path.Join(root, wire.Copying)); err != nil {
		return err
	}
	return c.attributes(from, root+"/.", fi) // again, for the time of its last change
}

// clearCopy tells whether there is nothing in a volume, removing an unfinished copy.
func clearCopy(root string) (empty bool, err error) {
	entries, err := os.ReadDir(root)
	if err != nil || len(entries) == 0 {
		return err == nil, err
	}
	if _, err := os.Lstat(path.Join(root, wire.Copying)); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return false, err
	}
	for _, e := range entries {
		if e.Name() == wire.Copying {
			continue
		}
		if err := os.RemoveAll(path.Join(root, e.Name())); err != nil {
			return false, err
		}
	}
	return true, nil
}

func syncFS(f *os.File) error {
	d, err := os.Open(ownProc(fmt.Sprintf("self/fd/%d", f.Fd()))) // f was opened as a path
	if err != nil {
		return err
	}
	defer d.Close()
	return unix.Syncfs(int(d.Fd()))
}

// A copier copies a tree of files as it is: owners, modes, times, extended attributes, hard links. Nothing else runs
// meanwhile, so names do not change under it.
type copier struct {
	dev   uint64 // of the tree; what is mounted in it stays out
	links map[uint64]string
}

func deviceOf(fi fs.FileInfo) uint64 { return fi.Sys().(*syscall.Stat_t).Dev }

func (c *copier) children(from, to string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := c.copy(path.Join(from, e.Name()), path.Join(to, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

func (c *copier) copy(from, to string) error {
	fi, err := os.Lstat(from)
	if err != nil {
		return err
	}
	st := fi.Sys().(*syscall.Stat_t)
	if st.Dev != c.dev {
		return nil
	}
	if st.Nlink > 1 && !fi.IsDir() {
		if first, ok := c.links[st.Ino]; ok {
			return os.Link(first, to)
		}
		c.links[st.Ino] = to
	}
	switch fi.Mode().Type() {
	case fs.ModeDir:
		if err = os.Mkdir(to, 0o700); err == nil {
			err = c.children(from, to)
		}
	case fs.ModeSymlink:
		var target string
		if target, err = os.Readlink(from); err == nil {
			err = os.Symlink(target, to)
		}
	case 0:
		err = copyFile(from, to)
	default:
		err = unix.Mknod(to, st.Mode, int(st.Rdev))
	}
	if err != nil {
		return err
	}
	return c.attributes(from, to, fi)
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// attributes gives to what belongs to a file besides its content. Owner first: a change of it takes away set-user-ID
// bits and capabilities.
func (c *copier) attributes(from, to string, fi fs.FileInfo) error {
	st := fi.Sys().(*syscall.Stat_t)
	if err := os.Lchown(to, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	link := fi.Mode().Type() == fs.ModeSymlink
	if !link {
		if err := unix.Chmod(to, st.Mode&0o7777); err != nil {
			return &os.PathError{Op: "chmod", Path: to, Err: err}
		}
	}
	if err := copyXattrs(from, to); err != nil {
		return err
	}
	times := []unix.Timespec{{Sec: st.Atim.Sec, Nsec: st.Atim.Nsec}, {Sec: st.Mtim.Sec, Nsec: st.Mtim.Nsec}}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, to, times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "set times of", Path: to, Err: err}
	}
	return nil
}

func copyXattrs(from, to string) error {
	names := make([]byte, 64<<10) // XATTR_LIST_MAX
	n, err := unix.Llistxattr(from, names)
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "list attributes of", Path: from, Err: err}
	}
	value := make([]byte, 64<<10) // XATTR_SIZE_MAX
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		n, err := unix.Lgetxattr(from, name, value)
		if err == nil {
			err = unix.Lsetxattr(to, name, value[:n], 0)
		}
		if err != nil {
			return &os.PathError{Op: "copy attribute " + name + " of", Path: from, Err: err}
		}
	}
	return nil
}
