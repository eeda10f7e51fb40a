//go:build linux

package vsphere

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"vic/layerstore"
	"vic/vmdk"
)

// Use implements layerstore.VolumeDisks.
func (v *Volumes) Use(disk string, used bool) error {
	ctx, cancel := volumeContext()
	defer cancel()
	d, name, err := v.find(disk)
	if err != nil {
		return err
	}
	volume, id, err := splitName(name)
	if err != nil || v.Used(disk) == used {
		return err
	}
	file := path.Join(volumesFolder, volume, v.vch+usesSuffix)
	if !used {
		if err := d.RemoveAll(ctx, file); err != nil {
			return err
		}
		v.setUses(disk, false)
		return nil
	}
	// Who removes the volume looks for the file after the folder has lost its name, and so one of the two sees the other.
	err = d.putRecord(ctx, file, struct{}{})
	f, lookErr := v.look(ctx, d, volume)
	if lookErr == nil && slices.Contains(f.ids, id) {
		if err == nil {
			v.setUses(disk, true)
		}
		return err
	}
	if errors.Is(lookErr, fs.ErrNotExist) {
		lookErr = errors.Join(fmt.Errorf("get %s: no such volume: another host has just removed it: %w", volume, layerstore.ErrNotFound), v.clear(ctx, d, volume))
	}
	return errors.Join(err, lookErr)
}

// Used implements layerstore.VolumeDisks.
func (v *Volumes) Used(disk string) bool {
	v.usesMu.Lock()
	defer v.usesMu.Unlock()
	return v.uses[disk]
}

func (v *Volumes) setUses(disk string, used bool) {
	v.usesMu.Lock()
	defer v.usesMu.Unlock()
	if used {
		v.uses[disk] = true
	} else {
		delete(v.uses, disk)
	}
}

// A diskUser is a virtual machine that has a volume's disk.
type diskUser struct {
	Name   string
	vm     mo.VirtualMachine
	disk   *types.VirtualDisk
	runs   bool
	writes bool // what it writes stays
}

// machines are the virtual machines that have a volume's disk, as far as the server shows them to this user.
func (v *Volumes) machines(ctx context.Context, d *Datastore, name string) ([]diskUser, error) {
	vms, err := d.s.machines(ctx)
	if err != nil {
		return nil, err
	}
	file := d.Path(name + ".vmdk")
	var users []diskUser
	for _, vm := range vms {
		if vm.Config == nil { // of one that is being made
			continue
		}
		for _, dev := range vm.Config.Hardware.Device {
			disk, ok := dev.(*types.VirtualDisk)
			if !ok || !slices.Contains(lineage(disk), file) {
				continue
			}
			b, ok := disk.Backing.(*types.VirtualDiskFlatVer2BackingInfo)
			users = append(users, diskUser{Name: vm.Name, vm: vm, disk: disk, runs: vm.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOff,
				writes: !ok || b.DiskMode != string(types.VirtualDiskModeIndependent_nonpersistent)})
		}
	}
	return users, nil
}

// inUseBy returns the error for a volume that virtual machines have.
func inUseBy(disk string, users []diskUser) error {
	e := &layerstore.VolumeBusyError{Name: volumeOf(disk)}
	for _, u := range users {
		e.Containers = append(e.Containers, u.Name)
	}
	return e
}

// volumeOf is the name of the volume whose disk this is.
func volumeOf(disk string) string {
	name, _, err := splitName(path.Base(disk))
	if err != nil {
		return disk
	}
	return name
}

// running leaves those that run.
func running(users []diskUser) []diskUser {
	return slices.DeleteFunc(users, func(u diskUser) bool { return !u.runs })
}

// Open implements layerstore.VolumeDisks: by ranges of the extent's file, or where that is none by the virtual machine in which this runs.
func (v *Volumes) Open(ctx context.Context, disk string) (layerstore.VolumeReader, int64, error) {
	d, name, err := v.find(disk)
	if err != nil {
		return nil, 0, err
	}
	users, err := v.machines(ctx, d, name)
	if err != nil {
		return nil, 0, err
	}
	writers := slices.DeleteFunc(running(users), func(u diskUser) bool { return !u.writes || v.own != nil && v.own.is(u.vm.Self) })
	if len(writers) > 0 {
		return nil, 0, inUseBy(disk, writers)
	}
	link, err := d.openLink(ctx, name, newCache()) // its own: volumes change
	if errors.Is(err, ErrForeign) && v.own != nil {
		return v.openAttached(ctx, disk)
	}
	if errors.Is(err, ErrForeign) {
		return nil, 0, &layerstore.DistantVolumeError{Name: volumeOf(disk), Disk: d.Path(name + ".vmdk"), Unreadable: true}
	}
	if err != nil {
		return nil, 0, fmt.Errorf("disk %s: %w", d.Path(name+".vmdk"), err)
	}
	chain, err := vmdk.OpenDisk([]vmdk.Link{link})
	if err != nil {
		return nil, 0, fmt.Errorf("disk %s: %w", d.Path(name+".vmdk"), err)
	}
	return byFile{chain}, chain.Capacity(), nil
}

// byFile is a disk that is read by ranges of files, which are not open between.
type byFile struct{ *vmdk.Disk }

func (byFile) Close() error { return nil }

// Grow implements layerstore.VolumeDisks. The disk of a virtual machine that runs is enlarged through that.
func (v *Volumes) Grow(disk string, capacity int64) (int64, error) {
	ctx, cancel := volumeContext()
	defer cancel()
	d, name, err := v.find(disk)
	if err != nil {
		return 0, err
	}
	desc, err := d.descriptor(ctx, name)
	if err != nil || capacity <= desc.Capacity() {
		return capacityOf(desc), err
	}
	users, err := v.machines(ctx, d, name)
	if err != nil {
		return 0, err
	}
	users = running(users)
	switch {
	case len(users) == 1 && users[0].writes:
		err = v.growHot(ctx, d, users[0], capacity)
	case len(users) > 0:
		err = inUseBy(disk, users)
	default:
		err = d.s.Do(ctx, func() (*object.Task, error) {
			return object.NewVirtualDiskManager(d.s.client).ExtendVirtualDisk(ctx, d.Path(name+".vmdk"), d.dc, capacity>>10, types.NewBool(false))
		})
	}
	// Whatever the answer was: it may have been that of a second try.
	if desc, readErr := d.descriptor(ctx, name); readErr == nil && desc.Capacity() >= capacity {
		return desc.Capacity(), nil
	}
	if err == nil {
		err = errors.New("the server says that it has done so, and has not")
	}
	return 0, unavailable(err)
}

func capacityOf(desc *vmdk.Descriptor) int64 {
	if desc == nil {
		return 0
	}
	return desc.Capacity()
}

// growHot has a virtual machine that runs enlarge its disk. It takes no snapshots of volumes, and so there is nothing in the way.
func (v *Volumes) growHot(ctx context.Context, d *Datastore, u diskUser, capacity int64) error {
	disk := *u.disk
	disk.CapacityInBytes, disk.CapacityInKB = capacity, capacity>>10
	spec := types.VirtualMachineConfigSpec{DeviceChange: []types.BaseVirtualDeviceConfigSpec{
		&types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationEdit, Device: &disk},
	}}
	return d.s.Do(ctx, func() (*object.Task, error) {
		return object.NewVirtualMachine(d.s.client, u.vm.Reference()).Reconfigure(ctx, spec)
	})
}
