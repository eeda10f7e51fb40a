package vsphere

import (
	"slices"
	"sync"
	"testing"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"

	"vic/bench/corpus"
	"vic/bench/vcsim"
	"vic/layerstore"
)

// Disks go when the last VCH that has an image of them has it no more.
func TestSweep(t *testing.T) {
	s, ctx := newSite(t, vcsim.Options{}), t.Context()
	d := s.datastore(s.connect(s.endpoint()), "store")
	ls, img := pulled(t, 2)
	more := pull(t, ls, corpus.Shape{Layers: 3, Files: 60, Sizes: corpus.Fixed(5000), Whiteouts: 0.1, Compression: "zstd"})
	one, two := s.store(d, "one"), s.store(d, "two")
	publish := func(st *Store, img *layerstore.Image) []string {
		t.Helper()
		p, err := st.Publish(ctx, ls, img)
		if err != nil {
			t.Fatal(err)
		}
		return p.Disks
	}
	disks, others := publish(one, img), publish(two, more)
	publish(two, img)
	sweep := func(want ...string) {
		t.Helper()
		got, err := one.Sweep(ctx)
		slices.Sort(got.Disks)
		slices.Sort(want)
		if err != nil || !slices.Equal(got.Disks, want) {
			t.Errorf("swept %v, %v; want %v", got, err, want)
		}
	}
	forget := func(st *Store, img *layerstore.Image) {
		t.Helper()
		for range 2 {
			if err := st.Forget(ctx, img.ID); err != nil {
				t.Fatal(err)
			}
		}
	}
	sweep()
	forget(one, img)
	sweep()
	s.same(d, ls, img, disks[0])
	var own []string // of more alone
	for _, name := range others {
		if !slices.Contains(disks, name) {
			own = append(own, name)
		}
	}
	forget(two, more)
	sweep(own...)
	s.same(d, ls, img, disks[0])

	// A pull that is under way, or broken off, keeps what it names until its VCH is back.
	forget(two, img)
	if err := two.putJSON(ctx, two.own("pulls", "x.json"), disks[1:]); err != nil {
		t.Fatal(err)
	}
	sweep(disks[0])
	two = s.store(d, "two")
	sweep(disks[1:]...)
	if got := s.files(d, "disks"); len(got) != 2 {
		t.Errorf("left: %v", got)
	}

	// What is left of an upload goes, what is not ours stays, what cannot be read keeps all.
	left := newName(img.Chain())
	for _, name := range []string{left + "-delta.vmdk", "mine.vmdk"} {
		if err := two.put(ctx, "disks/"+name, []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	sweep(left)
	disks = publish(two, img)
	if err := two.put(ctx, two.own("images", img.ID.Encoded()+".json"), []byte("{")); err != nil {
		t.Fatal(err)
	}
	if got, err := one.Sweep(ctx); err == nil || len(got.Disks) != 0 {
		t.Errorf("swept %v beside an image that cannot be read: %v", got, err)
	}
	s.same(d, ls, img, disks[0])
}

// Pulls and sweeps of several VCHs at the same time: who has an image has all of it.
func TestSweepAtOnce(t *testing.T) {
	s, ctx := newSite(t, vcsim.Options{}), t.Context()
	d := s.datastore(s.connect(s.endpoint()), "store")
	ls, img := pulled(t, 2)
	var wg sync.WaitGroup
	for _, vch := range []string{"a", "b", "c"} {
		st := s.store(d, vch)
		wg.Go(func() {
			for range 2 {
				p, err := st.Publish(ctx, ls, img)
				if err != nil {
					t.Error(err)
					return
				}
				s.whole(d, p.Disks[0]) // another's Sweep may have taken a record for a moment, to look whether it is wanted
				if err := st.Forget(ctx, img.ID); err != nil {
					t.Error(err)
				}
				if _, err := st.Sweep(ctx); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if _, err := s.store(d, "a").Sweep(ctx); err != nil {
		t.Error(err)
	}
	if got := s.files(d, "disks"); len(got) != 2 {
		t.Errorf("left: %v", got)
	}
}

// attachTo gives a virtual machine a disk over another, as a container's.
func (s *site) attachTo(vm *object.VirtualMachine, parent string) {
	s.t.Helper()
	controller := s.controller(vm)
	task, err := vm.Reconfigure(s.t.Context(), types.VirtualMachineConfigSpec{DeviceChange: []types.BaseVirtualDeviceConfigSpec{
		attach("[vmfs6] "+vm.Reference().Value+".vmdk", parent, -1, place{controller, 0}),
	}})
	if err == nil {
		err = task.Wait(s.t.Context())
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) controller(vm *object.VirtualMachine) int32 {
	s.t.Helper()
	devices, err := vm.Device(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	for _, d := range devices {
		if _, ok := d.(types.BaseVirtualSCSIController); ok {
			return d.GetVirtualDevice().Key
		}
	}
	s.t.Fatal("the machine has no SCSI controller")
	return 0
}

func (s *site) destroy(vm *object.VirtualMachine) {
	s.t.Helper()
	ctx := s.t.Context()
	task, err := vm.PowerOff(ctx)
	if err == nil {
		err = task.Wait(ctx)
	}
	if err == nil {
		task, err = vm.Destroy(ctx)
	}
	if err == nil {
		err = task.Wait(ctx)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// What a container's virtual machine stands on stays: by the local store of its VCH, and if that VCH and its image are forgotten, by
// the machine itself.
func TestSweepRoots(t *testing.T) {
	s, ctx := newSite(t, vmfs6), t.Context()
	c := s.connect(s.endpoint())
	own, _ := s.appliance(c, s.export())
	d := s.datastore(c, "store")
	one, two := s.open(d, "one", own), s.open(d, "two", own)
	ls, below := pulled(t, 2)
	publish := func(st *Store, img *layerstore.Image) []string {
		t.Helper()
		p, err := st.Publish(ctx, ls, img)
		if err != nil {
			t.Fatal(err)
		}
		return p.Disks
	}
	first := publish(one, below)
	img := image(t, ls, 3)
	disks := publish(one, img)
	if len(disks) != 2 || disks[1] != first[0] {
		t.Fatalf("disks %v over %v", disks, first)
	}
	sweep := func(want ...string) {
		t.Helper()
		if err := one.Tidy(ctx, ls); err != nil {
			t.Fatal(err)
		}
		if got, err := one.Sweep(ctx); err != nil || !slices.Equal(got.Disks, want) {
			t.Errorf("swept %v, %v; want %v", got, err, want)
		}
	}
	remove := func(img *layerstore.Image) {
		t.Helper()
		if _, err := ls.Remove(img.ID.String(), layerstore.RemoveOptions{Force: true}); err != nil {
			t.Fatal(err)
		}
	}
	sweep()
	remove(below) // the other stands on its disk
	sweep()
	if _, err := ls.CreateContainerDisk("c1", img.ID); err != nil {
		t.Fatal(err)
	}
	remove(img) // a container was made from it
	sweep()
	if err := ls.RemoveContainer("c1"); err != nil {
		t.Fatal(err)
	}

	vm := s.createVM("container")
	s.attachTo(vm, two.DiskPath(disks[0]))
	if err := one.Leave(ctx); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if got, err := two.Sweep(ctx); err != nil || len(got.Disks) != 0 {
			t.Errorf("swept %v, %v, on which a virtual machine stands", got, err)
		}
	}
	s.whole(d, disks[0])
	s.destroy(vm)
	got, err := two.Sweep(ctx)
	slices.Sort(got.Disks)
	slices.Sort(disks)
	if err != nil || !slices.Equal(got.Disks, disks) {
		t.Errorf("swept %v, %v; want %v", got, err, disks)
	}

	// A crash between an import's lease and its record leaves a virtual machine, which goes with its disk.
	left := newName(img.Chain())
	s.leaveCarrier(d, left)
	if got, err := two.Sweep(ctx); err != nil || len(got.Disks) != 1 || got.Disks[0] != left {
		t.Errorf("swept %v, %v", got, err)
	}
	s.noCarrier(c, d)
	if left := s.files(d, "disks"); len(left) != 2 {
		t.Errorf("left: %v", left)
	}
}

// leaveCarrier imports a disk and fails where it cannot clean up.
func (s *site) leaveCarrier(d *Datastore, name string) {
	s.t.Helper()
	ctx := s.t.Context()
	pool, folder, err := Place{}.find(ctx, d)
	if err != nil {
		s.t.Fatal(err)
	}
	lease, err := pool.ImportVApp(ctx, d.carrierSpec(carrierPrefix+name, imported{name: disksFolder + "/" + name + ".vmdk", capacity: capacity}), folder, nil)
	if err == nil {
		_, err = lease.Wait(ctx, nil)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}
