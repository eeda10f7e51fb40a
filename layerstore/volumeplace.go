package layerstore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// VolumeDisks keep the disks of volumes where VMs are that cannot open the store's files. The store has the volumes' records, and
// a disk is made when a VM needs it for the first time. Its methods return within a minute or so.
type VolumeDisks interface {
	// Name returns a name for the disk of a new volume, which no other has had, and takes account of the options that it
	// understands: their keys, in lower case, are in Options.
	Name(volume string, options map[string]string) (string, error)
	Options() []string
	// Path is where a disk is, for people.
	Path(disk string) string
	// Stored is how many bytes a disk occupies, 0 for one that was not made yet.
	Stored(disk string) (int64, error)
	// Remove removes a disk. One that was not made, or is gone, is no error.
	Remove(disk string) error
}

// A DistantVolumeError refuses to read or write a volume without a VM, because its disk is not in the store.
type DistantVolumeError struct{ Name, Disk string }

func (e *DistantVolumeError) Error() string {
	return fmt.Sprintf("volume %s is a disk on a datastore, %s, which only a running container reads and writes: start one that mounts it", e.Name, e.Disk)
}

// distant returns the error for a volume whose disk is not in the store.
func (v *Volume) distant() error {
	if v.Disk == "" {
		return nil
	}
	return &DistantVolumeError{v.Name, v.Disk}
}

// A discarded volume is out of sight and not yet gone.
type discarded struct {
	name, folder string // in tmp
	disk         string // elsewhere, "" if there is none
}

// removeDiscarded removes what is left of a volume. One whose disk stays is put back.
func (s *Store) removeDiscarded(t discarded) error {
	if t.disk != "" {
		var err error
		if s.volumeDisks == nil {
			err = errors.New("this store has no access to it")
		} else {
			err = s.volumeDisks.Remove(t.disk)
		}
		if err != nil {
			err = fmt.Errorf("remove %s: disk %s: %w", t.name, t.disk, err)
			return errors.Join(err, os.Rename(filepath.Join(t.folder, t.name), s.dir.volume(t.name)), os.Remove(t.folder))
		}
	}
	return os.RemoveAll(t.folder)
}

// EmptyVolume is a disk of capacity bytes with an empty file system, as CreateVolume makes them. It is in no folder that has a name; the
// caller closes it.
func (s *Store) EmptyVolume(capacity int64) (*Disk, error) {
	dir, err := os.MkdirTemp(s.dir.tmp(), volumePrefix)
	if err != nil {
		return nil, err
	}
	disk, err := openEmpty(s.dir, dir, capacity)
	return disk, errors.Join(err, os.RemoveAll(dir))
}

func openEmpty(d Dir, dir string, capacity int64) (*Disk, error) {
	if err := makeVolumeDisk(dir, capacity); err != nil {
		return nil, err
	}
	desc, err := d.readDescriptor(filepath.Join(dir, containerDisk))
	if err != nil {
		return nil, err
	}
	f, err := os.Open(filepath.Join(dir, containerExtent))
	if err != nil {
		return nil, err
	}
	disk, err := volumeDisk("empty", desc, f)
	if err != nil {
		f.Close() // nothing was written
	}
	return disk, err
}
