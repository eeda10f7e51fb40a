package vsphere

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/task"
	"github.com/vmware/govmomi/vim25/types"
)

// A FullError says that a datastore has no room left. Its text is for users.
type FullError struct {
	Datastore string // name; "" if nobody says which
	Err       error  // what the server answered
}

func (e *FullError) Error() string {
	which := "the datastore"
	if e.Datastore != "" {
		which = fmt.Sprintf("datastore %q", e.Datastore)
	}
	return which + " is full: remove images, containers or volumes that are not needed, or give it more space, and try again"
}

func (e *FullError) Unwrap() error { return e.Err }

// full makes a *FullError of an error that says so, in whichever way. The datastore is the one that the error names, or else the given one.
func full(err error, datastore string) error {
	if f, ok := errors.AsType[*FullError](err); ok {
		f.Datastore = cmp.Or(f.Datastore, datastore)
		return err
	}
	var space *types.NoDiskSpace
	status, isStatus := errors.AsType[*statusError](err)
	told, isTask := errors.AsType[task.Error](err)
	switch {
	case isStatus && status.code == http.StatusInsufficientStorage:
		return &FullError{datastore, err}
	case err == nil:
		return nil
	}
	if _, ok := fault.As(err, &space); ok {
		return &FullError{cmp.Or(space.Datastore, datastore), err}
	}
	// Hosts that cannot make a swap file say so by a general fault.
	if fault.Is(err, &types.InsufficientStorageSpace{}) || isTask && strings.Contains(told.Error(), "No space left on device") {
		return &FullError{datastore, err}
	}
	return err
}

// Blame names the datastore in an error that says some datastore is full, and leaves other errors as they are.
func (d *Datastore) Blame(err error) error { return full(err, d.ds.Name()) }
