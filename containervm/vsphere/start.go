package vsphere

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/task"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"vic/containervm"
	datastore "vic/layerstore/vsphere"
	"vic/tether/wire"
)

// Start implements containervm.Hypervisor: one reconfiguration, and power. It goes on when ctx has ended.
func (d *Driver) Start(ctx context.Context, vm containervm.VM) (containervm.Machine, error) {
	m, err := d.start(ctx, vm)
	if err != nil {
		return nil, fmt.Errorf("start VM: %w", err)
	}
	return m, nil
}

// check refuses what cannot be had.
func check(vm containervm.VM) error {
	switch {
	case vm.Memory <= 0 || vm.CPUs <= 0:
		return fmt.Errorf("it is to have %d bytes and %d CPUs", vm.Memory, vm.CPUs)
	case len(vm.Shares) > 0:
		return refuse(containervm.ErrInvalid, "folders of the host cannot be shared with virtual machines on vSphere: use a volume")
	case len(vm.CPUSet) > 0:
		return refuse(containervm.ErrInvalid, "vSphere chooses the CPUs of a virtual machine: there is no set of them to choose from")
	case len(vm.Disks) >= slots-1:
		return refuse(containervm.ErrInvalid, "a container can have %d volumes on vSphere, not %d", slots-2, len(vm.Disks))
	case len(vm.NICs) > mostNICs:
		return refuse(containervm.ErrInvalid, "a virtual machine on vSphere has at most %d network interfaces", mostNICs)
	}
	for _, disk := range vm.Disks {
		var p object.DatastorePath
		if !p.FromString(disk.Path) || !strings.HasSuffix(p.Path, ".vmdk") {
			return refuse(containervm.ErrNotImplemented, "the volume's disk %s is not on a datastore: make the volume on a volume store of this container host", disk.Path)
		}
	}
	return nil
}

func (d *Driver) start(ctx context.Context, vm containervm.VM) (*machine, error) {
	if err := check(vm); err != nil {
		return nil, err
	}
	if err := d.Available(); err != nil {
		return nil, err
	}
	conf, err := wire.ParseConfig(vm.Config)
	if err != nil {
		return nil, err
	}
	iso, err := d.boot(ctx, vm.Boot)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), taskTime)
	defer cancel()
	unlock, err := d.take(ctx, vm.ID) // from who read it, whose context has ended
	if err != nil {
		return nil, err
	}
	unlock()
	m, err := d.newMachine(ctx, vm)
	if err != nil {
		return nil, err
	}
	if err := m.boot(ctx, vm, conf, iso); err != nil {
		m.shut()
		return nil, err
	}
	m.live()
	m.wg.Go(m.clear)
	return m, nil
}

var errDeleted = errors.New("it is gone: somebody has deleted it")

// boot gives the VM what it is to have in this run, and powers it on.
func (m *machine) boot(ctx context.Context, vm containervm.VM, conf *wire.Config, iso string) error {
	switch m.state() {
	case gone:
		return errDeleted
	case on, suspended:
		return errors.New("it runs already")
	case unknown:
		return fmt.Errorf("%w: nobody knows whether it runs: %s", datastore.ErrUnavailable, m.d.watch.lookUp(m.uuid).told.doubt())
	}
	if !m.rec.Mirrored { // an earlier run's, whose end nobody has seen
		if err := m.mirror(ctx); err != nil {
			return err
		}
		if err := syncFile(m.vm.Log); err != nil { // this run's begins behind it
			return err
		}
	}
	all, err := m.d.devices(ctx, m.ref)
	if isGone(err) { // it was before the watcher has seen it
		m.d.watch.forget(m.ref)
		return errDeleted
	}
	if err != nil {
		return err
	}
	before := m.rec
	m.rec.Run++
	m.rec.Mirrored, m.rec.Base, m.rec.Disks, m.rec.NICs = false, 0, len(vm.Disks) > 0, nil
	for _, n := range vm.NICs {
		m.rec.NICs = append(m.rec.NICs, nic(n))
	}
	if st, err := os.Stat(vm.Log); err == nil {
		m.rec.Base = st.Size()
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	m.rec.Past = before.retire(m.rec.Base)
	spec, err := m.d.runSpec(ctx, vm, conf, m.rec, iso, all)
	if err != nil {
		return err
	}
	if err := m.rec.write(m.vm.Dir); err != nil {
		return err
	}
	m.part = m.rec.part()
	if err := m.d.reconfigure(ctx, m.ref, spec); err != nil {
		m.d.forgetNetworks() // it may have been one of them
		return fmt.Errorf("reconfigure: %w", err)
	}
	if err := m.d.powerOn(ctx, m.ref); err != nil {
		if asked := m.ask(ctx); asked != nil || m.state() != on {
			return fmt.Errorf("power on: %w", m.d.o.Containers.Blame(err))
		}
		m.d.log.Warn("a VM is on, and the task has failed", "container", m.vm.ID, "error", err)
	}
	return m.awaitOn(ctx)
}

// devices are those that a VM has.
func (d *Driver) devices(ctx context.Context, ref types.ManagedObjectReference) ([]types.BaseVirtualDevice, error) {
	var vm mo.VirtualMachine
	err := d.o.Session.Call(ctx, func() error {
		return property.DefaultCollector(d.client).RetrieveOne(ctx, ref, []string{"config.hardware.device"}, &vm)
	})
	if err != nil {
		return nil, fmt.Errorf("list its devices: %w", err)
	}
	if vm.Config == nil {
		return nil, errors.New("vSphere does not know its devices: it is inaccessible")
	}
	return vm.Config.Hardware.Device, nil
}

// runSpec is what a VM's next run changes of it.
func (d *Driver) runSpec(ctx context.Context, vm containervm.VM, conf *wire.Config, rec record, iso string, all []types.BaseVirtualDevice) (spec types.VirtualMachineConfigSpec, err error) {
	spec.NumCPUs = int32(vm.CPUs)
	const unit = 4 << 20 // of which vSphere takes a multiple
	spec.MemoryMB = (vm.Memory + unit - 1) / unit * (unit >> 20)
	root := rootDisk(all)
	if root == nil {
		return spec, errors.New("it has no root disk")
	}
	conf.Root.Serial = serialOf(root)
	changes, err := d.serials(vm.ID, rec.Run, all)
	if err != nil {
		return spec, err
	}
	if c := cd(iso, all); c != nil {
		changes = append(changes, c)
		if len(devices[*types.VirtualCdrom](all)) == 0 {
			spec.BootOptions = &types.VirtualMachineBootOptions{BootOrder: []types.BaseVirtualMachineBootOptionsBootableDevice{
				&types.VirtualMachineBootOptionsBootableCdromDevice{}}}
		}
	}
	cards, err := d.cards(ctx, rec.NICs, all)
	if err != nil {
		return spec, err
	}
	disks, err := d.volumes(ctx, vm.Disks, conf, root.ControllerKey, all)
	if err != nil {
		return spec, err
	}
	spec.DeviceChange = append(append(changes, cards...), disks...)
	info, err := conf.GuestInfo()
	if err != nil {
		return spec, err
	}
	for key, value := range info {
		spec.ExtraConfig = append(spec.ExtraConfig, option(key, value))
	}
	return spec, nil
}

// serialOf is the serial number by which a guest finds a disk; "" if it has none.
func serialOf(disk *types.VirtualDisk) string {
	if b, ok := disk.Backing.(*types.VirtualDiskFlatVer2BackingInfo); ok {
		return serialNumber(b.Uuid)
	}
	return ""
}

// serialNumber is how a guest sees the UUID of a disk, in whichever way that is written.
func serialNumber(uuid string) string {
	return strings.ToLower(strings.NewReplacer("-", "", " ", "").Replace(uuid))
}

// powerOn powers a VM on. In a cluster with DRS that says where.
func (d *Driver) powerOn(ctx context.Context, ref types.ManagedObjectReference) error {
	err := d.powerOnHere(ctx, ref)
	if err != nil && !isIn(err, on) && !isGone(err) && !errors.Is(err, datastore.ErrUnavailable) {
		err = d.powerOnElsewhere(ctx, ref, err)
	}
	if isIn(err, on) { // by the call before, whose answer was lost
		return nil
	}
	return err
}

func (d *Driver) powerOnHere(ctx context.Context, ref types.ManagedObjectReference) error {
	if !d.client.IsVC() {
		vm := object.NewVirtualMachine(d.client, ref)
		return d.o.Session.Do(ctx, func() (*object.Task, error) { return vm.PowerOn(ctx) })
	}
	result, err := d.o.Session.Run(ctx, func() (*object.Task, error) {
		return d.dc.PowerOnVM(ctx, []types.ManagedObjectReference{ref},
			&types.OptionValue{Key: string(types.ClusterPowerOnVmOptionOverrideAutomationLevel), Value: string(types.DrsBehaviorFullyAutomated)})
	})
	if err != nil {
		return err
	}
	r, ok := result.(types.ClusterPowerOnVmResult)
	switch {
	case ok && len(r.NotAttempted) > 0:
		return task.Error{LocalizedMethodFault: &r.NotAttempted[0].Fault}
	case !ok || len(r.Attempted) == 0 || r.Attempted[0].Task == nil:
		return errors.New("vSphere has not tried to")
	}
	_, err = d.o.Session.Wait(ctx, object.NewTask(d.client, *r.Attempted[0].Task))
	return err
}

// Find implements containervm.Hypervisor. It waits for vSphere, and for what the log has of a run that has ended.
func (d *Driver) Find(ctx context.Context, vm containervm.VM) (containervm.Machine, error) {
	if err := d.watch.reach(ctx); err != nil {
		return nil, fmt.Errorf("find VM: %w", err)
	}
	m, err := d.newMachine(ctx, vm)
	if err != nil {
		return nil, fmt.Errorf("find VM: %w", err)
	}
	if p := m.state(); p != off && p != gone { // it may run
		m.live()
		return m, nil
	}
	defer m.shut()
	if err := m.end(ctx); err != nil {
		return nil, fmt.Errorf("find VM: %w", err)
	}
	return nil, containervm.ErrNoMachine
}

// PoweredOn implements containervm.Shared. VMs that are no container's of this host are passed over.
func (d *Driver) PoweredOn(ctx context.Context) (string, error) {
	for {
		uuid, err := d.watch.awaitBegun(ctx)
		if err != nil {
			return "", err
		}
		all, err := os.ReadDir(d.folderOf(""))
		if err != nil {
			d.log.Warn("find the container of a VM that was powered on", "error", err)
		}
		for _, e := range all {
			if UUID(e.Name()) == uuid && containervm.ValidID(e.Name()) {
				return e.Name(), nil
			}
		}
	}
}
