package vsphere

import (
	"context"
	"io"

	"vic/layerstore"
)

// ContainerFS implements containervm.Disks.
func (d *Driver) ContainerFS(ctx context.Context, id string) (*layerstore.FS, error) {
	return d.o.Local.ContainerFS(ctx, id)
}

// OpenChanges implements containervm.Disks.
func (d *Driver) OpenChanges(ctx context.Context, id string) (*layerstore.ContainerChanges, error) {
	return d.o.Local.OpenChanges(ctx, id)
}

// ApplyToContainer implements containervm.Disks.
func (d *Driver) ApplyToContainer(ctx context.Context, id string, layer io.Reader) error {
	return d.o.Local.ApplyToContainer(ctx, id, layer)
}

// SettleContainer implements containervm.Disks.
func (d *Driver) SettleContainer(id string) error { return d.o.Local.SettleContainer(id) }
