package vsphere

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// An OwnVM is the virtual machine in which this program runs: disks that are attached to it are devices here. Changes to it that
// are asked for while one is under way go together, in one call of the server.
type OwnVM struct {
	s       *Session
	uuid    string
	devices Devices
	slots   chan struct{} // holds one for each disk that is attached to be written, or about to be

	turn     chan struct{} // holds one while somebody talks to the server, who guards what follows
	vm       *object.VirtualMachine
	hardware []types.BaseVirtualDevice // as it was when it was last looked

	mu      sync.Mutex // guards what follows
	queue   []*change
	writing map[string]bool // datastore paths of the disks that write is about
	leaving map[place]bool  // of disks that are detached, whose devices may be there yet
}

// Devices finds the devices of disks that were attached to the own virtual machine. LinuxDevices is those of this machine.
type Devices interface {
	// Open waits until the device of a disk is there, and opens it for this program alone.
	Open(ctx context.Context, d AttachedDisk) (Device, error)
	// Gone waits until the device of a disk that was detached is there no more: it shows whatever is attached in its place.
	Gone(ctx context.Context, d AttachedDisk) error
}

// A Device is an attached disk, open for writing. *os.File is one.
type Device interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Sync() error
}

// An AttachedDisk is what the server says of a disk on a SCSI controller of the own virtual machine.
type AttachedDisk struct {
	Path     string // datastore path of its descriptor
	UUID     string // of the disk, as the server writes it; children may have their parent's
	Target   int    // on its controller: the unit number
	Capacity int64  // bytes
}

const (
	// maxAttached bounds how many disks are written at the same time. A controller has fifteen places.
	maxAttached = 8
	// deviceWait bounds how long a disk that is attached needs to become a device.
	deviceWait = 2 * time.Minute
	// goneWait bounds how long the device of one that is detached is waited for to go. It does no harm if it stays, until another comes.
	goneWait = 10 * time.Second
	// reconfigureLimit bounds a change of the virtual machine, which is never broken off.
	reconfigureLimit = 10 * time.Minute
	// controllerUnit is the place on a SCSI bus that the controller itself has.
	controllerUnit = 7
	scsiUnits      = 16
)

// FindOwnVM finds the virtual machine in which this program runs, by its BIOS UUID, which BIOSUUID reads.
func (s *Session) FindOwnVM(ctx context.Context, uuid string, devices Devices) (*OwnVM, error) {
	v := &OwnVM{s: s, uuid: uuid, devices: devices, slots: make(chan struct{}, maxAttached), turn: make(chan struct{}, 1), writing: map[string]bool{}, leaving: map[place]bool{}}
	if err := v.find(ctx); err != nil {
		return nil, err
	}
	return v, nil
}

// find looks it up: it has another reference when it was registered anew.
func (v *OwnVM) find(ctx context.Context) error {
	all, err := object.NewSearchIndex(v.s.client).FindAllByUuid(ctx, nil, v.uuid, true, nil)
	if err != nil {
		return fmt.Errorf("find the virtual machine in which this runs: %w", unavailable(err))
	}
	if len(all) != 1 {
		return fmt.Errorf("%d virtual machines of %s have the BIOS UUID %s, that of the one in which this runs", len(all), v.s.client.URL().Host, v.uuid)
	}
	v.vm, v.hardware = object.NewVirtualMachine(v.s.client, all[0].Reference()), nil
	return nil
}

// write has the server make a disk over its parent, both datastore paths, and fill write to its device. The disk is attached
// meanwhile, and whole afterwards, unless there is an error.
func (v *OwnVM) write(ctx context.Context, file, parent string, capacity int64, fill func(Device) error) (err error) {
	return v.use(ctx, func() (*ownDisk, error) { return v.attach(ctx, &change{file: file, parent: parent}, capacity) }, fill)
}

// A detachError says that a disk may still be attached.
type detachError struct {
	file string
	err  error
}

func (e *detachError) Error() string {
	return fmt.Sprintf("detach disk %s from the virtual machine in which this runs: %v", e.file, e.err)
}

func (e *detachError) Unwrap() error { return e.err }

// With attaches a disk, by its datastore path, that no virtual machine which runs has, for as long as use reads and writes its device.
func (v *OwnVM) With(ctx context.Context, file string, capacity int64, use func(Device) error) error {
	return v.use(ctx, func() (*ownDisk, error) { return v.attachAgain(ctx, file, capacity) }, use)
}

// use attaches a disk for as long as fill does something with its device.
func (v *OwnVM) use(ctx context.Context, attach func() (*ownDisk, error), fill func(Device) error) error {
	free, err := v.take(ctx)
	if err != nil {
		return err
	}
	defer free()
	d, err := attach()
	if err != nil {
		return err
	}
	if err = fill(d); err == nil {
		err = d.Sync()
	}
	return errors.Join(err, d.detach(ctx))
}

// take waits until so few disks are attached that there is room for another, until free is called.
func (v *OwnVM) take(ctx context.Context) (free func(), err error) {
	select {
	case v.slots <- struct{}{}:
		return func() { <-v.slots }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// An ownDisk is a disk that is attached, open for this program alone.
type ownDisk struct {
	Device
	v      *OwnVM
	change *change
}

// attach attaches a disk and opens its device. The caller has room for it.
func (v *OwnVM) attach(ctx context.Context, c *change, capacity int64) (_ *ownDisk, err error) {
	v.note(c.file, true)
	if err := v.apply(ctx, c); err != nil {
		v.note(c.file, false)
		return nil, fmt.Errorf("attach disk %s to the virtual machine in which this runs: %w", c.file, err)
	}
	d := &ownDisk{v: v, change: c}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.detach(ctx))
		}
	}()
	if c.disk.Capacity != capacity {
		return nil, fmt.Errorf("disk %s has %d bytes, want %d", c.file, c.disk.Capacity, capacity)
	}
	wait, cancel := context.WithTimeout(ctx, deviceWait)
	defer cancel()
	dev, err := v.devices.Open(wait, c.disk)
	if err != nil {
		return nil, fmt.Errorf("open the device of disk %s: %w", c.file, err)
	}
	d.Device = dev
	return d, nil
}

// attachAgain is attach for a disk that is there, and may be attached already.
func (v *OwnVM) attachAgain(ctx context.Context, file string, capacity int64) (*ownDisk, error) {
	if err := v.DetachLeft(ctx, func(f string) bool { return f == file }); err != nil {
		return nil, &detachError{file, err}
	}
	return v.attach(ctx, &change{file: file}, capacity)
}

// detach closes the device and detaches the disk. It is not broken off. The error wraps a *detachError if the disk may still be attached.
func (d *ownDisk) detach(ctx context.Context) (err error) {
	defer d.v.note(d.change.file, false)
	if d.Device != nil {
		err = d.Close()
	}
	if gone := d.v.leave(ctx, d.change.at, d.change.disk, d.change.key); gone != nil {
		err = errors.Join(err, &detachError{d.change.file, gone})
	}
	return err
}

// leave detaches a disk, and waits for its device to go: nothing gets its place before. It is not broken off.
func (v *OwnVM) leave(ctx context.Context, at place, disk AttachedDisk, key int32) error {
	v.setLeaving(at, true)
	defer v.setLeaving(at, false)
	if err := v.apply(ctx, &change{key: key}); err != nil {
		return err
	}
	wait, cancel := context.WithTimeout(context.WithoutCancel(ctx), goneWait)
	defer cancel()
	if err := v.devices.Gone(wait, disk); err != nil {
		v.s.log.Warn("wait for the device of a disk that is detached to go", "disk", disk.Path, "error", err)
	}
	return nil
}

func (v *OwnVM) setLeaving(at place, leaving bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if leaving {
		v.leaving[at] = true
	} else {
		delete(v.leaving, at)
	}
}

// is tells whether a virtual machine is this one.
func (v *OwnVM) is(ref types.ManagedObjectReference) bool {
	v.turn <- struct{}{}
	defer func() { <-v.turn }()
	return v.vm.Reference() == ref
}

// note notes whether a disk is being written.
func (v *OwnVM) note(file string, writing bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if writing {
		v.writing[file] = true
	} else {
		delete(v.writing, file)
	}
}

// DetachLeft detaches disks that are ours, by datastore path, which a crash has left attached. It has disks that are not: those it boots and lives from.
func (v *OwnVM) DetachLeft(ctx context.Context, ours func(file string) bool) error {
	select {
	case v.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	err := v.look(ctx)
	var left []*types.VirtualDisk
	for _, d := range v.hardware {
		disk, ok := d.(*types.VirtualDisk)
		if !ok || !ours(vmDisk{disk}.file()) {
			continue
		}
		v.mu.Lock()
		if !v.writing[vmDisk{disk}.file()] {
			left = append(left, disk)
		}
		v.mu.Unlock()
	}
	<-v.turn
	for _, disk := range left {
		err = errors.Join(err, v.leave(ctx, placeOf(disk), attachedDisk(disk), disk.Key))
	}
	return err
}

// A change is a disk that is attached, and made before if it has a parent, or, without a file, one that is detached.
type change struct {
	file, parent string       // datastore paths
	key          int32        // of the device
	disk         AttachedDisk // that was attached
	at           place        // of it
	done         chan error
}

// apply makes a change, with those that others have asked for. It is not broken off.
func (v *OwnVM) apply(ctx context.Context, c *change) error {
	c.done = make(chan error, 1)
	v.mu.Lock()
	v.queue = append(v.queue, c)
	v.mu.Unlock()
	select {
	case err := <-c.done:
		return err
	case v.turn <- struct{}{}:
	}
	v.mu.Lock()
	batch := v.queue
	v.queue = nil
	v.mu.Unlock()
	if len(batch) > 0 {
		v.applyAll(context.WithoutCancel(ctx), batch)
	}
	<-v.turn
	return <-c.done
}

// applyAll makes changes in one call, and those that failed one by one, so that none fails because of another.
func (v *OwnVM) applyAll(ctx context.Context, batch []*change) {
	ctx, cancel := context.WithTimeout(ctx, reconfigureLimit)
	defer cancel()
	errs := v.reconfigure(ctx, batch)
	for i, c := range batch {
		if errs[i] != nil && len(batch) > 1 {
			errs[i] = v.reconfigure(ctx, []*change{c})[0]
		}
		c.done <- errs[i]
	}
}

// reconfigure makes changes in one call, and finds the error of each by what the virtual machine has afterwards: an answer may be lost.
func (v *OwnVM) reconfigure(ctx context.Context, batch []*change) []error {
	errs := make([]error, len(batch))
	err := v.change(ctx, batch)
	if fault.Is(err, &types.ManagedObjectNotFound{}) {
		if err = v.find(ctx); err == nil {
			err = v.change(ctx, batch)
		}
	}
	var lookErr error
	if err != nil || slices.ContainsFunc(batch, func(c *change) bool { return c.file != "" }) {
		lookErr = v.look(ctx)
	}
	for i, c := range batch {
		switch {
		case lookErr != nil:
			errs[i] = errors.Join(err, lookErr)
		case !v.has(c):
			errs[i] = err
			if err == nil {
				errs[i] = errors.New("the server says that it has done so, and has not")
			}
		}
	}
	return errs
}

// change asks the server for changes.
func (v *OwnVM) change(ctx context.Context, batch []*change) error {
	if v.hardware == nil {
		if err := v.look(ctx); err != nil {
			return err
		}
	}
	var spec types.VirtualMachineConfigSpec
	taken := map[place]bool{}
	for i, c := range batch {
		if c.file == "" {
			spec.DeviceChange = append(spec.DeviceChange, detach(c.key))
			continue
		}
		at, err := v.free(taken)
		if err != nil {
			return err
		}
		spec.DeviceChange = append(spec.DeviceChange, attach(c.file, c.parent, int32(-1-i), at))
	}
	if err := v.s.Do(ctx, func() (*object.Task, error) { return v.vm.Reconfigure(ctx, spec) }); err != nil {
		return unavailable(err)
	}
	v.hardware = slices.DeleteFunc(v.hardware, func(d types.BaseVirtualDevice) bool {
		return slices.ContainsFunc(batch, func(c *change) bool { return c.file == "" && c.key == d.GetVirtualDevice().Key })
	})
	return nil
}

// look asks what the virtual machine has.
func (v *OwnVM) look(ctx context.Context) error {
	var m mo.VirtualMachine
	err := v.s.retry.do(ctx, unreachable, func() error {
		return property.DefaultCollector(v.s.client).RetrieveOne(ctx, v.vm.Reference(), []string{"config.hardware.device"}, &m)
	})
	if err != nil {
		return unavailable(err)
	}
	if m.Config == nil {
		return errors.New("the server does not tell what it has")
	}
	v.hardware = m.Config.Hardware.Device
	return nil
}

// has tells whether a change was made, and fills in what was attached.
func (v *OwnVM) has(c *change) bool {
	for _, d := range v.hardware {
		disk, ok := d.(*types.VirtualDisk)
		switch {
		case !ok:
		case c.file == "" && disk.Key == c.key:
			return false
		case c.file != "" && vmDisk{disk}.file() == c.file:
			c.key, c.disk, c.at = disk.Key, attachedDisk(disk), placeOf(disk)
			return true
		}
	}
	return c.file == ""
}

// attachedDisk is what the server says of a disk.
func attachedDisk(disk *types.VirtualDisk) AttachedDisk {
	a := AttachedDisk{Path: vmDisk{disk}.file(), Target: int(placeOf(disk).unit), Capacity: disk.CapacityInBytes}
	if b, ok := disk.Backing.(*types.VirtualDiskFlatVer2BackingInfo); ok {
		a.UUID = b.Uuid
	}
	return a
}

// A place is one for a disk on a SCSI controller.
type place struct{ controller, unit int32 }

func placeOf(disk *types.VirtualDisk) place {
	at := place{controller: disk.ControllerKey}
	if disk.UnitNumber != nil {
		at.unit = *disk.UnitNumber
	}
	return at
}

// free takes a free place.
func (v *OwnVM) free(taken map[place]bool) (place, error) {
	v.mu.Lock()
	maps.Copy(taken, v.leaving)
	v.mu.Unlock()
	for _, d := range v.hardware {
		if x := d.GetVirtualDevice(); x.UnitNumber != nil {
			taken[place{x.ControllerKey, *x.UnitNumber}] = true
		}
	}
	for _, d := range v.hardware {
		if _, ok := d.(types.BaseVirtualSCSIController); !ok {
			continue
		}
		for unit := range int32(scsiUnits) {
			at := place{d.GetVirtualDevice().Key, unit}
			if unit != controllerUnit && !taken[at] {
				taken[at] = true
				return at, nil
			}
		}
	}
	return place{}, errors.New("it has no SCSI controller with a free place")
}

// attach attaches a disk, which is made over its parent unless there is none. Snapshots of the virtual machine leave it out.
func attach(file, parent string, key int32, at place) types.BaseVirtualDeviceConfigSpec {
	disk := &types.VirtualDisk{}
	disk.Key, disk.ControllerKey, disk.UnitNumber = key, at.controller, &at.unit
	backing := &types.VirtualDiskFlatVer2BackingInfo{
		VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{FileName: file}, DiskMode: string(types.VirtualDiskModeIndependent_persistent),
	}
	disk.Backing = backing
	spec := &types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationAdd, Device: disk}
	if parent != "" {
		backing.ThinProvisioned = types.NewBool(true)
		backing.Parent = &types.VirtualDiskFlatVer2BackingInfo{VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{FileName: parent}}
		spec.FileOperation = types.VirtualDeviceConfigSpecFileOperationCreate
	}
	return spec
}

// parseSerial is the BIOS UUID in the serial number of a virtual machine's system: "VMware-56 4d 8a 9c 3b 1e 6f 42-9a ...". The
// UUID that firmware shows beside it has some bytes in another order in some versions of virtual hardware.
func parseSerial(serial string) (string, error) {
	digits, ok := strings.CutPrefix(strings.TrimSpace(serial), "VMware-")
	digits = strings.NewReplacer(" ", "", "-", "").Replace(strings.ToLower(digits))
	if !ok || len(digits) != 32 || strings.Trim(digits, "0123456789abcdef") != "" {
		return "", fmt.Errorf("%q is no serial number of a VMware virtual machine", serial)
	}
	return digits[:8] + "-" + digits[8:12] + "-" + digits[12:16] + "-" + digits[16:20] + "-" + digits[20:], nil
}
