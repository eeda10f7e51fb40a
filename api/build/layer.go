package build

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/moby/sys/user"

	"vic/containervm"
	"vic/fetch/archive"
	"vic/layerstore"
)

// A layer writes the tar of one, upon a file system that it does not change.
type layer struct {
	below *layerstore.FS
	w     *tar.Writer
	made  map[string]bool // folders that are in the layer
	now   time.Time
}

// An owner is whom files belong to; the zero one is root.
type owner struct{ uid, gid int }

func newLayer(ctx context.Context, below *layerstore.FS, w io.Writer) *layer {
	return &layer{below: below, w: tar.NewWriter(cancelWriter{ctx, w}), made: map[string]bool{}, now: time.Now()}
}

// resolve finds where a path leads, parts that are not there standing for themselves; info is nil then.
func (l *layer) resolve(p string) (string, fs.FileInfo, error) {
	return containervm.Resolve(l.below, p, true, true)
}

// mkdir makes a folder, and those on the way to it, as far as they are not there.
func (l *layer) mkdir(name string, o owner) error { return l.mkdirs(name, o, o) }

// mkdirs is mkdir with another owner for those on the way.
func (l *layer) mkdirs(name string, way, o owner) error {
	for i := 0; i < len(name); {
		end := strings.IndexByte(name[i:], '/')
		if end < 0 {
			end, way = len(name)-i, o
		}
		dir := name[:i+end]
		i += end + 1
		if dir == "." || l.made[dir] {
			continue
		}
		info, err := l.below.Lstat(dir)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			if err := l.put(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755, ModTime: l.now}, way); err != nil {
				return err
			}
			l.made[dir] = true
		case err != nil:
			return err
		case !info.IsDir():
			return invalidError{&fs.PathError{Op: "mkdir", Path: "/" + dir, Err: syscall.ENOTDIR}}
		}
	}
	return nil
}

// put writes an entry's header.
func (l *layer) put(h *tar.Header, o owner) error {
	h.Uid, h.Gid = o.uid, o.gid
	return l.putOwned(h)
}

func (l *layer) putOwned(h *tar.Header) error {
	for part := range strings.SplitSeq(h.Name, "/") {
		if strings.HasPrefix(part, ".wh.") {
			return invalid("%s: no layer can have a file of that name", h.Name)
		}
	}
	h.Uname, h.Gname, h.Format, h.PAXRecords = "", "", tar.FormatPAX, xattrs(h)
	return l.w.WriteHeader(h)
}

// copy copies a source to an absolute path.
func (l *layer) copy(src source, dest string, o owner) error {
	name, info, err := l.resolve(dest)
	if err != nil {
		return invalidError{err}
	}
	switch {
	case src.info.IsDir():
		return l.copyFolder(src, name, dest, info, o)
	case src.packed:
		return l.unpack(src, name, dest, info)
	}
	if strings.HasSuffix(dest, "/") || info != nil && info.IsDir() || l.made[name] {
		name = path.Join(name, src.base)
	}
	if err := l.mkdir(path.Dir(name), o); err != nil {
		return err
	}
	return l.copyTree(src, func(string) string { return name }, o)
}

func (l *layer) copyFolder(src source, name, dest string, info fs.FileInfo, o owner) error {
	if info != nil && !info.IsDir() {
		return invalid("cannot copy to non-directory: %s", dest)
	}
	if err := l.mkdirs(name, owner{}, o); err != nil {
		return err
	}
	return l.copyTree(src, func(rel string) string {
		if rel == "" {
			return "" // the folder itself is as it is, or as it was made
		}
		return path.Join(name, rel)
	}, o)
}

// copyTree copies a file, or a folder with all that is in it, to where the function says; "" is nowhere.
func (l *layer) copyTree(src source, to func(rel string) string, o owner) error {
	const as = "x"
	rel := func(name string) string { return strings.Trim(strings.TrimPrefix(name, as), "/") }
	return readPipe(func(w io.Writer) error { return src.tree.WriteTree(w, src.name, as) }, func(r io.Reader) error {
		for tr := tar.NewReader(r); ; {
			h, err := tr.Next()
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
			if h.Name = to(rel(h.Name)); h.Name == "" {
				continue
			}
			switch h.Typeflag {
			case tar.TypeDir:
				l.made[h.Name] = true
				h.Name += "/"
			case tar.TypeLink:
				h.Linkname = to(rel(h.Linkname))
			case tar.TypeReg:
				giveAway(h)
			}
			if err := l.put(h, o); err != nil {
				return err
			}
			if _, err := io.Copy(l.w, tr); err != nil {
				return err
			}
		}
	})
}

// giveAway takes off a file what it loses when its owner is set (chown(2)).
func giveAway(h *tar.Header) {
	h.Mode &^= 0o4000
	if h.Mode&0o010 != 0 {
		h.Mode &^= 0o2000
	}
	delete(h.PAXRecords, xattrPrefix+"security.capability")
}

// unpack copies what a tar has.
func (l *layer) unpack(src source, name, dest string, info fs.FileInfo) error {
	if info != nil && !info.IsDir() {
		return invalid("cannot extract to non-directory: %s", dest)
	}
	if err := l.mkdir(name, owner{}); err != nil {
		return err
	}
	f, err := src.tree.Open(src.name)
	if err != nil {
		return err
	}
	defer f.Close()
	r, err := archive.Decompress(f)
	if err != nil {
		return invalidError{err}
	}
	defer r.Close()
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err == nil {
			err = l.unpackEntry(h, tr, name)
		}
		if err != nil {
			return invalid("extract %s: %w", src.base, err)
		}
	}
}

func (l *layer) unpackEntry(h *tar.Header, data io.Reader, dir string) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	parts, err := splitName(h.Name)
	if err != nil {
		return err
	}
	if h.Name = path.Join(dir, path.Join(parts...)); len(parts) == 0 {
		return nil // the folder is as it is
	}
	switch h.Typeflag {
	case tar.TypeDir:
		l.made[h.Name] = true
		h.Name += "/"
	case tar.TypeLink:
		target, err := splitName(h.Linkname)
		if err != nil {
			return err
		}
		h.Linkname = path.Join(dir, path.Join(target...))
	case tar.TypeGNUSparse:
		h.Typeflag = tar.TypeReg
	}
	if err := l.putOwned(h); err != nil {
		return err
	}
	_, err = io.Copy(l.w, data)
	return err
}

// maxUsers bounds what is read of an image's user and group files.
const maxUsers = 4 << 20

// ownerOf reads USER[:GROUP], by name or number. The group of a user alone is the one of the same name or number.
func (l *layer) ownerOf(text string) (owner, error) {
	if text == "" {
		return owner{}, nil
	}
	name, group, ok := strings.Cut(text, ":")
	if !ok {
		group = name
	}
	uid, err := l.id(name, "/etc/passwd", func(r io.Reader) (int, error) {
		list, err := user.ParsePasswdFilter(r, func(u user.User) bool { return u.Name == name })
		if len(list) == 0 {
			return 0, orNone(err, "can't find uid for user "+name+": no such user: "+name)
		}
		return list[0].Uid, nil
	})
	if err != nil {
		return owner{}, err
	}
	gid, err := l.id(group, "/etc/group", func(r io.Reader) (int, error) {
		list, err := user.ParseGroupFilter(r, func(g user.Group) bool { return g.Name == group })
		if len(list) == 0 {
			return 0, orNone(err, "can't find gid for group "+group+": no such group: "+group)
		}
		return list[0].Gid, nil
	})
	return owner{uid, gid}, err
}

func orNone(err error, text string) error {
	if err != nil {
		return err
	}
	return errors.New(text)
}

// id is a number, or what a file of the image says of a name.
func (l *layer) id(name, file string, find func(io.Reader) (int, error)) (int, error) {
	if n, err := strconv.ParseUint(name, 10, 31); err == nil {
		return int(n), nil
	}
	fail := func(err error) (int, error) {
		return 0, invalid("unable to convert uid/gid chown string to host mapping: %w", err)
	}
	at, info, err := containervm.Resolve(l.below, file, true, false)
	if err != nil || !info.Mode().IsRegular() {
		return fail(fmt.Errorf("%s: %s is not there, or no file", name, file))
	}
	f, err := l.below.Open(at)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	n, err := find(io.LimitReader(f, maxUsers))
	if err != nil {
		return fail(err)
	}
	return n, nil
}
