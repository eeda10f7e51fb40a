package layerstore

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"vic/diskfs"
	"vic/vmdk"
)

// Files of a volume's folder; the disk's are named as a container's.
const (
	volumeRecord = "volume.json"
	volumePrefix = "volume-" // of folders in tmp
)

// CreateVolume makes a volume with an empty file system, or returns the one that has the name already; made tells
// which. The error is a *VolumeOptionError for options that make no sense or are not those of the volume that is
// there, or ErrNoDriver.
func (s *Store) CreateVolume(o VolumeOptions) (v *Volume, made bool, err error) {
	v, made, err = s.createVolume(o, false)
	if err == nil && !made {
		v, err = s.Volume(o.Name)
	}
	return v, made, err
}

// createVolume is CreateVolume; used tells that a container is to mount the volume.
func (s *Store) createVolume(o VolumeOptions, used bool) (*Volume, bool, error) {
	v, err := o.volume(s.volumeDisks)
	if err != nil {
		return nil, false, err
	}
	defer s.names.lock(v.Name)()
	fits := func(old *Volume) error {
		if o.sized() && old.Capacity != v.Capacity {
			return &VolumeOptionError{v.Name, fmt.Sprintf("the volume is there with a capacity of %d bytes, not %d: vic volume grow enlarges it", old.Capacity, v.Capacity)}
		}
		return nil
	}
	for {
		old, err := s.knownVolume(v.Name)
		if err == nil {
			return old, false, fits(old)
		}
		if !errors.Is(err, ErrNotFound) {
			return nil, false, fmt.Errorf("create %s: %w", v.Name, err)
		}
		v.Created = time.Now().UTC()
		there, made := v, true
		if v.Disk != "" {
			if there, made, err = s.makeDistant(v, used); err != nil {
				return nil, false, fmt.Errorf("create %s: %w", v.Name, err)
			}
		}
		err = s.keepVolume(there)
		if errors.Is(err, fs.ErrExist) || errors.Is(err, unix.ENOTEMPTY) { // another process was faster
			continue
		}
		if err != nil {
			return nil, false, fmt.Errorf("create %s: %w", v.Name, err)
		}
		return there, made, fits(there)
	}
}

// keepVolume makes a volume's folder.
func (s *Store) keepVolume(v *Volume) error {
	lock, err := s.dir.lockShared()
	if err != nil {
		return err
	}
	defer lock.unlock()
	return s.dir.makeVolume(v)
}

// makeVolume makes a volume's folder in tmp and renames it into place.
func (d Dir) makeVolume(v *Volume) (err error) {
	dir, err := os.MkdirTemp(d.tmp(), volumePrefix)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	if v.Disk == "" {
		if err := makeVolumeDisk(dir, v.Capacity); err != nil {
			return err
		}
	}
	if err := writeSynced(filepath.Join(dir, volumeRecord), marshalRecord(v), 0o600); err != nil {
		return err
	}
	if err := syncDir(dir); err != nil {
		return err
	}
	if err := os.Rename(dir, d.volume(v.Name)); err != nil {
		return err
	}
	return syncDir(d.volumes())
}

// makeVolumeDisk makes a disk with an empty file system in a folder.
func makeVolumeDisk(dir string, capacity int64) (err error) {
	var uuid [16]byte
	rand.Read(uuid[:])
	uuid[6], uuid[8] = uuid[6]&0x0f|0x40, uuid[8]&0x3f|0x80 // RFC 9562 version 4
	f, err := os.OpenFile(filepath.Join(dir, containerExtent), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := vmdk.CreateExtent(f, capacity); err != nil {
		return err
	}
	desc := vmdk.NewDescriptor(containerExtent, capacity, vmdk.CIDFor("volume "+hex.EncodeToString(uuid[:])))
	disk, err := volumeDisk("", desc, f)
	if err != nil {
		return err
	}
	_, delta, err := diskfs.Format(diskfs.FormatOptions{Capacity: capacity, UUID: uuid})
	if err != nil {
		return err
	}
	if err := putDelta(disk, delta); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	text, err := desc.Marshal()
	if err != nil {
		return err
	}
	return writeSynced(filepath.Join(dir, containerDisk), text, 0o600)
}

// putDelta writes what diskfs.Format has made. There is no data in it.
func putDelta(disk *Disk, delta *diskfs.Delta) error {
	var stream bytes.Buffer
	if err := delta.WriteMeta(&stream); err != nil {
		return err
	}
	for _, r := range delta.Map {
		p := stream.Bytes()[r.Stream*diskfs.ClusterSize : min((r.Stream+r.N)*diskfs.ClusterSize, int64(stream.Len()))]
		if _, err := disk.WriteAt(p, r.Disk*diskfs.ClusterSize); err != nil {
			return err
		}
	}
	return delta.Fixed(func(cluster int64, p []byte) error {
		_, err := disk.WriteAt(p, cluster*diskfs.ClusterSize)
		return err
	})
}

// VolumeStored returns how many bytes a volume occupies on the datastore.
func (s *Store) VolumeStored(name string) (int64, error) {
	if !validVolume.MatchString(name) {
		return 0, &noVolumeError{name}
	}
	if v, err := s.dir.readVolume(name); err == nil && v.Disk != "" {
		if s.volumeDisks == nil {
			return 0, v.distant()
		}
		return s.volumeDisks.Stored(v.Disk)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(s.dir.volume(name), containerExtent), &st); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return 0, &noVolumeError{name}
		}
		return 0, fmt.Errorf("size of volume %s: %w", name, err)
	}
	return st.Blocks * 512, nil
}

// A VolumeInUseError refuses to remove or change a volume.
type VolumeInUseError struct {
	Name       string
	Containers []string // IDs of those that use it
}

// Error is worded as docker words it.
func (e *VolumeInUseError) Error() string {
	return fmt.Sprintf("remove %s: volume is in use - %v", e.Name, e.Containers)
}

// RemoveVolume removes a volume, also one whose record is damaged. The error is ErrNotFound, or a
// *VolumeInUseError if a container mounts it, whether it runs or not.
func (s *Store) RemoveVolume(name string) error {
	if !validVolume.MatchString(name) {
		return &noVolumeError{name}
	}
	if _, err := s.Volume(name); errors.Is(err, ErrNotFound) { // which adopts it
		return err
	}
	return s.removeVolume(name, "")
}

// removeVolume removes a volume that no container mounts but perhaps one, its own.
func (s *Store) removeVolume(name, own string) error {
	defer s.names.lock(name)()
	var v *Volume
	trash, err := s.discardVolume(name, func(users []string) error {
		if users = slices.DeleteFunc(users, func(id string) bool { return id == own }); len(users) > 0 {
			return &VolumeInUseError{name, users}
		}
		// One whose record is damaged has no disk elsewhere that is known.
		if v, _ = s.dir.readVolume(name); v != nil && v.Disk != "" {
			return errKept
		}
		return nil
	})
	if errors.Is(err, errKept) { // until the disk is gone
		if err := s.removeDistant(v); err != nil {
			return err
		}
		trash, err = s.discardVolume(name, func([]string) error { return nil })
	}
	if err != nil {
		return err
	}
	return os.RemoveAll(trash)
}

// errKept has discardVolume do nothing.
var errKept = errors.New("layerstore: volume stays")

// discardVolume takes a volume's folder out of sight, as discard does, if the check of its users allows it.
func (s *Store) discardVolume(name string, check func(users []string) error) (trash string, err error) {
	lock, err := s.dir.lockExclusive()
	if err != nil {
		return "", err
	}
	defer lock.unlock()
	users, err := s.dir.allVolumeUsers()
	if err == nil {
		err = check(users[name])
	}
	if err != nil {
		return "", err
	}
	trash, err = s.dir.discard(s.dir.volume(name))
	if errors.Is(err, fs.ErrNotExist) {
		return "", &noVolumeError{name}
	}
	if err != nil {
		return "", fmt.Errorf("remove %s: %w", name, err)
	}
	return trash, nil
}

// A VolumeState is what can be seen of a volume from outside, while no VM writes it.
type VolumeState struct {
	Empty   bool // there are no files in it
	Unclean bool // its journal holds changes, which may have removed or made files
	// Grown tells that the disk is larger than the file system, by more than what that may leave at its end.
	Grown bool
}

// VolumeState looks into a volume. The error is ErrNotFound, or that of a damaged disk.
func (s *Store) VolumeState(name string) (VolumeState, error) {
	v, err := s.dir.readVolume(name)
	if err != nil {
		return VolumeState{}, err
	}
	look := func() (VolumeState, error) { return s.dir.volumeState(name) }
	if v.Disk != "" {
		look = func() (VolumeState, error) { return s.distantState(v) }
	}
	st, err := look()
	if err != nil {
		return st, fmt.Errorf("look into volume %s: %w", name, err)
	}
	return st, nil
}

func (d Dir) volumeState(name string) (st VolumeState, err error) {
	disk, err := d.openVolumeDisk(name, os.O_RDONLY)
	if err != nil {
		return st, err
	}
	defer disk.Close() // read only
	fsys, err := diskfs.Open(disk, disk.Capacity())
	if err != nil {
		return st, err
	}
	return stateOf(fsys, disk.Capacity())
}

// stateOf is the state of a volume whose disk has that capacity.
func stateOf(fsys *diskfs.FS, capacity int64) (st VolumeState, err error) {
	st.Unclean = fsys.Unclean()
	const tail = 4 << 20
	st.Grown = fsys.Capacity()+tail <= capacity
	st.Empty, err = fsys.Empty()
	return st, err
}
