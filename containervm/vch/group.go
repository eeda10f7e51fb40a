package vch

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"vic/containervm/vmgroup"
)

// clusterRole is for the cluster of a VCH that has a VM group, which is part of the cluster's configuration.
var clusterRole = role{"vic-cluster", []string{"Host.Inventory.EditCluster"}}

// checkGroup sees whether there can be a VM group.
func (s *Site) checkGroup(p *Problems, r *resolved) {
	const option = "affinity-vm-group"
	switch {
	case !r.spec.AffinityGroup || r.pool == nil: // the latter is told of already
	case !s.VCenter():
		p.add(option, "an ESXi host has no DRS, which has groups of VMs: they are a vCenter's")
	case r.pool.config == nil:
		p.add(option, "%s is a host in no cluster, and groups of VMs are a cluster's", r.pool.compute())
	case !r.pool.divisible:
		p.add(option, "cluster %s has no DRS, which has groups of VMs", r.pool.compute())
	}
}

// A group is the VM group of a VCH, of its name, and what there was of it when it was looked for.
type group struct {
	*vmgroup.Group
	site    *Site
	name    string
	hosts   []types.ManagedObjectReference // of the cluster
	there   bool
	ofHosts bool     // it is a group of hosts
	rules   []string // that are of it
}

// group looks for a group in a cluster.
func (s *Site) group(ctx context.Context, cluster types.ManagedObjectReference, name string) (*group, error) {
	var m mo.ClusterComputeResource
	if err := s.properties(ctx, cluster, &m, "configurationEx", "host"); err != nil {
		return nil, fmt.Errorf("look at the VM groups of the cluster: %w", err)
	}
	g := &group{Group: vmgroup.New(s.session, cluster, name), site: s, name: name, hosts: m.Host}
	info, ok := m.ConfigurationEx.(*types.ClusterConfigInfoEx)
	if !ok {
		return g, nil
	}
	switch vmgroup.Find(info, name).(type) {
	case nil:
	case *types.ClusterVmGroup:
		g.there = true
	default:
		g.ofHosts = true
	}
	for _, r := range info.Rule {
		if rule, ok := r.(*types.ClusterVmHostRuleInfo); ok && rule.VmGroupName == name {
			g.rules = append(g.rules, rule.Name)
		}
	}
	return g, nil
}

// group looks for the VCH's; nil where it is in no cluster.
func (v *VCH) group(ctx context.Context) (*group, error) {
	pool := v.object.ResourcePool
	if v.PoolID != "" {
		pool = &types.ManagedObjectReference{Type: "ResourcePool", Value: v.PoolID}
	}
	if !v.site.VCenter() || pool == nil {
		return nil, nil
	}
	cluster, ok, err := vmgroup.Cluster(ctx, v.site.session, *pool)
	if gone(err) && v.object.ResourcePool != nil { // the VCH's pool, by a deletion that is not over
		cluster, ok, err = vmgroup.Cluster(ctx, v.site.session, *v.object.ResourcePool)
	}
	if err != nil || !ok {
		return nil, err
	}
	return v.site.group(ctx, cluster, v.Spec.Name)
}

// check refuses a group that is somebody else's.
func (g *group) check(p *Problems, ours bool) {
	if g.ofHosts || g.there && !ours {
		p.add("affinity-vm-group", "there is a DRS group %s already in the cluster, which is not the VCH's", g.name)
	}
}

// planMaking plans to make the group, or to complete the one that there is, with vms, the appliance first.
func (g *group) planMaking(plan *Plan, vms func(context.Context) ([]types.ManagedObjectReference, error)) {
	var appliance types.ManagedObjectReference
	text := "make VM group " + g.name
	if g.there {
		text = "have all VMs in VM group " + g.name
	}
	plan.add(text, simple(func(ctx context.Context) error {
		all, err := vms(ctx)
		if err != nil {
			return err
		}
		appliance = all[0]
		if !g.there {
			err = g.Make(ctx, appliance)
		}
		if err == nil {
			err = g.Add(ctx, all...)
		}
		return err
	}), func(ctx context.Context) error {
		if g.there {
			return nil
		}
		// A task may fail that has made it; but not every group of the name is that one.
		has, err := g.Members(ctx)
		switch {
		case errors.Is(err, vmgroup.ErrNone) || err == nil && !slices.Contains(has, appliance):
			return nil
		case err != nil:
			return err
		}
		return g.Remove(ctx)
	})
}

// planRemoval plans to remove the group. Undone, it is made again of the members that it had.
func (g *group) planRemoval(plan *Plan) {
	if len(g.rules) > 0 {
		plan.Warnings = append(plan.Warnings, fmt.Sprintf("VM group %s goes, and these rules of the cluster are of it: %s", g.name, strings.Join(g.rules, ", ")))
	}
	var had []types.ManagedObjectReference
	plan.add("remove VM group "+g.name, simple(func(ctx context.Context) (err error) {
		if had, err = g.Members(ctx); errors.Is(err, vmgroup.ErrNone) {
			return nil
		}
		if err != nil {
			return err
		}
		return g.Remove(ctx)
	}), func(ctx context.Context) error {
		if len(had) == 0 {
			return nil
		}
		if err := g.Make(ctx, had[0]); err != nil && !errors.Is(err, vmgroup.ErrTaken) { // else it was never removed
			return err
		}
		return g.Add(ctx, had...)
	})
}

// A regrouping is what a change of a VCH does with its VM group; nil is nothing.
type regrouping struct {
	group *group
	makes bool // or completes; else removes
	vms   func(context.Context) ([]types.ManagedObjectReference, error)
}

// regroup finds out what a change does whose result has a group or not.
func (v *VCH) regroup(ctx context.Context, p *Problems, wants bool) (*regrouping, error) {
	has := v.Spec.AffinityGroup
	if !wants && !has {
		return nil, nil
	}
	g, err := v.group(ctx)
	if err != nil || g == nil { // where there can be none, who wants one is told so already
		return nil, err
	}
	if wants {
		g.check(p, has)
	} else if !g.there {
		return nil, nil
	}
	return &regrouping{g, wants, func(ctx context.Context) ([]types.ManagedObjectReference, error) { return v.grouped(ctx, g) }}, nil
}

// planBefore plans what is done before the VCH's record tells of it: as long as it does, the group is known to be the VCH's.
func (r *regrouping) planBefore(plan *Plan) {
	if r != nil && !r.makes {
		r.group.planRemoval(plan)
	}
}

// planAfter plans what is done when the record tells of it.
func (r *regrouping) planAfter(plan *Plan) {
	if r != nil && r.makes {
		r.group.planMaking(plan, r.vms)
	}
}

// grouped are the VMs that belong into a VCH's group: the appliance, and the container VMs that are in the cluster.
func (v *VCH) grouped(ctx context.Context, g *group) ([]types.ManagedObjectReference, error) {
	containers, err := v.containerVMs(ctx)
	if err != nil {
		return nil, err
	}
	all := []types.ManagedObjectReference{v.object.Self}
	for _, c := range containers {
		if h := c.Runtime.Host; h != nil && slices.Contains(g.hosts, *h) {
			all = append(all, c.Self)
		}
	}
	return all, nil
}

// A GroupState is what there is of a VCH's VM group.
type GroupState struct {
	Name    string   `json:"name"`
	There   bool     `json:"there"`   // it is not if somebody has removed it
	Members int      `json:"members"` // VMs
	Rules   []string `json:"rules,omitempty"`
}

// Group tells of the VCH's VM group, nil if it is to have none.
func (v *VCH) Group(ctx context.Context) (*GroupState, error) {
	if !v.Spec.AffinityGroup {
		return nil, nil
	}
	g, err := v.group(ctx)
	if err != nil {
		return nil, err
	}
	state := &GroupState{Name: v.Spec.Name}
	if g == nil || !g.there {
		return state, nil
	}
	has, err := g.Members(ctx)
	if err != nil && !errors.Is(err, vmgroup.ErrNone) {
		return nil, err
	}
	state.There, state.Members, state.Rules = err == nil, len(has), g.rules
	return state, nil
}

// compute is the inventory path of the cluster or host that a pool is in.
func (p *pool) compute() string { return path.Dir(rootPoolPath(p.path)) }
