package containervm

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"

	"vic/diskfs"
	"vic/layerstore"
	"vic/tether/wire"
)

// Change is a path that a container changed.
type Change = diskfs.Change

// madeUp are the paths that the guest makes in the image's file system if they are not there, as docker makes
// them in a layer of its own: they are no changes of the container's.
func madeUp(path string) bool {
	switch path {
	case "/dev", "/proc", "/sys", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/etc/mtab":
		return true
	}
	return false
}

// Changes tells fn of the paths at which the container's files differ from its image's, in ascending order. While it
// runs, writing to its disk has to wait meanwhile.
func (c *Container) Changes(ctx context.Context, fn func(Change) error) error {
	return c.withChanges(ctx, func(_ context.Context, ch *layerstore.ContainerChanges) error { return ch.Each(madeUp, fn) })
}

// WriteLayer writes what the container changed as the tar of a layer. While it runs, writing to its disk
// has to wait meanwhile, which pause tells the world of as of a pause.
func (c *Container) WriteLayer(ctx context.Context, w io.Writer, pause bool) error {
	return c.withChanges(ctx, func(ctx context.Context, ch *layerstore.ContainerChanges) error {
		if _, err := c.current(); err == nil && pause {
			c.emit("pause", nil)
			defer c.emit("unpause", nil)
		}
		return ch.WriteTar(ctx, w, madeUp)
	})
}

// Committed tells the world that the container has become an image.
func (c *Container) Committed(image digest.Digest, ref, comment string) {
	c.emit("commit", map[string]string{"imageID": image.String(), "imageRef": ref, "comment": comment})
}

// withChanges calls fn while nothing is written to the disk.
func (c *Container) withChanges(ctx context.Context, fn func(context.Context, *layerstore.ContainerChanges) error) error {
	conn, err := c.guest(ctx)
	if errors.Is(err, ErrNotRunning) {
		ctx, release, err := c.stopped(ctx)
		if err != nil {
			return err
		}
		defer release()
		err = c.readChanges(ctx, fn)
		if cause := context.Cause(ctx); err != nil && cause != nil {
			return cause
		}
		return err
	}
	if err != nil {
		return err
	}
	return c.frozen(ctx, conn, func(ctx context.Context) error { return c.readChanges(ctx, fn) })
}

func (c *Container) readChanges(ctx context.Context, fn func(context.Context, *layerstore.ContainerChanges) error) error {
	ch, err := c.m.o.Disks.OpenChanges(ctx, c.id)
	if err != nil {
		return err
	}
	return errors.Join(fn(ctx, ch), ch.Close())
}

// frozen calls fn while the guest holds back all writes to its root disk, and has written out what it
// had. A guest that has thawed meanwhile, for its end or that of the session, is an error.
func (c *Container) frozen(ctx context.Context, conn *wire.Conn, fn func(context.Context) error) error {
	asking, cancel := context.WithTimeout(ctx, answerPatience)
	defer cancel()
	if err := conn.Freeze(asking); err != nil {
		// It may yet do it: the end of the session would thaw it, this does at once.
		c.thaw(ctx, conn)
		return fmt.Errorf("hold back writes of container %s: %w", c.id, taskError(err))
	}
	reading, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		select {
		case <-conn.Done():
			stop()
		case <-reading.Done():
		}
	}()
	err := fn(reading)
	if thawErr := c.thaw(ctx, conn); thawErr != nil {
		return fmt.Errorf("the disk of container %s was written to while it was read: %w", c.id, thawErr)
	}
	return err
}

// thaw ends the freeze, whatever became of who wanted it.
func (c *Container) thaw(ctx context.Context, conn *wire.Conn) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerPatience)
	defer cancel()
	return conn.Thaw(ctx)
}

// Export reads the container's root file system as a tar: of what is mounted upon it only the
// mount points. The caller closes the reader, whose io.EOF means that the tar is whole.
func (c *Container) Export(ctx context.Context) (io.ReadCloser, error) {
	_, r, err := c.readTask(ctx, wire.Task{Kind: wire.TaskRoot})
	if errors.Is(err, ErrNotRunning) {
		var v *view
		if v, err = c.openStopped(ctx); err == nil {
			if v.noRoot != nil {
				return nil, errors.Join(v.noRoot, v.Close())
			}
			r = v.stream(v.root.WriteTar)
		}
	}
	if err != nil {
		return nil, err
	}
	c.emit("export", nil)
	return r, nil
}
