package layerstore

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"

	"vic/diskfs"
)

// A GuestDevice is what a disk that guests write to is written through. *Disk is one.
type GuestDevice interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
}

// A guestDisk is a disk that guests write to, a container's or a volume's, and the folder that is its own in the store.
type guestDisk struct {
	GuestDevice
	capacity int64
	store    Dir
	folder   string
	close    func() error
}

// openGuest returns a disk of the store as one that guests write to. The lock is nil, or held until it is closed.
func (d Dir) openGuest(disk *Disk, folder string, lock *fileLock) *guestDisk {
	return &guestDisk{disk, disk.Capacity(), d, folder, func() error {
		if lock != nil {
			defer lock.unlock()
		}
		return disk.Close()
	}}
}

// openFS opens the file system of a disk that guests write to, as its journal has it. What reads it fails when ctx has ended. The
// disk belongs to it, and is closed after an error.
func openFS(ctx context.Context, disk io.ReaderAt, capacity int64, c io.Closer) (*FS, error) {
	r, err := diskfs.Replay(contextReaderAt{ctx, disk}, capacity)
	if err == nil {
		var f *diskfs.FS
		if f, err = diskfs.Open(r, capacity); err == nil {
			return &FS{f, c}, nil
		}
	}
	c.Close() // read only
	return nil, err
}

// applyLayer applies the tar of a layer to the disk that open opens for writing.
func (d Dir) applyLayer(ctx context.Context, layer io.Reader, limits diskfs.Limits, open func() (*guestDisk, error)) error {
	stream, err := d.tempFile()
	if err != nil {
		return err
	}
	defer stream.Close()
	out := bufio.NewWriterSize(stream, 1<<20)
	cs, err := diskfs.ReadTar(layer, out, nil, limits)
	if err != nil || cs.Len() == 0 {
		return err
	}
	g, err := open()
	if err != nil {
		return err
	}
	err = g.decide(ctx, cs, stream, out)
	if err == nil {
		err = g.redo()
	}
	return errors.Join(err, g.close())
}

// decide writes all that a changeset needs, but changes nothing that counts: redo does. The changeset's data is in stream
// already, or in out before it.
func (g *guestDisk) decide(ctx context.Context, cs *diskfs.Changeset, stream *os.File, out *bufio.Writer) error {
	r, err := diskfs.Replay(g, g.capacity)
	if err != nil {
		return err
	}
	f, err := diskfs.Open(r, g.capacity)
	if err != nil {
		return err
	}
	delta, err := f.Apply(cs, diskfs.ApplyOptions{Reuse: true})
	if err != nil {
		return err
	}
	if err := delta.WriteMeta(out); err != nil {
		return err
	}
	if err := out.Flush(); err != nil {
		return err
	}
	if err := g.placeStream(ctx, stream, delta); err != nil {
		return err
	}
	if err := g.Sync(); err != nil {
		return err
	}
	return g.writeRedo(r, delta)
}

// placeStream copies the clusters of a delta's stream to where they belong on the disk.
func (g *guestDisk) placeStream(ctx context.Context, stream *os.File, delta *diskfs.Delta) error {
	buf := make([]byte, diskfs.ClusterSize)
	dead := delta.Dead
	for _, run := range delta.Map {
		for i := range run.N {
			if err := ctx.Err(); err != nil {
				return err
			}
			at := (run.Stream + i) * diskfs.ClusterSize
			n, err := stream.ReadAt(buf, at)
			if err != nil && err != io.EOF {
				return err
			}
			clear(buf[n:])
			for len(dead) > 0 && dead[0].Off+dead[0].Len <= at {
				dead = dead[1:]
			}
			for _, d := range dead {
				if d.Off >= at+diskfs.ClusterSize {
					break
				}
				clear(buf[max(0, d.Off-at):min(diskfs.ClusterSize, d.Off+d.Len-at)])
			}
			if _, err := g.WriteAt(buf, (run.Disk+i)*diskfs.ClusterSize); err != nil {
				return err
			}
		}
	}
	return nil
}

// settle finishes what was decided for the disk in a folder and not done, on the disk that open opens for writing.
func settle(folder string, open func() (*guestDisk, error)) error {
	if there, err := exists(filepath.Join(folder, redoFile)); !there || err != nil {
		return err
	}
	g, err := open()
	if err != nil {
		return err
	}
	return errors.Join(g.redo(), g.close())
}
