package vsphere

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// ChooseHost chooses the host of a virtual machine in a resource pool where vSphere does not: in a cluster without DRS. Elsewhere
// it is nil. The host has all these datastores and is ready, and of those that are it has the largest share of its memory free.
func (s *Session) ChooseHost(ctx context.Context, pool types.ManagedObjectReference, stores ...types.ManagedObjectReference) (*object.HostSystem, error) {
	var host *object.HostSystem
	err := s.Call(ctx, func() (err error) {
		host, err = s.chooseHost(ctx, pool, stores)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("choose a host: %w", err)
	}
	return host, nil
}

func (s *Session) chooseHost(ctx context.Context, pool types.ManagedObjectReference, stores []types.ManagedObjectReference) (*object.HostSystem, error) {
	pc := property.DefaultCollector(s.client)
	res, err := pc.RetrieveProperties(ctx, types.RetrieveProperties{SpecSet: []types.PropertyFilterSpec{{
		PropSet: []types.PropertySpec{{Type: "ClusterComputeResource", PathSet: []string{"configurationEx", "host"}}},
		ObjectSet: []types.ObjectSpec{{Obj: pool, Skip: types.NewBool(true), SelectSet: []types.BaseSelectionSpec{
			&types.TraversalSpec{Type: "ResourcePool", Path: "owner"}}}},
	}}})
	if err != nil {
		return nil, err
	}
	var clusters []mo.ClusterComputeResource
	if err := mo.LoadObjectContent(res.Returnval, &clusters); err != nil {
		return nil, err
	}
	if len(clusters) == 0 || divisible(clusters[0]) {
		return nil, nil
	}
	var hosts []mo.HostSystem
	if err := pc.Retrieve(ctx, clusters[0].Host, []string{"name", "datastore", "summary"}, &hosts); err != nil {
		return nil, err
	}
	var best *mo.HostSystem
	var not []string
	for i := range hosts {
		h := &hosts[i]
		switch why := unfit(h, stores); {
		case why != "":
			not = append(not, h.Name+" "+why)
		case best == nil || freeMemory(h) > freeMemory(best):
			best = h
		}
	}
	if best == nil {
		slices.Sort(not)
		return nil, errors.New("none of the cluster is ready: " + strings.Join(not, ", "))
	}
	return object.NewHostSystem(s.client, best.Self), nil
}

// divisible says whether a cluster has DRS.
func divisible(c mo.ClusterComputeResource) bool {
	info, ok := c.ConfigurationEx.(*types.ClusterConfigInfoEx)
	return ok && info.DrsConfig.Enabled != nil && *info.DrsConfig.Enabled
}

// unfit says why a host cannot have a virtual machine that needs some datastores; "" if it can.
func unfit(h *mo.HostSystem, stores []types.ManagedObjectReference) string {
	r := h.Summary.Runtime
	switch {
	case r == nil || r.ConnectionState != types.HostSystemConnectionStateConnected:
		return "is not connected"
	case r.InMaintenanceMode:
		return "is in maintenance mode"
	}
	for _, ds := range stores {
		if !slices.Contains(h.Datastore, ds) {
			return "does not have all datastores"
		}
	}
	return ""
}

// freeMemory is the share of a host's memory that is free.
func freeMemory(h *mo.HostSystem) float64 {
	hw := h.Summary.Hardware
	if hw == nil || hw.MemorySize == 0 {
		return 0
	}
	return 1 - float64(h.Summary.QuickStats.OverallMemoryUsage)*(1<<20)/float64(hw.MemorySize)
}
