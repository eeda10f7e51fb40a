package vsphere

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	datastore "vic/layerstore/vsphere"
)

// properties are what is watched of each VM.
var properties = append([]string{"config.uuid", "runtime.question", "name"}, runtimeProperties...)

const (
	// waitSeconds is how long one call for updates may be answered by nothing, and answerTime how much later the answer may be.
	waitSeconds = 60
	answerTime  = 30 * time.Second
	// firstRest and longestRest are how long after one loss vCenter is asked again.
	firstRest   = 500 * time.Millisecond
	longestRest = 4 * time.Second
)

// A seen is what the watcher knows of a VM.
type seen struct {
	ref   types.ManagedObjectReference
	uuid  string
	name  string
	power power // as far as it is certain
	told  told
	asks  *types.VirtualMachineQuestionInfo // that it waits for the answer to; nil if it does not
}

// A watch follows the VMs of a resource pool, and what they can have of its hosts.
type watch struct {
	session *datastore.Session
	pool    types.ManagedObjectReference
	log     *slog.Logger

	mu       sync.Mutex
	updates  *property.Collector // nil while vCenter is lost
	vms      map[types.ManagedObjectReference]*seen
	byUUID   map[string]*seen
	machines map[string][]*machine // by UUID: who is told
	begun    map[string]bool       // UUIDs of VMs that came to run while nobody was told
	estate   *estate               // as it was seen whole, last
	lost     error                 // nil while vCenter answers
	here     context.Context       // ends when vCenter is lost
	leave    context.CancelFunc
	changed  chan struct{} // closed, and replaced, when something changes
	first    chan struct{} // closed when all VMs were seen for the first time
}

func newWatch(s *datastore.Session, pool types.ManagedObjectReference, log *slog.Logger) *watch {
	here, leave := context.WithCancel(context.Background())
	return &watch{here: here, leave: leave, session: s, pool: pool, log: log, vms: map[types.ManagedObjectReference]*seen{}, byUUID: map[string]*seen{},
		machines: map[string][]*machine{}, begun: map[string]bool{}, estate: newEstate(), changed: make(chan struct{}), first: make(chan struct{})}
}

// run watches until ctx ends.
func (w *watch) run(ctx context.Context) {
	rest := firstRest
	for ctx.Err() == nil {
		whole, err := w.follow(ctx)
		if ctx.Err() != nil {
			return
		}
		if whole {
			rest = firstRest
			if isGone(err) || errors.Is(err, errAnew) { // the collector was that of a session which has ended
				continue
			}
		}
		w.lose(err)
		t := time.NewTimer(rest)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
		}
		rest = min(2*rest, longestRest)
	}
}

// await waits until the VMs were seen for the first time.
func (w *watch) await(ctx context.Context) error {
	for {
		w.mu.Lock()
		lost, changed := w.lost, w.changed
		w.mu.Unlock()
		if lost != nil {
			return lost
		}
		select {
		case <-w.first:
			return nil
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// reach waits until vCenter answers.
func (w *watch) reach(ctx context.Context) error {
	for {
		w.mu.Lock()
		lost, changed := w.lost, w.changed
		w.mu.Unlock()
		if lost == nil {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return errors.Join(lost, ctx.Err())
		}
	}
}

// lose takes in that vCenter does not answer, or not with what is expected.
func (w *watch) lose(err error) {
	w.mu.Lock()
	news := w.lost == nil
	if !errors.Is(err, datastore.ErrUnavailable) {
		err = fmt.Errorf("%w: %w", datastore.ErrUnavailable, err)
	}
	w.lost = err
	w.session.Lose(err)
	w.leave()
	w.notify()
	w.mu.Unlock()
	if news {
		w.log.Warn("lost vSphere", "error", err)
	}
}

// asked calls fn, with a context that ends when vCenter is lost: what would be tried again and again waits for its return instead.
func (w *watch) asked(ctx context.Context, fn func(context.Context) error) error {
	w.mu.Lock()
	lost, here := w.lost, w.here
	w.mu.Unlock()
	if lost != nil {
		return lost
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(here, cancel)()
	err := fn(ctx)
	if err != nil && here.Err() != nil {
		err = cmp.Or(w.available(), fmt.Errorf("%w: %w", datastore.ErrUnavailable, err))
	}
	return err
}

func (w *watch) available() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lost
}

// notify wakes who waits for a change. Call it with mu held.
func (w *watch) notify() {
	close(w.changed)
	w.changed = make(chan struct{})
}

// errAnew says that the session in which updates were waited for was found to have ended by somebody else.
var errAnew = errors.New("logged in to vSphere anew")

// follow takes in all VMs, and when that is the whole of them each change, until there is an error.
func (w *watch) follow(ctx context.Context) (whole bool, err error) {
	begin, cancel := context.WithTimeout(ctx, answerTime) // vCenter may be away without breaking connections
	defer cancel()
	pc, err := property.DefaultCollector(w.session.Client()).Create(begin)
	if err != nil {
		return whole, fmt.Errorf("create property collector: %w", err)
	}
	defer w.dispose(pc.Destroy)
	login := w.session.Login() // of a later session the collector is none, and making the filter fails
	ctx, leave := context.WithCancel(ctx)
	defer leave()
	defer context.AfterFunc(login, leave)()
	defer func() {
		if err != nil && login.Err() != nil {
			err = errAnew
		}
	}()
	if _, err := pc.CreateFilter(begin, types.CreateFilter{Spec: inPool(w.pool)}); err != nil {
		return whole, fmt.Errorf("create property filter: %w", err)
	}
	missing := w.begin(pc)
	defer w.begin(nil)
	estate := newEstate()
	seconds := int32(waitSeconds)
	for version := ""; ; {
		wait, cancel := context.WithTimeout(ctx, waitSeconds*time.Second+answerTime)
		set, err := pc.WaitForUpdates(wait, version, &types.WaitOptions{MaxWaitSeconds: &seconds})
		cancel()
		if err != nil {
			return whole, fmt.Errorf("wait for changes of VMs: %w", err)
		}
		if set == nil {
			continue
		}
		version = set.Version
		for _, f := range set.FilterSet {
			for _, u := range f.ObjectSet {
				if u.Obj.Type != "VirtualMachine" {
					estate.apply(u)
					continue
				}
				if u.Kind == types.ObjectUpdateKindLeave {
					if err := w.left(ctx, pc, u.Obj); err != nil {
						return whole, err
					}
					continue
				}
				delete(missing, u.Obj)
				w.apply(u.Obj, u.ChangeSet)
			}
		}
		if set.Truncated != nil && *set.Truncated || whole {
			continue
		}
		whole = true
		for ref := range missing { // they went while nobody looked
			if err := w.left(ctx, pc, ref); err != nil {
				return whole, err
			}
		}
		w.found(estate)
	}
}

// inPool selects the VMs of a resource pool, and of those below it; the pools, and those above; the hosts. (A container view would do, were it not that the simulator misses
// VMs that are created later in one of a pool.)
func inPool(pool types.ManagedObjectReference) types.PropertyFilterSpec {
	pools, vms, parents := types.SelectionSpec{Name: "pools"}, types.SelectionSpec{Name: "vms"}, types.SelectionSpec{Name: "parents"}
	return types.PropertyFilterSpec{
		PropSet: []types.PropertySpec{
			{Type: "VirtualMachine", PathSet: properties},
			{Type: "ResourcePool", PathSet: poolProperties},
			{Type: "HostSystem", PathSet: hostProperties},
		},
		ObjectSet: []types.ObjectSpec{{Obj: pool, Skip: types.NewBool(false), SelectSet: []types.BaseSelectionSpec{
			&types.TraversalSpec{SelectionSpec: pools, Type: "ResourcePool", Path: "resourcePool", SelectSet: []types.BaseSelectionSpec{&pools, &vms}},
			&types.TraversalSpec{SelectionSpec: vms, Type: "ResourcePool", Path: "vm"},
			&types.TraversalSpec{SelectionSpec: parents, Type: "ResourcePool", Path: "parent", SelectSet: []types.BaseSelectionSpec{&parents}},
			&types.TraversalSpec{Type: "ResourcePool", Path: "owner", SelectSet: []types.BaseSelectionSpec{
				&types.TraversalSpec{Type: "ComputeResource", Path: "host"},
			}},
		}}},
	}
}

// dispose gives an object of the session back. One of a session that is gone is gone.
func (w *watch) dispose(destroy func(context.Context) error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = destroy(ctx)
}

// begin takes in where updates come from, and returns the VMs that are known of.
func (w *watch) begin(pc *property.Collector) map[types.ManagedObjectReference]bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.updates = pc
	all := map[types.ManagedObjectReference]bool{}
	for ref := range w.vms {
		all[ref] = true
	}
	return all
}

// found takes in that all that is there was seen.
func (w *watch) found(e *estate) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.estate = e
	if w.lost != nil {
		w.log.Info("found vSphere again")
	}
	if w.here.Err() != nil {
		w.here, w.leave = context.WithCancel(context.Background())
	}
	w.lost = nil
	w.session.Lose(nil)
	select {
	case <-w.first:
	default:
		close(w.first)
	}
	w.notify()
}

// left takes in that a VM is no more in the pool: it is gone, unless it was moved. Then it is watched by itself.
func (w *watch) left(ctx context.Context, pc *property.Collector, ref types.ManagedObjectReference) error {
	w.mu.Lock()
	ours := w.vms[ref] != nil && len(w.machines[w.vms[ref].uuid]) > 0
	w.mu.Unlock()
	if !ours { // where it is does not matter
		w.forget(ref)
		return nil
	}
	var vm mo.VirtualMachine
	err := property.DefaultCollector(w.session.Client()).RetrieveOne(ctx, ref, []string{"name"}, &vm)
	if fault.Is(err, &types.ManagedObjectNotFound{}) {
		w.forget(ref)
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for a VM that left the pool: %w", err)
	}
	w.log.Warn("a container's VM is not in the pool any more", "vm", vm.Name)
	return watchAlone(ctx, pc, ref)
}

// watchAlone watches a VM that is not in the pool.
func watchAlone(ctx context.Context, pc *property.Collector, ref types.ManagedObjectReference) error {
	filter := new(property.WaitFilter).Add(ref, ref.Type, properties)
	if _, err := pc.CreateFilter(ctx, filter.CreateFilter); err != nil {
		return fmt.Errorf("create property filter: %w", err)
	}
	return nil
}

// adopt watches a VM that was found elsewhere than in the pool.
func (w *watch) adopt(ctx context.Context, v seen) error {
	w.mu.Lock()
	pc := w.updates
	known := w.vms[v.ref] != nil
	if !known {
		w.vms[v.ref], w.byUUID[v.uuid] = &v, &v
	}
	w.mu.Unlock()
	if known || pc == nil { // when vCenter is found again it is missing in the pool
		return nil
	}
	return w.session.Call(ctx, func() error { return watchAlone(ctx, pc, v.ref) })
}

// apply takes in changes of a VM.
func (w *watch) apply(ref types.ManagedObjectReference, changes []types.PropertyChange) {
	w.mu.Lock()
	defer w.mu.Unlock()
	v := w.vms[ref]
	if v == nil {
		v = &seen{ref: ref}
		w.vms[ref] = v
	}
	doubted, asked := v.told.doubt(), v.question()
	moved := false // its power state, which may be what it was before: VMs that were on in between were off before, too
	for _, c := range changes {
		moved = moved || c.Name == "runtime.powerState"
		switch val := c.Val.(type) {
		case string:
			if c.Name == "name" {
				v.name = val
			} else if c.Name == "config.uuid" && v.uuid != val {
				v.uuid = val
				w.byUUID[val] = v
			}
		case types.VirtualMachineQuestionInfo:
			v.asks = &val
		default:
			if c.Name == "runtime.question" { // somebody has answered
				v.asks = nil
			} else {
				v.told.set(c)
			}
		}
	}
	if p := v.told.power(v.power); p != v.power || v.question() != asked || moved && w.differs(v) {
		if p == on && v.power != on && len(w.machines[v.uuid]) == 0 {
			w.begun[v.uuid] = true
		}
		v.power = p
		w.tell(v)
	}
	if doubt := v.told.doubt(); doubt != "" && doubt != doubted && v.power != off {
		w.log.Warn("it is not certain that a VM runs", "vm", v.name, "reason", doubt)
	}
	w.notify()
}

// differs says whether one of a VM's machines takes it to be in another power state, as after asking for it. Call it with mu held.
func (w *watch) differs(v *seen) bool {
	return slices.ContainsFunc(w.machines[v.uuid], func(m *machine) bool { return m.state() != v.power })
}

// settle takes in that a VM which is off was powered off: from then on there is no doubt of it.
func (w *watch) settle(ref types.ManagedObjectReference) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if v := w.vms[ref]; v != nil && v.told.state == off && (v.power != off || w.differs(v)) {
		v.power = off
		w.tell(v)
		w.notify()
	}
}

// tell tells the machines of a VM what its power state is. Call it with mu held.
func (w *watch) tell(v *seen) {
	if w.byUUID[v.uuid] != v {
		return
	}
	for _, m := range w.machines[v.uuid] {
		m.observe(v.power, v.question())
	}
}

// question is what a VM asks, "" if it asks nothing.
func (v *seen) question() string {
	if v.asks == nil {
		return ""
	}
	return strings.TrimSpace(v.asks.Text)
}

// forget takes in that a VM is gone.
func (w *watch) forget(ref types.ManagedObjectReference) {
	w.mu.Lock()
	defer w.mu.Unlock()
	v := w.vms[ref]
	if v == nil {
		return
	}
	delete(w.vms, ref)
	if w.byUUID[v.uuid] == v {
		v.power = gone
		w.tell(v)
		delete(w.byUUID, v.uuid)
	}
	w.notify()
}

// learn takes in a VM that was just made, which is off.
func (w *watch) learn(ref types.ManagedObjectReference, uuid string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.vms[ref] == nil {
		v := &seen{ref: ref, uuid: uuid, power: off}
		w.vms[ref], w.byUUID[uuid] = v, v
	}
}

// giveUp returns the question that a VM asks, and the answer by which it is to end.
func (w *watch) giveUp(ref types.ManagedObjectReference) (id, choice string, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	v := w.vms[ref]
	if v == nil || v.asks == nil {
		return "", "", false
	}
	for _, c := range v.asks.Choice.ChoiceInfo {
		d, isChoice := c.(*types.ElementDescription)
		if !isChoice {
			continue
		}
		if text := strings.ToLower(d.Label + " " + d.Summary); strings.Contains(text, "cancel") || strings.Contains(text, "abort") {
			return v.asks.Id, d.Key, true
		}
	}
	return "", "", false
}

// awaitBegun waits until a VM has come to run while nobody was told, and returns its UUID.
func (w *watch) awaitBegun(ctx context.Context) (uuid string, err error) {
	for {
		w.mu.Lock()
		changed := w.changed
		for uuid := range w.begun {
			delete(w.begun, uuid)
			w.mu.Unlock()
			return uuid, nil
		}
		w.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
}

// lookUp returns what is known of a VM. Its power is gone if nothing is.
func (w *watch) lookUp(uuid string) seen {
	w.mu.Lock()
	defer w.mu.Unlock()
	if v := w.byUUID[uuid]; v != nil {
		return *v
	}
	return seen{uuid: uuid}
}

// subscribe has a machine told of each change of its VM's power from now on, and returns what is known of the VM.
func (w *watch) subscribe(m *machine) seen {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.machines[m.uuid] = append(w.machines[m.uuid], m)
	if v := w.byUUID[m.uuid]; v != nil {
		return *v
	}
	return seen{uuid: m.uuid}
}

func (w *watch) unsubscribe(m *machine) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.machines[m.uuid] = slices.DeleteFunc(w.machines[m.uuid], func(o *machine) bool { return o == m })
	if len(w.machines[m.uuid]) == 0 {
		delete(w.machines, m.uuid)
	}
}
