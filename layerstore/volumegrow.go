package layerstore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"vic/vmdk"
)

// QEMU locks bytes of an image file by what it does with it: from 100 on for what it does, from 200 on for what others
// must not do (its block/file-posix.c). Who has all of them has the file for itself.
const (
	qemuLocks    = 100
	qemuLocksLen = 200
)

// A VolumeBusyError refuses to change a volume whose disk a VM has.
type VolumeBusyError struct {
	Name       string
	Containers []string // those that mount it; one of them runs
	Why        string   // in place of that, where it is no such container
}

func (e *VolumeBusyError) Error() string {
	if e.Why != "" {
		return fmt.Sprintf("volume %s is in use: %s", e.Name, e.Why)
	}
	return fmt.Sprintf("volume %s is in use by a running container, one of %v: stop it first", e.Name, e.Containers)
}

// GrowVolume enlarges a volume's disk to size bytes, rounded up to a grain. The file system in it follows when a
// container mounts it writable the next time: the guest's kernel does that. The error is ErrNotFound,
// a *VolumeOptionError for a size that is none or smaller than the volume's, or a *VolumeBusyError.
//
// The disk is enlarged by one sector, its extent file's header. The descriptor and the record follow, by the next start
// of a container if there is a crash in between: see VolumeDisk.
func (s *Store) GrowVolume(name string, size int64) (*Volume, error) {
	if v, err := s.Volume(name); err == nil && v.Disk != "" {
		return s.growDistant(v, size)
	}
	lock, err := s.dir.lockShared()
	if err != nil {
		return nil, err
	}
	defer lock.unlock()
	v, err := s.dir.growVolume(name, size)
	if errors.Is(err, errBusy) {
		err = s.busyVolume(name)
	}
	return v, err
}

func (s *Store) busyVolume(name string) error {
	if v, err := s.Volume(name); err == nil {
		return &VolumeBusyError{Name: name, Containers: v.Users}
	}
	return &VolumeBusyError{Name: name}
}

// errBusy says that a VM has a volume's disk.
var errBusy = errors.New("layerstore: volume is in use")

func (d Dir) growVolume(name string, size int64) (_ *Volume, err error) {
	v, err := d.readVolume(name)
	if err != nil {
		return nil, err
	}
	if err := v.distant(); err != nil {
		return nil, err
	}
	capacity, err := roundCapacity(size)
	if err != nil {
		return nil, &VolumeOptionError{name, err.Error()}
	}
	alone, err := d.lockVolume(name)
	if err != nil {
		return nil, err
	}
	defer alone.unlock()
	f, err := os.OpenFile(filepath.Join(d.volume(name), containerExtent), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if v, err = d.settleVolume(v, f); err != nil {
		return nil, err
	}
	switch {
	case capacity < v.Capacity:
		return nil, &VolumeOptionError{name, fmt.Sprintf("the volume has %d bytes, and cannot be made smaller", v.Capacity)}
	case capacity == v.Capacity:
		return v, nil
	}
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	commit, err := vmdk.GrowExtent(f, fi.Size(), capacity)
	if err != nil {
		return nil, fmt.Errorf("grow volume %s: %w", name, err)
	}
	for _, step := range []func() error{f.Sync, commit, f.Sync} {
		if err := step(); err != nil {
			return nil, fmt.Errorf("grow volume %s: %w", name, err)
		}
	}
	return d.settleVolume(v, f)
}

// settleVolume makes a volume's descriptor and record say what its extent file's header does. The caller holds the store's
// lock.
func (d Dir) settleVolume(v *Volume, f *os.File) (*Volume, error) {
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	e, err := vmdk.OpenExtent(f, fi.Size())
	if err != nil {
		return nil, fmt.Errorf("volume %s: %w", v.Name, err)
	}
	path := filepath.Join(d.volume(v.Name), containerDisk)
	desc, err := d.readDescriptor(path)
	if err != nil {
		return nil, err
	}
	capacity := e.Capacity()
	if capacity > desc.Capacity() {
		text, err := vmdk.NewDescriptor(containerExtent, capacity, desc.CID).Marshal()
		if err == nil {
			err = d.replaceFile(path, text)
		}
		if err != nil {
			return nil, fmt.Errorf("grow volume %s: %w", v.Name, err)
		}
	}
	if capacity > v.Capacity {
		grown := *v
		grown.Capacity = capacity
		if err := d.replaceFile(d.volumeRecord(v.Name), marshalRecord(&grown)); err != nil {
			return nil, fmt.Errorf("grow volume %s: %w", v.Name, err)
		}
		v = &grown
	}
	return v, nil
}

// VolumeDisk returns the path of the descriptor of a volume's disk, which is about to be used; if a crash has interrupted its
// growth, or a copy into it that was decided, that is finished. The error is ErrNotFound.
func (s *Store) VolumeDisk(name string) (string, error) {
	v, err := s.dir.readVolume(name)
	if err != nil {
		return "", err
	}
	if v.Disk != "" {
		return s.distantDisk(v)
	}
	if err := s.dir.finishGrowth(v); err != nil {
		return "", err
	}
	if err := settle(s.dir.volume(name), func() (*guestDisk, error) { return s.dir.writableVolume(name) }); err != nil {
		return "", fmt.Errorf("settle disk of volume %s: %w", name, err)
	}
	return s.VolumePath(v), nil
}

// VolumePath is VolumeDisk for who only wants to show the path.
func (s *Store) VolumePath(v *Volume) string {
	if v.Disk != "" {
		if s.volumeDisks == nil {
			return v.Disk
		}
		return s.volumeDisks.Path(v.Disk)
	}
	return filepath.Join(s.dir.volume(v.Name), containerDisk)
}

func (d Dir) finishGrowth(v *Volume) error {
	f, err := os.Open(filepath.Join(d.volume(v.Name), containerExtent))
	if err != nil {
		return err
	}
	defer f.Close() // read only
	lock, err := d.lockShared()
	if err != nil {
		return err
	}
	defer lock.unlock()
	_, err = d.settleVolume(v, f)
	return err
}
