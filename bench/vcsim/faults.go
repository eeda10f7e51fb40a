package vcsim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"
)

// failures are the faults that were asked for.
type failures struct {
	mu     sync.Mutex
	tasks  []TaskFault
	room   map[string]int64 // bytes that may yet be uploaded to a datastore; the others have room
	breaks []float64        // of the next uploads, in order: after what share
	holds  []*hold          // of uploads to come
}

// A hold is an upload that stands still.
type hold struct {
	least         int64
	held, release chan struct{}
}

// A TaskFault is a task that fails.
type TaskFault struct {
	Task  string                // what the API calls it, such as "VirtualMachine.powerOn" or "FileManager.moveDatastoreFile"; "" means any
	Fault types.BaseMethodFault // nil means a SystemError
	Skip  int                   // so many tasks of that name go well before
	Done  bool                  // the task does all it is for, and says then that it failed
}

// FailTask has one task to come fail. Several faults are for as many tasks, in order.
func (s *Server) FailTask(f TaskFault) {
	if f.Fault == nil {
		f.Fault = &types.SystemError{Reason: "fault injected by the simulator"}
	}
	s.front.failures.mu.Lock()
	defer s.front.failures.mu.Unlock()
	s.front.failures.tasks = append(s.front.failures.tasks, f)
}

// task takes the fault that is for a task, if there is one.
func (f *failures) task(name string) (TaskFault, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, x := range f.tasks {
		if x.Task != "" && x.Task != name {
			continue
		}
		if x.Skip > 0 {
			f.tasks[i].Skip--
			return TaskFault{}, false
		}
		f.tasks = slices.Delete(f.tasks, i, i+1)
		return x, true
	}
	return TaskFault{}, false
}

// DropSessions ends every session but the Administrator's: vCenter has started again. Who is waiting for updates waits on; their next
// call is told that they are not logged in.
func (s *Server) DropSessions(ctx context.Context) error {
	c, err := s.Administrator(ctx)
	if err != nil {
		return err
	}
	sessions, err := s.sessions(ctx)
	if err != nil {
		return err
	}
	for _, u := range sessions {
		_, err := methods.TerminateSession(ctx, c, &types.TerminateSession{This: *c.ServiceContent.SessionManager, SessionId: []string{u.Key}})
		if err != nil {
			return fmt.Errorf("end session of %s: %w", u.UserName, err)
		}
	}
	return nil
}

// FillDatastore leaves room for so many bytes of uploads to a datastore; a negative number is room for all. What came of an upload that
// does not fit stays.
func (s *Server) FillDatastore(name string, room int64) {
	f := &s.front.failures
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.room == nil {
		f.room = map[string]int64{}
	}
	if f.room[name] = room; room < 0 {
		delete(f.room, name)
	}
}

// BreakUpload breaks the connection of an upload to come after a share of its body, which must have a length; several calls are for as
// many uploads, in order. What came of it stays.
func (s *Server) BreakUpload(share float64) {
	f := &s.front.failures
	f.mu.Lock()
	defer f.mu.Unlock()
	f.breaks = append(f.breaks, share)
}

// HoldUpload has the next upload that says it has at least so many bytes stand still half way until release is called, or its client has
// gone. held is closed when it does. Several calls are for as many uploads.
func (s *Server) HoldUpload(least int64) (held <-chan struct{}, release func()) {
	h := &hold{least, make(chan struct{}), make(chan struct{})}
	f := &s.front.failures
	f.mu.Lock()
	defer f.mu.Unlock()
	f.holds = append(f.holds, h)
	return h.held, sync.OnceFunc(func() { close(h.release) })
}

var (
	errFull   = errors.New("vcsim: no space left on the datastore")
	errBroken = errors.New("vcsim: broken as asked")
)

// An upload is the body of one.
type upload struct {
	io.ReadCloser
	f         *failures
	datastore string
	breaks    int64 // bytes until it breaks; negative means never
	hold      *hold // nil if it does not stand still
	until     int64 // bytes until it does
	gone      <-chan struct{}
	err       error // that ended it, other than its end
}

func (f *failures) upload(r *http.Request, datastore string) *upload {
	f.mu.Lock()
	defer f.mu.Unlock()
	u := &upload{ReadCloser: r.Body, f: f, datastore: datastore, breaks: -1, gone: r.Context().Done()}
	if i := slices.IndexFunc(f.holds, func(h *hold) bool { return r.ContentLength >= h.least }); i >= 0 {
		u.hold, u.until = f.holds[i], r.ContentLength/2
		f.holds = slices.Delete(f.holds, i, i+1)
	}
	if len(f.breaks) > 0 && r.ContentLength >= 0 {
		u.breaks = int64(float64(r.ContentLength) * f.breaks[0])
		f.breaks = f.breaks[1:]
	}
	return u
}

// Read reads no more than there is room for.
func (u *upload) Read(p []byte) (int, error) {
	if u.err != nil {
		return 0, u.err
	}
	if u.breaks == 0 {
		u.err = errBroken
		return 0, u.err
	}
	if u.hold != nil && u.until == 0 {
		close(u.hold.held)
		select {
		case <-u.hold.release:
		case <-u.gone:
		}
		u.hold = nil
	}
	if u.breaks > 0 {
		p = p[:min(int64(len(p)), u.breaks)]
	}
	if u.hold != nil {
		p = p[:min(int64(len(p)), u.until)]
	}
	n, err := u.ReadCloser.Read(p)
	if u.hold != nil {
		u.until -= int64(n)
	}
	if u.breaks > 0 {
		u.breaks -= int64(n)
	}
	fits := u.f.take(u.datastore, int64(n))
	if fits < int64(n) {
		n, err = int(fits), errFull
	}
	if err != nil && err != io.EOF {
		u.err = err
	}
	return n, err
}

// take uses room of a datastore up and returns how much of n there was.
func (f *failures) take(datastore string, n int64) int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	room, bounded := f.room[datastore]
	if !bounded {
		return n
	}
	n = min(n, room)
	f.room[datastore] -= n
	return n
}
