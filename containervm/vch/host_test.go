package vch

import (
	"strings"
	"testing"

	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/vim25/types"

	"vic/bench/vcsim"
)

// TestCreateHosts has hosts that do not have all datastores, in a cluster without DRS.
func TestCreateHosts(t *testing.T) {
	l := newLab(t, vcsim.Options{Datastores: []vcsim.Datastore{{Name: "datastore1", Hosts: 1}, {Name: "other", Hosts: -1}, {Name: "all"}}})
	l.serve()
	c, err := l.Administrator(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	cluster, err := find.NewFinder(c).ClusterComputeResource(t.Context(), "/DC0/host/DC0_C0")
	if err != nil {
		t.Fatal(err)
	}
	task, err := cluster.Reconfigure(t.Context(), &types.ClusterConfigSpecEx{DrsConfig: &types.ClusterDrsConfigInfo{Enabled: types.NewBool(false)}}, true)
	if err == nil {
		err = task.Wait(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	hosts, err := cluster.Hosts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	o := l.options()
	o.Spec.VolumeStores = []string{"other/volumes:default"}
	if _, err := l.site.Create(t.Context(), o); err == nil || !strings.Contains(err.Error(), "no host of /DC0/host/DC0_C0/Resources has all of these datastores: datastore1, other") {
		t.Errorf("datastores that no host has all of: %v", err)
	}
	o.Spec.VolumeStores = []string{"all/volumes:default"}
	plan, err := l.site.Create(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if err := plan.Run(t.Context(), RunOptions{}); err != nil {
		t.Fatal(err)
	}
	v := l.find("vch1")
	host, err := v.machine().HostSystem(t.Context())
	if err != nil || host.Reference() != hosts[0].Reference() {
		t.Errorf("the appliance is on %v, want %v; %v", host, hosts[0], err)
	}
	l.delete("vch1", DeleteOptions{})
}
