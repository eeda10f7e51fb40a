package vcsim

import (
	"maps"
	"slices"
	"sync"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// Outcome is how a task ends: a result or a fault.
type Outcome struct {
	Result types.AnyType
	Fault  types.BaseMethodFault
}

// A TaskHook stands around a task. Run does what the task is for; a hook need not call it, and may return another outcome. The
// simulator holds the lock of the task's entity meanwhile: a hook may read and change it, and must not call the API about it.
type TaskHook func(t *simulator.Task, run func() Outcome) Outcome

// OnTask puts a hook around each task to come, outside of those that are there. Faults that were asked for are outside of all.
func (s *Server) OnTask(h TaskHook) {
	s.hooks.mu.Lock()
	defer s.hooks.mu.Unlock()
	s.hooks.list = append(s.hooks.list[:len(s.hooks.list):len(s.hooks.list)], h)
}

// hooks is told of each object that the simulator makes, and so of each task before it runs.
type hooks struct {
	failures  *failures
	mu        sync.Mutex
	list      []TaskHook
	deletions map[*simulator.Task]chan struct{} // of files: closed when over
}

// Reference implements simulator.RegisterObject.
func (*hooks) Reference() types.ManagedObjectReference {
	return types.ManagedObjectReference{Type: "TaskHooks", Value: "TaskHooks"}
}

// PutObject implements simulator.RegisterObject.
func (h *hooks) PutObject(_ *simulator.Context, o mo.Reference) {
	t, ok := o.(*simulator.Task)
	if !ok || t.Execute == nil {
		return
	}
	deleted := func() {}
	if t.Info.DescriptionId == "FileManager.deleteDatastoreFile" {
		deleted = h.deletion(t)
	}
	execute := t.Execute
	t.Execute = func(t *simulator.Task) (types.AnyType, types.BaseMethodFault) {
		defer deleted()
		o := h.run(t, execute)
		return o.Result, o.Fault
	}
}

// deletion notes a task that deletes files until done is called.
func (h *hooks) deletion(t *simulator.Task) (done func()) {
	ended := make(chan struct{})
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.deletions == nil {
		h.deletions = make(map[*simulator.Task]chan struct{})
	}
	h.deletions[t] = ended
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.deletions, t)
		close(ended)
	}
}

// awaitDeletions returns when the deletions that have begun are over. The simulator destroys a virtual machine before its folder is
// gone, by a task of its own that nobody waits for.
func (h *hooks) awaitDeletions() {
	h.mu.Lock()
	begun := slices.Collect(maps.Values(h.deletions))
	h.mu.Unlock()
	for _, ended := range begun {
		<-ended
	}
}

func (h *hooks) run(t *simulator.Task, execute func(*simulator.Task) (types.AnyType, types.BaseMethodFault)) Outcome {
	f, fails := h.failures.task(t.Info.DescriptionId)
	if fails && !f.Done {
		return Outcome{Fault: f.Fault}
	}
	run := func() Outcome {
		result, fault := execute(t)
		if t.Info.DescriptionId == "VirtualMachine.destroy" {
			h.awaitDeletions()
		}
		return Outcome{result, fault}
	}
	h.mu.Lock()
	list := h.list
	h.mu.Unlock()
	for _, hook := range list {
		inner := run
		run = func() Outcome { return hook(t, inner) }
	}
	o := run()
	if fails {
		return Outcome{Fault: f.Fault}
	}
	return o
}

// UpdateObject implements simulator.RegisterObject.
func (*hooks) UpdateObject(*simulator.Context, mo.Reference, []types.PropertyChange) {}

// RemoveObject implements simulator.RegisterObject.
func (*hooks) RemoveObject(*simulator.Context, types.ManagedObjectReference) {}
