package layerstore

import (
	"context"
	"fmt"
	"io"
	"os"
)

// ApplyToContainer applies the tar of a layer to the disk of a container, whose VM must not run,
// as if it were a layer's. An error leaves the file system as it was: one that wraps
// diskfs.ErrNoSpace if there is no room.
func (s *Store) ApplyToContainer(ctx context.Context, id string, layer io.Reader) error {
	if err := s.SettleContainer(id); err != nil {
		return err
	}
	if err := s.dir.applyLayer(ctx, layer, s.lim.Tar, func() (*guestDisk, error) { return s.dir.writableContainer(id) }); err != nil {
		return fmt.Errorf("write to container %s: %w", id, err)
	}
	return nil
}

// SettleContainer finishes an ApplyToContainer that was cut short after it was decided. It must have been called since the
// store's last crash before a VM uses a container's disk.
func (s *Store) SettleContainer(id string) error {
	if !containerID.MatchString(id) {
		return fmt.Errorf("settle disk of container: %q cannot be the ID of one", id)
	}
	if err := settle(s.dir.container(id), func() (*guestDisk, error) { return s.dir.writableContainer(id) }); err != nil {
		return fmt.Errorf("settle disk of container %s: %w", id, err)
	}
	return nil
}

func (d Dir) writableContainer(id string) (*guestDisk, error) {
	p, err := d.readPin(id)
	if err != nil {
		return nil, err
	}
	disk, err := d.openContainerDisk(p, os.O_RDWR)
	if err != nil {
		return nil, err
	}
	return d.openGuest(disk, d.container(id), nil), nil
}
