package layerstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// VolumeDisks keep volumes where VMs are that cannot open the store's files, with their records: several stores, on several hosts,
// may have the same. What a store has of such a volume is a copy of the record. Methods without a context return within some minutes.
type VolumeDisks interface {
	// Name returns a name for the disk of a new volume, which no other has had, and takes account of the options that it
	// understands: their keys, in lower case, are in Options.
	Name(volume string, options map[string]string) (string, error)
	Options() []string
	// Path is where a disk is, for people.
	Path(disk string) string
	// Stored is how many bytes a disk occupies.
	Stored(disk string) (int64, error)

	// List returns the disks of all volumes, by the volumes' names. Damaged says which are left out.
	List() (disks map[string]string, damaged []error, err error)
	// Find returns the volume of a name, Read that of a disk. What they return may make no sense. The error is ErrNotFound if there is none.
	Find(name string) (*Volume, error)
	Read(disk string) (*Volume, error)
	// Make makes a volume with its disk, or returns the one that has the name; made tells which. Used is as for Use.
	Make(v *Volume, used bool) (there *Volume, made bool, err error)
	// Use notes whether containers of the store mount a volume. The error is ErrNotFound if it is there no more.
	Use(disk string, used bool) error
	// Used says what is noted, as far as Use and List know.
	Used(disk string) bool
	// Remove removes a volume and its disk. One that is gone is no error. The error is a *VolumeInUseError if other hosts use it.
	Remove(disk string) error
	// Grow enlarges a disk to at least so many bytes, and returns its capacity. The error is a *VolumeBusyError where VMs are in the way.
	Grow(disk string, capacity int64) (int64, error)
	// Open returns what a disk holds, until ctx ends, and its capacity. The caller closes it. The error is a *VolumeBusyError if a VM writes it, or it
	// has to be had alone for this and cannot, a *DistantVolumeError if only VMs can read it.
	Open(ctx context.Context, disk string) (r VolumeReader, capacity int64, err error)
	// Release returns when a VM can have a disk: where what Open returned has it alone, reads of that end, with an error that wraps ErrTaken.
	Release(disk string) error
	// Write calls fn with a disk that no VM has, and its capacity. Nobody else can use the disk meanwhile; nor can other hosts afterwards, if the error
	// of fn wraps ErrUnsettled or this process ends, until a later Write of this host has gone well. The error is a *VolumeBusyError if a VM has the disk
	// or containers of other hosts mount it, a *DistantVolumeError where only VMs can write it.
	Write(ctx context.Context, disk string, fn func(d GuestDevice, capacity int64) error) error
	// Unsettled tells whether a Write of this host has left a disk to a later one. The error is a *VolumeBusyError if one of another host has.
	Unsettled(disk string) (bool, error)
	// Left are the disks that are unsettled, as far as List and Write know.
	Left() []string
}

// A VolumeReader is what a volume's disk holds.
type VolumeReader interface {
	io.ReaderAt
	io.Closer
}

// ErrTaken ends the reading of a volume's files.
var ErrTaken = errors.New("was written to, or taken by a container, while its files were read")

// ErrUnsettled says that changes of a volume's disk are decided and not yet made.
var ErrUnsettled = errors.New("layerstore: changes of the disk are yet to be written")

// A DistantVolumeError refuses to do something to a volume whose disk is not in the store.
type DistantVolumeError struct {
	Name, Disk string
	Unreadable bool // not even reading is possible
}

func (e *DistantVolumeError) Error() string {
	if e.Unreadable {
		return fmt.Sprintf("volume %s is a disk on a datastore, %s, which only a running container reads and writes: start one that mounts it", e.Name, e.Disk)
	}
	return fmt.Sprintf("volume %s is a disk on a datastore, %s, which this container host, running outside of an appliance, cannot attach: a running container "+
		"that mounts it can write to it", e.Name, e.Disk)
}

// distant returns the error for a volume whose disk is not in the store.
func (v *Volume) distant() error {
	if v.Disk == "" {
		return nil
	}
	return &DistantVolumeError{Name: v.Name, Disk: v.Disk}
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
