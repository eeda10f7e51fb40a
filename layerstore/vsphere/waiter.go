package vsphere

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/task"
	"github.com/vmware/govmomi/view"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"
)

// waitSeconds is how long a call for updates may go unanswered, and slack how much later the answer may come.
const (
	waitSeconds = 60
	slack       = 30 * time.Second
)

// A waiter waits for all tasks of a session by one property collector and one list: a task costs a call to be put on the list, with
// those taken off that have ended since, and a share of the calls for updates.
type waiter struct {
	s  *Session
	wg sync.WaitGroup

	mu    sync.Mutex
	tasks map[types.ManagedObjectReference]*awaited
	list  *taskList                      // that is watched; nil if none is, yet or at the moment
	ended []types.ManagedObjectReference // that are on it and that nobody waits for
	runs  bool                           // there is a goroutine
}

// A taskList is a list of tasks at the server, for as long as its session lives.
type taskList struct {
	*view.ListView
	abandon context.CancelFunc // ends the watching
}

// An awaited task is one that somebody waits for.
type awaited struct {
	state  types.TaskInfoState
	result types.AnyType
	fault  *types.LocalizedMethodFault
	lost   error         // why nothing will be known
	done   chan struct{} // closed when one of these tells how it ended
	users  int
}

// wait waits for a task's end. The error is ErrUnavailable if nobody can tell.
func (w *waiter) wait(ctx context.Context, t *object.Task) (types.AnyType, error) {
	a, list, ended := w.enter(t.Reference())
	defer w.leave(t.Reference(), a)
	if list != nil {
		w.put(ctx, list, []types.ManagedObjectReference{t.Reference()}, ended)
	}
	select {
	case <-a.done:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	switch {
	case a.lost != nil:
		return nil, fmt.Errorf("wait for task: %w", a.lost)
	case a.state == types.TaskInfoStateError && a.fault != nil:
		return nil, task.Error{LocalizedMethodFault: a.fault}
	case a.state == types.TaskInfoStateError:
		return nil, errors.New("the task failed, and does not say why")
	}
	return a.result, nil
}

// enter notes that somebody waits for a task. It returns the list that the task is to be put on, nil if a new one will have it, and which
// tasks are to be taken off.
func (w *waiter) enter(ref types.ManagedObjectReference) (*awaited, *taskList, []types.ManagedObjectReference) {
	w.mu.Lock()
	defer w.mu.Unlock()
	a := w.tasks[ref]
	if a != nil {
		a.users++
		return a, nil, nil
	}
	a = &awaited{done: make(chan struct{}), users: 1}
	w.tasks[ref] = a
	if !w.runs {
		w.runs = true
		w.wg.Go(w.run)
	}
	ended := w.ended
	w.ended = nil
	return a, w.list, ended
}

// put puts tasks on a list. Where that fails the next list has them.
func (w *waiter) put(ctx context.Context, list *taskList, refs, ended []types.ManagedObjectReference) {
	req := types.ModifyListView{This: list.Reference(), Add: refs, Remove: ended}
	res, err := methods.ModifyListView(ctx, w.s.client, &req)
	if err != nil {
		list.abandon()
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, ref := range res.Returnval {
		if a := w.tasks[ref]; a != nil {
			a.end(errors.New("vSphere does not know it any more"))
		}
	}
}

func (w *waiter) leave(ref types.ManagedObjectReference, a *awaited) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if a.users--; a.users == 0 && w.tasks[ref] == a {
		delete(w.tasks, ref)
		w.ended = append(w.ended, ref)
	}
}

// run watches lists as long as somebody waits.
func (w *waiter) run() {
	b := w.s.retry
	rest := b.first
	for try := 1; ; try++ {
		good, err := w.watch(w.s.ctx)
		if good {
			try, rest = 1, b.first
		}
		w.mu.Lock()
		// Besides, the list may have been another session's, or abandoned.
		again := err != nil && (unreachable(err) || fault.Is(err, &types.ManagedObjectNotFound{}) || errors.Is(err, context.Canceled))
		if err != nil && (w.s.ctx.Err() != nil || try >= b.tries || !again) {
			for _, a := range w.tasks {
				a.end(fmt.Errorf("%w: %w", ErrUnavailable, err))
			}
			clear(w.tasks)
		}
		if len(w.tasks) == 0 {
			w.runs = false
			w.mu.Unlock()
			return
		}
		w.mu.Unlock()
		if err == nil || good && !unreachable(err) { // nothing is to be waited for
			continue
		}
		t := time.NewTimer(rest)
		select {
		case <-t.C:
		case <-w.s.ctx.Done():
			t.Stop()
		}
		rest = min(2*rest, b.most)
	}
}

func (w *waiter) busy() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.tasks) > 0
}

// watch watches a list until there is an error, or nothing on it for a while. It reports whether it came to that.
func (w *waiter) watch(ctx context.Context) (good bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	pc, err := property.DefaultCollector(w.s.client).Create(ctx)
	if err != nil {
		return false, err
	}
	defer dispose(pc.Destroy)
	defer context.AfterFunc(w.s.Login(), cancel)()
	v, err := view.NewManager(w.s.client).CreateListView(ctx, nil)
	if err != nil {
		return false, err
	}
	defer dispose(v.Destroy)
	filter := new(property.WaitFilter).Add(v.Reference(), "Task", []string{"info.state", "info.result", "info.error"}, v.TraversalSpec())
	filter.Spec.ObjectSet[0].Skip = types.NewBool(true)
	if _, err := pc.CreateFilter(ctx, filter.CreateFilter); err != nil {
		return false, err
	}
	list := &taskList{v, cancel}
	defer w.forget(list)
	w.put(ctx, list, w.begin(list), nil)
	seconds := int32(waitSeconds)
	for version := ""; ; {
		wait, cancel := context.WithTimeout(ctx, waitSeconds*time.Second+slack)
		set, err := pc.WaitForUpdates(wait, version, &types.WaitOptions{MaxWaitSeconds: &seconds})
		cancel()
		if err != nil {
			return good, err
		}
		good = true
		if set != nil {
			version = set.Version
			w.apply(set)
		} else if !w.busy() {
			return good, nil
		}
	}
}

// begin has a list be the one that new tasks are put on, and returns those that are waited for already.
func (w *waiter) begin(list *taskList) []types.ManagedObjectReference {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.list, w.ended = list, nil
	return slices.Collect(maps.Keys(w.tasks))
}

func (w *waiter) forget(list *taskList) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.list == list {
		w.list = nil
	}
}

// apply takes in how tasks are.
func (w *waiter) apply(set *types.UpdateSet) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range set.FilterSet {
		for _, u := range f.ObjectSet {
			a := w.tasks[u.Obj]
			if a == nil || a.over() {
				continue // the same may be told again
			}
			for _, c := range u.ChangeSet {
				switch val := c.Val.(type) {
				case types.TaskInfoState:
					a.state = val
				case types.LocalizedMethodFault:
					a.fault = &val
				default:
					if c.Name == "info.result" {
						a.result = val
					}
				}
			}
			if a.state == types.TaskInfoStateSuccess || a.state == types.TaskInfoStateError {
				a.end(nil)
			}
		}
	}
}

// over says whether the end is known: nothing changes from then on.
func (a *awaited) over() bool {
	select {
	case <-a.done:
		return true
	default:
		return false
	}
}

// end says that the end is known, or will not be. Call it with mu held.
func (a *awaited) end(lost error) {
	if !a.over() {
		a.lost = lost
		close(a.done)
	}
}

// dispose gives an object of the session back. One of a session that is gone is gone.
func dispose(destroy func(context.Context) error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = destroy(ctx)
}
