package main

import (
	"slices"
	"testing"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"

	"vic/containervm/vmgroup"
)

// vmGroup is the VM group that vic serve is told of.
const vmGroup = "vch1-vms"

// regroup makes the VM group, or removes it.
func (c *cluster) regroup(t *testing.T, op types.ArrayUpdateOperation) {
	t.Helper()
	admin, err := c.Administrator(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	spec := types.ClusterGroupSpec{ArrayUpdateSpec: types.ArrayUpdateSpec{Operation: op}}
	if op == types.ArrayUpdateOperationRemove {
		spec.RemoveKey = vmGroup
	} else {
		spec.Info = &types.ClusterVmGroup{ClusterGroupInfo: types.ClusterGroupInfo{Name: vmGroup}}
	}
	cluster := object.NewClusterComputeResource(admin, c.Service.Context.Map.Any("ClusterComputeResource").Reference())
	task, err := cluster.Reconfigure(t.Context(), &types.ClusterConfigSpecEx{GroupSpec: []types.ClusterGroupSpec{spec}}, true)
	if err == nil {
		err = task.Wait(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// testVMGroup has a container in the VM group, and one that cannot be in it.
func testVMGroup(t *testing.T, s *suite, c *cluster) {
	members := func() []types.ManagedObjectReference {
		t.Helper()
		info := c.Service.Context.Map.Any("ClusterComputeResource").(*simulator.ClusterComputeResource).ConfigurationEx.(*types.ClusterConfigInfoEx)
		return vmgroup.Find(info, vmGroup).(*types.ClusterVmGroup).Vm
	}
	s.docker(t, "", "create", "--name", "grouped", "bb", "true").ok()
	vm, err := c.machine(t.Context(), "grouped-vch1")
	if err != nil {
		t.Fatal(err)
	}
	if all := members(); !slices.Contains(all, vm.Reference()) {
		t.Errorf("in the group are %v, and not %v", all, vm.Reference())
	}
	s.docker(t, "", "rm", "grouped").ok()
	if all := members(); slices.Contains(all, vm.Reference()) {
		t.Errorf("in the group are %v, when it is removed", all)
	}
	c.regroup(t, types.ArrayUpdateOperationRemove)
	s.docker(t, "", "create", "--name", "grouped", "bb", "true").wantError(1, "VM group "+vmGroup+": there is no such VM group: somebody has removed it")
	s.docker(t, "", "ps", "-aq", "--filter", "name=grouped").want(0, "")
	if _, err := c.machine(t.Context(), "grouped-vch1"); err == nil {
		t.Error("there is a VM of a container that was not made")
	}
	c.regroup(t, types.ArrayUpdateOperationAdd)
	s.docker(t, "", "create", "--name", "grouped", "bb", "true").ok()
	s.docker(t, "", "rm", "grouped").ok()
}
