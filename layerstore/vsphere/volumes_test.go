package vsphere

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"

	"vic/bench/oracle"
	"vic/bench/vcsim"
	"vic/layerstore"
)

var _ layerstore.VolumeDisks = (*Volumes)(nil)

// volumes returns the volumes of a VCH in a folder of a datastore, and its local store, which has been lost if it was ever there.
func (s *site) volumes(vch string, d *Datastore) (*Volumes, *layerstore.Store) {
	s.t.Helper()
	var ls *layerstore.Store
	v := NewVolumes(map[string]*Datastore{DefaultVolumes: d}, VolumesOptions{VCH: vch,
		Format: func(capacity int64) (*layerstore.Disk, error) { return ls.EmptyVolume(capacity) }})
	if err := v.Recover(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
	ls, err := layerstore.Open(s.t.TempDir(), layerstore.Options{Capacity: capacity, VolumeDisks: v})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { ls.Close() })
	return v, ls
}

// raw converts a disk, which takes the judge's word for it.
func (s *site) raw(d *Datastore, disk string) string {
	s.t.Helper()
	raw := filepath.Join(s.t.TempDir(), "raw")
	if out, err := exec.Command(oracle.Find(s.t, "qemu-img"), "convert", "-f", "vmdk", "-O", "raw", filepath.Join(s.folder(d), d.root, strings.TrimPrefix(disk, DefaultVolumes+"/")+".vmdk"), raw).CombinedOutput(); err != nil {
		s.t.Fatalf("qemu-img: %v: %s", err, out)
	}
	return raw
}

// sized is a volume of 128 MiB.
func sized(name string) layerstore.VolumeOptions {
	return layerstore.VolumeOptions{Name: name, Options: map[string]string{"size": "128m"}}
}

// A volume's disk has an empty file system, is made by one import a capacity and a copy each, grows, and goes with all of its files.
func TestVolumes(t *testing.T) {
	s := newSite(t, vcsim.Options{})
	d := s.datastore(s.connect(s.endpoint()), "volumes")
	v, ls := s.volumes("one", d)
	if _, _, err := ls.CreateVolume(layerstore.VolumeOptions{Name: "xx", Options: map[string]string{"VolumeStore": "none"}}); err == nil || !strings.Contains(err.Error(), "there are default") {
		t.Errorf("a label that is not there: %v", err)
	}
	if _, err := NewVolumes(nil, VolumesOptions{}).Name("x", nil); err == nil || !strings.Contains(err.Error(), "no volume store") {
		t.Errorf("without volume stores: %v", err)
	}
	var disks []string
	for _, name := range []string{"data", "more"} {
		vol, made, err := ls.CreateVolume(sized(name))
		if err != nil || !made || !strings.HasPrefix(vol.Disk, "default/"+name+"-") {
			t.Fatalf("made %+v, %v, %v", vol, made, err)
		}
		disks = append(disks, vol.Disk)
		if path, err := ls.VolumeDisk(name); err != nil || path != v.Path(vol.Disk) {
			t.Errorf("path %q, %v", path, err)
		}
		if out, err := exec.Command(oracle.Find(t, "e2fsck"), "-fn", s.raw(d, vol.Disk)).CombinedOutput(); err != nil {
			t.Errorf("e2fsck: %v: %s", err, out)
		}
	}
	if got := s.files(d, emptyFolder); len(got) != 3 {
		t.Errorf("empty file systems: %v", got)
	}
	if n, err := v.Stored(disks[0]); err != nil || n == 0 {
		t.Errorf("stored %d, %v", n, err)
	}
	if st, err := ls.VolumeState("data"); err != nil || !st.Empty {
		t.Errorf("state %+v, %v", st, err)
	}
	for range 2 { // the second time there is nothing to do
		if vol, err := ls.GrowVolume("data", 192<<20); err != nil || vol.Capacity != 192<<20 {
			t.Fatalf("grown: %+v, %v", vol, err)
		}
	}
	raw := s.raw(d, disks[0])
	if fi, err := os.Stat(raw); err != nil || fi.Size() != 192<<20 {
		t.Errorf("grown to %v, %v", fi, err)
	}
	if out, err := exec.Command(oracle.Find(t, "e2fsck"), "-fn", raw).CombinedOutput(); err != nil {
		t.Errorf("e2fsck of what has grown: %v: %s", err, out)
	}
	if st, err := ls.VolumeState("data"); err != nil || !st.Grown {
		t.Errorf("state %+v, %v", st, err)
	}
	if err := ls.RemoveVolume("data"); err != nil {
		t.Error(err)
	}
	if err := v.Remove(disks[0]); err != nil { // what is gone is no error
		t.Error(err)
	}
	if got, want := s.files(d, "."), []string{"empty", strings.TrimPrefix(disks[1], "default/") + "-flat.vmdk", strings.TrimPrefix(disks[1], "default/") + ".vmdk", "vchs", "volumes"}; !slices.Equal(got, want) {
		t.Errorf("left: %v, want %v", got, want)
	}
	if got := s.files(d, "vchs/one"); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
	for _, bad := range []string{"", "default", "default/", "default/../x", "other/x-1", "default/.x", "default/x", "default/x-1"} {
		if _, err := v.Read(bad); err == nil || errors.Is(err, ErrUnavailable) || errors.Is(err, layerstore.ErrNotFound) {
			t.Errorf("disk %q: %v", bad, err)
		}
	}
}

// A VCH that has lost its records, and another one, have the volumes with all that is known of them. None goes that another has.
func TestVolumesAdopted(t *testing.T) {
	s := newSite(t, vcsim.Options{})
	d := s.datastore(s.connect(s.endpoint()), "volumes")
	_, first := s.volumes("one", d)
	o := sized("data")
	o.Driver, o.Labels = "vsphere", map[string]string{"a": "b"}
	want, _, err := first.CreateVolume(o)
	if err != nil {
		t.Fatal(err)
	}
	lost, other := func() *layerstore.Store { _, ls := s.volumes("one", d); return ls }(), func() *layerstore.Store { _, ls := s.volumes("two", d); return ls }()
	for name, ls := range map[string]*layerstore.Store{"one": lost, "two": other} {
		before := s.Calls()
		all, damaged, err := ls.Volumes()
		if err != nil || len(damaged) != 0 || len(all) != 1 || fmt.Sprintf("%+v", all[0]) != fmt.Sprintf("%+v", want) {
			t.Fatalf("%s has %+v, %v, %v, want %+v", name, all, damaged, err, want)
		}
		first := s.since(before)
		before = s.Calls()
		if _, _, err := ls.Volumes(); err != nil {
			t.Error(err)
		}
		if again := s.since(before); again["GET /folder"] != 0 || again["SearchDatastoreSubFolders_Task"] != 1 {
			t.Errorf("a second look: %v, after %v", again, first)
		}
	}
	id := strings.Repeat("0123456789abcdef", 4)
	use := func(ls *layerstore.Store, claims ...layerstore.VolumeClaim) {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(ls.Dir(), "containers", id), 0o700); err != nil {
			t.Fatal(err)
		}
		if _, err := ls.ClaimVolumes(id, claims); err != nil {
			t.Fatal(err)
		}
	}
	use(other, layerstore.VolumeClaim{VolumeOptions: sized("data")}, layerstore.VolumeClaim{VolumeOptions: sized("own"), Own: true})
	var inUse *layerstore.VolumeInUseError
	for _, name := range []string{"data", "own"} {
		if err := lost.RemoveVolume(name); !errors.As(err, &inUse) || !strings.Contains(err.Error(), "virtual container host two") {
			t.Errorf("remove %s: %v", name, err)
		}
	}
	if removed, err := other.RemoveOwnVolumes(id); err != nil || len(removed) != 1 {
		t.Errorf("removed %v, %v", removed, err)
	}
	if err := other.RemoveContainer(id); err != nil {
		t.Fatal(err)
	}

	// A virtual machine of whomever that has the disk, and runs or not.
	path, err := lost.VolumeDisk("data")
	if err != nil {
		t.Fatal(err)
	}
	vm := s.createVM("box")
	devices, err := vm.Device(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	disk := devices.CreateDisk(devices.PickController((*types.VirtualSCSIController)(nil)), d.Reference(), path)
	if err := vm.AddDevice(t.Context(), disk); err != nil {
		t.Fatal(err)
	}
	if err := lost.RemoveVolume("data"); !errors.As(err, &inUse) || !strings.Contains(err.Error(), "virtual machine box") {
		t.Errorf("remove what a virtual machine has: %v", err)
	}
	must := func(task *object.Task, err error) {
		t.Helper()
		if err == nil {
			err = task.Wait(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	var busy *layerstore.VolumeBusyError
	if _, err := lost.VolumeFS(t.Context(), "data"); !errors.As(err, &busy) || !strings.Contains(err.Error(), "box") {
		t.Errorf("read what a virtual machine writes: %v", err)
	}
	if vol, err := lost.GrowVolume("data", 256<<20); err != nil || vol.Capacity != 256<<20 {
		t.Errorf("grow it: %+v, %v", vol, err)
	}
	if desc, err := d.descriptor(t.Context(), strings.TrimPrefix(want.Disk, "default/")); err != nil || desc.Capacity() != 256<<20 {
		t.Errorf("the disk has %d bytes, %v", capacityOf(desc), err)
	}
	must(vm.PowerOff(t.Context()))
	if devices, err = vm.Device(t.Context()); err == nil {
		err = vm.RemoveDevice(t.Context(), true, devices.SelectByType((*types.VirtualDisk)(nil))...)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := lost.RemoveVolume("data"); err != nil {
		t.Error(err)
	}
	if all, damaged, err := other.Volumes(); err != nil || len(all) != 0 || len(damaged) != 0 {
		t.Errorf("the other still has %v, %v, %v", all, damaged, err)
	}
	if got := s.files(d, "."); !slices.Equal(got, []string{"empty", "vchs", "volumes"}) {
		t.Errorf("left: %v", got)
	}
}

// A VCH that is removed leaves its volumes, which are nobody's then.
func TestRetireVolumes(t *testing.T) {
	s := newSite(t, vcsim.Options{})
	d := s.datastore(s.connect(s.endpoint()), "volumes")
	_, one := s.volumes("one", d)
	_, two := s.volumes("two", d)
	id := strings.Repeat("0123456789abcdef", 4)
	if err := os.MkdirAll(filepath.Join(one.Dir(), "containers", id), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := one.ClaimVolumes(id, []layerstore.VolumeClaim{{VolumeOptions: sized("data")}}); err != nil {
		t.Fatal(err)
	}
	var inUse *layerstore.VolumeInUseError
	if err := two.RemoveVolume("data"); !errors.As(err, &inUse) {
		t.Errorf("remove what another uses: %v", err)
	}
	retire := func(vch string) {
		t.Helper()
		for range 2 {
			if err := RetireVolumes(t.Context(), d, vch); err != nil {
				t.Fatal(err)
			}
		}
	}
	// The mark is written again, as it was before there were any.
	if err := os.Remove(filepath.Join(s.folder(d), d.root, "volumes/data/one.uses")); err != nil {
		t.Fatal(err)
	}
	v, err := layerstore.Open(one.Dir(), layerstore.Options{VolumeDisks: NewVolumes(map[string]*Datastore{DefaultVolumes: d}, VolumesOptions{VCH: "one"})})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	if _, damaged, err := v.Volumes(); err != nil || len(damaged) != 0 || len(s.files(d, "volumes/data")) != 2 {
		t.Errorf("%v, %v, and it has %v", damaged, err, s.files(d, "volumes/data"))
	}
	retire("one")
	if err := two.RemoveVolume("data"); err != nil {
		t.Error(err)
	}
	retire("two")
	if got := s.files(d, "."); len(got) != 0 {
		t.Errorf("left by the last: %v", got)
	}
	if err := RetireVolumes(t.Context(), d, "../x"); err == nil {
		t.Error("a VCH of another folder")
	}
}

// Two that make a volume of one name at the same time have the same one, and nothing is left of the other.
func TestVolumesAtOnce(t *testing.T) {
	s := newSite(t, vcsim.Options{})
	d := s.datastore(s.connect(s.endpoint()), "volumes")
	var all []*layerstore.Store
	for _, vch := range []string{"one", "two", "three"} {
		_, ls := s.volumes(vch, d)
		all = append(all, ls)
	}
	type result struct {
		v    *layerstore.Volume
		made bool
		err  error
	}
	results := make(chan result)
	for _, ls := range all {
		go func() {
			v, made, err := ls.CreateVolume(sized("data"))
			results <- result{v, made, err}
		}()
	}
	disks, made := map[string]bool{}, 0
	for range all {
		r := <-results
		if r.err != nil {
			t.Fatal(r.err)
		}
		if disks[r.v.Disk] = true; r.made {
			made++
		}
	}
	if len(disks) != 1 || made != 1 {
		t.Errorf("%d made %v", made, disks)
	}
	if got := s.files(d, "."); len(got) != 5 { // a disk's two, and three folders
		t.Errorf("left: %v", got)
	}
}

// What fails on the way leaves nothing that counts as a volume, or is in the way of another try; what dies on the way is removed by the next start.
func TestVolumesFail(t *testing.T) {
	s := newSite(t, vcsim.Options{})
	d := s.datastore(s.connect(s.endpoint()), "volumes")
	v, ls := s.volumes("one", d)
	for _, task := range []string{"VirtualDiskManager.copyVirtualDisk", "FileManager.moveDatastoreFile"} {
		for _, done := range []bool{false, true} {
			s.FailTask(vcsim.TaskFault{Task: task, Done: done})
			if _, _, err := ls.CreateVolume(sized("data")); err == nil && task == "VirtualDiskManager.copyVirtualDisk" {
				t.Error("made by a copy that failed")
			}
			if err := ls.RemoveVolume("data"); err != nil && !errors.Is(err, layerstore.ErrNotFound) {
				t.Errorf("%s, %v: remove what may be there: %v", task, done, err)
			}
			if got := s.files(d, "volumes"); len(got) != 0 {
				t.Errorf("%s, %v: left %v", task, done, got)
			}
		}
	}
	for _, task := range []string{"FileManager.moveDatastoreFile", "VirtualDiskManager.deleteVirtualDisk", "FileManager.deleteDatastoreFile"} {
		for _, done := range []bool{false, true} {
			if _, _, err := ls.CreateVolume(sized("data")); err != nil {
				t.Fatal(err)
			}
			s.FailTask(vcsim.TaskFault{Task: task, Done: done})
			first := ls.RemoveVolume("data")
			if err := ls.RemoveVolume("data"); err != nil && !errors.Is(err, layerstore.ErrNotFound) {
				t.Errorf("%s, %v: again: %v, after %v", task, done, err, first)
			}
			if got := s.files(d, "."); !slices.Equal(got, []string{"empty", "vchs", "volumes"}) {
				t.Errorf("%s, %v: left %v", task, done, got)
			}
		}
	}
	if err := v.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := s.files(d, "vchs/one"); len(got) != 0 {
		t.Errorf("left: %v", got)
	}

	// A crash while one is made, and one while one is removed that another VCH has begun to use.
	vol, _, err := ls.CreateVolume(sized("data"))
	if err != nil {
		t.Fatal(err)
	}
	name := strings.TrimPrefix(vol.Disk, "default/")
	_, id, _ := splitName(name)
	at := func(elem ...string) string { return filepath.Join(append([]string{s.folder(d), d.root}, elem...)...) }
	if err := os.Rename(at("volumes", "data"), at("vchs", "one", id)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(at("vchs", "one", id, "two.uses"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, again := s.volumes("one", d); len(names2(again.Volumes())) != 1 {
		t.Errorf("what another uses is gone")
	}
	if err := os.Remove(at("volumes", "data", "two.uses")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(at("volumes", "data"), at("vchs", "one", id)); err != nil {
		t.Fatal(err)
	}
	s.volumes("two", d) // leaves others' alone
	if got := s.files(d, "vchs/one"); len(got) != 1 {
		t.Errorf("another VCH's: %v", got)
	}
	s.volumes("one", d)
	if got := s.files(d, "."); !slices.Equal(got, []string{"empty", "vchs", "volumes"}) {
		t.Errorf("left: %v", got)
	}
}

// names2 are the names of volumes.
func names2(all []*layerstore.Volume, _ []error, _ error) (out []string) {
	for _, v := range all {
		out = append(out, v.Name)
	}
	return out
}

// Records that are damaged, or hostile, hide no others.
func TestVolumesDamaged(t *testing.T) {
	s := newSite(t, vcsim.Options{})
	d := s.datastore(s.connect(s.endpoint()), "volumes")
	_, ls := s.volumes("one", d)
	vol, _, err := ls.CreateVolume(sized("good"))
	if err != nil {
		t.Fatal(err)
	}
	_, id, _ := splitName(strings.TrimPrefix(vol.Disk, "default/"))
	root := filepath.Join(s.folder(d), d.root)
	write := func(name, text string) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755), os.WriteFile(filepath.Join(root, name), []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	good, err := os.ReadFile(filepath.Join(root, "volumes/good", id+".json"))
	if err != nil {
		t.Fatal(err)
	}
	write("volumes/cut/"+id+".json", string(good[:10]))
	write("volumes/huge/"+id+".json", strings.Repeat(" ", recordLimit+1))
	write("volumes/stolen/"+id+".json", string(good))
	write("volumes/nodisk/"+id+".json", strings.ReplaceAll(string(good), `"good"`, `"nodisk"`))
	write("volumes/later/"+id+".json", `{"version":2}`)
	write("volumes/two/"+id+".json", string(good))
	write("volumes/two/0123456789ab.json", string(good))
	write("volumes/-bad-/"+id+".json", string(good))
	write("volumes/nothing/other.uses", "")
	write("stray-"+id+".vmdk", "no descriptor")
	write("volumes/stray/"+id+".json", strings.ReplaceAll(string(good), `"good"`, `"stray"`))
	_, fresh := s.volumes("three", d)
	for range 2 {
		all, damaged, err := fresh.Volumes()
		if err != nil || len(all) != 1 || all[0].Name != "good" || len(damaged) != 8 {
			t.Errorf("%v, %v", names2(all, nil, nil), err)
			for _, e := range damaged {
				t.Log(e)
			}
		}
		for _, e := range damaged {
			if len(e.Error()) > 500 {
				t.Errorf("an error of %d bytes", len(e.Error()))
			}
		}
	}
	// The name of what is no volume can be had.
	if _, made, err := fresh.CreateVolume(sized("nothing")); err != nil || !made {
		t.Errorf("made %v, %v", made, err)
	}
	if got := s.files(d, "volumes/nothing"); len(got) != 1 {
		t.Errorf("it has %v", got)
	}
}

// Volumes of a VCH from before volumes had records on the datastore.
func TestVolumesOlder(t *testing.T) {
	s := newSite(t, vcsim.Options{})
	d := s.datastore(s.connect(s.endpoint()), "volumes")
	v, ls := s.volumes("one", d)
	vol, _, err := ls.CreateVolume(sized("data"))
	if err != nil {
		t.Fatal(err)
	}
	name := strings.TrimPrefix(vol.Disk, "default/")
	root := filepath.Join(s.folder(d), d.root)
	marked := []byte{1, 2, 3, 4}
	flat := filepath.Join(root, name+"-flat.vmdk")
	f, err := os.OpenFile(flat, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(marked, 100<<20); err != nil {
		t.Fatal(err)
	}
	f.Close()
	// As they were: a record of the disk, and a local one.
	if err := errors.Join(os.RemoveAll(filepath.Join(root, "volumes")), os.WriteFile(filepath.Join(root, name+".json"), []byte(`{"capacity":134217728}`), 0o600)); err != nil {
		t.Fatal(err)
	}
	record := filepath.Join(ls.Dir(), "volumes", "data", "volume.json")
	text, err := os.ReadFile(record)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(record, []byte(strings.Replace(string(text), `"published": true`, `"published": false`, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if path, err := ls.VolumeDisk("data"); err != nil || path != v.Path(vol.Disk) {
		t.Fatalf("%q, %v", path, err)
	}
	got := make([]byte, 4)
	f, err = os.Open(flat)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.ReadAt(got, 100<<20); err != nil || binary.LittleEndian.Uint32(got) != binary.LittleEndian.Uint32(marked) {
		t.Errorf("the disk has %v, %v", got, err)
	}
	if _, other := s.volumes("two", d); len(names2(other.Volumes())) != 1 {
		t.Error("another VCH does not see it")
	}
	if err := ls.RemoveVolume("data"); err != nil {
		t.Error(err)
	}
	if got := s.files(d, "."); !slices.Equal(got, []string{"empty", "vchs", "volumes"}) {
		t.Errorf("left: %v", got)
	}
}
