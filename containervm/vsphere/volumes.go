package vsphere

import (
	"context"
	"fmt"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"

	"vic/containervm"
	"vic/tether/wire"
)

// volumes are the changes that give a VM these disks beside its root's and no others. The guest knows each by its UUID, which is what the
// configuration says from now on.
func (d *Driver) volumes(ctx context.Context, disks []containervm.Disk, conf *wire.Config, controller int32, all []types.BaseVirtualDevice) ([]types.BaseVirtualDeviceConfigSpec, error) {
	changes := detach(all)
	unit := int32(0)
	for i, disk := range disks {
		if unit++; unit == ownSlot {
			unit++
		}
		var uuid string
		err := d.o.Session.Call(ctx, func() (err error) {
			uuid, err = object.NewVirtualDiskManager(d.client).QueryVirtualDiskUuid(ctx, disk.Path, d.dc)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("look at the volume's disk %s: %w", disk.Path, err)
		}
		for j := range conf.Mounts {
			if conf.Mounts[j].Serial == disk.Serial {
				conf.Mounts[j].Serial = serialNumber(uuid)
			}
		}
		mode := types.VirtualDiskModeIndependent_persistent
		if disk.ReadOnly { // so that others can have it, too
			mode = types.VirtualDiskModeIndependent_nonpersistent
		}
		changes = append(changes, add(&types.VirtualDisk{VirtualDevice: types.VirtualDevice{Key: nextKey - 30 - int32(i), ControllerKey: controller, UnitNumber: types.NewInt32(unit),
			Backing: &types.VirtualDiskFlatVer2BackingInfo{
				VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{FileName: disk.Path}, DiskMode: string(mode),
			}}}))
	}
	return changes, nil
}

// detach are the changes that take all disks but the root's out of a VM. Their files stay.
func detach(all []types.BaseVirtualDevice) []types.BaseVirtualDeviceConfigSpec {
	root := rootDisk(all)
	var changes []types.BaseVirtualDeviceConfigSpec
	for _, disk := range devices[*types.VirtualDisk](all) {
		if disk != root {
			changes = append(changes, remove(disk))
		}
	}
	return changes
}

// free takes the disks of volumes out of a VM that does not run: whoever deletes the VM deletes all disks that it has.
func (d *Driver) free(ctx context.Context, ref types.ManagedObjectReference, rec record) error {
	if !rec.Disks {
		return nil
	}
	all, err := d.devices(ctx, ref)
	if err != nil {
		return err
	}
	if changes := detach(all); len(changes) > 0 {
		return d.reconfigure(ctx, ref, types.VirtualMachineConfigSpec{DeviceChange: changes})
	}
	return nil
}

// freeDisks is free, by the record of a container.
func (d *Driver) freeDisks(ctx context.Context, id string, ref types.ManagedObjectReference) error {
	rec, err := readRecord(d.folderOf(id))
	if err != nil {
		rec.Disks = true // who knows
	}
	return d.free(ctx, ref, rec)
}
