package containervm

import (
	"cmp"
	"context"
	"errors"
	"io"
	"io/fs"
	"path"
	"strings"
	"syscall"

	"vic/layerstore"
)

// maxSymlinks is how many symlinks are followed on the way to a file, as the kernel does it.
const maxSymlinks = 40

// errStarted ends the reading of a disk that is written to from now on.
var errStarted = errors.New("the container was started, written to or removed while its files were read")

// stopped returns a context for reading the disk of a container that does not run. It ends when
// the container is started or removed: nobody waits for who reads slowly.
func (c *Container) stopped(ctx context.Context) (context.Context, context.CancelFunc, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.busy && !c.removed {
		changed := c.changed
		c.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
		}
		c.mu.Lock()
		if ctx.Err() != nil {
			return nil, nil, ctx.Err()
		}
	}
	switch {
	case c.removed:
		return nil, nil, c.notFound()
	case c.removing:
		return nil, nil, refuse(ErrConflict, "container %s is being removed", c.id)
	case c.run != nil || c.starting:
		return nil, nil, refuse(ErrConflict, "container %s is being started", c.id)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	if c.readers == nil {
		c.readers = map[*context.CancelCauseFunc]struct{}{}
	}
	key := &cancel
	c.readers[key] = struct{}{}
	return ctx, func() {
		c.mu.Lock()
		delete(c.readers, key)
		c.mu.Unlock()
		cancel(nil)
	}, nil
}

// dropReaders ends all reading of the disk. Call it with mu held.
func (c *Container) dropReaders() {
	for cancel := range c.readers {
		(*cancel)(errStarted)
	}
}

// setStarting says that the disk is about to be used by a VM, and returns what was before. The Manager
// waits for setStarted before it closes, and lets nothing start from then on.
func (c *Container) setStarting() (State, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.m.closed:
		return State{}, ErrClosed
	default:
	}
	c.starting = true
	c.dropReaders()
	return c.state, nil
}

// setStarted says that c.run tells from now on whether a VM uses the disk.
func (c *Container) setStarted() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.starting = false
	c.notifyLocked()
}

// setBusy says that the disk is written to, without a VM: who wants to read it waits, who reads it has lost.
func (c *Container) setBusy(busy bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.busy = busy
	c.dropReaders()
	c.notifyLocked()
}

// A stoppedFS is the root file system of a container that does not run.
type stoppedFS struct {
	*layerstore.FS
	ctx     context.Context
	release context.CancelFunc
}

func (c *Container) openStopped(ctx context.Context) (*stoppedFS, error) {
	ctx, release, err := c.stopped(ctx)
	if err != nil {
		return nil, err
	}
	f, err := c.m.o.Disks.ContainerFS(ctx, c.id)
	if err != nil {
		release()
		return nil, err
	}
	return &stoppedFS{f, ctx, release}, nil
}

func (f *stoppedFS) Close() error {
	f.release()
	return f.FS.Close()
}

// stream returns what write writes of the file system, which is closed then.
func (f *stoppedFS) stream(write func(io.Writer) error) io.ReadCloser {
	in, out := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		err := write(out)
		if cause := context.Cause(f.ctx); err != nil && cause != nil {
			err = cause
		}
		out.CloseWithError(errors.Join(err, f.Close()))
	}()
	return &stoppedStream{in, f.release, done}
}

type stoppedStream struct {
	*io.PipeReader
	cancel context.CancelFunc
	done   chan struct{}
}

// Close waits for the writer.
func (s *stoppedStream) Close() error {
	s.cancel()
	err := s.PipeReader.Close()
	<-s.done
	return err
}

// Resolve finds a path of a container's file system as the kernel would, inside its root. The name it
// returns has no symlinks in it but the last part, unless follow is set. If missing is set parts that are not there stand for
// themselves, and info is nil.
func Resolve(f FileSystem, p string, follow, missing bool) (name string, info fs.FileInfo, err error) {
	fail := func(err error) (string, fs.FileInfo, error) {
		return "", nil, &fs.PathError{Op: "lstat", Path: p, Err: err}
	}
	if strings.HasSuffix(p, "/") || strings.HasSuffix(p, "/.") {
		follow = true
	}
	mustBeDir := follow && (strings.HasSuffix(p, "/") || strings.HasSuffix(p, "/."))
	rest := strings.Split(p, "/")
	done := "."
	if info, err = f.Lstat(done); err != nil {
		return "", nil, err
	}
	for links := 0; len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			done = path.Dir(done)
			if info, err = f.Lstat(done); err != nil && !missing {
				return fail(err)
			}
			continue
		}
		if info != nil && !info.IsDir() {
			return fail(syscall.ENOTDIR)
		}
		done = path.Join(done, part)
		if info == nil { // below what is not there
			continue
		}
		if info, err = f.Lstat(done); errors.Is(err, fs.ErrNotExist) && missing {
			info = nil
			continue
		} else if err != nil {
			return fail(cause(err))
		}
		last := strings.Trim(strings.Join(rest, "/"), "/.") == ""
		if info.Mode()&fs.ModeSymlink == 0 || last && !follow {
			continue
		}
		if links++; links > maxSymlinks {
			return fail(syscall.ELOOP)
		}
		target, err := f.ReadLink(done)
		if err != nil {
			return fail(cause(err))
		}
		done = path.Dir(done)
		if path.IsAbs(target) {
			done = "."
		}
		if info, err = f.Lstat(done); err != nil {
			return fail(cause(err))
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	if mustBeDir && info != nil && !info.IsDir() {
		return fail(syscall.ENOTDIR)
	}
	return done, info, nil
}

// A FileSystem is what Resolve needs of one.
type FileSystem interface {
	Lstat(name string) (fs.FileInfo, error)
	ReadLink(name string) (string, error)
}

// cause takes off what a file system wraps around the error.
func cause(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// stat describes the file at a path as the guest would.
func (f *stoppedFS) stat(p string) (name string, st PathStat, err error) {
	if !strings.HasPrefix(p, "/") {
		p = "/" + p
	}
	name, info, err := Resolve(f, p, false, false)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = refuse(ErrNotFound, "%v", err)
		}
		return "", st, err
	}
	st = PathStat{Name: path.Base(p), Size: info.Size(), Mode: info.Mode(), Mtime: info.ModTime()}
	if info.Mode()&fs.ModeSymlink != 0 {
		target, _, err := Resolve(f, p, true, true)
		if err != nil {
			return "", st, err
		}
		st.LinkTarget = path.Join("/", target)
	}
	return name, st, nil
}

// volumeOf returns the target of the volume that a path is in, "" if it is in none.
func (c *Container) volumeOf(p string) string {
	for _, v := range c.spec.Volumes {
		if t := path.Clean(v.Target); p == t || strings.HasPrefix(p, t+"/") {
			return t
		}
	}
	return ""
}

// noVolume refuses a path that is in a volume, which only the guest mounts.
func (c *Container) noVolume(name string) error {
	if t := c.volumeOf(path.Join("/", name)); t != "" {
		return refuse(ErrNotImplemented, "%s is in a volume, whose files can be copied while the container runs: start it first", path.Join("/", name))
	}
	return nil
}

// found looks at how a path was resolved: to a name, or not. A volume's target need not be in the root file system.
func (c *Container) found(p, name string, err error) error {
	switch {
	case err == nil:
		return c.noVolume(name)
	case errors.Is(err, ErrNotFound):
		return cmp.Or(c.noVolume(p), err)
	}
	return err
}

func (c *Container) statStopped(ctx context.Context, p string) (PathStat, error) {
	f, err := c.openStopped(ctx)
	if err != nil {
		return PathStat{}, err
	}
	defer f.Close()
	name, st, err := f.stat(p)
	return st, c.found(p, name, err)
}

func (c *Container) readStopped(ctx context.Context, p string) (PathStat, io.ReadCloser, error) {
	f, err := c.openStopped(ctx)
	if err != nil {
		return PathStat{}, nil, err
	}
	name, st, err := f.stat(p)
	if err = c.found(p, name, err); err != nil {
		f.Close() // read only
		return st, nil, err
	}
	as := st.Name
	if as == "/" {
		as = ""
	}
	return st, f.stream(func(w io.Writer) error { return f.WriteTree(w, name, as) }), nil
}
