package vcsim

import (
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
	failures *failures
	mu       sync.Mutex
	list     []TaskHook
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
	execute := t.Execute
	t.Execute = func(t *simulator.Task) (types.AnyType, types.BaseMethodFault) {
		o := h.run(t, execute)
		return o.Result, o.Fault
	}
}

func (h *hooks) run(t *simulator.Task, execute func(*simulator.Task) (types.AnyType, types.BaseMethodFault)) Outcome {
	f, fails := h.failures.task(t.Info.DescriptionId)
	if fails && !f.Done {
		return Outcome{Fault: f.Fault}
	}
	run := func() Outcome {
		result, fault := execute(t)
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
