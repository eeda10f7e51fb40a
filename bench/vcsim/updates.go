package vcsim

import (
	"errors"
	"reflect"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

const (
	// gather is how long changes are waited for that come with one.
	gather = 5 * time.Millisecond
	// maxObjects is how many objects one answer tells of.
	maxObjects = 100
)

// manageUpdates has updates cost what there is to tell. The simulator looks at all objects of a filter anew for each change of any object:
// a task of one of 400 virtual machines that are watched takes it a second. And its filters and list views wait for one another's
// locks, now and then for ever.
func (s *Server) manageUpdates(c *vim25.Client) error {
	ref := c.ServiceContent.PropertyCollector
	if _, ok := s.Service.Context.Map.Get(ref).(*simulator.PropertyCollector); !ok {
		return errors.New("the simulator's property collector is not its own")
	}
	root := new(collectors)
	root.Self = ref
	s.Service.Context.Map.Put(root)
	return nil
}

// collectors is the property collector of each session that makes others.
type collectors struct{ simulator.PropertyCollector }

// CreatePropertyCollector implements PropertyCollector.CreatePropertyCollector.
func (*collectors) CreatePropertyCollector(ctx *simulator.Context, _ *types.CreatePropertyCollector) soap.HasFault {
	c := &collector{types: map[string]bool{}, news: make(chan struct{}, 1), cancelled: make(chan struct{}, 1)}
	c.Self.Type = "PropertyCollector"
	return &methods.CreatePropertyCollectorBody{Res: &types.CreatePropertyCollectorResponse{Returnval: ctx.Session.Put(c).Reference()}}
}

// A collector tells what has changed: it compares what its filters find with what they found before.
type collector struct {
	simulator.PropertyCollector

	news      chan struct{} // has one when something may have changed
	cancelled chan struct{}

	turn    sync.Mutex // held while updates are looked for; guards known and version
	known   map[types.ManagedObjectReference]found
	version int

	mu    sync.Mutex      // guards types; objects are locked when it is taken
	types map[string]bool // of objects that filters look at
}

// found is what a filter has told of: properties of objects, by their names.
type found map[types.ManagedObjectReference]map[string]types.AnyType

// CreateFilter implements PropertyCollector.CreateFilter.
func (c *collector) CreateFilter(ctx *simulator.Context, req *types.CreateFilter) soap.HasFault {
	c.mu.Lock()
	for _, p := range req.Spec.PropSet {
		c.types[p.Type] = true
	}
	for _, o := range req.Spec.ObjectSet {
		c.types[o.Obj.Type] = true
		c.look(o.SelectSet)
	}
	c.mu.Unlock()
	res := c.PropertyCollector.CreateFilter(ctx, req)
	c.tell()
	return res
}

// look notes which types a selection goes through. Call it with mu held.
func (c *collector) look(set []types.BaseSelectionSpec) {
	for _, s := range set {
		if t, ok := s.(*types.TraversalSpec); ok {
			c.types[t.Type] = true
			c.look(t.SelectSet)
		}
	}
}

// DestroyPropertyCollector implements PropertyCollector.DestroyPropertyCollector.
func (c *collector) DestroyPropertyCollector(ctx *simulator.Context, req *types.DestroyPropertyCollector) soap.HasFault {
	c.cancel()
	return c.PropertyCollector.DestroyPropertyCollector(ctx, req)
}

// CancelWaitForUpdates implements PropertyCollector.CancelWaitForUpdates.
func (c *collector) CancelWaitForUpdates(*types.CancelWaitForUpdates) soap.HasFault {
	c.cancel()
	return &methods.CancelWaitForUpdatesBody{Res: new(types.CancelWaitForUpdatesResponse)}
}

func (c *collector) cancel() {
	select {
	case c.cancelled <- struct{}{}:
	default:
	}
}

// tell says that something may have changed.
func (c *collector) tell() {
	select {
	case c.news <- struct{}{}:
	default:
	}
}

// changed says that an object has, if a filter may look at such.
func (c *collector) changed(kind string) {
	c.mu.Lock()
	ours := c.types[kind] || c.types["ManagedEntity"]
	c.mu.Unlock()
	if ours {
		c.tell()
	}
}

// PutObject implements simulator.RegisterObject.
func (c *collector) PutObject(_ *simulator.Context, o mo.Reference) { c.changed(o.Reference().Type) }

// UpdateObject implements simulator.RegisterObject.
func (c *collector) UpdateObject(_ *simulator.Context, o mo.Reference, _ []types.PropertyChange) {
	c.changed(o.Reference().Type)
}

// RemoveObject implements simulator.RegisterObject.
func (c *collector) RemoveObject(_ *simulator.Context, ref types.ManagedObjectReference) {
	c.changed(ref.Type)
}

// WaitForUpdatesEx implements PropertyCollector.WaitForUpdatesEx.
func (c *collector) WaitForUpdatesEx(ctx *simulator.Context, req *types.WaitForUpdatesEx) soap.HasFault {
	first := req.Version == ""
	if first {
		c.turn.Lock()
		c.known = map[types.ManagedObjectReference]found{}
		c.turn.Unlock()
		ctx.Map.AddHandler(c)
	}
	most := maxObjects
	var over <-chan time.Time
	if o := req.Options; o != nil {
		if o.MaxObjectUpdates > 0 {
			most = min(most, int(o.MaxObjectUpdates))
		}
		if o.MaxWaitSeconds != nil {
			over = time.After(time.Duration(*o.MaxWaitSeconds) * time.Second)
		}
	}
	for {
		set, fault := c.updates(ctx, most)
		if fault != nil {
			return fault
		}
		if first || len(set.FilterSet) > 0 {
			return &methods.WaitForUpdatesExBody{Res: &types.WaitForUpdatesExResponse{Returnval: set}}
		}
		select {
		case <-c.news:
		case <-over:
			return &methods.WaitForUpdatesExBody{Res: &types.WaitForUpdatesExResponse{}}
		case <-c.cancelled:
			return &methods.WaitForUpdatesExBody{Fault_: simulator.Fault("", &types.RequestCanceled{})}
		}
		time.Sleep(gather)
	}
}

// updates finds what has changed, of so many objects at most.
func (c *collector) updates(ctx *simulator.Context, most int) (*types.UpdateSet, soap.HasFault) {
	c.turn.Lock()
	defer c.turn.Unlock()
	c.version++
	set := &types.UpdateSet{Version: strconv.Itoa(c.version)}
	for _, ref := range slices.Clone(c.Filter) {
		filter, ok := ctx.Session.Get(ref).(*simulator.PropertyFilter)
		if !ok || c.known == nil {
			continue
		}
		res := c.RetrievePropertiesEx(ctx, &types.RetrievePropertiesEx{SpecSet: []types.PropertyFilterSpec{filter.Spec}})
		body, ok := res.(*methods.RetrievePropertiesExBody)
		if !ok || body.Fault() != nil {
			return nil, &methods.WaitForUpdatesExBody{Fault_: res.Fault()}
		}
		if c.known[ref] == nil {
			c.known[ref] = found{}
		}
		all, more := c.known[ref].updates(body.Res.Returnval.Objects, most)
		if more {
			set.Truncated = types.NewBool(true)
			c.tell()
		}
		if most -= len(all); len(all) > 0 {
			set.FilterSet = append(set.FilterSet, types.PropertyFilterUpdate{Filter: ref, ObjectSet: all})
		}
	}
	return set, nil
}

// updates tells how objects differ from what is known of them, which it makes so, of so many at most.
func (f found) updates(now []types.ObjectContent, most int) (all []types.ObjectUpdate, more bool) {
	there := map[types.ManagedObjectReference]bool{}
	for _, o := range now {
		there[o.Obj] = true
		u := types.ObjectUpdate{Kind: types.ObjectUpdateKindModify, Obj: o.Obj}
		before := f[o.Obj]
		if before == nil {
			u.Kind = types.ObjectUpdateKindEnter
		}
		after := map[string]types.AnyType{}
		for _, p := range o.PropSet {
			after[p.Name] = p.Val
			if old, ok := before[p.Name]; !ok || !reflect.DeepEqual(old, p.Val) {
				u.ChangeSet = append(u.ChangeSet, types.PropertyChange{Name: p.Name, Op: types.PropertyChangeOpAssign, Val: p.Val})
			}
		}
		for name := range before {
			if _, ok := after[name]; !ok { // it has no value any more
				u.ChangeSet = append(u.ChangeSet, types.PropertyChange{Name: name, Op: types.PropertyChangeOpAssign})
			}
		}
		if before != nil && len(u.ChangeSet) == 0 {
			continue
		}
		if len(all) == most {
			return all, true
		}
		all, f[o.Obj] = append(all, u), after
	}
	for ref := range f {
		if there[ref] {
			continue
		}
		if len(all) == most {
			return all, true
		}
		all = append(all, types.ObjectUpdate{Kind: types.ObjectUpdateKindLeave, Obj: ref})
		delete(f, ref)
	}
	return all, false
}
