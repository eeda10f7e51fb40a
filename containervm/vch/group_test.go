package vch

import (
	"context"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"

	"vic/bench/vcsim"
)

// groups are those of VMs of all clusters: the names of their members, or what there was of those that are gone.
func (l *lab) groups() map[string][]string {
	l.Helper()
	out := map[string][]string{}
	for _, e := range l.Service.Context.Map.All("ClusterComputeResource") {
		for _, g := range e.(*simulator.ClusterComputeResource).ConfigurationEx.(*types.ClusterConfigInfoEx).Group {
			names := []string{}
			if vms, ok := g.(*types.ClusterVmGroup); ok {
				for _, ref := range vms.Vm {
					name := ref.Value
					if vm, ok := l.Service.Context.Map.Get(ref).(*simulator.VirtualMachine); ok {
						name = vm.Name
					}
					names = append(names, name)
				}
			}
			slices.Sort(names)
			out[g.GetClusterGroupInfo().Name] = names
		}
	}
	return out
}

// grouped fails if the VM group of vch1 has others than these; none means that there is no group.
func (l *lab) grouped(when string, want ...string) {
	l.Helper()
	if got := l.groups()["vch1"]; !slices.Equal(got, want) {
		l.Errorf("%s: in the group are %q, want %q", when, got, want)
	}
}

// recluster changes the cluster, as an administrator does.
func (l *lab) recluster(spec types.ClusterConfigSpecEx) {
	l.Helper()
	c, err := l.Administrator(l.Context())
	if err != nil {
		l.Fatal(err)
	}
	task, err := object.NewClusterComputeResource(c, l.Service.Context.Map.Any("ClusterComputeResource").Reference()).Reconfigure(l.Context(), &spec, true)
	if err == nil {
		err = task.Wait(l.Context())
	}
	if err != nil {
		l.Fatal(err)
	}
}

// changeGroup does something with the cluster's groups.
func (l *lab) changeGroup(op types.ArrayUpdateOperation, g types.BaseClusterGroupInfo) {
	l.Helper()
	spec := types.ClusterGroupSpec{ArrayUpdateSpec: types.ArrayUpdateSpec{Operation: op}, Info: g}
	if op == types.ArrayUpdateOperationRemove {
		spec.RemoveKey, spec.Info = g.GetClusterGroupInfo().Name, nil
	}
	l.recluster(types.ClusterConfigSpecEx{GroupSpec: []types.ClusterGroupSpec{spec}})
}

// affine are options of a VCH with a VM group.
func (l *lab) affine() CreateOptions {
	l.Helper()
	o := l.options()
	o.Spec.AffinityGroup = true
	return o
}

const regroupTask = "ClusterComputeResource.reconfigureCluster"

// A creation that fails leaves no VM group, one that was killed the next goes on with, and a group of somebody else is left alone.
func TestGroupCreate(t *testing.T) {
	l := newLab(t, vcsim.Options{})
	l.serve()
	before := l.everything()
	for _, tt := range []struct {
		name string
		f    vcsim.TaskFault
	}{
		{"group not made", vcsim.TaskFault{Task: regroupTask}},
		{"group made, but the task fails", vcsim.TaskFault{Task: regroupTask, Done: true}},
		{"not powered on", vcsim.TaskFault{Task: "VirtualMachine.powerOn"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l.T = t
			plan, err := l.site.Create(t.Context(), l.affine())
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Contains(plan.Steps(), "make VM group vch1") {
				t.Errorf("steps %q", plan.Steps())
			}
			l.FailTask(tt.f)
			if err := plan.Run(t.Context(), RunOptions{}); err == nil {
				t.Error("a task failed, and it was carried out")
			}
			l.same(l.everything(), before)
		})
	}
	for _, last := range []string{"make VM vch1", "make VM group", "power on", "wait for"} {
		t.Run("killed at "+last, func(t *testing.T) {
			l.T = t
			plan, err := l.site.Create(t.Context(), l.affine())
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			err = plan.Run(ctx, RunOptions{Keep: true, Report: func(e Event) {
				if strings.HasPrefix(e.Text, last) {
					cancel()
				}
			}})
			if err == nil {
				t.Error("it was carried out")
			}
			l.create(l.affine())
			l.grouped("made again", "vch1")
			l.delete("vch1", DeleteOptions{})
			l.same(l.everything(), before)
		})
	}
	t.Run("killed, and without a group then", func(t *testing.T) {
		l.T = t
		plan, err := l.site.Create(t.Context(), l.affine())
		if err != nil {
			t.Fatal(err)
		}
		l.FailTask(vcsim.TaskFault{Task: "VirtualMachine.powerOn"})
		if err := plan.Run(t.Context(), RunOptions{Keep: true}); err == nil {
			t.Error("it was carried out")
		}
		l.grouped("kept", "vch1")
		l.create(l.options())
		l.grouped("not asked for")
		l.delete("vch1", DeleteOptions{})
		l.same(l.everything(), before)
	})
	for name, g := range map[string]types.BaseClusterGroupInfo{
		"of VMs":   &types.ClusterVmGroup{ClusterGroupInfo: types.ClusterGroupInfo{Name: "vch1"}},
		"of hosts": &types.ClusterHostGroup{ClusterGroupInfo: types.ClusterGroupInfo{Name: "vch1"}},
	} {
		t.Run("somebody's group "+name, func(t *testing.T) {
			l.T = t
			l.changeGroup(types.ArrayUpdateOperationAdd, g)
			defer l.changeGroup(types.ArrayUpdateOperationRemove, g)
			const taken = "--affinity-vm-group: there is a DRS group vch1 already in the cluster, which is not the VCH's"
			if got := l.problem(l.affine()); !strings.Contains(got, taken) {
				t.Errorf("create: %s", got)
			}
			v := l.create(l.options())
			if _, err := v.Configure(t.Context(), l.changed(v, true)); err == nil || !strings.Contains(err.Error(), taken) {
				t.Errorf("configure: %v", err)
			}
			l.delete("vch1", DeleteOptions{})
			if _, there := l.groups()["vch1"]; !there {
				t.Error("delete has removed it")
			}
		})
	}
	t.Run("taken meanwhile", func(t *testing.T) {
		l.T = t
		plan, err := l.site.Create(t.Context(), l.affine())
		if err != nil {
			t.Fatal(err)
		}
		theirs := &types.ClusterVmGroup{ClusterGroupInfo: types.ClusterGroupInfo{Name: "vch1"}}
		l.changeGroup(types.ArrayUpdateOperationAdd, theirs)
		if err := plan.Run(t.Context(), RunOptions{}); err == nil || !strings.Contains(err.Error(), "make VM group vch1: VM group vch1: there is a group of that name already") {
			t.Errorf("got %v", err)
		}
		l.changeGroup(types.ArrayUpdateOperationRemove, theirs) // which is there
		l.same(l.everything(), before)
	})
	t.Run("no DRS", func(t *testing.T) {
		l.T = t
		l.recluster(types.ClusterConfigSpecEx{DrsConfig: &types.ClusterDrsConfigInfo{Enabled: types.NewBool(false)}})
		o := l.affine()
		o.Spec.CPUs = 0
		if got := l.problem(o); !strings.Contains(got, "--affinity-vm-group: cluster /DC0/host/DC0_C0 has no DRS") || !strings.Contains(got, "--endpoint-cpu") {
			t.Errorf("got %s", got)
		}
	})
	t.Run("ESXi", func(t *testing.T) {
		l := newLab(t, vcsim.Options{ESX: true})
		l.serve()
		if got := l.problem(l.affine()); !strings.Contains(got, "--affinity-vm-group: an ESXi host has no DRS") {
			t.Errorf("got %s", got)
		}
	})
}

// changed are options that give a VCH a VM group or take it.
func (l *lab) changed(v *VCH, group bool) ConfigureOptions {
	l.Helper()
	o := l.options()
	c := ConfigureOptions{Spec: v.Spec, Access: o.Access, TLS: o.TLS, Version: o.Version, Timeout: 2 * time.Second}
	c.Spec.AffinityGroup = group
	return c
}

// A VM group is made of the containers that there are, is completed, goes when it is not wanted any more, and what fails has it as it was.
func TestGroupConfigure(t *testing.T) {
	l := newLab(t, vcsim.Options{})
	l.serve()
	l.create(l.options())
	pool, folder := "/DC0/host/DC0_C0/Resources/vch1", "/DC0/vm/vch1"
	l.addVM(l.vmx("vch1/"+idOf("a"), "web", uuidOf("a"), ""), pool, folder)
	l.addVM(l.vmx("stranger", "stranger", "", ""), pool, folder)
	configure := func(group bool) (*Plan, error) {
		t.Helper()
		v := l.find("vch1")
		plan, err := v.Configure(t.Context(), l.changed(v, group))
		if err != nil {
			t.Fatal(err)
		}
		return plan, plan.Run(t.Context(), RunOptions{})
	}
	ok := func(group bool) *Plan {
		t.Helper()
		plan, err := configure(group)
		if err != nil {
			t.Fatal(err)
		}
		return plan
	}
	fails := func(group bool) {
		t.Helper()
		for _, f := range []vcsim.TaskFault{{Task: regroupTask}, {Task: regroupTask, Done: true}, {Task: "VirtualMachine.reconfigVm", Done: true}, {Task: "VirtualMachine.powerOn"}} {
			before := l.groups()
			l.FailTask(f)
			if _, err := configure(group); err == nil {
				t.Errorf("%+v failed, and configure did not", f)
			}
			if after := l.groups(); !reflect.DeepEqual(after, before) {
				t.Errorf("after %+v failed: %v, before: %v", f, after, before)
			}
			if v := l.find("vch1"); v.Spec.AffinityGroup == group || v.Power != types.VirtualMachinePowerStatePoweredOn {
				t.Errorf("after %+v failed: %+v", f, v.Record)
			}
		}
	}
	state := func(want *GroupState) {
		t.Helper()
		if got, err := l.find("vch1").Group(t.Context()); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("group %+v, %v, want %+v", got, err, want)
		}
	}
	state(nil)
	fails(true)
	ok(true)
	l.grouped("made", "vch1", "web")
	state(&GroupState{Name: "vch1", There: true, Members: 2})
	l.addVM(l.vmx("vch1/"+idOf("b"), "db", uuidOf("b"), ""), pool, folder)
	if plan := ok(true); !slices.Contains(plan.Steps(), "have all VMs in VM group vch1") {
		t.Errorf("steps %q", plan.Steps())
	}
	l.grouped("completed", "db", "vch1", "web")
	fails(false)
	l.changeGroup(types.ArrayUpdateOperationRemove, &types.ClusterVmGroup{ClusterGroupInfo: types.ClusterGroupInfo{Name: "vch1"}})
	state(&GroupState{Name: "vch1"})
	ok(true)
	l.grouped("made again", "db", "vch1", "web")
	rule := &types.ClusterVmHostRuleInfo{VmGroupName: "vch1", AffineHostGroupName: "licensed", ClusterRuleInfo: types.ClusterRuleInfo{Name: "vch1 on licensed"}}
	l.recluster(types.ClusterConfigSpecEx{RulesSpec: []types.ClusterRuleSpec{{ArrayUpdateSpec: types.ArrayUpdateSpec{Operation: types.ArrayUpdateOperationAdd}, Info: rule}}})
	state(&GroupState{Name: "vch1", There: true, Members: 3, Rules: []string{"vch1 on licensed"}})
	if plan := ok(false); len(plan.Warnings) != 1 || !strings.Contains(plan.Warnings[0], "these rules of the cluster are of it: vch1 on licensed") {
		t.Errorf("warnings %q", plan.Warnings)
	}
	l.grouped("removed")
	back := func(want ...string) {
		t.Helper()
		plan, err := l.find("vch1").Rollback(t.Context(), l.options().TLS, time.Second, false)
		if err == nil {
			err = plan.Run(t.Context(), RunOptions{})
		}
		if err != nil {
			t.Fatal(err)
		}
		l.grouped("rolled back", want...)
	}
	back("db", "vch1", "web")
	ok(false)
	ok(true)
	back()
	ok(true)
	if plan, err := l.find("vch1").Delete(t.Context(), DeleteOptions{}); err != nil || len(plan.Warnings) != 1 || !slices.Contains(plan.Steps(), "remove VM group vch1") {
		t.Errorf("delete: %+v, %v", plan, err)
	}
	for _, done := range []bool{false, true} {
		l.FailTask(vcsim.TaskFault{Task: regroupTask, Done: done})
		plan, err := l.find("vch1").Delete(t.Context(), DeleteOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if err := plan.Run(t.Context(), RunOptions{}); err == nil || !strings.Contains(err.Error(), "remove VM group vch1") {
			t.Errorf("deleted, while the group cannot be, done %t: %v", done, err)
		}
	}
	l.delete("vch1", DeleteOptions{})
	l.grouped("deleted")
}
