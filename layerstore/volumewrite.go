package layerstore

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"vic/diskfs"
)

// A volume whose disk is elsewhere is written as one of the store is, but through what VolumeDisks.Write gives. The redo file is in
// the volume's folder in the store. It counts only as long as the VolumeDisks keep others from the disk: who removes what does so has
// given up the changes.

// applyDistant is ApplyToVolume.
func (s *Store) applyDistant(ctx context.Context, v *Volume, layer io.Reader) error {
	if s.volumeDisks == nil {
		return v.distant()
	}
	stream, err := s.dir.tempFile()
	if err != nil {
		return err
	}
	defer stream.Close()
	out := bufio.NewWriterSize(stream, 1<<20)
	cs, err := diskfs.ReadTar(layer, out, nil, s.lim.Tar)
	if err != nil || cs.Len() == 0 {
		return err
	}
	defer s.writes.lock(v.Name)()
	if err := s.settleDistant(ctx, v); err != nil {
		return err
	}
	return s.writeDistant(ctx, v, func(g *guestDisk) error {
		if err := g.decide(ctx, cs, stream, out); err != nil {
			return err
		}
		return g.redo()
	})
}

// writeDistant calls fn with the disk of a volume.
func (s *Store) writeDistant(ctx context.Context, v *Volume, fn func(*guestDisk) error) error {
	folder := s.dir.volume(v.Name)
	return s.volumeDisks.Write(ctx, v.Disk, func(d GuestDevice, capacity int64) error {
		err := fn(&guestDisk{GuestDevice: d, capacity: capacity, store: s.dir, folder: folder})
		if err != nil {
			if there, statErr := exists(filepath.Join(folder, redoFile)); there || statErr != nil {
				err = fmt.Errorf("%w: %w", ErrUnsettled, err)
			}
		}
		return err
	})
}

// settleDistant finishes what was decided for the disk of a volume and not done, or forgets it if others were let to the disk since. Call it with the
// volume's lock of writes held.
func (s *Store) settleDistant(ctx context.Context, v *Volume) error {
	unsettled, err := s.volumeDisks.Unsettled(v.Disk)
	if err != nil {
		return err
	}
	redo := filepath.Join(s.dir.volume(v.Name), redoFile)
	there, err := exists(redo)
	switch {
	case err != nil:
		return err
	case unsettled:
		return s.writeDistant(ctx, v, func(g *guestDisk) error {
			if !there {
				return nil // and nothing of the disk counts that was written
			}
			return g.redo()
		})
	case there:
		s.log.Warn("a copy into a volume was given up: nothing keeps others from its disk any more", "volume", v.Name)
		if err := os.Remove(redo); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return syncDir(s.dir.volume(v.Name))
	}
	return nil
}

// settleBefore is settleDistant for who is about to use the disk of a volume.
func (s *Store) settleBefore(ctx context.Context, v *Volume) error {
	defer s.writes.lock(v.Name)()
	if err := s.settleDistant(ctx, v); err != nil {
		if busy := (*VolumeBusyError)(nil); errors.As(err, &busy) {
			return err
		}
		return fmt.Errorf("settle disk of volume %s: %w", v.Name, err)
	}
	return nil
}

// SettleVolumes finishes what copies into volumes whose disks are elsewhere have left that were cut short, so that other hosts can use
// them again. Call it after Volumes, which finds them.
func (s *Store) SettleVolumes(ctx context.Context) error {
	if s.volumeDisks == nil {
		return nil
	}
	left := map[string]bool{}
	for _, disk := range s.volumeDisks.Left() {
		left[disk] = true
	}
	if len(left) == 0 {
		return nil
	}
	names, err := listDir(s.dir.volumes())
	for _, name := range names {
		v, readErr := s.dir.readVolume(name)
		if readErr == nil && left[v.Disk] { // others tell of those that are damaged
			err = errors.Join(err, s.settleBefore(ctx, v))
		}
	}
	return err
}
