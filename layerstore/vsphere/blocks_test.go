package vsphere

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"vic/bench/corpus"
	"vic/bench/oracle"
	"vic/bench/vcsim"
	"vic/layerstore"
)

// exported has QEMU's storage daemon make devices of disks as they lie on the datastore.
type exported struct {
	s     *site
	room  atomic.Int64 // bytes that may be written in all, if it is positive
	wrote atomic.Pointer[func()]
}

func (s *site) export() *exported {
	oracle.Need(s.t, "qemu-storage-daemon")
	return &exported{s: s}
}

// Gone implements Devices: a device goes when it is closed.
func (x *exported) Gone(context.Context, AttachedDisk) error { return nil }

// An exportedFile is a device that ends with its daemon.
type exportedFile struct {
	*vcsim.Device
	x *exported
}

func (x *exported) Open(ctx context.Context, d AttachedDisk) (Device, error) {
	dev, err := x.s.OpenDevice(ctx, d.Path)
	if err != nil {
		return nil, err
	}
	return &exportedFile{dev, x}, nil
}

func (f *exportedFile) WriteAt(p []byte, off int64) (int, error) {
	if f.x.room.Load() > 0 && f.x.room.Add(-int64(len(p))) <= 0 {
		f.x.room.Store(1)
		return 0, syscall.ENOSPC
	}
	if wrote := f.x.wrote.Load(); wrote != nil {
		(*wrote)()
	}
	return f.Device.WriteAt(p, off)
}

// createVM makes a virtual machine with a SCSI controller and no disk.
func (s *site) createVM(name string) *object.VirtualMachine {
	s.t.Helper()
	ctx := s.t.Context()
	c, err := s.Administrator(ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	f := find.NewFinder(c)
	dc, err := f.DefaultDatacenter(ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	f.SetDatacenter(dc)
	pool, err := f.DefaultResourcePool(ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	folders, err := dc.Folders(ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	ds, err := f.DatastoreList(ctx, "*")
	if err != nil {
		s.t.Fatal(err)
	}
	controller := &types.ParaVirtualSCSIController{}
	controller.Key, controller.SharedBus = -1, types.VirtualSCSISharingNoSharing
	task, err := folders.VmFolder.CreateVM(ctx, types.VirtualMachineConfigSpec{
		Name: name, GuestId: "otherGuest", NumCPUs: 1, MemoryMB: 64, Files: &types.VirtualMachineFileInfo{VmPathName: ds[len(ds)-1].Path("")},
		DeviceChange: []types.BaseVirtualDeviceConfigSpec{&types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationAdd, Device: controller}},
	}, pool, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	info, err := task.WaitForResult(ctx, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	vm := object.NewVirtualMachine(c, info.Result.(types.ManagedObjectReference))
	if task, err = vm.PowerOn(ctx); err == nil {
		err = task.Wait(ctx)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return vm
}

// appliance makes a virtual machine and takes it for the one in which this runs.
func (s *site) appliance(c *Session, devices Devices) (*OwnVM, *object.VirtualMachine) {
	s.t.Helper()
	vm := s.createVM("vch")
	v, err := c.FindOwnVM(s.t.Context(), s.uuid(vm), devices)
	if err != nil {
		s.t.Fatal(err)
	}
	return v, vm
}

func (s *site) uuid(vm *object.VirtualMachine) string {
	s.t.Helper()
	var m mo.VirtualMachine
	if err := property.DefaultCollector(vm.Client()).RetrieveOne(s.t.Context(), vm.Reference(), []string{"config.uuid"}, &m); err != nil {
		s.t.Fatal(err)
	}
	return m.Config.Uuid
}

// attached are the disks that a virtual machine has.
func (s *site) attached(vm *object.VirtualMachine) []vmDisk {
	s.t.Helper()
	disks, err := disksOf(s.t.Context(), vm)
	if err != nil {
		s.t.Fatal(err)
	}
	return disks
}

var vmfs6 = vcsim.Options{Datastores: []vcsim.Datastore{{Name: "vmfs6", Type: vcsim.VMFS6}}}

// open opens a store as an appliance does.
func (s *site) open(d *Datastore, vch string, own *OwnVM) *Store {
	s.t.Helper()
	st, err := OpenStore(s.t.Context(), d, StoreOptions{VCH: vch, Capacity: capacity, Own: own})
	if err != nil {
		s.t.Fatal(err)
	}
	return st
}

// since counts what was called since before.
func (s *site) since(before map[string]int) map[string]int {
	n := s.Calls()
	for name, was := range before {
		if n[name] -= was; n[name] == 0 {
			delete(n, name)
		}
	}
	return n
}

func image(t *testing.T, ls *layerstore.Store, layers int) *layerstore.Image {
	t.Helper()
	return pull(t, ls, corpus.Shape{Layers: layers, Files: 30 * layers, Sizes: corpus.Fixed(5000), Whiteouts: 0.1, Compression: "zstd"})
}

func TestBlockWriter(t *testing.T) {
	for name, o := range map[string]vcsim.Options{"files": vmfs6, "objects": objects} {
		t.Run(name, func(t *testing.T) { testBlockWriter(t, o) })
	}
}

func testBlockWriter(t *testing.T, o vcsim.Options) {
	s, ctx := newSite(t, o), t.Context()
	c := s.connect(s.endpoint())
	own, vm := s.appliance(c, s.export())
	d := s.datastore(c, "store")
	st := s.open(d, "one", own)
	if st.encoding != BlockWriter {
		t.Fatalf("the store has the encoding %s", st.encoding)
	}
	ls, img := pulled(t, 8)

	// Eight layers that nobody else has are one disk: two changes of the machine, and a bounded number of calls in all.
	before := s.Calls()
	p, err := st.Publish(ctx, ls, img)
	if err != nil {
		t.Fatal(err)
	}
	calls := s.since(before)
	total := 0
	for _, n := range calls {
		total += n
	}
	if calls["ReconfigVM_Task"] != 2 || total > 40 {
		t.Errorf("%d calls: %v", total, calls)
	}
	t.Logf("an image of 8 layers: %d calls: %v", total, calls)
	if len(p.Disks) != 1 || p.Sent == 0 {
		t.Errorf("published %+v", p)
	}
	s.same(d, ls, img, p.Disks[0])
	if left := s.attached(vm); len(left) != 0 {
		t.Errorf("still attached: %v", left)
	}

	// Another image upon it is one more disk, and what is there costs nothing.
	more := image(t, ls, 9)
	p2, err := st.Publish(ctx, ls, more)
	if err != nil {
		t.Fatal(err)
	}
	s.same(d, ls, more, p2.Disks[0])
	before = s.Calls()
	for _, vch := range []string{"one", "two"} {
		again, err := s.open(d, vch, own).Publish(ctx, ls, more)
		if err != nil || again.Sent != 0 || !slices.Equal(again.Disks, p2.Disks) {
			t.Errorf("again, by %s: %+v, %v", vch, again, err)
		}
	}
	if n := s.since(before)["ReconfigVM_Task"]; n != 0 {
		t.Errorf("%d changes of the machine for what is there", n)
	}

	// As a mirror it has the image before the local store has.
	mirrored, err := layerstore.Open(t.TempDir(), layerstore.Options{Capacity: capacity, Mirror: st})
	if err != nil {
		t.Fatal(err)
	}
	defer mirrored.Close()
	third := image(t, mirrored, 3)
	p4, err := st.Publish(ctx, mirrored, third) // costs nothing
	if err != nil || p4.Sent != 0 {
		t.Fatalf("%+v, %v", p4, err)
	}
	s.same(d, mirrored, third, p4.Disks[0])

	// A process that runs in no machine of the server brings a flattened disk to the same store.
	other := image(t, ls, 2)
	p3, err := s.open(d, "outside", nil).Publish(ctx, ls, other)
	if err != nil || len(p3.Disks) != 1 {
		t.Fatalf("%+v, %v", p3, err)
	}
	s.same(d, ls, other, p3.Disks[0])
}

// Images that share layers share disks, also when they come at the same time; and then changes of the machine go together.
func TestBlockWriterAtOnce(t *testing.T) {
	s, ctx := newSite(t, vmfs6), t.Context()
	c := s.connect(s.endpoint())
	own, vm := s.appliance(c, s.export())
	d := s.datastore(c, "store")
	st := s.open(d, "one", own)
	ls, base := pulled(t, 2)
	images := []*layerstore.Image{base}
	for _, seed := range []int64{1, 2, 3} {
		images = append(images, pull(t, ls, corpus.Shape{Layers: 2, Files: 60, Sizes: corpus.Fixed(3000 + 100*seed), Compression: "zstd"}))
	}
	before := s.Calls()
	tops := make([]string, len(images))
	var wg sync.WaitGroup
	for i, img := range images {
		wg.Go(func() {
			p, err := st.Publish(ctx, ls, img)
			if err != nil {
				t.Error(err)
				return
			}
			tops[i] = p.Disks[0]
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	for i, img := range images {
		s.same(d, ls, img, tops[i])
	}
	n := s.since(before)["ReconfigVM_Task"]
	if n > 2*len(images) {
		t.Errorf("%d changes of the machine for %d images", n, len(images))
	}
	t.Logf("%d changes of the machine for %d images at once", n, len(images))
	if left := s.attached(vm); len(left) != 0 {
		t.Errorf("still attached: %v", left)
	}
}
