package containervm

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/moby/sys/user"

	"vic/layerstore"
)

// writeStopped extracts a tar into a container that does not run, through its file system's own
// structures: it takes as long as the data, where a VM to do it takes seconds to boot. The tar is
// put aside first, for nobody shall wait for the container as long as a client takes to send it.
func (c *Container) writeStopped(ctx context.Context, dest string, o WriteOptions, from io.Reader) error {
	if err := c.checkDest(ctx, dest); err != nil {
		return err // before all is sent
	}
	aside, err := os.CreateTemp(c.dir, ".tmp-")
	if err != nil {
		return err
	}
	defer aside.Close()
	if err := os.Remove(aside.Name()); err != nil {
		return err
	}
	if _, err := io.Copy(aside, from); err != nil {
		return fmt.Errorf("read tar: %w", err)
	}
	if _, err := aside.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if err := c.acquire(ctx); err != nil {
		return err
	}
	defer c.releaseOp()
	return c.applyTar(ctx, dest, o, aside)
}

func (c *Container) checkDest(ctx context.Context, dest string) error {
	f, err := c.openStopped(ctx)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = c.destOf(f.FS, dest)
	return err
}

// destOf finds the folder to extract to.
func (c *Container) destOf(f *layerstore.FS, dest string) (string, error) {
	name, info, err := Resolve(f, path.Join("/", dest), true, false)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", c.found(dest, "", refuse(ErrNotFound, "%v", err))
	case err != nil:
		return "", err
	case !info.IsDir():
		return "", refuse(ErrInvalid, "extraction point is not a directory")
	case c.spec.ReadOnlyRoot:
		return "", refuse(ErrInvalid, "container rootfs is marked read-only")
	}
	return name, c.noVolume(name)
}

// applyTar applies the tar as a layer. The caller holds op.
func (c *Container) applyTar(ctx context.Context, dest string, o WriteOptions, from io.Reader) error {
	c.mu.Lock()
	if c.removed || c.run != nil {
		c.mu.Unlock()
		return refuse(ErrConflict, "container %s was started, or removed, before the files were copied", c.id)
	}
	c.mu.Unlock()
	f, err := c.m.o.Disks.ContainerFS(ctx, c.id)
	if err != nil {
		return err
	}
	defer f.Close() // read only
	l := layerMaker{c: c, fs: f, o: o}
	if l.dir, err = c.destOf(f, dest); err != nil {
		return err
	}
	if o.Own {
		if err := l.findOwner(c.spec.User); err != nil {
			return err
		}
	}
	c.setBusy(true)
	defer c.setBusy(false)
	in, out := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		out.CloseWithError(l.run(tar.NewReader(from), tar.NewWriter(out)))
	}()
	err = c.m.o.Disks.ApplyToContainer(ctx, c.id, in)
	in.Close()
	<-done
	if l.err != nil && !errors.Is(l.err, io.ErrClosedPipe) {
		return l.err // the reason for the other
	}
	return err
}

// A layerMaker makes of a tar to be extracted in a folder one that is a layer.
type layerMaker struct {
	c     *Container
	fs    *layerstore.FS
	dir   string
	o     WriteOptions
	owner *user.ExecUser
	err   error
}

// maxUsers bounds what is read of a container's user and group files.
const maxUsers = 4 << 20

func (l *layerMaker) findOwner(name string) error {
	var files [2]io.Reader
	for i, file := range []string{"/etc/passwd", "/etc/group"} {
		name, _, err := Resolve(l.fs, file, true, false)
		if err != nil {
			continue // numbers can do without
		}
		f, err := l.fs.Open(name)
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
	l.owner = u
	return nil
}

func (l *layerMaker) run(from *tar.Reader, to *tar.Writer) error {
	for {
		h, err := from.Next()
		if err == io.EOF {
			l.err = nil
			return to.Close()
		}
		if err == nil {
			err = l.entry(h, from, to)
		}
		if err != nil {
			l.err = fmt.Errorf("read tar: %w", err)
			if e := (*Error)(nil); errors.As(err, &e) {
				l.err = e
			}
			return l.err
		}
	}
}

func (l *layerMaker) entry(h *tar.Header, from io.Reader, to *tar.Writer) error {
	if h.Typeflag == tar.TypeXGlobalHeader || path.Clean(h.Name) == "." && h.Typeflag == tar.TypeDir {
		return nil
	}
	name, err := l.target(h.Name)
	if err != nil {
		return err
	}
	if err := l.checkKind(h, name); err != nil {
		return err
	}
	h.Name = name
	switch h.Typeflag {
	case tar.TypeLink:
		if h.Linkname, err = l.target(h.Linkname); err != nil {
			return err
		}
	case tar.TypeGNUSparse:
		h.Typeflag = tar.TypeReg
	}
	if l.owner != nil {
		h.Uid, h.Gid = l.owner.Uid, l.owner.Gid
	}
	records := map[string]string{}
	for key, value := range h.PAXRecords {
		if strings.HasPrefix(key, "SCHILY.xattr.") {
			records[key] = value
		}
	}
	h.PAXRecords, h.Format, h.Uname, h.Gname = records, tar.FormatPAX, "", ""
	if err := to.WriteHeader(h); err != nil {
		return err
	}
	_, err = io.Copy(to, from)
	return err
}

// target is where a name of the tar leads, from the root on; it may not leave the folder by "..".
func (l *layerMaker) target(name string) (string, error) {
	if clean := path.Clean(name); clean == ".." || strings.HasPrefix(clean, "../") {
		return "", fmt.Errorf("%q is outside of %q", name, path.Join("/", l.dir))
	}
	p := path.Join(l.dir, path.Join("/", name))
	if t := l.c.volumeOf(path.Join("/", p)); t != "" {
		return "", l.c.noVolume(p)
	}
	if strings.HasPrefix(path.Base(p), ".wh.") {
		return "", refuse(ErrNotImplemented, "%s: a file of that name can be copied while the container runs only: start it first", path.Join("/", p))
	}
	return p, nil
}

// checkKind refuses to replace a folder, or to put one in the place of something else, if that is wanted.
func (l *layerMaker) checkKind(h *tar.Header, name string) error {
	if !l.o.KeepKinds {
		return nil
	}
	_, info, err := Resolve(l.fs, path.Join("/", name), false, true)
	if err != nil || info == nil {
		return nil // Apply says what is wrong
	}
	isDir := h.Typeflag == tar.TypeDir
	switch {
	case info.IsDir() && !isDir:
		return fmt.Errorf("cannot overwrite directory %q with non-directory %q", path.Join("/", name), path.Join("/", l.dir))
	case !info.IsDir() && isDir:
		return fmt.Errorf("cannot overwrite non-directory %q with directory %q", path.Join("/", name), path.Join("/", l.dir))
	}
	return nil
}
