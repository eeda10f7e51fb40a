package containervm

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"time"

	"vic/tether/wire"
)

// PathStat describes a file in a container.
type PathStat struct {
	Name       string // the last part of the path asked for
	Size       int64
	Mode       fs.FileMode
	Mtime      time.Time
	LinkTarget string // where a symlink leads in the end, from the container's root on
}

func pathStat(st wire.PathStat) PathStat {
	return PathStat{Name: st.Name, Size: st.Size, Mode: fs.FileMode(st.Mode), Mtime: time.Unix(0, st.Mtime), LinkTarget: st.LinkTarget}
}

// noFile is what docker says of a path that is not there.
func (c *Container) noFile(path string) error {
	return refuse(ErrNotFound, "Could not find the file %s in container %s", path, c.id)
}

// StatPath describes the file at a path, a symlink in the last place as itself unless a slash
// follows it. Relative paths begin at the root. The error is ErrNotFound if there is none.
func (c *Container) StatPath(ctx context.Context, path string) (PathStat, error) {
	conn, err := c.guest(ctx)
	if errors.Is(err, ErrNotRunning) {
		st, err := c.statStopped(ctx, path)
		return st, c.pathError(path, err)
	}
	if err != nil {
		return PathStat{}, err
	}
	asking, cancel := context.WithTimeout(ctx, answerPatience)
	defer cancel()
	st, err := conn.Path(asking, path)
	return pathStat(st), c.pathError(path, err)
}

// ReadPath reads the file at a path, a folder with all that is in it, as a tar. Its names begin with
// the path's last part. The caller closes the reader, whose io.EOF means that the tar is whole.
// The error is ErrNotFound if there is no such file.
func (c *Container) ReadPath(ctx context.Context, path string) (PathStat, io.ReadCloser, error) {
	guest, r, err := c.readTask(ctx, wire.Task{Kind: wire.TaskRead, Path: path})
	st := pathStat(guest)
	if errors.Is(err, ErrNotRunning) {
		st, r, err = c.readStopped(ctx, path)
	}
	if err != nil {
		return PathStat{}, nil, c.pathError(path, err)
	}
	c.emit("archive-path", map[string]string{"path": path})
	return st, r, nil
}

// WriteOptions say how WritePath extracts.
type WriteOptions struct {
	// Own gives all files to the container's user; else they belong to whom the tar says.
	Own bool
	// KeepKinds refuses to replace a folder by something else, or the reverse.
	KeepKinds bool
}

// WritePath extracts a tar in the folder at a path, symlinks followed. The error is ErrNotFound
// if there is none, ErrInvalid if it is no folder or read-only; after another, some files may
// have been extracted.
func (c *Container) WritePath(ctx context.Context, path string, o WriteOptions, tar io.Reader) error {
	conn, err := c.guest(ctx)
	if errors.Is(err, ErrNotRunning) {
		err = c.writeStopped(ctx, path, o, tar)
	} else if err == nil {
		t := wire.Task{ID: newID(), Kind: wire.TaskWrite, Path: path, Own: o.Own, KeepKinds: o.KeepKinds}
		err = conn.Write(ctx, t, tar)
	}
	if err != nil {
		return c.pathError(path, err)
	}
	c.emit("extract-to-dir", map[string]string{"path": path})
	return nil
}

// pathError says that a path is not there in docker's words.
func (c *Container) pathError(path string, err error) error {
	err = taskError(err)
	if e, ok := err.(*Error); ok && e.Kind == ErrNotFound {
		return c.noFile(path)
	}
	return err
}
