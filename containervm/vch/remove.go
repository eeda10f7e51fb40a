package vch

import (
	"context"
	"fmt"
	"path"

	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// removeEmpty removes a folder of a datastore if nothing is in it.
func (s *Site) removeEmpty(ctx context.Context, l location) error {
	d, err := s.open(ctx, l)
	if err != nil {
		return err
	}
	if list, there, err := listOrNone(ctx, d, "."); err != nil || !there || len(list) > 0 {
		return err
	}
	above := location{l.datastore, path.Dir(l.folder)}
	if above.folder == "." {
		above.folder = ""
	}
	if d, err = s.open(ctx, above); err != nil {
		return err
	}
	return d.RemoveAll(ctx, path.Base(l.folder))
}

// deleteDisk deletes a disk, if it is there.
func (s *Site) deleteDisk(ctx context.Context, name string) error {
	err := s.session.Do(ctx, func() (*object.Task, error) {
		return object.NewVirtualDiskManager(s.client).DeleteVirtualDisk(ctx, name, s.dc)
	})
	if fault.Is(err, &types.FileNotFound{}) {
		return nil
	}
	return err
}

// gone says whether an error is of an object that is there no more.
func gone(err error) bool { return fault.Is(err, &types.ManagedObjectNotFound{}) }

// powerOff powers a VM off, if it is on.
func (s *Site) powerOff(ctx context.Context, vm *object.VirtualMachine) error {
	err := s.session.Do(ctx, func() (*object.Task, error) { return vm.PowerOff(ctx) })
	if fault.Is(err, &types.InvalidPowerState{}) {
		return nil
	}
	return err
}

// destroy powers a VM off and destroys it with its disks, if it is there.
func (s *Site) destroy(ctx context.Context, vm *object.VirtualMachine) error {
	err := s.powerOff(ctx, vm)
	if err == nil {
		err = s.session.Do(ctx, func() (*object.Task, error) { return vm.Destroy(ctx) })
	}
	if gone(err) {
		return nil
	}
	return err
}

// removeAppliance destroys an appliance but not its state disk, nor any that it has hot-added.
func (s *Site) removeAppliance(ctx context.Context, vm *object.VirtualMachine) error {
	err := s.powerOff(ctx, vm)
	if err == nil {
		err = s.detachDisks(ctx, vm, func(string) bool { return true })
	}
	if gone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	return s.destroy(ctx, vm)
}

// detachDisks takes from a VM the disks with certain files; these stay on the datastore.
func (s *Site) detachDisks(ctx context.Context, vm *object.VirtualMachine, which func(file string) bool) error {
	devices, err := vm.Device(ctx)
	if err != nil {
		return err
	}
	var spec types.VirtualMachineConfigSpec
	for _, d := range devices.SelectByType((*types.VirtualDisk)(nil)) {
		// By its key alone: a disk that is told as it was read has all of its chain in it, and some ninety are too many for vCenter.
		own := d.GetVirtualDevice()
		if b, ok := own.Backing.(types.BaseVirtualDeviceFileBackingInfo); ok && !which(b.GetVirtualDeviceFileBackingInfo().FileName) {
			continue
		}
		spec.DeviceChange = append(spec.DeviceChange, change(types.VirtualDeviceConfigSpecOperationRemove, &types.VirtualDisk{VirtualDevice: types.VirtualDevice{
			Key: own.Key, ControllerKey: own.ControllerKey, UnitNumber: own.UnitNumber}}))
	}
	if len(spec.DeviceChange) == 0 {
		return nil
	}
	return s.session.Do(ctx, func() (*object.Task, error) { return vm.Reconfigure(ctx, spec) })
}

// removePool removes a resource pool that has nothing in it, or only VMs that go to its parent with the caller's knowledge.
func (s *Site) removePool(ctx context.Context, ref types.ManagedObjectReference, leaving ...types.ManagedObjectReference) error {
	var m mo.ResourcePool
	err := s.properties(ctx, ref, &m, "vm", "resourcePool", "name")
	if gone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if left := len(m.ResourcePool) + others(m.Vm, leaving); left > 0 {
		return fmt.Errorf("%d other VMs or pools are in resource pool %s: it stays", left, m.Name)
	}
	return s.session.Do(ctx, func() (*object.Task, error) { return object.NewResourcePool(s.client, ref).Destroy(ctx) })
}

// removeFolder removes a folder of VMs that has nothing in it.
func (s *Site) removeFolder(ctx context.Context, f types.ManagedObjectReference) error {
	var m mo.Folder
	err := s.properties(ctx, f, &m, "childEntity", "name")
	if gone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if left := len(m.ChildEntity); left > 0 {
		return fmt.Errorf("%d other VMs or folders are in folder %s: it stays", left, m.Name)
	}
	return s.session.Do(ctx, func() (*object.Task, error) { return object.NewFolder(s.client, f).Destroy(ctx) })
}

// others counts the references that are not among some.
func others(all, some []types.ManagedObjectReference) (n int) {
	for _, r := range all {
		found := false
		for _, o := range some {
			found = found || r == o
		}
		if !found {
			n++
		}
	}
	return n
}
