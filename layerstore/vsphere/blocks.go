//go:build linux

package vsphere

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"

	"vic/layerstore"
	"vic/vmdk"
)

// sendBlocks has the server make a disk over its parent, attached to this machine, and writes to it what the layers changed.
func (s *Store) sendBlocks(ctx context.Context, from *layerstore.Store, d *disk) error {
	if err := d.parent.wait(ctx); err != nil { // it is written: the content ID that the child notes would not stay
		return err
	}
	chain, err := from.OpenDisk(d.chain)
	if err != nil {
		return err
	}
	defer chain.Close() // read only
	var total int64
	for r, err := range chain.Runs(0) {
		if err != nil {
			return err
		}
		if r.Link < d.layers {
			total += r.Len
		}
	}
	d.total.Store(total)
	err = s.appliance.write(ctx, s.DiskPath(d.name), s.DiskPath(d.below()), chain.Capacity(), func(dev Device) error {
		if err := isParent(dev, from, d); err != nil {
			return err
		}
		return writeBlocks(ctx, dev, chain.Disk, d)
	})
	if err == nil {
		d.total.Store(d.sent.Load())
		err = s.recordMade(ctx, d)
	}
	if err != nil {
		if gone := s.removeDisk(context.WithoutCancel(ctx), d.name); gone != nil && !errors.Is(gone, fs.ErrNotExist) {
			s.log.Warn("remove a disk that was not finished", "disk", s.DiskPath(d.name), "error", gone)
		}
	}
	return err
}

// writeBlocks writes what the layers of a disk changed: large writes, in ascending order, of whole grains.
func writeBlocks(ctx context.Context, dev Device, chain *vmdk.Disk, d *disk) error {
	for b, err := range chain.Blocks(d.layers, vmdk.DefaultGrainSize) {
		if err == nil {
			err = ctx.Err()
		}
		if err == nil {
			_, err = dev.WriteAt(b.Data, b.Off)
		}
		if err != nil {
			return err
		}
		d.sent.Add(int64(len(b.Data)))
	}
	return nil
}

// isParent makes sure that a device shows what a disk's parent does, before anything is written: its first block is unlike that of other
// disks, by the file system's UUID or by being empty.
func isParent(dev Device, from *layerstore.Store, d *disk) error {
	got, want := make([]byte, vmdk.DefaultGrainSize), make([]byte, vmdk.DefaultGrainSize)
	if _, err := dev.ReadAt(got, 0); err != nil {
		return err
	}
	if d.parent != nil {
		parent, err := from.OpenDisk(d.parent.chain)
		if err != nil {
			return err
		}
		defer parent.Close() // read only
		if _, err := parent.ReadAt(want, 0); err != nil {
			return err
		}
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("the device that was found for disk %s does not show its parent %s", d.name, d.below())
	}
	return nil
}
