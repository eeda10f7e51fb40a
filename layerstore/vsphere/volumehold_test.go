package vsphere

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"

	"vic/bench/oracle"
	"vic/bench/vcsim"
	"vic/layerstore"
)

var objects = vcsim.Options{Datastores: []vcsim.Datastore{{Name: "objects", Objects: true}}}

// A heldSite is a VCH that runs in a virtual machine, and volumes whose disks are objects.
type heldSite struct {
	*site
	d     *Datastore
	vm    *object.VirtualMachine
	v     *Volumes
	ls    *layerstore.Store
	other *layerstore.Store // of a VCH that runs outside
	vol   *layerstore.Volume
}

func newHeldSite(t *testing.T) *heldSite {
	t.Helper()
	s := &heldSite{site: newSite(t, objects)}
	c := s.connect(s.endpoint())
	var own *OwnVM
	own, s.vm = s.appliance(c, s.export())
	s.d = s.datastore(c, "volumes")
	s.v, s.ls = s.writingVolumes("one", t.TempDir(), s.d, own)
	_, s.other = s.writingVolumes("two", t.TempDir(), s.d, nil)
	var err error
	if s.vol, _, err = s.ls.CreateVolume(sized("data")); err != nil {
		t.Fatal(err)
	}
	if got := names2(s.other.Volumes()); len(got) != 1 {
		t.Fatalf("the other sees %v", got)
	}
	return s
}

// is checks how many disks are attached, and whether anything keeps others from the volume.
func (s *heldSite) is(attached int, marked bool) {
	s.t.Helper()
	if n := len(s.site.attached(s.vm)); n != attached {
		s.t.Errorf("%d disks are attached, want %d", n, attached)
	}
	want := 1
	if marked {
		want = 2
	}
	if files := s.files(s.d, "volumes/data"); len(files) != want {
		s.t.Errorf("there are %v", files)
	}
}

// open opens the volume's files.
func (s *heldSite) open(volume string) *layerstore.FS {
	s.t.Helper()
	f, err := s.ls.VolumeFS(s.t.Context(), volume)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { f.Close() })
	return f
}

// A volume whose disk is no file is read and written by the machine in which the VCH runs, once for all who do so at a time.
func TestVolumesOfObjects(t *testing.T) {
	s, ctx := newHeldSite(t), t.Context()
	if err := s.ls.ApplyToVolume(ctx, "data", oneFile(t, "a", "first")); err != nil {
		t.Fatal(err)
	}
	s.is(0, false)
	if got := inVolume(t, s.ls, "data", "a"); got != "first" {
		t.Errorf("read %q", got)
	}
	s.is(0, false)
	if got := inVolume(t, s.other, "data", "a"); !strings.Contains(got, "which only a running container reads and writes") {
		t.Errorf("outside of an appliance %q", got)
	}

	before := s.Calls()
	one, two := s.open("data"), s.open("data")
	if err := s.ls.ApplyToVolume(ctx, "data", oneFile(t, "b", "second")); err != nil {
		t.Fatal(err)
	}
	s.is(1, true)
	if got := inVolume(t, s.other, "data", "a"); !strings.Contains(got, "virtual container host one writes") {
		t.Errorf("another meanwhile: %q", got)
	}
	if err := one.Close(); err != nil {
		t.Error(err)
	}
	s.is(1, true)
	if b, err := fs.ReadFile(two, "a"); err != nil || string(b) != "first" {
		t.Errorf("read %q, %v", b, err)
	}
	if err := errors.Join(two.Close(), two.Close()); err != nil {
		t.Error(err)
	}
	s.is(0, false)
	if n := s.since(before)["ReconfigVM_Task"]; n != 2 {
		t.Errorf("%d changes of the virtual machine for all of that", n)
	}
	if out, err := exec.Command(oracle.Find(t, "e2fsck"), "-fn", s.raw(s.d, s.vol.Disk)).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v: %s", err, out)
	}
	if got := inVolume(t, s.ls, "data", "b"); got != "second" {
		t.Errorf("read %q", got)
	}

	// Whoever starts a VM with it has it at once.
	f := s.open("data")
	if err := s.ls.ReleaseVolume("data"); err != nil {
		t.Error(err)
	}
	s.is(0, false)
	if _, err := fs.ReadFile(f, "a"); !errors.Is(err, layerstore.ErrTaken) {
		t.Errorf("read after that: %v", err)
	}
	if err := errors.Join(f.Close(), s.ls.ReleaseVolume("data")); err != nil {
		t.Error(err)
	}

	// What clients read as long as they like leaves places for disks of images.
	for i := range maxRead {
		name := fmt.Sprint("v", i)
		if _, _, err := s.ls.CreateVolume(sized(name)); err != nil {
			t.Fatal(err)
		}
		defer s.open(name).Close()
	}
	if _, err := s.ls.VolumeFS(ctx, "data"); err == nil || !strings.Contains(err.Error(), "4 other volumes are attached") {
		t.Errorf("one more: %v", err)
	}
	if err := s.ls.ApplyToVolume(ctx, "data", oneFile(t, "c", "third")); err != nil {
		t.Error(err)
	}
}

// What fails as a disk is read keeps nobody from it, or is mended when it is used next.
func TestVolumesOfObjectsFail(t *testing.T) {
	s, ctx := newHeldSite(t), t.Context()
	reconfigured := vcsim.TaskFault{Task: "VirtualMachine.reconfigVm", Fault: &types.GenericVmConfigFault{Reason: "injected"}}
	s.FailTask(reconfigured)
	if _, err := s.ls.VolumeFS(ctx, "data"); err == nil || !strings.Contains(err.Error(), "attach disk") {
		t.Errorf("attaching fails: %v", err)
	}
	s.is(0, false)

	f := s.open("data")
	s.FailTask(reconfigured)
	if err := f.Close(); err == nil || !strings.Contains(err.Error(), "detach disk") {
		t.Errorf("detaching fails: %v", err)
	}
	s.is(1, true)
	if got := inVolume(t, s.ls, "data", "a"); got != "absent" {
		t.Errorf("read %q", got)
	}
	s.is(0, false)

	f = s.open("data")
	s.FailTask(reconfigured)
	if err := s.ls.ReleaseVolume("data"); err == nil || !strings.Contains(err.Error(), "detach disk") {
		t.Errorf("detaching fails for who starts a VM: %v", err)
	}
	f.Close() // it is over
	if _, err := s.ls.VolumeDisk("data"); err != nil {
		t.Error(err)
	}
	s.is(0, false)
}

// Many read, write and take one disk at once.
func TestVolumesOfObjectsAtOnce(t *testing.T) {
	s, ctx := newHeldSite(t), t.Context()
	if err := s.ls.ApplyToVolume(ctx, "data", oneFile(t, "a", "0")); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 3 {
		wg.Go(func() {
			for range 3 {
				f, err := s.ls.VolumeFS(ctx, "data")
				if err == nil {
					_, err = fs.ReadFile(f, "a")
					f.Close()
				}
				if err != nil && !errors.Is(err, layerstore.ErrTaken) {
					t.Errorf("read: %v", err)
				}
			}
		})
		wg.Go(func() {
			for n := range 3 {
				if err := s.ls.ApplyToVolume(ctx, "data", oneFile(t, "b", fmt.Sprint(i, n))); err != nil {
					t.Errorf("write: %v", err)
				}
			}
		})
	}
	wg.Go(func() {
		for range 3 {
			if err := s.ls.ReleaseVolume("data"); err != nil {
				t.Errorf("take: %v", err)
			}
		}
	})
	wg.Wait()
	s.is(0, false)
	if out, err := exec.Command(oracle.Find(t, "e2fsck"), "-fn", s.raw(s.d, s.vol.Disk)).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v: %s", err, out)
	}
}

// A slowGuest is a machine on which devices go late: fn is called meanwhile.
type slowGuest struct {
	*exported
	fn func(AttachedDisk)
}

func (g *slowGuest) Gone(_ context.Context, d AttachedDisk) error {
	if g.fn != nil {
		g.fn(d)
	}
	return nil
}

// Where the device of another disk may be there yet no disk is attached: by its place and UUID it could be taken for that.
func TestPlaceOfDeviceThatGoes(t *testing.T) {
	s, ctx := newSite(t, objects), t.Context()
	c := s.connect(s.endpoint())
	guest := &slowGuest{exported: s.export()}
	own, vm := s.appliance(c, guest)
	d := s.datastore(c, "volumes")
	_, ls := s.writingVolumes("one", t.TempDir(), d, own)
	var files []string
	for _, name := range []string{"going", "coming"} {
		v, _, err := ls.CreateVolume(sized(name))
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, d.Path(strings.TrimPrefix(v.Disk, DefaultVolumes+"/")+".vmdk"))
	}
	coming := &change{file: files[1]}
	guest.fn = func(going AttachedDisk) {
		guest.fn = nil
		if err := own.apply(ctx, coming); err != nil {
			t.Error(err)
		}
		if going.Path != files[0] || going.UUID == "" || coming.disk.Target == going.Target {
			t.Errorf("%+v is attached as %+v goes", coming.disk, going)
		}
	}
	if err := ls.ApplyToVolume(ctx, "going", oneFile(t, "a", "x")); err != nil {
		t.Fatal(err)
	}
	if err := own.DetachLeft(ctx, func(file string) bool { return file == files[1] }); err != nil {
		t.Error(err)
	}
	if left := s.attached(vm); guest.fn != nil || len(left) != 0 {
		t.Errorf("left %v", left)
	}
}
