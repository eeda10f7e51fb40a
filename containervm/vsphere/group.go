package vsphere

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/vmware/govmomi/vim25/types"

	"vic/containervm"
	"vic/containervm/vmgroup"
)

// findGroup finds the cluster whose DRS has the group.
func (d *Driver) findGroup(ctx context.Context) error {
	cluster, ok, err := vmgroup.Cluster(ctx, d.o.Session, d.pool.Reference())
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("VM group %s: the resource pool is of a host and no cluster", d.o.Group)
	}
	d.group = vmgroup.New(d.o.Session, cluster, d.o.Group)
	return nil
}

// enrol makes a container's VM a member of the group, if there is one.
func (d *Driver) enrol(ctx context.Context, vm types.ManagedObjectReference) error {
	if d.group == nil {
		return nil
	}
	err := d.group.Add(ctx, vm)
	if errors.Is(err, vmgroup.ErrNone) {
		return fmt.Errorf("%w: somebody has removed it; vic-machine configure --affinity-vm-group makes it again", err)
	}
	return err
}

// enrolAll makes the VMs of the containers that there are members of the group. Those that cannot be run on.
func (d *Driver) enrolAll(ctx context.Context) {
	if d.group == nil {
		return
	}
	all, err := os.ReadDir(d.folderOf(""))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.log.Error("find the VMs that belong into the VM group", "error", err)
	}
	var vms []types.ManagedObjectReference
	for _, e := range all {
		if v := d.watch.lookUp(UUID(e.Name())); v.power != gone && containervm.ValidID(e.Name()) {
			vms = append(vms, v.ref)
		}
	}
	if err := d.group.Add(ctx, vms...); err != nil {
		d.log.Error("have containers' VMs in their VM group", "error", err)
	}
}

// dismiss takes a VM that was destroyed out of the group. vCenter has done so, most likely.
func (d *Driver) dismiss(ctx context.Context, vm types.ManagedObjectReference) {
	if d.group == nil {
		return
	}
	if err := d.group.Drop(ctx, vm); err != nil {
		d.log.Warn("take a VM that is gone out of its VM group", "vm", vm.Value, "error", err)
	}
}
