package vsphere

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"time"

	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"
)

// probeController is the key of the SCSI controller in what the machines are made of.
const probeController = -100

// machine is the name of a virtual machine of the probe.
func (p *prober) machine(suffix string) string { return p.name + "-" + suffix }

// createVM makes a virtual machine with a disk over another, as a container's, and tells what that is.
func (p *prober) createVM(ctx context.Context, suffix, parent string) (string, error) {
	pool, folder, err := p.o.Place.find(ctx, p.d)
	if err != nil {
		return "", err
	}
	host, err := p.d.s.ChooseHost(ctx, pool.Reference(), p.d.Reference())
	if err != nil {
		return "", err
	}
	controller := &types.ParaVirtualSCSIController{}
	controller.Key, controller.SharedBus = probeController, types.VirtualSCSISharingNoSharing
	disk := "disk-" + suffix
	p.vms = append(p.vms, p.machine(suffix))
	err = p.d.s.Do(ctx, func() (*object.Task, error) {
		return folder.CreateVM(ctx, types.VirtualMachineConfigSpec{
			Name: p.machine(suffix), GuestId: string(types.VirtualMachineGuestOsIdentifierOtherGuest64), NumCPUs: 1, MemoryMB: 64,
			Files: &types.VirtualMachineFileInfo{VmPathName: p.d.ds.Path("")},
			DeviceChange: []types.BaseVirtualDeviceConfigSpec{
				&types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationAdd, Device: controller},
				attach(p.d.Path(disk+".vmdk"), parent, -101, place{probeController, 0}),
			},
		}, pool, host)
	})
	if err != nil {
		return "", err
	}
	return p.formatOf(ctx, disk)
}

// find looks a virtual machine up; nil is none.
func (p *prober) find(ctx context.Context, name string) (*object.VirtualMachine, error) {
	_, folder, err := p.o.Place.find(ctx, p.d)
	if err != nil {
		return nil, err
	}
	ref, err := object.NewSearchIndex(p.d.s.client).FindChild(ctx, folder, name)
	if err != nil || ref == nil {
		return nil, err
	}
	return object.NewVirtualMachine(p.d.s.client, ref.Reference()), nil
}

// power switches a virtual machine on or off.
func (p *prober) power(ctx context.Context, suffix string, on bool) error {
	vm, err := p.find(ctx, p.machine(suffix))
	if err != nil {
		return err
	}
	if vm == nil {
		return fmt.Errorf("virtual machine %s is gone", p.machine(suffix))
	}
	return p.d.s.Do(ctx, func() (*object.Task, error) {
		if on {
			return vm.PowerOn(ctx)
		}
		return vm.PowerOff(ctx)
	})
}

// powerCycle switches a virtual machine on and off again.
func (p *prober) powerCycle(ctx context.Context, suffix string) error {
	if err := p.power(ctx, suffix, true); err != nil {
		return err
	}
	return p.power(ctx, suffix, false)
}

// running is the virtual machine that runs, of which only the disks change.
func (p *prober) running(ctx context.Context) (*OwnVM, error) {
	vm, err := p.find(ctx, p.machine("child"))
	if err != nil {
		return nil, err
	}
	if vm == nil {
		return nil, errors.New("the virtual machine is gone")
	}
	return &OwnVM{s: p.d.s, vm: vm, slots: make(chan struct{}, maxAttached), turn: make(chan struct{}, 1)}, nil
}

// lend adds the disk of a virtual machine that is off to the one that runs, takes it away, and lets the first run: as an appliance reads
// the disk of a container that has stopped.
func (p *prober) lend(ctx context.Context, parent string) error {
	if _, err := p.createVM(ctx, "lender", parent); err != nil {
		return err
	}
	own, err := p.running(ctx)
	if err != nil {
		return err
	}
	lent := &change{file: p.d.Path("disk-lender.vmdk")}
	if err := own.reconfigure(ctx, []*change{lent})[0]; err != nil {
		return err
	}
	if err := own.reconfigure(ctx, []*change{{key: lent.key}})[0]; err != nil {
		return err
	}
	return p.powerCycle(ctx, "lender")
}

// hotAdd makes so many children in one change of the virtual machine that runs, and takes them away in another, some times.
func (p *prober) hotAdd(ctx context.Context, parent string, n int) (string, error) {
	own, err := p.running(ctx)
	if err != nil {
		return "", err
	}
	var added, removed time.Duration
	for range probeRepetition {
		var attach, detach []*change
		for range n {
			p.children++
			attach = append(attach, &change{file: p.d.Path(fmt.Sprintf("hot%d.vmdk", p.children)), parent: parent})
		}
		begun := time.Now()
		if err := errors.Join(own.reconfigure(ctx, attach)...); err != nil {
			return "", err
		}
		added += time.Since(begun)
		for _, c := range attach {
			detach = append(detach, &change{key: c.key})
		}
		begun = time.Now()
		if err := errors.Join(own.reconfigure(ctx, detach)...); err != nil {
			return "", err
		}
		removed += time.Since(begun)
	}
	return fmt.Sprintf("%.2f s to add, %.2f s to remove", (added / probeRepetition).Seconds(), (removed / probeRepetition).Seconds()), nil
}

// destroyVM removes a virtual machine with its disks, if it is there.
func (p *prober) destroyVM(ctx context.Context, name string) error {
	vm, err := p.find(ctx, name)
	if err != nil || vm == nil {
		return err
	}
	err = p.d.s.Do(ctx, func() (*object.Task, error) { return vm.PowerOff(ctx) })
	if err != nil && !fault.Is(err, &types.InvalidPowerState{}) {
		return err
	}
	err = p.d.s.Do(ctx, func() (*object.Task, error) { return vm.Destroy(ctx) })
	if fault.Is(err, &types.ManagedObjectNotFound{}) {
		return nil
	}
	return err
}

// clean removes what the probe made.
func (p *prober) clean(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), probeEnd)
	defer cancel()
	left := func(what string, err error) {
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			p.report.Left = append(p.report.Left, fmt.Sprintf("%s: %v", what, err))
		}
	}
	for _, name := range p.vms {
		left("virtual machine "+name, p.destroyVM(ctx, name))
	}
	// Disks that are objects of vSAN are not removed with their folder.
	list, err := p.d.List(ctx, ".")
	left(p.d.Path("."), err)
	for _, e := range list {
		if name, suffix := cutSuffix(e.Name); suffix == ".vmdk" {
			if err := p.d.deleteDisk(ctx, name+".vmdk"); err != nil && ctx.Err() == nil {
				continue // it goes with the folder, or that cannot be removed
			}
		}
	}
	parent := p.d.at(path.Dir(p.d.root))
	left(parent.Path(p.name), parent.Remove(ctx, p.name))
}

// findLeft notes what probes have left that were killed.
func (p *prober) findLeft(ctx context.Context, d *Datastore) error {
	list, err := d.List(ctx, ".")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range list {
		if isProbe(e.Name) {
			p.report.Left = append(p.report.Left, d.Path(e.Name))
		}
	}
	_, folder, err := p.o.Place.find(ctx, d)
	if err != nil {
		return err
	}
	f := find.NewFinder(d.s.client, false)
	f.SetDatacenter(d.dc)
	vms, err := f.VirtualMachineList(ctx, path.Join(folder.InventoryPath, probePrefix+"*"))
	var none *find.NotFoundError
	if err != nil && !errors.As(err, &none) {
		return err
	}
	for _, vm := range vms {
		p.report.Left = append(p.report.Left, "virtual machine "+vm.Name())
	}
	return nil
}
