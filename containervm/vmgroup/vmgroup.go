// Package vmgroup keeps the group of virtual machines that a VCH has in its cluster's DRS. It says nothing of hosts: rules that say where its
// members run are an administrator's.
//
// vSphere changes the members of a group all at once: who writes back what was read before somebody else has written takes that away. So a
// change reads the group right before it writes. The changes of one Group come one after another, and what is asked for while one is under
// way the next does in one: a hundred VMs that are made at once take a few changes of the cluster.
//
//	Add ─┐
//	Add ─┼► batch that waits ──► turn ──► read, reconfigure the cluster
//	Drop ┘                       one      nothing to change: only read
//
// What somebody else writes within that one call is lost nonetheless: vSphere has nothing to prevent it. Members that are gone vCenter drops by
// itself; one that goes between reading and writing makes that fail, and is left out.
package vmgroup

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"vic/layerstore/vsphere"
)

// Errors of groups.
var (
	ErrNone  = errors.New("there is no such VM group")
	ErrTaken = errors.New("there is a group of that name already")
)

// A Group is a group of VMs by its name, whether it is there or not. Its methods may be called concurrently.
type Group struct {
	session *vsphere.Session
	cluster *object.ClusterComputeResource
	name    string

	turn chan struct{} // has one while nobody changes the group

	mu   sync.Mutex // guards next
	next *batch     // what waits for its turn; nil is nothing
}

// A batch is what is to change at once.
type batch struct {
	add, drop []types.ManagedObjectReference

	done      chan struct{} // closed when what follows is set
	err       error
	gone      []types.ManagedObjectReference // of add: VMs that are no more
	abandoned bool                           // who was to do it has given up
}

// New returns the group of a name in a cluster.
func New(s *vsphere.Session, cluster types.ManagedObjectReference, name string) *Group {
	g := &Group{session: s, cluster: object.NewClusterComputeResource(s.Client(), cluster), name: name, turn: make(chan struct{}, 1)}
	g.turn <- struct{}{}
	return g
}

// Cluster is the cluster of a resource pool; false if it is of a single host.
func Cluster(ctx context.Context, s *vsphere.Session, pool types.ManagedObjectReference) (types.ManagedObjectReference, bool, error) {
	var m mo.ResourcePool
	err := s.Call(ctx, func() error {
		return property.DefaultCollector(s.Client()).RetrieveOne(ctx, pool, []string{"owner"}, &m)
	})
	if err != nil {
		return types.ManagedObjectReference{}, false, fmt.Errorf("find the cluster of a resource pool: %w", err)
	}
	return m.Owner, m.Owner.Type == "ClusterComputeResource", nil
}

// Find returns the group of a name among those of a cluster, of VMs or of hosts, nil if there is none: a cluster has one of a name.
func Find(info *types.ClusterConfigInfoEx, name string) types.BaseClusterGroupInfo {
	i := slices.IndexFunc(info.Group, func(o types.BaseClusterGroupInfo) bool { return o.GetClusterGroupInfo().Name == name })
	if i < 0 {
		return nil
	}
	return info.Group[i]
}

// read reads the group. The error wraps ErrNone if there is none of the name, ErrTaken if it is one of hosts.
func (g *Group) read(ctx context.Context) (*types.ClusterVmGroup, error) {
	info, err := g.cluster.Configuration(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the groups of the cluster: %w", err)
	}
	switch found := Find(info, g.name).(type) {
	case nil:
		return nil, ErrNone
	case *types.ClusterVmGroup:
		return found, nil
	default:
		return nil, fmt.Errorf("%w, which is one of hosts", ErrTaken)
	}
}

// named says of which group an error is.
func (g *Group) named(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("VM group %s: %w", g.name, err)
}

// Members are the VMs in the group. The error wraps ErrNone if it is not there.
func (g *Group) Members(ctx context.Context) (members []types.ManagedObjectReference, err error) {
	err = g.session.Call(ctx, func() error {
		found, err := g.read(ctx)
		if err == nil {
			members = found.Vm
		}
		return err
	})
	return members, g.named(err)
}

// errSame says that all is as wanted already.
var errSame = errors.New("nothing to change")

// reconfigure changes the group by what change makes of what it is, nil if it is not there. A try after one whose answer was lost, or whose
// cluster was busy, reads again.
func (g *Group) reconfigure(ctx context.Context, change func(*types.ClusterVmGroup) (*types.ClusterGroupSpec, error)) error {
	err := g.session.Do(ctx, func() (*object.Task, error) {
		found, err := g.read(ctx)
		if err != nil && !errors.Is(err, ErrNone) {
			return nil, err
		}
		spec, err := change(found)
		if err != nil {
			return nil, err
		}
		return g.cluster.Reconfigure(ctx, &types.ClusterConfigSpecEx{GroupSpec: []types.ClusterGroupSpec{*spec}}, true)
	})
	if errors.Is(err, errSame) {
		return nil
	}
	return err
}

// update is a change of the group that leaves what else vSphere knows of it.
func update(g *types.ClusterVmGroup, op types.ArrayUpdateOperation, members []types.ManagedObjectReference) *types.ClusterGroupSpec {
	to := *g
	to.Vm = members
	return &types.ClusterGroupSpec{ArrayUpdateSpec: types.ArrayUpdateSpec{Operation: op}, Info: &to}
}

// Make makes the group with its first member. The error wraps ErrTaken if there is one of that name already, without that member.
func (g *Group) Make(ctx context.Context, member types.ManagedObjectReference) error {
	return g.named(g.exclusively(ctx, func() error {
		return g.reconfigure(ctx, func(found *types.ClusterVmGroup) (*types.ClusterGroupSpec, error) {
			switch {
			case found == nil:
				fresh := &types.ClusterVmGroup{ClusterGroupInfo: types.ClusterGroupInfo{Name: g.name}}
				return update(fresh, types.ArrayUpdateOperationAdd, []types.ManagedObjectReference{member}), nil
			case slices.Contains(found.Vm, member): // by a call whose answer was lost
				return nil, errSame
			}
			return nil, ErrTaken
		})
	}))
}

// Remove removes the group, if it is there.
func (g *Group) Remove(ctx context.Context) error {
	return g.named(g.exclusively(ctx, func() error {
		return g.reconfigure(ctx, func(found *types.ClusterVmGroup) (*types.ClusterGroupSpec, error) {
			if found == nil {
				return nil, errSame
			}
			return &types.ClusterGroupSpec{ArrayUpdateSpec: types.ArrayUpdateSpec{Operation: types.ArrayUpdateOperationRemove, RemoveKey: g.name}}, nil
		})
	}))
}

// exclusively calls fn while no other change of the group is under way.
func (g *Group) exclusively(ctx context.Context, fn func() error) error {
	select {
	case <-g.turn:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { g.turn <- struct{}{} }()
	return fn()
}

// Add makes VMs members of the group. The error wraps ErrNone if it is not there; it is a ManagedObjectNotFound of a VM that is gone.
func (g *Group) Add(ctx context.Context, vms ...types.ManagedObjectReference) error {
	return g.named(g.change(ctx, vms, nil))
}

// Drop takes VMs out of the group, if they are in it.
func (g *Group) Drop(ctx context.Context, vms ...types.ManagedObjectReference) error {
	err := g.change(ctx, nil, vms)
	if errors.Is(err, ErrNone) {
		return nil
	}
	return g.named(err)
}

// change has the next batch add and drop VMs, and waits for it. The first of a batch does it for all.
func (g *Group) change(ctx context.Context, add, drop []types.ManagedObjectReference) error {
	for {
		g.mu.Lock()
		b := g.next
		first := b == nil
		if first {
			b = &batch{done: make(chan struct{})}
			g.next = b
		}
		b.add, b.drop = append(b.add, add...), append(b.drop, drop...)
		g.mu.Unlock()
		if first {
			g.do(ctx, b)
		}
		select {
		case <-b.done:
		case <-ctx.Done():
			return ctx.Err()
		}
		if b.abandoned && ctx.Err() == nil {
			continue
		}
		for _, ref := range add {
			if b.err == nil && slices.Contains(b.gone, ref) {
				return soap.WrapVimFault(&types.ManagedObjectNotFound{Obj: ref})
			}
		}
		return b.err
	}
}

// do carries a batch out, when it is its turn. Until then others join it.
func (g *Group) do(ctx context.Context, b *batch) {
	full := func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.next == b {
			g.next = nil
		}
	}
	b.err = g.exclusively(ctx, func() error {
		full()
		return g.edit(ctx, b)
	})
	full() // also if it never was its turn
	b.abandoned = b.err != nil && ctx.Err() != nil
	close(b.done)
}

// edit changes the members. Those that the server says are gone are left out.
func (g *Group) edit(ctx context.Context, b *batch) error {
	for {
		var wanted []types.ManagedObjectReference
		err := g.reconfigure(ctx, func(found *types.ClusterVmGroup) (*types.ClusterGroupSpec, error) {
			if found == nil {
				return nil, ErrNone
			}
			wanted = b.members(found.Vm)
			if slices.Equal(wanted, found.Vm) {
				return nil, errSame
			}
			return update(found, types.ArrayUpdateOperationEdit, wanted), nil
		})
		var none *types.ManagedObjectNotFound
		if _, ok := fault.As(err, &none); !ok || !slices.Contains(wanted, none.Obj) {
			return err
		}
		b.gone = append(b.gone, none.Obj)
	}
}

// members are those that a group of some is to have.
func (b *batch) members(has []types.ManagedObjectReference) []types.ManagedObjectReference {
	in := make(map[types.ManagedObjectReference]bool, len(has)+len(b.add))
	for _, out := range [][]types.ManagedObjectReference{b.drop, b.gone} {
		for _, ref := range out {
			in[ref] = true
		}
	}
	var all []types.ManagedObjectReference
	for _, from := range [][]types.ManagedObjectReference{has, b.add} {
		for _, ref := range from {
			if !in[ref] {
				in[ref] = true
				all = append(all, ref)
			}
		}
	}
	return all
}
