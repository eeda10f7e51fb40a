package containervm

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/moby/sys/user"
)

// An extractionPlan says where each entry of a tar goes that is extracted in a folder of a view, as if one entry were extracted
// after the other.
type extractionPlan struct {
	v       *view
	dir     string // a name in v
	o       WriteOptions
	owner   *user.ExecUser
	entries []planned
	made    map[string]*madeFile // what the entries have made, by name
	// volumes are those that entries lead to, "" for the root, and what they are filled with before: see openVolume.fill.
	volumes map[string]string

	folder, at string // the last folder that was looked for, and what it was found to be
}

// A planned is one entry of the tar.
type planned struct {
	there      bool   // else there is nothing to be done
	volume     string // "" for the root file system
	name, link string // there
}

// A madeFile is a file that an entry has made.
type madeFile struct {
	mode   fs.FileMode
	link   string
	hiding bool // nothing is below that was there before
}

func (m *madeFile) Name() string       { return "" }
func (m *madeFile) Size() int64        { return 0 }
func (m *madeFile) Mode() fs.FileMode  { return m.mode }
func (m *madeFile) ModTime() time.Time { return time.Time{} }
func (m *madeFile) IsDir() bool        { return m.mode.IsDir() }
func (m *madeFile) Sys() any           { return nil }

// Lstat describes a file as the entries until now leave it.
func (p *extractionPlan) Lstat(name string) (fs.FileInfo, error) {
	if m := p.made[name]; m != nil {
		return m, nil
	}
	for above := path.Dir(name); above != "."; above = path.Dir(above) {
		if m := p.made[above]; m != nil && m.hiding {
			return nil, &fs.PathError{Op: "lstat", Path: name, Err: fs.ErrNotExist}
		}
	}
	return p.v.Lstat(name)
}

// ReadLink returns where a symlink leads as the entries until now leave it.
func (p *extractionPlan) ReadLink(name string) (string, error) {
	if m := p.made[name]; m != nil {
		return m.link, nil
	}
	return p.v.ReadLink(name)
}

// read plans for all entries of a tar.
func (p *extractionPlan) read(from io.ReadSeeker) error {
	if p.o.Own {
		if err := p.findOwner(p.v.c.spec.User); err != nil {
			return err
		}
	}
	if _, err := from.Seek(0, io.SeekStart); err != nil {
		return err
	}
	for r := tar.NewReader(from); ; {
		h, err := r.Next()
		if err == io.EOF {
			return nil
		}
		var e planned
		if err == nil {
			e, err = p.plan(h)
		}
		if refused := (*Error)(nil); errors.As(err, &refused) {
			return refused
		}
		if err != nil {
			return fmt.Errorf("read tar: %w", err)
		}
		p.entries = append(p.entries, e)
	}
}

// plan plans for one entry.
func (p *extractionPlan) plan(h *tar.Header) (e planned, err error) {
	if h.Typeflag == tar.TypeXGlobalHeader || path.Clean(h.Name) == "." && h.Typeflag == tar.TypeDir {
		return e, nil
	}
	name, err := p.target(h.Name)
	if err != nil {
		return e, err
	}
	if err := p.checkKind(h, name); err != nil {
		return e, err
	}
	m, at, err := p.place(name)
	if err != nil {
		return e, err
	}
	e = planned{there: true, name: at}
	if m != nil {
		e.volume = m.Name
	}
	if h.Typeflag == tar.TypeLink {
		to, err := p.target(h.Linkname)
		if err != nil {
			return e, err
		}
		other, link, err := p.place(to)
		if err != nil {
			return e, err
		}
		if (other == nil) != (m == nil) || m != nil && other.Name != m.Name {
			return e, &fs.PathError{Op: "link", Path: path.Join("/", name), Err: syscall.EXDEV}
		}
		e.link = link
	}
	return e, p.note(h, name)
}

// target is the name in the view to which one of the tar leads; it may not leave the folder by "..".
func (p *extractionPlan) target(name string) (string, error) {
	if clean := path.Clean(name); clean == ".." || strings.HasPrefix(clean, "../") {
		return "", fmt.Errorf("%q is outside of %q", name, path.Join("/", p.dir))
	}
	full := path.Join("/", p.dir, path.Join("/", name))
	if full == path.Join("/", p.dir) {
		return p.dir, nil
	}
	base := path.Base(full)
	if strings.HasPrefix(base, ".wh.") {
		return "", refuse(ErrNotImplemented, "%s: a file of that name can be copied while the container runs only: start it first", full)
	}
	if folder := path.Dir(full); p.at == "" || folder != p.folder {
		at, info, err := Resolve(p, folder, true, true)
		if p.v.err != nil {
			err = p.v.err
		}
		if err == nil && info != nil && !info.IsDir() {
			err = &fs.PathError{Op: "mkdir", Path: folder, Err: syscall.ENOTDIR}
		}
		if err != nil {
			return "", err
		}
		p.folder, p.at = folder, at
	}
	return path.Join(p.at, base), nil
}

// checkKind refuses to replace a folder, or to put one in the place of something else, if that is wanted, and to replace what
// something is mounted on or in.
func (p *extractionPlan) checkKind(h *tar.Header, name string) error {
	isDir := h.Typeflag == tar.TypeDir
	if !isDir && slices.ContainsFunc(p.v.mounts, func(m *viewMount) bool { return m.target == name || strings.HasPrefix(m.target, name+"/") }) {
		return &fs.PathError{Op: "unlink", Path: path.Join("/", name), Err: syscall.EBUSY}
	}
	if !p.o.KeepKinds {
		return nil
	}
	info, err := p.Lstat(name)
	if p.v.err != nil {
		return p.v.err
	}
	if err != nil {
		return nil // Apply says what is wrong
	}
	switch {
	case info.IsDir() && !isDir:
		return fmt.Errorf("cannot overwrite directory %q with non-directory %q", path.Join("/", name), path.Join("/", p.dir))
	case !info.IsDir() && isDir:
		return fmt.Errorf("cannot overwrite non-directory %q with directory %q", path.Join("/", name), path.Join("/", p.dir))
	}
	return nil
}

// place finds the volume that a name of the view is in, nil for the root file system, and the name there.
func (p *extractionPlan) place(name string) (*viewMount, string, error) {
	m := p.v.mountAt(name)
	if m == nil {
		if p.v.c.spec.ReadOnlyRoot {
			return nil, "", &fs.PathError{Op: "create", Path: path.Join("/", name), Err: syscall.EROFS}
		}
		if _, ok := p.volumes[""]; !ok {
			p.volumes[""] = ""
		}
		return nil, name, nil
	}
	if m.ReadOnly {
		return nil, "", &fs.PathError{Op: "create", Path: path.Join("/", name), Err: syscall.EROFS}
	}
	if err := p.v.open(m); err != nil {
		return nil, "", err
	}
	p.volumes[m.Name] = m.volume.fill
	return m, path.Join(m.part, strings.TrimPrefix(name, m.target)), nil
}

// note remembers what an entry makes, for those that follow.
func (p *extractionPlan) note(h *tar.Header, name string) error {
	old, err := p.Lstat(name)
	if p.v.err != nil {
		return p.v.err
	}
	wasDir := err == nil && old.IsDir()
	if h.Typeflag == tar.TypeDir && wasDir {
		return nil
	}
	made := &madeFile{hiding: true}
	switch h.Typeflag {
	case tar.TypeDir:
		made.mode = fs.ModeDir
	case tar.TypeSymlink:
		made.mode, made.link = fs.ModeSymlink, h.Linkname
	}
	if err == nil && (wasDir || old.Mode()&fs.ModeSymlink != 0) || made.mode == fs.ModeSymlink {
		p.at = "" // folders may lead elsewhere now
	}
	if wasDir {
		for below := range p.made {
			if strings.HasPrefix(below, name+"/") {
				delete(p.made, below)
			}
		}
	}
	p.made[name] = made
	return nil
}

// maxUsers bounds what is read of a container's user and group files.
const maxUsers = 4 << 20

func (p *extractionPlan) findOwner(name string) error {
	var files [2]io.Reader
	for i, file := range []string{"/etc/passwd", "/etc/group"} {
		name, _, err := p.v.resolve(file, true, false)
		if err != nil {
			continue // numbers can do without
		}
		from, at, err := p.v.locate(name)
		if err != nil {
			return err
		}
		f, err := from.Open(at)
		if err != nil {
			return err
		}
		defer f.Close()
		files[i] = io.LimitReader(f, maxUsers)
	}
	u, err := user.GetExecUser(name, &user.ExecUser{Home: "/"}, files[0], files[1])
	if err != nil {
		return refuse(ErrInvalid, "%v", err)
	}
	p.owner = u
	return nil
}

// writeEntry writes an entry of the tar as one of a layer.
func (p *extractionPlan) writeEntry(w *tar.Writer, h *tar.Header, e planned, from io.Reader) error {
	h.Name = e.name
	switch h.Typeflag {
	case tar.TypeDir:
		h.Name += "/"
	case tar.TypeLink:
		h.Linkname = e.link
	case tar.TypeGNUSparse:
		h.Typeflag = tar.TypeReg
	}
	if p.owner != nil {
		h.Uid, h.Gid = p.owner.Uid, p.owner.Gid
	}
	records := map[string]string{}
	for key, value := range h.PAXRecords {
		if strings.HasPrefix(key, "SCHILY.xattr.") {
			records[key] = value
		}
	}
	h.PAXRecords, h.Format, h.Uname, h.Gname = records, tar.FormatPAX, "", ""
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	_, err := io.Copy(w, from)
	return err
}
