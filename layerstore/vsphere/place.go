package vsphere

import (
	"context"
	"fmt"

	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
)

// A Place says where virtual machines are made.
type Place struct {
	Pool   string // inventory path of the resource pool; "" is the only one there is
	Folder string // inventory path of the folder; "" is the datacenter's own
}

// find finds them in the datastore's datacenter.
func (p Place) find(ctx context.Context, d *Datastore) (*object.ResourcePool, *object.Folder, error) {
	f := find.NewFinder(d.s.client, false)
	f.SetDatacenter(d.dc)
	pool, err := f.ResourcePoolOrDefault(ctx, p.Pool)
	if err != nil {
		return nil, nil, fmt.Errorf("find resource pool: %w", suggest(ctx, err, func(ctx context.Context) ([]string, error) {
			var paths []string
			all, err := f.ResourcePoolList(ctx, "*/Resources/...")
			for _, p := range all {
				paths = append(paths, p.InventoryPath)
			}
			return paths, err
		}))
	}
	folder, err := f.FolderOrDefault(ctx, p.Folder)
	if err != nil {
		return nil, nil, fmt.Errorf("find folder of virtual machines: %w", err)
	}
	return pool, folder, nil
}
