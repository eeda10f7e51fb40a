package layerstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"

	"vic/diskfs"
)

// openContainerDisk opens a container's disk and all below it; flag is O_RDWR for one that can be
// written to.
func (d Dir) openContainerDisk(p *pin, flag int) (_ *Disk, err error) {
	below, err := d.openDisk(p.Disk)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			below.Close() // read only
		}
	}()
	dir := d.container(p.id)
	desc, err := d.readDescriptor(filepath.Join(dir, containerDisk))
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, containerExtent), flag, 0)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil {
		var c *Disk
		if c, err = below.replace(0, "container "+p.id, desc, f, fi.Size()); err == nil {
			return c, nil
		}
	}
	f.Close() // read only
	return nil, err
}

// ContainerFS opens a container's root file system as its disk has it, what its journal holds
// included. Its VM must not run, or must hold back all writes, as long as it is open. What reads it fails when ctx
// has ended. The error is fs.ErrNotExist if the container has no disk. The caller closes it.
func (s *Store) ContainerFS(ctx context.Context, id string) (*FS, error) {
	if !containerID.MatchString(id) {
		return nil, fmt.Errorf("open disk of container: %q cannot be the ID of one", id)
	}
	f, err := s.containerFS(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("open disk of container %s: %w", id, err)
	}
	return f, nil
}

func (s *Store) containerFS(ctx context.Context, id string) (*FS, error) {
	if err := s.SettleContainer(id); err != nil {
		return nil, err
	}
	p, err := s.dir.readPin(id)
	if err != nil {
		return nil, err
	}
	disk, err := s.dir.openContainerDisk(p, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	return openFS(ctx, disk, disk.Capacity(), disk)
}

// ContainerChanges are what a container changed of its image's file system.
type ContainerChanges struct {
	old, new *FS
}

// OpenChanges opens the file systems of a container and of its image. What ContainerFS says of the VM
// holds here too.
func (s *Store) OpenChanges(ctx context.Context, id string) (*ContainerChanges, error) {
	f, err := s.ContainerFS(ctx, id)
	if err != nil {
		return nil, err
	}
	c := &ContainerChanges{new: f}
	p, err := s.dir.readPin(id)
	if err == nil {
		var top digest.Digest
		if n := len(p.Layers); n > 0 {
			top = p.Layers[n-1]
		}
		if c.old, err = s.RootFS(ctx, top); err == nil {
			return c, nil
		}
	}
	f.Close() // read only
	return nil, fmt.Errorf("open image of container %s: %w", id, err)
}

// Close lets go of the file systems.
func (c *ContainerChanges) Close() error { return errors.Join(c.old.Close(), c.new.Close()) }

// Each tells fn of the changes, as diskfs.Diff does, but for those of madeUp: paths that are no
// changes if they have been added, nor are the folders in which nothing else changed.
func (c *ContainerChanges) Each(madeUp func(path string) bool, fn func(diskfs.Change) error) error {
	var folders []diskfs.Change // changed for what is in them, of which nothing has been told yet
	return diskfs.Diff(c.old.FS, c.new.FS, diskfs.DiffOptions{Descends: true}, func(ch diskfs.Change) error {
		for n := len(folders); n > 0 && !within(ch.Path, folders[n-1].Path); n-- {
			folders = folders[:n-1]
		}
		if ch.Path == "/" || ch.Kind == diskfs.Added && madeUp(ch.Path) {
			return nil
		}
		if ch.Kind == diskfs.Changed && len(ch.What) == 0 {
			folders = append(folders, ch)
			return nil
		}
		for _, f := range folders {
			if err := fn(f); err != nil {
				return err
			}
		}
		folders = folders[:0]
		return fn(ch)
	})
}

// within says whether a path is below a folder.
func within(path, folder string) bool {
	return len(path) > len(folder) && path[:len(folder)] == folder && path[len(folder)] == '/'
}

// WriteTar writes the changes as a layer's tar (OCI image-spec, layer.md), leaving out what Each
// leaves out.
func (c *ContainerChanges) WriteTar(ctx context.Context, w io.Writer, madeUp func(path string) bool) error {
	t := c.new.NewLayerWriter(&contextWriter{ctx, w})
	if err := c.Each(madeUp, t.Write); err != nil {
		return err
	}
	return t.Close()
}
