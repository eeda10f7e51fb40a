package containervm

import (
	"context"
	"log/slog"
	"time"
)

// Options of a Manager. Store, Disks, Hypervisor, Boot and Network must be set.
type Options struct {
	// Store is the folder of the layer store; containers live in its folder "containers".
	Store      string
	Disks      Disks
	Hypervisor Hypervisor
	Boot       Booter
	Network    Network
	// RuntimeDir is for sockets; its path has at most 60 bytes. "" means a folder below
	// /run/vic that is named by a hash of Store's path.
	RuntimeDir string
	// StartTimeout is how long a VM may take until its process runs. 0 means 3 minutes.
	StartTimeout time.Duration
	// Log is told what no caller is; nil is silent.
	Log *slog.Logger
}

// A Manager is the containers of one store. Its methods, and those of what it
// hands out, may be used concurrently.
type Manager struct {
	o Options
}

// Open takes over the containers of a store. Those whose VMs run are found again, those
// that ended meanwhile get their exit codes, and what was to be removed at its end is.
// A second Manager on the same store, in whichever process, is refused with ErrConflict.
// A container whose files are damaged is Dead, and does not hinder the others.
func Open(ctx context.Context, o Options) (*Manager, error) {
	return &Manager{o: o}, nil
}

// Close lets go of the containers, which run on. Attachments, Logs and
// waiters end with ErrClosed.
func (m *Manager) Close() error { return nil }

// Create makes a container: its folder, its disk, its name. Nothing runs yet.
// Errors: ErrInvalid for a Spec that makes no sense, ErrNotImplemented for one that cannot be
// carried out yet, ErrConflict for a name in use, and what Disks says, wrapped.
func (m *Manager) Create(ctx context.Context, s Spec) (*Container, error) {
	return nil, ErrNotImplemented
}

// Container returns the container with that ID, else with that name (a slash
// before it does not matter), else the only one whose ID begins so. The error is
// ErrNotFound, or ErrInvalid if several IDs begin so.
func (m *Manager) Container(ref string) (*Container, error) {
	return nil, ErrNotFound
}

// List returns all containers, the newest first.
func (m *Manager) List() []*Container { return nil }

// Exec returns the exec with that ID or unique beginning of it. The error is ErrNotFound, or ErrInvalid
// if several begin so. Execs are forgotten some time after they ended, with their
// container's run, and when the Manager closes.
func (m *Manager) Exec(ref string) (*Exec, error) {
	return nil, ErrNotFound
}

// Subscribe has fn called with every Event from now on, in order and one at a time.
// It must be quick and not call the Manager or a Container. The returned function ends it; no call is under way
// when that has returned.
func (m *Manager) Subscribe(fn func(Event)) (cancel func()) {
	return func() {}
}
