package vsphere

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"

	"vic/bench/vcsim"
	"vic/containervm/vmgroup"
)

const regroup = "ClusterComputeResource.reconfigureCluster"

// grouped makes a VM group whose member is a VM that is no container's, and has the Driver keep it.
func (s *site) grouped() (*vmgroup.Group, types.ManagedObjectReference) {
	s.t.Helper()
	c := s.sim.Service.Context.Map.Any("ClusterComputeResource").(*simulator.ClusterComputeResource)
	appliance := types.ManagedObjectReference{Type: "VirtualMachine", Value: "vm-appliance"}
	g := vmgroup.New(s.o.Session, c.Self, "vch1")
	if err := g.Make(s.t.Context(), appliance); err != nil {
		s.t.Fatal(err)
	}
	s.o.Group = "vch1"
	s.reopen()
	return g, appliance
}

// reopen has another Driver take over, as when vic serve starts again.
func (s *site) reopen() {
	s.t.Helper()
	if err := s.Close(); err != nil {
		s.t.Fatal(err)
	}
	s.open()
}

// members fails if the group's members are others than these, in any order.
func (s *site) members(g *vmgroup.Group, want ...types.ManagedObjectReference) {
	s.t.Helper()
	got, err := g.Members(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	if len(got) != len(want) || slices.ContainsFunc(want, func(ref types.ManagedObjectReference) bool { return !slices.Contains(got, ref) }) {
		s.t.Errorf("members %v, want %v", got, want)
	}
}

// TestGroup has containers come and go at once, others change the group meanwhile, and VMs miss in it.
func TestGroup(t *testing.T) {
	s := newSite(t, vcsim.Options{})
	early := s.create(1) // before there is a group
	g, appliance := s.grouped()
	s.members(g, appliance, s.vm(early).Reference())
	const many = 100
	var tasks atomic.Int32
	theirs := types.ManagedObjectReference{Type: "VirtualMachine", Value: "vm-theirs"}
	s.sim.OnTask(func(t *simulator.Task, run func() vcsim.Outcome) vcsim.Outcome {
		if t.Info.DescriptionId != regroup {
			return run()
		}
		o := run()
		if tasks.Add(1) == 1 { // between this change and the next
			c := s.sim.Service.Context.Map.Get(*t.Info.Entity).(*simulator.ClusterComputeResource)
			group := vmgroup.Find(c.ConfigurationEx.(*types.ClusterConfigInfoEx), "vch1").(*types.ClusterVmGroup)
			group.Vm = append(group.Vm, theirs)
		}
		return o
	})
	ids := make([]string, many)
	var all sync.WaitGroup
	for i := range many {
		all.Go(func() {
			ids[i] = fmt.Sprintf("%08x", i) + strings.Repeat("c3", 28)
			if err := s.CreateContainer(t.Context(), ids[i], fmt.Sprint("box", i), s.image.ID); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	want := []types.ManagedObjectReference{appliance, theirs, s.vm(early).Reference()}
	for _, id := range ids {
		want = append(want, s.vm(id).Reference())
	}
	s.members(g, want...)
	t.Logf("%d containers, %d changes of the group", many, tasks.Load())
	if n := tasks.Load(); n >= many { // package vmgroup tests that they wait for one another
		t.Errorf("%d changes of the group for %d containers", n, many)
	}
	if err := g.Drop(t.Context(), s.vm(early).Reference(), s.vm(ids[7]).Reference()); err != nil {
		t.Fatal(err)
	}
	s.reopen()
	s.members(g, want...)
	tasks.Store(1)
	for _, id := range ids {
		all.Go(func() {
			if err := s.RemoveContainer(id); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	s.members(g, want[:3]...)
	t.Logf("%d changes of the group at their removal", tasks.Load()-1)
}

// TestGroupFails has VMs that cannot be put into the group.
func TestGroupFails(t *testing.T) {
	s := newSite(t, vcsim.Options{})
	ctx := t.Context()
	g, appliance := s.grouped()
	id := fmt.Sprintf("%064x", 0xabc)
	make := func() error { return s.CreateContainer(ctx, id, "box", s.image.ID) }
	for _, done := range []bool{false, true} {
		s.sim.FailTask(vcsim.TaskFault{Task: regroup, Done: done, Fault: &types.GenericVmConfigFault{Reason: "injected"}})
		if err := make(); err == nil || !strings.Contains(err.Error(), "VM group vch1") {
			t.Errorf("the change of the group fails, done %t: %v", done, err)
		}
		if err := s.RemoveContainer(id); err != nil {
			t.Fatal(err)
		}
		s.members(g, appliance)
	}
	s.sim.FailTask(vcsim.TaskFault{Task: regroup, Fault: &types.TaskInProgress{}})
	if err := make(); err != nil {
		t.Errorf("while somebody changes the cluster: %v", err)
	}
	s.members(g, appliance, s.vm(id).Reference())
	if err := g.Remove(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.RemoveContainer(id); err != nil {
		t.Errorf("remove a container, without the group: %v", err)
	}
	if err := make(); !errors.Is(err, vmgroup.ErrNone) || !strings.Contains(err.Error(), "--affinity-vm-group makes it again") {
		t.Errorf("create without the group: %v", err)
	}
	if err := s.RemoveContainer(id); err != nil {
		t.Error(err)
	}
	s.reopen() // which is no reason not to begin
	esx := newSite(t, vcsim.Options{ESX: true})
	esx.o.Group = "vch1"
	if _, err := New(ctx, esx.o); err == nil || !strings.Contains(err.Error(), "of a host and no cluster") {
		t.Errorf("a pool that is of no cluster: %v", err)
	}
}

// TestGroupCalls counts the calls that containers take with a VM group.
func TestGroupCalls(t *testing.T) {
	s := newSite(t, vcsim.Options{})
	s.grouped()
	s.countCalls(mostCalls + groupCalls)
}
