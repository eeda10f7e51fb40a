package layerstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"vic/vmdk"
)

// ReplaceContainerDelta makes the disk of a container, which nobody uses meanwhile, hold what delta does and nothing else: an extent file, of
// any kind that package vmdk reads, that a guest has written elsewhere over the container's image. The disk is replaced in
// one step, durably.
func (s *Store) ReplaceContainerDelta(ctx context.Context, id string, delta *os.File) error {
	if err := s.SettleContainer(id); err != nil { // else it would be done to the other
		return err
	}
	if err := s.replaceContainerDelta(ctx, id, delta); err != nil {
		return fmt.Errorf("replace disk of container %s: %w", id, err)
	}
	return nil
}

// ReplaceContainerBlocks is ReplaceContainerDelta for a disk of which only its device can be read. It takes over what the file system there
// has in use, its journal included.
func (s *Store) ReplaceContainerBlocks(ctx context.Context, id string, device io.ReaderAt) error {
	if err := s.SettleContainer(id); err != nil {
		return err
	}
	err := s.replaceContainer(ctx, id, func(_ *pin, to *stacked) error { return copyUsed(ctx, device, to, to.Capacity()) })
	if err != nil {
		return fmt.Errorf("replace disk of container %s: %w", id, err)
	}
	return nil
}

// WriteContainerBlocks has a device, on which is what the container's disk was before it was written to here, hold what that has in use. Done
// twice, it is done.
func (s *Store) WriteContainerBlocks(ctx context.Context, id string, device Blocks) error {
	disk, err := s.OpenContainerDisk(id)
	if err != nil {
		return err
	}
	defer disk.Close() // read only
	if err := copyUsed(ctx, disk, device, disk.Capacity()); err != nil {
		return fmt.Errorf("write disk of container %s: %w", id, err)
	}
	return nil
}

// Blocks is a disk that is read and written.
type Blocks interface {
	io.ReaderAt
	io.WriterAt
}

// copyUsed has a disk hold what the file system on another has in use, and writes only where they differ.
func copyUsed(ctx context.Context, from io.ReaderAt, to Blocks, capacity int64) error {
	from = contextReaderAt{ctx, from}
	f, err := openFS(ctx, from, capacity, io.NopCloser(nil)) // the disk is the caller's
	if err != nil {
		return err
	}
	used, err := f.Used()
	if err != nil {
		return err
	}
	want, has := make([]byte, copyPiece), make([]byte, copyPiece)
	for _, r := range used {
		for end := r.Off + r.Len; r.Off < end; r.Off += copyPiece {
			n := min(copyPiece, end-r.Off)
			if _, err := from.ReadAt(want[:n], r.Off); err != nil {
				return err
			}
			if _, err := to.ReadAt(has[:n], r.Off); err != nil {
				return err
			}
			for i := int64(0); i < n; i += vmdk.DefaultGrainSize {
				j := min(i+vmdk.DefaultGrainSize, n)
				if bytes.Equal(want[i:j], has[i:j]) {
					continue
				}
				if _, err := to.WriteAt(want[i:j], r.Off+i); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// copyPiece is how much is read at a time: whole grains.
const copyPiece = 16 * vmdk.DefaultGrainSize

func (s *Store) replaceContainerDelta(ctx context.Context, id string, delta *os.File) error {
	return s.replaceContainer(ctx, id, func(p *pin, to *stacked) error {
		from, err := s.dir.over(p, delta)
		if err != nil {
			return err
		}
		defer from.below.Close() // read only
		for b, err := range from.Blocks(1, vmdk.DefaultGrainSize) {
			if err == nil {
				err = ctx.Err()
			}
			if err == nil {
				_, err = to.WriteAt(b.Data, b.Off)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// replaceContainer makes a new, empty disk for a container, which fill fills, and puts it in the place of the one that is there.
func (s *Store) replaceContainer(ctx context.Context, id string, fill func(*pin, *stacked) error) (err error) {
	p, err := s.dir.readPin(id)
	if err != nil {
		return err
	}
	lock, err := s.dir.lockShared() // no Open takes the new extent file for a dead one
	if err != nil {
		return err
	}
	defer lock.unlock()
	f, err := os.CreateTemp(s.dir.tmp(), "delta-")
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err != nil {
			err = errors.Join(err, removeAll(f.Name()))
		}
	}()
	if err := vmdk.CreateExtent(f, s.info.Capacity); err != nil {
		return err
	}
	to, err := s.dir.over(p, f)
	if err != nil {
		return err
	}
	defer to.below.Close()
	if err := fill(p, to); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil { // nobody waits for it, or who does writes to it next
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	dir := s.dir.container(id)
	if err := os.Rename(f.Name(), filepath.Join(dir, containerExtent)); err != nil {
		return err
	}
	return syncDir(dir)
}

// A stacked disk is one whose top is an extent file that is somebody else's.
type stacked struct {
	*vmdk.Disk
	below *Disk
}

// over stacks an extent file upon what a container's disk is made over.
func (d Dir) over(p *pin, f *os.File) (_ *stacked, err error) {
	below, err := d.openDisk(p.Disk)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			below.Close() // read only
		}
	}()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	e, err := vmdk.OpenExtent(f, fi.Size())
	if err != nil {
		return nil, err
	}
	desc := below.descriptor().Child(containerExtent, "", 0)
	if e.IsCOWD() {
		desc = below.descriptor().COWDChild(containerExtent, "", 0)
	}
	disk, err := vmdk.OpenDisk(append([]vmdk.Link{{Descriptor: desc, Extents: []*vmdk.Extent{e}}}, below.links...))
	if err != nil {
		return nil, err
	}
	return &stacked{disk, below}, nil
}

// OpenContainerDisk opens the disk of a container, and all below it. The caller closes it.
func (s *Store) OpenContainerDisk(id string) (*Disk, error) {
	if err := s.SettleContainer(id); err != nil {
		return nil, err
	}
	p, err := s.dir.readPin(id)
	var disk *Disk
	if err == nil {
		disk, err = s.dir.openContainerDisk(p, os.O_RDONLY)
	}
	if err != nil {
		return nil, fmt.Errorf("open disk of container %s: %w", id, err)
	}
	return disk, nil
}
