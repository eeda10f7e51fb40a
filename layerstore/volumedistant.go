package layerstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// nameLocks are locks of names.
type nameLocks struct {
	mu   sync.Mutex // guards held
	held map[string]chan struct{}
}

// lock waits until nobody has the name.
func (l *nameLocks) lock(name string) (unlock func()) {
	for {
		l.mu.Lock()
		other := l.held[name]
		if other == nil {
			break
		}
		l.mu.Unlock()
		<-other
	}
	defer l.mu.Unlock()
	if l.held == nil {
		l.held = map[string]chan struct{}{}
	}
	done := make(chan struct{})
	l.held[name] = done
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.held, name)
		close(done)
	}
}

// knownVolume returns the record that the store has of a volume. One that another host has removed, or made anew, is forgotten if
// no container mounts it. Call it with the name locked.
func (s *Store) knownVolume(name string) (*Volume, error) {
	v, err := s.dir.readVolume(name)
	if err != nil || !v.Published || s.volumeDisks == nil {
		return v, err
	}
	if _, err := s.volumeDisks.Read(v.Disk); !errors.Is(err, ErrNotFound) { // what else is wrong with it others will tell
		return v, nil
	}
	trash, err := s.discardVolume(name, func(users []string) error {
		if len(users) > 0 {
			return errKept
		}
		return nil
	})
	if errors.Is(err, errKept) {
		return v, nil
	}
	if err == nil {
		err = os.RemoveAll(trash)
	}
	if err != nil {
		return nil, err
	}
	return nil, &noVolumeError{name}
}

// makeDistant makes a volume where the VolumeDisks are, or takes the one that has the name there.
func (s *Store) makeDistant(v *Volume, used bool) (there *Volume, made bool, err error) {
	there, made, err = s.volumeDisks.Make(v, used)
	if err == nil {
		err = there.check(s.volumeDisks.Path(v.Disk))
	}
	return there, made, err
}

// adoptVolume makes the record of a volume that another host has made, or this one before its records were lost. The error is ErrNotFound.
func (s *Store) adoptVolume(name string) (*Volume, error) {
	return s.adopt(name, func() (*Volume, error) { return s.volumeDisks.Find(name) })
}

func (s *Store) adopt(name string, find func() (*Volume, error)) (*Volume, error) {
	defer s.names.lock(name)()
	if v, err := s.dir.readVolume(name); !errors.Is(err, ErrNotFound) { // somebody has, meanwhile
		return v, err
	}
	v, err := find()
	if errors.Is(err, ErrNotFound) {
		return nil, &noVolumeError{name}
	}
	if err == nil {
		err = v.check(s.volumeDisks.Path(v.Disk))
	}
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", name, err)
	}
	if err := s.keepVolume(v); err != nil && !errors.Is(err, fs.ErrExist) && !errors.Is(err, unix.ENOTEMPTY) {
		return nil, fmt.Errorf("get %s: %w", name, err)
	}
	return v, nil
}

// maxVolumeFaults is how many volumes syncVolumes tells of by name.
const maxVolumeFaults = 100

// syncVolumes adopts the volumes that other hosts have made, and forgets those that they have removed. Damaged says what is wrong with volumes; where
// they are cannot be looked at that is all.
func (s *Store) syncVolumes() (damaged []error, err error) {
	if s.volumeDisks == nil {
		return nil, nil
	}
	disks, damaged, err := s.volumeDisks.List()
	if err != nil {
		return []error{fmt.Errorf("look for volumes: %w", err)}, nil
	}
	for _, name := range slices.Sorted(maps.Keys(disks)) {
		if !validVolume.MatchString(name) {
			damaged = append(damaged, fmt.Errorf("%.80q, of disk %.80q, cannot be the name of a volume", name, disks[name]))
		} else if there, err := exists(s.dir.volume(name)); err != nil {
			return nil, err
		} else if !there {
			if _, err := s.adopt(name, func() (*Volume, error) { return s.volumeDisks.Read(disks[name]) }); err != nil && !errors.Is(err, ErrNotFound) {
				damaged = append(damaged, err)
			}
		}
	}
	lost, err := s.forgetVolumes(disks)
	if damaged = append(damaged, lost...); len(damaged) > maxVolumeFaults {
		damaged = append(damaged[:maxVolumeFaults:maxVolumeFaults], fmt.Errorf("there are %d such volumes more", len(damaged)-maxVolumeFaults))
	}
	return damaged, err
}

// forgetVolumes forgets the volumes whose disks are not among those there are; what containers mount stays, and is told. Of the others it notes whether
// containers mount them, if what is noted is not so.
func (s *Store) forgetVolumes(disks map[string]string) (lost []error, err error) {
	names, err := listDir(s.dir.volumes())
	if err != nil {
		return nil, err
	}
	users, err := s.dir.volumeUsers(s.logDamage)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		v, err := s.dir.readVolume(name)
		if err != nil || !v.Published {
			continue // others tell
		}
		if disks[name] != v.Disk {
			err = s.forgetVolume(v)
		} else if used := len(users[name]) > 0; used != s.volumeDisks.Used(v.Disk) {
			s.noteUse(name)
		}
		if err != nil {
			lost = append(lost, err)
		}
	}
	return lost, nil
}

func (s *Store) forgetVolume(v *Volume) error {
	defer s.names.lock(v.Name)()
	if _, err := s.knownVolume(v.Name); err == nil {
		if _, err := s.volumeDisks.Read(v.Disk); err != nil {
			return fmt.Errorf("volume %s: %w", v.Name, err)
		}
	} else if !errors.Is(err, ErrNotFound) {
		return err
	}
	return nil
}

// useDistant tells others that a container mounts a volume that was there.
func (s *Store) useDistant(v *Volume) error {
	if v.Disk == "" || s.volumeDisks == nil {
		return nil
	}
	defer s.names.lock(v.Name)()
	return s.volumeDisks.Use(v.Disk, true)
}

// noteUse tells others whether containers mount a volume. If it fails a later look at all volumes does it.
func (s *Store) noteUse(name string) {
	if s.volumeDisks == nil {
		return
	}
	defer s.names.lock(name)()
	v, err := s.dir.readVolume(name)
	if err != nil || !v.Published {
		return
	}
	users, err := s.dir.allVolumeUsers()
	if err == nil {
		err = s.volumeDisks.Use(v.Disk, len(users[name]) > 0)
	}
	if err != nil {
		s.log.Warn("note whether a volume is in use", "volume", name, "error", err)
	}
}

// removeDistant removes a volume's disk, and what else there is of it beside the store's record.
func (s *Store) removeDistant(v *Volume) error {
	if s.volumeDisks == nil {
		return fmt.Errorf("remove %s: disk %s: this store has no access to it", v.Name, v.Disk)
	}
	err := s.volumeDisks.Remove(v.Disk)
	if inUse := (*VolumeInUseError)(nil); err == nil || errors.As(err, &inUse) {
		return err
	}
	return fmt.Errorf("remove %s: disk %s: %w", v.Name, v.Disk, err)
}

// distantDisk is VolumeDisk. One that was made before VolumeDisks had records is published.
func (s *Store) distantDisk(v *Volume) (string, error) {
	if s.volumeDisks == nil {
		return "", v.distant()
	}
	if v.Published {
		if err := s.settleBefore(context.Background(), v); err != nil {
			return "", err
		}
	}
	defer s.names.lock(v.Name)()
	there, err := v, error(nil)
	if v.Published {
		there, err = s.volumeDisks.Read(v.Disk)
	} else {
		there, _, err = s.makeDistant(v, true)
	}
	if errors.Is(err, ErrNotFound) {
		return "", fmt.Errorf("volume %s is gone: another host, or an administrator, has removed it, or its disk %s: %w", v.Name, s.volumeDisks.Path(v.Disk), err)
	}
	if err == nil && there.Disk != v.Disk {
		return "", fmt.Errorf("volume %s is another by now: %s, and was %s", v.Name, there.Disk, v.Disk)
	}
	if err == nil && (there.Capacity != v.Capacity || !v.Published) {
		err = s.noteVolume(v, there.Capacity)
	}
	if err != nil {
		return "", err
	}
	return s.volumeDisks.Path(v.Disk), nil
}

// ReleaseVolume returns when a VM can have the disk of a volume: where it is attached for those who read its files, that ends, with an error
// that wraps ErrTaken. A disk in the store nobody has alone.
func (s *Store) ReleaseVolume(name string) error {
	v, err := s.dir.readVolume(name)
	if err != nil || v.Disk == "" {
		return err
	}
	if s.volumeDisks == nil {
		return v.distant()
	}
	if err := s.volumeDisks.Release(v.Disk); err != nil {
		return fmt.Errorf("release volume %s: %w", name, err)
	}
	return nil
}

// noteVolume notes the capacity of a published volume.
func (s *Store) noteVolume(v *Volume, capacity int64) error {
	lock, err := s.dir.lockShared()
	if err != nil {
		return err
	}
	defer lock.unlock()
	noted := *v
	noted.Capacity, noted.Published = capacity, true
	if err := noted.check(s.volumeDisks.Path(v.Disk)); err != nil {
		return err
	}
	return s.dir.replaceFile(s.dir.volumeRecord(v.Name), marshalRecord(&noted))
}

// growDistant is GrowVolume.
func (s *Store) growDistant(v *Volume, size int64) (*Volume, error) {
	if s.volumeDisks == nil {
		return nil, v.distant()
	}
	if _, err := s.VolumeDisk(v.Name); err != nil { // which has the capacity noted that the disk has by now
		return nil, err
	}
	v, err := s.Volume(v.Name)
	if err != nil {
		return nil, err
	}
	capacity, err := roundCapacity(size)
	if err != nil {
		return nil, &VolumeOptionError{v.Name, err.Error()}
	}
	if capacity < v.Capacity {
		return nil, &VolumeOptionError{v.Name, fmt.Sprintf("the volume has %d bytes, and cannot be made smaller", v.Capacity)}
	}
	if capacity, err = s.volumeDisks.Grow(v.Disk, capacity); err != nil {
		return nil, fmt.Errorf("grow volume %s: %w", v.Name, err)
	}
	if err := s.noteVolume(v, capacity); err != nil {
		return nil, fmt.Errorf("grow volume %s: %w", v.Name, err)
	}
	return s.Volume(v.Name)
}

// distantFS is VolumeFS.
func (s *Store) distantFS(ctx context.Context, v *Volume) (*FS, error) {
	if s.volumeDisks == nil {
		return nil, v.distant()
	}
	ctx, cancel := context.WithCancel(ctx)
	err := s.settleBefore(ctx, v)
	var r VolumeReader
	var capacity int64
	if err == nil {
		r, capacity, err = s.volumeDisks.Open(ctx, v.Disk)
	}
	if err == nil {
		var f *FS
		if f, err = openFS(ctx, r, capacity, closer(func() error { cancel(); return r.Close() })); err == nil {
			return f, nil
		}
	}
	cancel()
	if busy := (*VolumeBusyError)(nil); errors.As(err, &busy) {
		return nil, busy
	}
	return nil, fmt.Errorf("open volume %s: %w", v.Name, err)
}

// A closer is a function that closes something.
type closer func() error

func (c closer) Close() error { return c() }

// lookTime bounds the look into a disk over a network.
const lookTime = time.Minute

func (s *Store) distantState(v *Volume) (VolumeState, error) {
	ctx, cancel := context.WithTimeout(context.Background(), lookTime)
	defer cancel()
	f, err := s.distantFS(ctx, v)
	if err != nil {
		return VolumeState{}, err
	}
	defer f.Close() // read only
	return stateOf(f.FS, v.Capacity)
}
