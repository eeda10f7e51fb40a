package vsphere

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"strings"
	"sync/atomic"
	"time"

	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/nfc"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/task"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// leaseInterval is how often a lease is told of progress, which keeps it: it ends after some minutes of silence.
const leaseInterval = 10 * time.Second

// carrierPrefix begins the names of the virtual machines that bring disks in.
const carrierPrefix = "vic-import-"

// An import is a disk on its way through an NFC lease, which the server converts to what the datastore has: that works on all
// kinds of datastores. The server makes a virtual machine that has the disk; when that is whole, it loses the disk and goes. A lease that
// breaks takes both away.
type imported struct {
	name     string // of the descriptor
	capacity int64
	bound    int64                   // bytes that the stream does not exceed
	write    func(w io.Writer) error // writes a stream-optimized disk, the same each time
	progress func(sent int64)        // goes back to 0 for another try
}

// importDisk makes a disk without a parent from a stream. What is broken off is begun again. After an error there is no disk.
func (d *Datastore) importDisk(ctx context.Context, at Place, im imported) error {
	if err := d.check("import", im.name); err != nil {
		return err
	}
	pool, folder, err := at.find(ctx, d)
	if err != nil {
		return err
	}
	return d.do(ctx, "import", im.name, func() error { return d.importOnce(ctx, pool, folder, im) })
}

func (d *Datastore) importOnce(ctx context.Context, pool *object.ResourcePool, folder *object.Folder, im imported) (err error) {
	carrier := carrierPrefix + strings.TrimSuffix(path.Base(im.name), ".vmdk")
	var lease *nfc.Lease
	defer func() {
		if err == nil {
			return
		}
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		if lease != nil {
			_ = lease.Abort(end, nil) // the carrier is what counts
		}
		if gone := d.destroyCarrier(end, folder, carrier); gone != nil {
			err = errors.Join(err, fmt.Errorf("remove virtual machine %s: %w", carrier, gone))
		}
	}()
	host, err := d.s.ChooseHost(ctx, pool.Reference(), d.Reference())
	if err != nil {
		return err
	}
	if lease, err = pool.ImportVApp(ctx, d.carrierSpec(carrier, im), folder, host); err != nil {
		return err
	}
	info, err := lease.Wait(ctx, nil)
	if err != nil {
		return err
	}
	var to *url.URL
	for i, u := range info.DeviceUrl {
		if u.Disk != nil && *u.Disk {
			to = info.Items[i].URL // in the same order
		}
	}
	if to == nil {
		return errors.New("the lease has no place for a disk")
	}
	if err := d.s.stream(ctx, lease, to, im); err != nil {
		return err
	}
	if err := lease.Complete(ctx); err != nil {
		return leaseError(ctx, lease, err)
	}
	return d.takeDisk(ctx, object.NewVirtualMachine(d.s.client, info.Entity), im.name)
}

// carrierSpec describes a virtual machine that has a disk and is never powered on.
func (d *Datastore) carrierSpec(name string, im imported) *types.VirtualMachineImportSpec {
	controller := &types.VirtualLsiLogicController{}
	controller.Key, controller.SharedBus = -100, types.VirtualSCSISharingNoSharing
	ds := d.ds.Reference()
	disk := &types.VirtualDisk{CapacityInKB: im.capacity >> 10}
	disk.Key, disk.ControllerKey, disk.UnitNumber = -101, controller.Key, types.NewInt32(0)
	disk.Backing = &types.VirtualDiskFlatVer2BackingInfo{
		VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{FileName: d.Path(im.name), Datastore: &ds},
		DiskMode:                     string(types.VirtualDiskModePersistent), ThinProvisioned: types.NewBool(true),
	}
	return &types.VirtualMachineImportSpec{ConfigSpec: types.VirtualMachineConfigSpec{
		Name: name, GuestId: string(types.VirtualMachineGuestOsIdentifierOtherGuest), NumCPUs: 1, MemoryMB: 4,
		Files: &types.VirtualMachineFileInfo{VmPathName: d.ds.Path("")},
		DeviceChange: []types.BaseVirtualDeviceConfigSpec{
			&types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationAdd, Device: controller},
			&types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationAdd, FileOperation: types.VirtualDeviceConfigSpecFileOperationCreate, Device: disk},
		},
	}}
}

// stream sends the disk to a lease's URL. How long it is shows when it has gone: it goes in chunks, as in VMware's own examples.
func (s *Session) stream(ctx context.Context, lease *nfc.Lease, to *url.URL, im imported) error {
	r, w := io.Pipe()
	written := make(chan error, 1)
	go func() {
		err := im.write(w)
		written <- err
		w.CloseWithError(err)
	}()
	var sent atomic.Int64
	b := &body{r: r, progress: func(n int64) {
		sent.Store(n)
		im.progress(n)
	}}
	im.progress(0)
	stop := s.keepLease(ctx, lease, func() int32 { return int32(min(99, 100*sent.Load()/max(im.bound, 1))) })
	err := s.post(ctx, to, b)
	bad := b.stop()
	r.CloseWithError(io.ErrClosedPipe)
	wrote := <-written
	if keepErr := stop(); err == nil {
		err = keepErr
	}
	switch {
	case bad != nil:
		return sourceError{bad}
	case err != nil:
		return leaseError(ctx, lease, err)
	case wrote != nil: // the server did not want all of it
		return fmt.Errorf("the server took a part of the disk: %w", wrote)
	}
	if err := lease.Progress(ctx, 100); err != nil {
		return leaseError(ctx, lease, err)
	}
	return nil
}

// post sends a stream.
func (s *Session) post(ctx context.Context, to *url.URL, b *body) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, to.String(), b)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/x-vnd.vmware-streamVmdk")
	res, err := s.client.Client.Client.Do(req)
	if err != nil {
		return err
	}
	res.Body.Close()
	if res.StatusCode != http.StatusOK && res.StatusCode != http.StatusCreated {
		return &statusError{res.StatusCode, res.Status}
	}
	return nil
}

// keepLease tells a lease of progress, once at least, until it is stopped, which returns the error of telling.
func (s *Session) keepLease(ctx context.Context, lease *nfc.Lease, percent func() int32) (stop func() error) {
	stopped, done := make(chan struct{}), make(chan error, 1)
	go func() {
		t := time.NewTicker(leaseInterval)
		defer t.Stop()
		for {
			if err := s.retry.do(ctx, unreachable, func() error { return lease.Progress(ctx, percent()) }); err != nil {
				done <- err
				return
			}
			select {
			case <-t.C:
			case <-stopped:
				done <- nil
				return
			}
		}
	}()
	return func() error {
		close(stopped)
		return <-done
	}
}

// leaseError adds to an error what the lease says, if it failed.
func leaseError(ctx context.Context, lease *nfc.Lease, err error) error {
	m, leaseErr := lease.Properties(ctx, "state", "error")
	switch {
	case fault.Is(err, &types.ManagedObjectNotFound{}), fault.Is(leaseErr, &types.ManagedObjectNotFound{}): // it went with its session; another may not
		return fmt.Errorf("%w: the lease is gone: %w", ErrUnavailable, err)
	case leaseErr == nil && m.State == types.HttpNfcLeaseStateError && m.Error != nil:
		return fmt.Errorf("%w: %w", err, task.Error{LocalizedMethodFault: m.Error})
	}
	return err
}

// takeDisk takes the disk from its carrier, which goes.
func (d *Datastore) takeDisk(ctx context.Context, vm *object.VirtualMachine, name string) error {
	disks, err := disksOf(ctx, vm)
	if err != nil {
		return err
	}
	if len(disks) != 1 || disks[0].file() != d.Path(name) {
		return fmt.Errorf("the server made other disks of it: %v", disks)
	}
	if err := d.s.Do(ctx, func() (*object.Task, error) {
		return vm.Reconfigure(ctx, types.VirtualMachineConfigSpec{DeviceChange: []types.BaseVirtualDeviceConfigSpec{detach(disks[0].Key)}})
	}); err != nil {
		return err
	}
	err = d.s.Do(ctx, func() (*object.Task, error) { return vm.Destroy(ctx) })
	if fault.Is(err, &types.ManagedObjectNotFound{}) {
		return nil
	}
	return err
}

// destroyCarrier removes a virtual machine with the disk that it has, if it is there.
func (d *Datastore) destroyCarrier(ctx context.Context, folder *object.Folder, name string) error {
	ref, err := object.NewSearchIndex(d.s.client).FindChild(ctx, folder, name)
	if err != nil || ref == nil {
		return err
	}
	err = d.s.Do(ctx, func() (*object.Task, error) {
		return object.NewVirtualMachine(d.s.client, ref.Reference()).Destroy(ctx)
	})
	if fault.Is(err, &types.ManagedObjectNotFound{}) { // the lease took it along
		return nil
	}
	return err
}

// A vmDisk is a disk of a virtual machine.
type vmDisk struct{ *types.VirtualDisk }

// file is the datastore path of the disk's descriptor, "" if it has none.
func (v vmDisk) file() string {
	if b, ok := v.Backing.(types.BaseVirtualDeviceFileBackingInfo); ok {
		return b.GetVirtualDeviceFileBackingInfo().FileName
	}
	return ""
}

func (v vmDisk) String() string { return v.file() }

// disksOf lists a virtual machine's disks.
func disksOf(ctx context.Context, vm *object.VirtualMachine) ([]vmDisk, error) {
	var m mo.VirtualMachine
	if err := property.DefaultCollector(vm.Client()).RetrieveOne(ctx, vm.Reference(), []string{"config.hardware.device"}, &m); err != nil {
		return nil, err
	}
	var disks []vmDisk
	if m.Config != nil {
		for _, x := range m.Config.Hardware.Device {
			if disk, ok := x.(*types.VirtualDisk); ok {
				disks = append(disks, vmDisk{disk})
			}
		}
	}
	return disks, nil
}

// detach takes a disk from a virtual machine and keeps its files. It names nothing but the key: a disk as the server tells of
// it has all its parents, each an XML element in the one before, of which vCenter takes a hundred.
func detach(key int32) types.BaseVirtualDeviceConfigSpec {
	disk := &types.VirtualDisk{}
	disk.Key = key
	return &types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationRemove, Device: disk}
}
