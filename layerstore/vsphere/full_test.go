package vsphere

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/vmware/govmomi/task"
	"github.com/vmware/govmomi/vim25/types"
)

// A full datastore is told of in many ways, and to users in one.
func TestFull(t *testing.T) {
	failed := func(f types.BaseMethodFault, text string) error {
		return fmt.Errorf("make it: %w", task.Error{LocalizedMethodFault: &types.LocalizedMethodFault{Fault: f, LocalizedMessage: text}})
	}
	for _, tt := range []struct {
		name string
		err  error
		want string // how the text begins
	}{
		{"upload", &statusError{http.StatusInsufficientStorage, "507 Insufficient Storage"}, `datastore "ds" is full: `},
		{"task", failed(&types.NoDiskSpace{}, "Insufficient disk space on datastore ''."), `datastore "ds" is full: `},
		{"task that names it", failed(&types.NoDiskSpace{Datastore: "other"}, ""), `datastore "other" is full: `},
		{"swap file", failed(&types.GenericVmConfigFault{}, "Could not power on virtual machine: No space left on device."), `datastore "ds" is full: `},
		{"named before", fmt.Errorf("x: %w", full(failed(&types.NoDiskSpace{Datastore: "other"}, ""), "")), `x: datastore "other" is full: `},
		{"named after", full(failed(&types.NoDiskSpace{}, ""), ""), `datastore "ds" is full: `},
		{"another status", &statusError{http.StatusForbidden, "403 Forbidden"}, "403 Forbidden"},
		{"another fault", failed(&types.GenericVmConfigFault{}, "no such device"), "make it: no such device"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := full(tt.err, "ds")
			if !strings.HasPrefix(err.Error(), tt.want) || errors.As(err, new(*FullError)) != strings.Contains(tt.want, "is full") {
				t.Errorf("%v, want %s", err, tt.want)
			}
			if !errors.Is(err, tt.err) && !errors.As(err, new(task.Error)) {
				t.Errorf("%v does not wrap %v", err, tt.err)
			}
		})
	}
	if err := full(nil, "ds"); err != nil {
		t.Error(err)
	}
}
