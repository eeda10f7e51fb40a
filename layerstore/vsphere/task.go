package vsphere

import (
	"context"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"
)

// Do begins a task and waits for its end. A task that found its object busy is begun again. One that was begun when the
// connection broke is begun again, too: the error may be that all is done already. That a datastore is full is a *FullError.
func (s *Session) Do(ctx context.Context, begin func() (*object.Task, error)) error {
	_, err := s.Run(ctx, begin)
	return err
}

// Run is Do, and returns the result of the task.
func (s *Session) Run(ctx context.Context, begin func() (*object.Task, error)) (result types.AnyType, err error) {
	err = s.retry.do(ctx, busy, func() error {
		var task *object.Task
		err := s.Call(ctx, func() (err error) {
			task, err = begin()
			return err
		})
		if err != nil {
			return err
		}
		result, err = s.Wait(ctx, task)
		return err
	})
	return result, full(err, "")
}

// Call calls fn, again as long as the server cannot be reached.
func (s *Session) Call(ctx context.Context, fn func() error) error {
	return unavailable(s.retry.do(ctx, unreachable, fn))
}

// Wait waits for a task's end, which a lost connection or session does not prevent, and returns its result.
func (s *Session) Wait(ctx context.Context, task *object.Task) (result types.AnyType, err error) {
	return s.tasks.wait(ctx, task)
}
