package vsphere

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"vic/containervm"
	datastore "vic/layerstore/vsphere"
)

// changedFile says, while it is in the container's folder, that the disk there holds more than the VM's does.
const changedFile = "changed.json"

// ApplyToContainer implements containervm.Disks: on this machine, and then by bringing the whole delta to the datastore.
func (d *Driver) ApplyToContainer(ctx context.Context, id string, layer io.Reader) error {
	if err := d.bring(ctx, id); err != nil {
		return err
	}
	if _, err := d.root(ctx, id); err != nil { // nothing is begun that cannot be finished
		return fmt.Errorf("write to the container's VM: %w", err)
	}
	if err := containervm.WriteFile(filepath.Join(d.folderOf(id), changedFile), []byte("{}")); err != nil {
		return err
	}
	if err := d.o.Local.ApplyToContainer(ctx, id, layer); err != nil {
		return errors.Join(err, d.unmark(id)) // it is as it was, or was decided and will be settled
	}
	return d.sendBack(ctx, id)
}

// SettleContainer implements containervm.Disks: it also brings to the datastore what was not.
func (d *Driver) SettleContainer(id string) error {
	if err := d.o.Local.SettleContainer(id); err != nil {
		return err
	}
	_, err := os.Stat(filepath.Join(d.folderOf(id), changedFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), taskTime)
	defer cancel()
	return d.sendBack(ctx, id)
}

// sendBack makes the delta of a container's VM what the one in the container's folder is.
func (d *Driver) sendBack(ctx context.Context, id string) error {
	err := d.sendDelta(ctx, id)
	if err == nil {
		err = d.unmark(id)
	}
	if err != nil {
		return fmt.Errorf("bring the container's disk to its VM: %w", err)
	}
	return nil
}

func (d *Driver) unmark(id string) error {
	return os.Remove(filepath.Join(d.folderOf(id), changedFile))
}

func (d *Driver) sendDelta(ctx context.Context, id string) error {
	defer d.lock(id)()
	r, err := d.root(ctx, id)
	if err != nil {
		return err
	}
	if r.extent == "" {
		return d.attached(ctx, id, r, func(dev datastore.Device) error { return d.o.Local.WriteContainerBlocks(ctx, id, dev) })
	}
	disk, err := d.o.Local.OpenContainerDisk(id)
	if err != nil {
		return err
	}
	defer disk.Close() // read only
	extent, err := disk.Extent()
	if err != nil {
		return err
	}
	if r.cowd {
		c, err := disk.COWD(1)
		if err != nil {
			return err
		}
		extent = io.NewSectionReader(c, 0, c.Size())
	}
	return d.o.Containers.Put(ctx, r.extent, extent.Size(), func() (io.ReadCloser, error) {
		return io.NopCloser(io.NewSectionReader(extent, 0, extent.Size())), nil
	}, nil)
}
