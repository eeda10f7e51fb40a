package layerstore

import (
	"context"
	"errors"
	"fmt"
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

func (s *Store) replaceContainerDelta(ctx context.Context, id string, delta *os.File) (err error) {
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
	from, err := s.dir.over(p, delta)
	if err != nil {
		return err
	}
	defer from.below.Close() // read only
	to, err := s.dir.over(p, f)
	if err != nil {
		return err
	}
	defer to.below.Close()
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
