package vsphere

import (
	"context"
	"errors"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"
)

// chooseHost chooses the host of a container's VM where vSphere does not, else nil: one that has all datastores of containers.
func (d *Driver) chooseHost(ctx context.Context) (*object.HostSystem, error) {
	stores := []types.ManagedObjectReference{d.o.Images.Reference(), d.o.Containers.Reference()}
	if d.o.Volumes != nil {
		stores = append(stores, d.o.Volumes.References()...)
	}
	return d.o.Session.ChooseHost(ctx, d.pool.Reference(), stores...)
}

// powerOnElsewhere powers a VM on that its host did not: on another, if it is this program that chooses.
func (d *Driver) powerOnElsewhere(ctx context.Context, ref types.ManagedObjectReference, why error) error {
	host, err := d.chooseHost(ctx)
	if err != nil {
		return errors.Join(why, err)
	}
	if host == nil {
		return why
	}
	d.log.Warn("power a VM on on another host", "vm", ref.Value, "host", host.Reference().Value, "reason", why)
	at := host.Reference()
	return d.o.Session.Do(ctx, func() (*object.Task, error) {
		res, err := methods.PowerOnVM_Task(ctx, d.client, &types.PowerOnVM_Task{This: ref, Host: &at})
		if err != nil {
			return nil, err
		}
		return object.NewTask(d.client, res.Returnval), nil
	})
}
