package vmgroup

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"

	"vic/bench/vcsim"
	"vic/layerstore/vsphere"
)

const task = "ClusterComputeResource.reconfigureCluster"

// A site is a simulated cluster whose groups take, as vCenter's, only VMs that are there.
type site struct {
	*testing.T
	sim     *vcsim.Server
	session *vsphere.Session
	cluster *simulator.ClusterComputeResource
	info    *types.ClusterConfigInfoEx

	mu     sync.Mutex
	tasks  int
	before func() // called before a task does anything, with the lock of the cluster
	after  func() // called when it has
}

func newSite(t *testing.T) *site {
	t.Helper()
	sim, err := vcsim.Start(t.Context(), vcsim.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sim.Close(); err != nil {
			t.Error(err)
		}
	})
	s := &site{T: t, sim: sim, before: func() {}, after: func() {}}
	if s.session, err = vsphere.Connect(t.Context(), vsphere.Endpoint{Server: sim.URL().Host, User: "administrator", Password: "vic", Thumbprint: sim.Thumbprint()}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.session.Close(context.Background()) })
	s.cluster = sim.Service.Context.Map.Any("ClusterComputeResource").(*simulator.ClusterComputeResource)
	s.info = s.cluster.ConfigurationEx.(*types.ClusterConfigInfoEx)
	sim.OnTask(s.strict)
	return s
}

// strict refuses members that are not there.
func (s *site) strict(t *simulator.Task, run func() vcsim.Outcome) vcsim.Outcome {
	if t.Info.DescriptionId != task {
		return run()
	}
	s.mu.Lock()
	s.tasks++
	before, after := s.before, s.after
	s.mu.Unlock()
	before()
	old := slices.Clone(s.info.Group)
	o := run()
	after()
	for _, g := range s.info.Group {
		if vms, ok := g.(*types.ClusterVmGroup); ok {
			for _, ref := range vms.Vm {
				if s.sim.Service.Context.Map.Get(ref) == nil {
					s.info.Group = old
					return vcsim.Outcome{Fault: &types.ManagedObjectNotFound{Obj: ref}}
				}
			}
		}
	}
	return o
}

// stand has something done before and after each task from now on; nil is nothing.
func (s *site) stand(before, after func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range []*func(){&before, &after} {
		if *f == nil {
			*f = func() {}
		}
	}
	s.before, s.after = before, after
}

// count is how many tasks there were.
func (s *site) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tasks
}

// vms makes VMs that are nothing but in the inventory.
func (s *site) vms(n int) (all []types.ManagedObjectReference) {
	for range n {
		vm := new(simulator.VirtualMachine)
		vm.Self = types.ManagedObjectReference{Type: "VirtualMachine", Value: fmt.Sprintf("vm-%d", 7000+len(s.sim.Service.Context.Map.All("VirtualMachine")))}
		all = append(all, s.sim.Service.Context.Map.Put(vm).Reference())
	}
	return all
}

// has fails if the group does not have these members, in any order.
func (s *site) has(g *Group, want ...types.ManagedObjectReference) {
	s.Helper()
	got, err := g.Members(s.Context())
	if err != nil {
		s.Fatal(err)
	}
	order := func(a, b types.ManagedObjectReference) int { return strings.Compare(a.Value, b.Value) }
	slices.SortFunc(got, order)
	slices.SortFunc(want, order)
	if !slices.Equal(got, want) {
		s.Errorf("members %v, want %v", got, want)
	}
}

func (s *site) ok(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// check is ok, in a goroutine.
func (s *site) check(err error) {
	s.Helper()
	if err != nil {
		s.Error(err)
	}
}

// TestGroup makes a group, changes it and removes it.
func TestGroup(t *testing.T) {
	s := newSite(t)
	ctx := t.Context()
	g := New(s.session, s.cluster.Self, "vch1")
	vms := s.vms(4)
	if _, err := g.Members(ctx); !errors.Is(err, ErrNone) {
		t.Errorf("members: %v", err)
	}
	if err := g.Add(ctx, vms[0]); !errors.Is(err, ErrNone) || !strings.Contains(err.Error(), "vch1") {
		t.Errorf("add to none: %v", err)
	}
	s.ok(g.Drop(ctx, vms[0]))
	s.ok(g.Remove(ctx))
	s.ok(g.Make(ctx, vms[0]))
	s.ok(g.Make(ctx, vms[0]))
	if err := g.Make(ctx, vms[1]); !errors.Is(err, ErrTaken) {
		t.Errorf("make one that is there: %v", err)
	}
	s.ok(g.Add(ctx, vms[1], vms[2]))
	s.has(g, vms[:3]...)
	n := s.count()
	s.ok(g.Add(ctx, vms[2]))
	s.ok(g.Drop(ctx, vms[3]))
	if got := s.count(); got != n {
		t.Errorf("%d tasks for nothing", got-n)
	}
	s.ok(g.Drop(ctx, vms[1]))
	s.has(g, vms[0], vms[2])
	s.ok(g.Remove(ctx))
	if _, err := g.Members(ctx); !errors.Is(err, ErrNone) {
		t.Errorf("after it is removed: %v", err)
	}
	hosts := object.NewClusterComputeResource(s.session.Client(), s.cluster.Self)
	task, err := hosts.Reconfigure(ctx, &types.ClusterConfigSpecEx{GroupSpec: []types.ClusterGroupSpec{{ArrayUpdateSpec: types.ArrayUpdateSpec{Operation: "add"},
		Info: &types.ClusterHostGroup{ClusterGroupInfo: types.ClusterGroupInfo{Name: "vch1"}}}}}, true)
	s.ok(err)
	s.ok(task.Wait(ctx))
	for name, err := range map[string]error{"make": g.Make(ctx, vms[0]), "add": g.Add(ctx, vms[0]), "remove": g.Remove(ctx)} {
		if !errors.Is(err, ErrTaken) {
			t.Errorf("%s, where hosts have the name: %v", name, err)
		}
	}
}

// waiting is how many changes wait for their turn.
func (g *Group) waiting() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.next == nil {
		return 0
	}
	return len(g.next.add) + len(g.next.drop)
}

// crowd returns when so many changes wait for their turn. Nothing tells when one does.
func (s *site) crowd(g *Group, n int) {
	for end := time.Now().Add(time.Minute); g.waiting() < n; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			s.Errorf("%d changes wait, want %d", g.waiting(), n)
			return
		}
	}
}

// TestAtOnce adds and drops a hundred VMs each at once. What somebody else changes between two tasks stays.
func TestAtOnce(t *testing.T) {
	s := newSite(t)
	ctx := t.Context()
	g := New(s.session, s.cluster.Self, "vch1")
	const many = 100
	vms := s.vms(2*many + 2)
	first, theirs, goes, comes := vms[0], vms[1], vms[2:many+2], vms[many+2:]
	s.ok(g.Make(ctx, first))
	s.ok(g.Add(ctx, goes...))
	n := s.count()
	s.stand(sync.OnceFunc(func() { s.crowd(g, 2*many-1) }), sync.OnceFunc(func() {
		group := Find(s.info, "vch1").(*types.ClusterVmGroup)
		group.Vm = append(group.Vm, theirs)
	}))
	var all sync.WaitGroup
	for i := range many {
		all.Go(func() { s.check(g.Add(ctx, comes[i])) })
		all.Go(func() { s.check(g.Drop(ctx, goes[i])) })
	}
	all.Wait()
	if got := s.count() - n; got != 2 {
		t.Errorf("%d tasks for %d changes, want 2", got, 2*many)
	}
	s.has(g, append(slices.Clone(comes), first, theirs)...)
}

// TestGone has VMs go while they are about to be members, or are.
func TestGone(t *testing.T) {
	s := newSite(t)
	ctx := t.Context()
	g := New(s.session, s.cluster.Self, "vch1")
	vms := s.vms(5)
	s.ok(g.Make(ctx, vms[0]))
	s.ok(g.Add(ctx, vms[1]))
	remove := func(ref types.ManagedObjectReference) { s.sim.Service.Context.Map.Remove(s.sim.Service.Context, ref) }
	s.stand(sync.OnceFunc(func() {
		s.crowd(g, 2)
		remove(vms[1]) // a member
		remove(vms[3]) // one that waits
	}), nil)
	var all sync.WaitGroup
	for i := 2; i < 5; i++ {
		all.Go(func() {
			err := g.Add(ctx, vms[i])
			if i != 3 {
				s.check(err)
			} else if !fault.Is(err, &types.ManagedObjectNotFound{}) {
				t.Errorf("add a VM that is gone: %v", err)
			}
		})
	}
	all.Wait()
	s.has(g, vms[0], vms[2], vms[4])
}

// TestGivesUp has the one who makes a change for others as well give up: they go on.
func TestGivesUp(t *testing.T) {
	s := newSite(t)
	g := New(s.session, s.cluster.Self, "vch1")
	vms := s.vms(4)
	s.ok(g.Make(t.Context(), vms[0]))
	var all sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	s.stand(sync.OnceFunc(func() {
		all.Go(func() {
			if err := g.Add(ctx, vms[2]); !errors.Is(err, context.Canceled) {
				t.Errorf("of who gave up: %v", err)
			}
		})
		s.crowd(g, 1)
		all.Go(func() { s.check(g.Add(t.Context(), vms[3])) })
		s.crowd(g, 2)
		cancel()
	}), nil)
	s.ok(g.Add(t.Context(), vms[1]))
	all.Wait()
	got, err := g.Members(t.Context())
	if err != nil || !slices.Contains(got, vms[1]) || !slices.Contains(got, vms[3]) {
		t.Errorf("members %v, %v", got, err)
	}
}

// TestFaults has tasks fail, before and after they did what they are for, and the session end.
func TestFaults(t *testing.T) {
	s := newSite(t)
	ctx := t.Context()
	g := New(s.session, s.cluster.Self, "vch1")
	vms := s.vms(2)
	for _, done := range []bool{false, true} {
		for _, x := range []struct {
			name string
			do   func() error
		}{
			{"make", func() error { return g.Make(ctx, vms[0]) }},
			{"add", func() error { return g.Add(ctx, vms[1]) }},
			{"drop", func() error { return g.Drop(ctx, vms[1]) }},
			{"remove", func() error { return g.Remove(ctx) }},
		} {
			s.sim.FailTask(vcsim.TaskFault{Task: task, Done: done, Fault: &types.GenericVmConfigFault{Reason: "injected"}})
			if err := x.do(); err == nil || !strings.Contains(err.Error(), "vch1") {
				t.Errorf("%s, done %t: %v", x.name, done, err)
			}
			s.ok(s.sim.DropSessions(ctx))
			if err := x.do(); err != nil {
				t.Errorf("%s again, done %t: %v", x.name, done, err)
			}
		}
	}
	s.sim.FailTask(vcsim.TaskFault{Task: task, Done: true, Fault: &types.TaskInProgress{}})
	s.ok(g.Make(ctx, vms[0]))
	s.has(g, vms[0])
}
