package vsphere

import (
	"strings"
	"testing"

	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"

	"vic/bench/vcsim"
)

// TestHosts has a cluster in which nobody but this program chooses hosts: without DRS, with a datastore that not all have.
func TestHosts(t *testing.T) {
	s := newSite(t, vcsim.Options{Hosts: 3, Datastores: []vcsim.Datastore{{Name: "datastore1", Hosts: 2}}})
	ctx := t.Context()
	f := find.NewFinder(s.admin)
	cluster, err := f.ClusterComputeResource(ctx, "/DC0/host/DC0_C0")
	if err != nil {
		t.Fatal(err)
	}
	s.must(cluster.Reconfigure(ctx, &types.ClusterConfigSpecEx{DrsConfig: &types.ClusterDrsConfigInfo{Enabled: types.NewBool(false)}}, true))
	hosts, err := cluster.Hosts(ctx)
	if err != nil {
		t.Fatal(err)
	}
	rest := func(h *object.HostSystem) {
		t.Helper()
		s.must(h.EnterMaintenanceMode(ctx, 10, false, nil))
	}
	rest(hosts[0])
	for n := range 6 {
		id := s.create(n)
		if got, want := s.config(id).Runtime.Host, hosts[1].Reference(); got == nil || *got != want {
			t.Errorf("container %d is on host %v, want %v", n, got, want)
		}
	}
	id := s.create(10)
	before := s.sim.Calls()
	s.sim.FailTask(vcsim.TaskFault{Task: "VirtualMachine.powerOn", Fault: &types.InsufficientMemoryResourcesFault{}})
	s.start(s.spec(id))
	if n := since(s.sim.Calls(), before)["PowerOnVM_Task"]; n != 1 {
		t.Errorf("%d times powered on elsewhere, want 1", n)
	}
	rest(hosts[1])
	err = s.CreateContainer(ctx, strings.Repeat("ab", 32), "box", s.image.ID)
	if err == nil || !strings.Contains(err.Error(), "none of the cluster is ready: ") || !strings.Contains(err.Error(), hosts[1].Name()+" is in maintenance mode") ||
		!strings.Contains(err.Error(), hosts[2].Name()+" does not have all datastores") {
		t.Errorf("create without a host: %v", err)
	}
}
