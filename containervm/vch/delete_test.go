package vch

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"

	"vic/bench/vcsim"
	"vic/containervm/vsphere"
)

// idOf is a container's ID, and uuidOf the BIOS UUID of its VM.
func idOf(digit string) string { return strings.Repeat(digit, 64) }

func uuidOf(digit string) string { return vsphere.UUID(idOf(digit)) }

// vmx is a VM whose folder is on the datastore.
func (l *lab) vmx(folder, name, uuid, note string) types.VirtualMachineConfigSpec {
	l.Helper()
	if err := os.MkdirAll(filepath.Join(l.Folder("datastore1"), filepath.Dir(folder)), 0o700); err != nil {
		l.Fatal(err)
	}
	return types.VirtualMachineConfigSpec{Name: name, Uuid: uuid, Annotation: note, GuestId: "other3xLinux64Guest", NumCPUs: 1, MemoryMB: 64,
		Files: &types.VirtualMachineFileInfo{VmPathName: "[datastore1] " + folder + "/" + name + ".vmx"}}
}

// Only what is the VCH's own goes, in a pool and a folder where others are as well.
func TestDelete(t *testing.T) {
	l := newLab(t, vcsim.Options{})
	l.serve()
	o := l.options()
	o.Spec.VolumeStores = []string{"datastore1/volumes:default"}
	l.create(o)
	second := l.options()
	second.Spec.Name, second.Spec.Bridge = "vch2", "other"
	l.create(second)
	pool, folder, root := "/DC0/host/DC0_C0/Resources/vch1", "/DC0/vm/vch1", "/DC0/vm"
	note := func(id, vch string) string { return "Container " + id + " of the virtual container host " + vch + "." }
	own := map[string]*object.VirtualMachine{
		"web":   l.addVM(l.vmx("vch1/"+idOf("a"), "web", uuidOf("a"), note(idOf("a"), "vch1")), pool, folder),
		"moved": l.addVM(l.vmx("elsewhere/moved", "moved", uuidOf("b"), note(idOf("b"), "vch1")), pool, root),
		"far":   l.addVM(l.vmx("vch1/"+idOf("c"), "far", uuidOf("c"), ""), "/DC0/host/DC0_C0/Resources", root),
	}
	others := map[string]*object.VirtualMachine{
		"a stranger in the pool":      l.addVM(l.vmx("stranger", "stranger", "", ""), pool, folder),
		"a copy of a container":       l.addVM(l.vmx("copy", "copy", uuidOf("d"), note(idOf("a"), "vch1")), pool, root),
		"a container of another VCH":  l.addVM(l.vmx("vch2/"+idOf("e"), "theirs", uuidOf("e"), note(idOf("e"), "vch2")), pool, folder),
		"a VM in the container store": l.addVM(l.vmx("vch1/mine", "mine", uuidOf("f"), ""), pool, folder),
	}
	volume := filepath.Join(l.Folder("datastore1"), "volumes", "data.vmdk")
	l.attachVolume(own["web"], "[datastore1] volumes/data.vmdk")
	log := filepath.Join(l.Folder("datastore1"), "vch1", idOf("a"), "console-1.log")
	if err := os.WriteFile(log, []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	task, err := own["web"].PowerOn(t.Context())
	if err == nil {
		err = task.Wait(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.find("vch1").Delete(t.Context(), DeleteOptions{}); err == nil || !strings.Contains(err.Error(), "1 containers run") || !strings.Contains(err.Error(), "web") {
		t.Errorf("a container runs: %v", err)
	}
	l.FailTask(vcsim.TaskFault{Task: "VirtualMachine.destroy", Skip: 2})
	plan, err := l.find("vch1").Delete(t.Context(), DeleteOptions{Force: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := plan.Run(t.Context(), RunOptions{}); err == nil || !strings.Contains(err.Error(), "remove 3 container VMs: remove VM ") {
		t.Errorf("a VM that cannot be removed: %v", err)
	}
	if doing, err := l.find("vch1").Doing(t.Context()); doing != "delete" || err != nil {
		t.Errorf("half way: %q, %v", doing, err)
	}
	l.delete("vch1", DeleteOptions{Force: true})
	all := l.everything()
	for _, gone := range []string{"web", "moved", "far", "/vch1/vch1", "] vch1/state", "] vch1/vch.json", "] vch1/appliance", "] vch1/" + idOf("a"), "] vch1/" + idOf("c")} {
		if i := slices.IndexFunc(all, func(x string) bool { return strings.HasSuffix(x, gone) }); i >= 0 {
			t.Errorf("%s is there", all[i])
		}
	}
	for name, vm := range others {
		if _, err := vm.PowerState(t.Context()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := os.Stat(volume); err != nil {
		t.Errorf("the volume: %v", err)
	}
	if !slices.Contains(all, pool) || !slices.Contains(all, folder) {
		t.Error("the pool or the folder went with what is in it")
	}
	if v := l.find("vch2"); v.Power != types.VirtualMachinePowerStatePoweredOn {
		t.Errorf("the other VCH: %s", v.Power)
	}
}

// attachVolume makes a disk and attaches it.
func (l *lab) attachVolume(vm *object.VirtualMachine, name string) {
	l.Helper()
	spec := types.VirtualMachineConfigSpec{DeviceChange: []types.BaseVirtualDeviceConfigSpec{
		change(types.VirtualDeviceConfigSpecOperationAdd, &types.ParaVirtualSCSIController{VirtualSCSIController: types.VirtualSCSIController{
			SharedBus: types.VirtualSCSISharingNoSharing, VirtualController: types.VirtualController{VirtualDevice: types.VirtualDevice{Key: -1}}}}),
		&types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationAdd, FileOperation: types.VirtualDeviceConfigSpecFileOperationCreate,
			Device: &types.VirtualDisk{CapacityInKB: 1024, VirtualDevice: types.VirtualDevice{Key: -2, ControllerKey: -1, UnitNumber: types.NewInt32(0),
				Backing: &types.VirtualDiskFlatVer2BackingInfo{DiskMode: "persistent", VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{FileName: name}}}}},
	}}
	task, err := vm.Reconfigure(l.Context(), spec)
	if err == nil {
		err = task.Wait(l.Context())
	}
	if err != nil {
		l.Fatal(err)
	}
}

// A deletion that breaks off anywhere can be repeated, and volumes go if asked.
func TestDeleteAgain(t *testing.T) {
	l := newLab(t, vcsim.Options{})
	l.serve()
	before := l.everything()
	for _, name := range []string{"VirtualMachine.powerOff", "VirtualMachine.reconfigVm", "VirtualDiskManager.deleteVirtualDisk", "ResourcePool.destroy", "Folder.moveIntoFolder", "Folder.destroy",
		"FileManager.deleteDatastoreFile", "VirtualMachine.destroy"} {
		for _, done := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				l.T = t
				o := l.options()
				o.Spec.VolumeStores = []string{"datastore1/volumes/a:default"}
				l.create(o)
				if err := os.WriteFile(filepath.Join(l.Folder("datastore1"), "volumes", "a", "file"), nil, 0o600); err != nil {
					t.Fatal(err)
				}
				plan, err := l.find("vch1").Delete(t.Context(), DeleteOptions{Volumes: true})
				if err != nil {
					t.Fatal(err)
				}
				l.FailTask(vcsim.TaskFault{Task: name, Done: done})
				if err := plan.Run(t.Context(), RunOptions{}); err == nil {
					t.Error("it went well")
				}
				if v, err := l.site.Find(t.Context(), "vch1"); err == nil {
					if plan, err = v.Delete(t.Context(), DeleteOptions{Volumes: true}); err == nil {
						err = plan.Run(t.Context(), RunOptions{})
					}
					if err != nil {
						t.Error(err)
					}
				}
				if name == "VirtualMachine.destroy" && done { // nothing says any more whose the folder was
					if err := os.RemoveAll(filepath.Join(l.Folder("datastore1"), "vch1")); err != nil {
						t.Fatal(err)
					}
				}
				os.Remove(filepath.Join(l.Folder("datastore1"), "volumes")) // above the store: not made by the VCH alone
				l.same(l.everything(), before)
			})
		}
	}
}
