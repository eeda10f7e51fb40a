package containervm

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	"vic/diskfs"
	"vic/layerstore"
	"vic/tether/wire"
)

// A view is the files of a container that does not run as its guest would show them: its root file system, and its
// volumes where they are mounted. It is a FileSystem. Volumes are opened once a path leads there; one
// that the first start would fill shows what it would be filled with, which is in the image. Where the root cannot be read but by its
// guest the volumes show at the paths that they are mounted on, and nothing else does.
type view struct {
	c       *Container
	ctx     context.Context
	cancel  context.CancelFunc
	root    *layerstore.FS // nil if it cannot be read
	noRoot  error          // why
	all     []VolumeMount  // in the order in which they are mounted
	mounts  []*viewMount   // those whose places are known
	held    []string       // volumes that are held to be written; others are not waited for, then
	opened  map[string]*openVolume
	release []func()
	err     error // why a volume could not be opened
}

// A viewMount is a volume, or part of one, in a view.
type viewMount struct {
	VolumeMount
	target string // the name in the view
	volume *openVolume
	part   string         // of the volume, that is mounted
	fs     *layerstore.FS // that shows it, nil while it is not open
	file   string         // in fs
}

// An openVolume is the file system of a volume.
type openVolume struct {
	fs   *layerstore.FS
	ctx  context.Context // of its reading
	fill string          // the folder of the root that is to be copied into the volume first; "" is none
}

// openView opens the root file system and finds where volumes are mounted. held are volumes that are held to be
// written.
func (c *Container) openView(ctx context.Context, held []string) (*view, error) {
	ctx, cancel := context.WithCancel(ctx)
	root, err := c.m.o.Disks.ContainerFS(ctx, c.id)
	if err != nil && (!errors.Is(err, ErrNotImplemented) || len(c.spec.Volumes) == 0) {
		cancel()
		return nil, err
	}
	all := slices.Clone(c.spec.Volumes)
	slices.SortStableFunc(all, func(a, b VolumeMount) int { return targetDepth(a.Target) - targetDepth(b.Target) })
	v := &view{c: c, ctx: ctx, cancel: cancel, root: root, noRoot: err, all: all, held: held, opened: map[string]*openVolume{}}
	v.release = append(v.release, cancel)
	if root != nil {
		v.release = append(v.release, func() { root.Close() }) // read only
	}
	for _, m := range all {
		target, _, err := Resolve(v, path.Clean(m.Target), true, true)
		if err != nil { // the guest will not mount it, or it is in a volume that is in use
			target, v.err = strings.TrimPrefix(path.Clean(m.Target), "/"), nil
		}
		v.mounts = append(v.mounts, &viewMount{VolumeMount: m, target: target})
	}
	return v, nil
}

// openStopped is openView for who reads: it ends when the container starts, or anything that is read is written to.
func (c *Container) openStopped(ctx context.Context) (*view, error) {
	ctx, release, err := c.stopped(ctx)
	if err != nil {
		return nil, err
	}
	v, err := c.openView(ctx, nil)
	if err != nil {
		release()
		return nil, err
	}
	v.release = append(v.release, release)
	return v, nil
}

// Close lets go of everything.
func (v *view) Close() error {
	for _, release := range slices.Backward(v.release) {
		release()
	}
	v.release = nil
	return nil
}

// mountAt returns what is mounted on a name, or above it.
func (v *view) mountAt(name string) *viewMount {
	for _, m := range slices.Backward(v.mounts) { // what was mounted last hides what is below
		if name == m.target || strings.HasPrefix(name, m.target+"/") {
			return m
		}
	}
	return nil
}

// locate finds the file system that has a name, and the name there.
func (v *view) locate(name string) (*layerstore.FS, string, error) {
	if err := v.onHost(name); err != nil {
		v.err = err
		return nil, "", err
	}
	m := v.mountAt(name)
	if m == nil {
		if v.noRoot != nil {
			v.err = v.noRoot
		}
		return v.root, name, v.noRoot
	}
	if err := v.open(m); err != nil {
		v.err = err
		return nil, "", err
	}
	return m.fs, path.Join(m.file, strings.TrimPrefix(name, m.target)), nil
}

// onHost refuses a name in a folder of the host, which only a guest sees.
func (v *view) onHost(name string) error {
	for _, b := range v.c.spec.Binds {
		if target := strings.TrimPrefix(path.Clean(b.Target), "/"); name == target || strings.HasPrefix(name, target+"/") {
			return refuse(ErrNotImplemented, "/%s is in %s of the host while the container runs: copy files there, or start the container first", name, b.Source)
		}
	}
	return nil
}

// open opens what a mount shows.
func (v *view) open(m *viewMount) error {
	if m.fs != nil {
		return nil
	}
	vol, err := v.volume(m.Name)
	if err != nil {
		return err
	}
	part, shown, file := ".", vol.fs, "."
	switch {
	case vol.fill != "":
		part = path.Join(part, m.Subpath)
		shown, file = v.root, path.Join(vol.fill, part)
	case m.Subpath != "":
		if part, _, err = Resolve(vol.fs, path.Join("/", m.Subpath), true, false); err != nil {
			if err = cause(err); errors.Is(err, fs.ErrNotExist) {
				err = syscall.ENOENT
			}
			return refuse(ErrInvalid, "cannot access path %s: %v", m.Subpath, err)
		}
		file = part
	}
	m.volume, m.part, m.fs, m.file = vol, part, shown, file
	return nil
}

// source is the folder of the root file system that an empty volume mounted on target gets, "" if there is none: see the tether's
// volume.fill.
func (v *view) source(target string) string {
	if v.root == nil {
		return "" // it has run, and so the volume is what it is
	}
	name, info, err := Resolve(v.root, path.Clean(target), true, true)
	if err != nil || info == nil || !info.IsDir() {
		return ""
	}
	for _, system := range []string{"proc", "sys", "dev"} {
		if name == system || strings.HasPrefix(name, system+"/") {
			return ""
		}
	}
	return name
}

// volume opens a volume's file system.
func (v *view) volume(name string) (*openVolume, error) {
	if vol := v.opened[name]; vol != nil {
		return vol, nil
	}
	ctx := v.ctx
	if !slices.Contains(v.held, name) {
		if len(v.held) > 0 && v.c.m.copied(name) {
			return nil, refuse(ErrConflict, "volume %s is being written to", name) // perhaps by one who waits for ours
		}
		reading, release, err := v.c.m.holdToRead(ctx, name)
		if err != nil {
			return nil, err
		}
		v.release = append(v.release, release)
		ctx = reading
	}
	f, err := v.c.m.o.Volumes.VolumeFS(ctx, name)
	if err != nil {
		return nil, volumeError(err)
	}
	v.release = append(v.release, func() { f.Close() }) // read only
	vol := &openVolume{fs: f, ctx: ctx}
	bare, err := isBare(f)
	if err != nil {
		return nil, err
	}
	for _, m := range v.all {
		if bare && vol.fill == "" && m.Name == name && v.c.fills(m) {
			vol.fill = v.source(m.Target)
		}
	}
	v.opened[name] = vol
	return vol, nil
}

// isBare tells whether there is nothing in a volume but what an unfinished copy left.
func isBare(f *layerstore.FS) (bool, error) {
	if _, err := f.Lstat(wire.Copying); !errors.Is(err, fs.ErrNotExist) {
		return err == nil, err
	}
	return f.Empty()
}

// Lstat describes a file. Folders on the way to a mount that are not there are as the guest will make them.
func (v *view) Lstat(name string) (fs.FileInfo, error) {
	if v.noRoot != nil && v.leads(name) && v.mountAt(name) == nil {
		return folderInfo{path.Base(name), v.c.created}, nil
	}
	f, at, err := v.locate(name)
	if err != nil {
		return nil, err
	}
	info, err := f.Lstat(at)
	if errors.Is(err, fs.ErrNotExist) && v.leads(name) {
		return folderInfo{path.Base(name), v.c.created}, nil
	}
	return info, err
}

// leads tells whether a folder is on the way to a mount.
func (v *view) leads(name string) bool {
	return slices.ContainsFunc(v.mounts, func(m *viewMount) bool { return name == "." || strings.HasPrefix(m.target, name+"/") })
}

// ReadLink returns where a symlink leads.
func (v *view) ReadLink(name string) (string, error) {
	f, at, err := v.locate(name)
	if err != nil {
		return "", err
	}
	return f.ReadLink(at)
}

// A folderInfo is a folder that is not there yet.
type folderInfo struct {
	name string
	made time.Time
}

func (i folderInfo) Name() string       { return i.name }
func (i folderInfo) Size() int64        { return diskfs.BlockSize }
func (i folderInfo) Mode() fs.FileMode  { return fs.ModeDir | 0o755 }
func (i folderInfo) ModTime() time.Time { return i.made }
func (i folderInfo) IsDir() bool        { return true }
func (i folderInfo) Sys() any           { return nil }

// resolve is Resolve.
func (v *view) resolve(p string, follow, missing bool) (string, fs.FileInfo, error) {
	name, info, err := Resolve(v, p, follow, missing)
	if v.err != nil {
		err, v.err = v.err, nil
	}
	return name, info, err
}

// stat describes the file at a path as the guest would.
func (v *view) stat(p string) (name string, st PathStat, err error) {
	if !strings.HasPrefix(p, "/") {
		p = "/" + p
	}
	name, info, err := v.resolve(p, false, false)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = refuse(ErrNotFound, "%v", err)
		}
		return "", st, err
	}
	st = PathStat{Name: path.Base(p), Size: info.Size(), Mode: info.Mode(), Mtime: info.ModTime()}
	if info.Mode()&fs.ModeSymlink != 0 {
		target, _, err := v.resolve(p, true, true)
		if err != nil {
			return "", st, err
		}
		st.LinkTarget = path.Join("/", target)
	}
	return name, st, nil
}

// tree returns how the file of a name, or the folder with all that is in it and mounted in it, is written as a tar. All
// volumes that this takes are open then.
func (v *view) tree(name, as string) (func(io.Writer) error, error) {
	f, at, err := v.locate(name)
	if err != nil {
		return nil, err
	}
	prefix := name + "/"
	if name == "." {
		prefix = ""
	}
	var grafts []diskfs.Graft
	for i, m := range v.mounts {
		hidden := slices.ContainsFunc(v.mounts[i+1:], func(later *viewMount) bool {
			return m.target == later.target || strings.HasPrefix(m.target, later.target+"/")
		})
		if hidden || !strings.HasPrefix(m.target, prefix) {
			continue
		}
		if err := v.open(m); err != nil {
			return nil, err
		}
		grafts = append(grafts, diskfs.Graft{At: strings.TrimPrefix(m.target, prefix), FS: m.fs.FS, File: m.file})
	}
	return func(w io.Writer) error { return f.WriteTrees(w, at, as, grafts) }, nil
}

// stream returns what write writes of the view, which is closed then.
func (v *view) stream(write func(io.Writer) error) io.ReadCloser {
	in, out := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		out.CloseWithError(errors.Join(v.reason(write(out)), v.Close()))
	}()
	return &stoppedStream{in, v.cancel, done}
}

// reason is why reading ended with an error, if somebody has ended it.
func (v *view) reason(err error) error {
	if err == nil {
		return nil
	}
	for _, vol := range v.opened {
		if cause := context.Cause(vol.ctx); cause != nil {
			return cause
		}
	}
	if cause := context.Cause(v.ctx); cause != nil {
		return cause
	}
	return err
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

func (c *Container) statStopped(ctx context.Context, p string) (PathStat, error) {
	v, err := c.openStopped(ctx)
	if err != nil {
		return PathStat{}, err
	}
	defer v.Close()
	_, st, err := v.stat(p)
	return st, err
}

func (c *Container) readStopped(ctx context.Context, p string) (PathStat, io.ReadCloser, error) {
	v, err := c.openStopped(ctx)
	if err != nil {
		return PathStat{}, nil, err
	}
	name, st, err := v.stat(p)
	var write func(io.Writer) error
	if err == nil {
		as := st.Name
		if as == "/" {
			as = ""
		}
		write, err = v.tree(name, as)
	}
	if err != nil {
		v.Close()
		return st, nil, err
	}
	return st, v.stream(write), nil
}
