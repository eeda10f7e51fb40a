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
	lock, err := s.dir.lockShared()
	if err != nil {
		return nil, false, err
	}
	defer lock.unlock()
	v, made, err = s.dir.createVolume(o, s.volumeDisks)
	if err == nil && !made {
		v, err = s.Volume(o.Name)
	}
	return v, made, err
}

// createVolume is CreateVolume. The caller holds the store's lock.
func (d Dir) createVolume(o VolumeOptions, elsewhere VolumeDisks) (*Volume, bool, error) {
	v, err := o.volume(elsewhere)
	if err != nil {
		return nil, false, err
	}
	for {
		old, err := d.readVolume(v.Name)
		switch {
		case err == nil && o.sized() && old.Capacity != v.Capacity:
			return nil, false, &VolumeOptionError{v.Name, fmt.Sprintf("the volume is there with a capacity of %d bytes, not %d: vic volume grow enlarges it", old.Capacity, v.Capacity)}
		case err == nil:
			return old, false, nil
		case !errors.Is(err, ErrNotFound):
			return nil, false, fmt.Errorf("create %s: %w", v.Name, err)
		}
		err = d.makeVolume(v)
		if errors.Is(err, fs.ErrExist) || errors.Is(err, unix.ENOTEMPTY) { // another was faster
			continue
		}
		if err != nil {
			return nil, false, fmt.Errorf("create %s: %w", v.Name, err)
		}
		return v, true, nil
	}
}

// makeVolume makes a volume's folder in tmp and renames it into place.
func (d Dir) makeVolume(v *Volume) (err error) {
	v.Created = time.Now().UTC()
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
	lock, err := s.dir.lockExclusive()
	if err != nil {
		return err
	}
	users, err := s.dir.allVolumeUsers()
	if err == nil && len(users[name]) > 0 {
		err = &VolumeInUseError{name, users[name]}
	}
	var trash discarded
	if err == nil {
		trash, err = s.dir.discardVolume(name)
	}
	lock.unlock()
	if err != nil {
		return err
	}
	return s.removeDiscarded(trash)
}

// discardVolume takes a volume's folder out of sight, as discard does.
func (d Dir) discardVolume(name string) (discarded, error) {
	t := discarded{name: name}
	if v, err := d.readVolume(name); err == nil { // one whose record is damaged has no disk elsewhere that is known
		t.disk = v.Disk
	}
	var err error
	t.folder, err = d.discard(d.volume(name))
	if errors.Is(err, fs.ErrNotExist) {
		return t, &noVolumeError{name}
	}
	if err != nil {
		return t, fmt.Errorf("remove %s: %w", name, err)
	}
	return t, nil
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
	st, err := s.dir.volumeState(name)
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
	st.Unclean = fsys.Unclean()
	const tail = 4 << 20
	st.Grown = fsys.Capacity()+tail <= disk.Capacity()
	st.Empty, err = fsys.Empty()
	return st, err
}
