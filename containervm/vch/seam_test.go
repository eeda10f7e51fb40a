package vch

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"vic/bench/vcsim"
	"vic/containervm/vsphere"
)

// What an appliance is told to run takes all flags that it is given.
func TestServeFlags(t *testing.T) {
	l := newLab(t, vcsim.Options{})
	l.serve()
	o := l.options()
	o.Spec.VolumeStores = []string{"datastore1/volumes:default"}
	o.Spec.ContainerNetworks, o.Spec.ContainerGateways, o.Spec.ContainerRanges = []string{"VM Network:lan"}, []string{"VM Network:10.1.0.1/24"}, []string{"VM Network:10.1.0.10-10.1.0.20"}
	o.Spec.ContainerDNS, o.Spec.ContainerFirewall = []string{"VM Network:10.1.0.1"}, []string{"VM Network:open"}
	o.Spec.Insecure, o.Spec.Debug = []string{"127.0.0.1:1"}, true
	o.Spec.BaseImageSize, o.Spec.StorageQuota, o.Spec.Containers, o.Spec.NameConvention, o.Spec.BridgeWidth, o.Spec.Whitelist = 8, 9, 10, "{id}", 24, []string{"127.0.0.1:1"}
	c, err := l.create(o).config()
	if err != nil {
		t.Fatal(err)
	}
	help, err := exec.Command("go", "run", "../../cmd/vic", "serve", "--help").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range c.Args {
		if strings.HasPrefix(a, "--") && !strings.Contains(string(help), " "+a+" ") {
			t.Errorf("vic serve takes no %s", a)
		}
	}
}

// The VMs that the driver makes are known by their UUIDs.
func TestContainerID(t *testing.T) {
	id := "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	v := &VCH{Record: Record{PoolID: "resgroup-1", Spec: Spec{Name: "vch1"}}}
	vm := func(uuid, vmx, note, pool string) *mo.VirtualMachine {
		m := &mo.VirtualMachine{Config: &types.VirtualMachineConfigInfo{Uuid: uuid, Annotation: note, Files: types.VirtualMachineFileInfo{VmPathName: vmx}}}
		m.ResourcePool = &types.ManagedObjectReference{Type: "ResourcePool", Value: pool}
		return m
	}
	uuid, note := vsphere.UUID(id), "Container "+id+" of the virtual container host vch1."
	for _, tt := range []struct {
		name string
		vm   *mo.VirtualMachine
		want string
	}{
		{"in the container store", vm(uuid, "[ds] vch1/"+id+"/x.vmx", "", ""), id},
		{"in capitals", vm(strings.ToUpper(uuid), "[ds] vch1/"+id+"/x.vmx", "", ""), id},
		{"elsewhere, in the pool", vm(uuid, "[ds2] web/web.vmx", note, "resgroup-1"), id},
		{"elsewhere, in no pool of the VCH", vm(uuid, "[ds2] web/web.vmx", note, "resgroup-2"), ""},
		{"of another VCH", vm(uuid, "[ds2] web/web.vmx", strings.Replace(note, "vch1", "vch2", 1), "resgroup-1"), ""},
		{"another UUID", vm(vsphere.UUID(strings.Repeat("e", 64)), "[ds] vch1/"+id+"/x.vmx", note, "resgroup-1"), ""},
		{"deeper in the container store", vm(uuid, "[ds] vch1/x/"+id+"/x.vmx", "", ""), ""},
		{"on another datastore", vm(uuid, "[ds2] vch1/"+id+"/x.vmx", "", ""), ""},
		{"no UUID", vm("", "[ds] vch1/"+id+"/x.vmx", note, "resgroup-1"), ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := v.containerID(tt.vm, location{"ds", "vch1"}); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}
