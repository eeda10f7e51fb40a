package layerstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"vic/vmdk"
)

// readVolumeDescriptor reads and checks the descriptor of a volume's disk.
func (d Dir) readVolumeDescriptor(name string) (*vmdk.Descriptor, error) {
	v, err := d.readVolume(name)
	if err == nil {
		err = v.distant()
	}
	if err != nil {
		return nil, err
	}
	path := filepath.Join(d.volume(name), containerDisk)
	desc, err := d.readDescriptor(path)
	if err != nil {
		return nil, err
	}
	switch {
	case desc.ParentCID != vmdk.NoParent:
		return nil, formatErrorf(path, "parentCID", "a volume has no parent")
	case len(desc.Extents) != 1 || desc.Extents[0].File != containerExtent:
		return nil, formatErrorf(path, "extent", "is not the one file %s", containerExtent)
	case desc.Capacity() != v.Capacity:
		return nil, formatErrorf(path, "capacity", "%d bytes, the record says %d", desc.Capacity(), v.Capacity)
	}
	return desc, nil
}

// volumeDisk is a volume's disk by its extent file, which belongs to it from then on.
func volumeDisk(name string, desc *vmdk.Descriptor, f *os.File) (*Disk, error) {
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return new(Disk).replace(0, "volume "+name, desc, f, fi.Size())
}

// openVolumeDisk opens a volume's disk; flag is O_RDWR for one that can be written to.
func (d Dir) openVolumeDisk(name string, flag int) (*Disk, error) {
	desc, err := d.readVolumeDescriptor(name)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(d.volume(name), containerExtent)
	f, err := os.OpenFile(path, flag, 0)
	if err != nil {
		return nil, err
	}
	disk, err := volumeDisk(name, desc, f)
	if err != nil {
		f.Close() // nothing was written
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return disk, nil
}

// lockVolume takes a volume's disk from all VMs and other processes. The error is errBusy if one has it.
func (d Dir) lockVolume(name string) (*fileLock, error) {
	path := filepath.Join(d.volume(name), containerExtent)
	if _, err := os.Stat(path); err != nil { // which a lock would make
		return nil, err
	}
	alone, err := lockRange(path, unix.F_WRLCK, qemuLocks, qemuLocksLen, false)
	if err == nil && alone == nil {
		err = errBusy
	}
	return alone, err
}

// writableVolume opens a volume's disk for who writes to it without a VM. The error is errBusy if a VM has it.
func (d Dir) writableVolume(name string) (*guestDisk, error) {
	alone, err := d.lockVolume(name)
	if err != nil {
		return nil, err
	}
	disk, err := d.openVolumeDisk(name, os.O_RDWR)
	if err != nil {
		alone.unlock()
		return nil, err
	}
	return d.openGuest(disk, d.volume(name), alone), nil
}

// VolumeFS opens a volume's file system, what its journal holds included. No VM must write to it as long as it is open. What
// reads it fails when ctx has ended. The error is ErrNotFound. The caller closes it.
func (s *Store) VolumeFS(ctx context.Context, name string) (*FS, error) {
	if v, err := s.Volume(name); err == nil && v.Disk != "" {
		return s.distantFS(ctx, v)
	}
	if _, err := s.VolumeDisk(name); errors.Is(err, errBusy) {
		return nil, s.busyVolume(name)
	} else if err != nil {
		return nil, err
	}
	disk, err := s.dir.openVolumeDisk(name, os.O_RDONLY)
	if err == nil {
		var f *FS
		if f, err = openFS(ctx, disk, disk.Capacity(), disk); err == nil {
			return f, nil
		}
	}
	return nil, fmt.Errorf("open volume %s: %w", name, err)
}

// ApplyToVolume applies the tar of a layer to a volume that no VM has, as ApplyToContainer does to a container. The error is
// ErrNotFound, or a *VolumeBusyError.
func (s *Store) ApplyToVolume(ctx context.Context, name string, layer io.Reader) error {
	v, err := s.Volume(name)
	if err == nil && v.Disk != "" {
		err = s.applyDistant(ctx, v, layer)
	} else if err == nil {
		if _, err = s.VolumeDisk(name); err == nil { // settles it
			err = s.dir.applyLayer(ctx, layer, s.lim.Tar, func() (*guestDisk, error) { return s.dir.writableVolume(name) })
		}
	}
	busy := (*VolumeBusyError)(nil)
	switch {
	case errors.Is(err, errBusy):
		return s.busyVolume(name)
	case err != nil && !errors.Is(err, ErrNotFound) && !errors.As(err, &busy):
		return fmt.Errorf("write to volume %s: %w", name, err)
	}
	return err
}
