package containervm

import (
	"context"
	"errors"
	"io"
	"net"

	"github.com/opencontainers/go-digest"

	"vic/layerstore"
)

// A Hypervisor runs VMs that outlive the process which started them. The
// suite in hypervisor_test.go says what is expected of it.
type Hypervisor interface {
	// Start boots a VM and returns once it exists. Files of an earlier VM in the same
	// folders are replaced. If there is still one running, the error says so.
	Start(ctx context.Context, vm VM) (Machine, error)
	// Find returns the VM that runs in these folders, started by whichever process.
	// The error is ErrNoMachine if there is none.
	Find(ctx context.Context, vm VM) (Machine, error)
	// Prepare has VMs with the hardware of vm start faster from some time on, if there
	// is a way. It does not wait for that.
	Prepare(ctx context.Context, vm VM) error
	// Resources tells what there is for VMs, at once: what was known last if nobody can be asked.
	Resources() Resources
}

// A Remote is a Hypervisor whose VMs are managed by something that may be away. As long as it is VMs run on, and nothing is begun that needs it.
type Remote interface {
	// Available is nil, or says what is away.
	Available() error
}

// Available is nil unless the Hypervisor is a Remote that says it is away. That is what is known: nobody is asked.
func (m *Manager) Available() error {
	if r, ok := m.o.Hypervisor.(Remote); ok {
		return r.Available()
	}
	return nil
}

// ErrNoMachine says that no VM runs for a container.
var ErrNoMachine = errors.New("containervm: no virtual machine")

// A Machine is a running VM, or one that has ended. Its methods may be used
// concurrently.
type Machine interface {
	// Info tells what the VM is.
	Info() MachineInfo
	// Done is closed when the VM has ended and its files are no longer in use.
	Done() <-chan struct{}
	// Dial connects to an end of the VM on the host: "control", or "net0" and
	// so on for the NICs. Each takes one connection at a time and any number one after another.
	Dial(ctx context.Context, end string) (net.Conn, error)
	// Pause stops the VM's CPUs and clocks, Resume lets them go on. Each returns when it is so, and
	// is no error if it was so already.
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
	// Kill ends the VM at once, as pulling the plug does. It does not wait. A VM that
	// has ended is no error.
	Kill() error
	// AddNIC plugs a network interface into the running VM and returns when its end on the host
	// takes connections. The guest sees it a moment later, by its MAC address. What was at that end is
	// pulled out first.
	AddNIC(ctx context.Context, nic NIC) error
	// RemoveNIC pulls an interface out, and returns when the guest has let go of it. One that is not there is
	// no error. A guest that does not let go ends it with ctx's.
	RemoveNIC(ctx context.Context, end string) error
	// Close lets go of the VM without ending it.
	Close() error
}

// NIC is a network interface of a VM.
type NIC struct {
	End string // on the host, as Dial has it: "net0", "net1", …
	MAC string
	// Network is the hypervisor's network that the interface is on. "" is the one for networks that the VCH carries
	// itself, whose frames come by Dial.
	Network string
}

// MachineInfo is what a Machine tells of itself.
type MachineInfo struct {
	PID   int    // of its process on the host
	Accel string // kvm or tcg
	// Paused says that the VM stands still.
	Paused bool
	// Template says that the VM did not boot, but began as a copy of one that had.
	Template bool
	// Reason is why the VM has ended, in the hypervisor's words; "" if it has not, or did not say.
	Reason string
	// Question is what the hypervisor asks whoever manages it, in its words; the VM stands still until somebody has answered. "" most of the time.
	Question string
	// Window is what the control stream bears on its way, for wire.ConnectOptions; 0 if it is a fast one.
	Window int
}

// An Observed Machine may be paused and let go on by others than Pause and Resume, and stand still for a Question.
type Observed interface {
	// Changed has a value after Info().Paused or Info().Question may have become another.
	Changed() <-chan struct{}
}

// A Shared Hypervisor is one whose VMs others can power on.
type Shared interface {
	// PoweredOn waits until a VM runs that nobody has a Machine of, and returns its container's ID. It may be one that was found since, and each is
	// returned once. The error is ctx's.
	PoweredOn(ctx context.Context) (id string, err error)
}

// VM says what a Hypervisor is to run.
type VM struct {
	ID string // of the container
	// Dir keeps what outlives the VM; RuntimeDir is for sockets and such, is short
	// enough for a UNIX socket's path, and may be gone after the host has booted anew. Both
	// exist.
	Dir, RuntimeDir string

	Boot Boot
	// Config are the OEM strings for the guest.
	Config []string
	Memory int64 // bytes
	CPUs   int
	// CPUSet are the host's CPUs that the VM may use; none means all.
	CPUSet []int
	// Disk is the path of the root disk's VMDK descriptor; DiskSerial the serial number
	// that the guest knows it by.
	Disk, DiskSerial string
	DiskSize         int64 // of the root disk, bytes
	// Unsafe leaves out syncing the root disk to the host's.
	Unsafe bool
	// Disks are further ones.
	Disks []Disk
	// Shares are folders of the host. A Hypervisor that is no Sharer takes none.
	Shares []Share
	// NICs that are there at the boot. Others may be added later.
	NICs []NIC
	// Log is appended with what the guest writes to its log port; an empty file may be replaced. Console is
	// replaced by what it writes to its console.
	Log, Console string
}

// A Disk is a disk of a VM beside its root's. No other VM has it, unless all have it read-only.
type Disk struct {
	Path     string // of the VMDK descriptor
	Serial   string // number that the guest knows it by, at most 20 bytes
	ReadOnly bool
}

// A Sharer is a Hypervisor that can share folders of the host with VMs.
type Sharer interface {
	// CanShare says what is missing, nil if nothing is.
	CanShare() error
}

// A Share is a folder of the host in a VM, or one with a single file in it: nothing beside that is shown.
type Share struct {
	Path     string // absolute, of a folder or a regular file
	Tag      string // that the guest knows it by
	ReadOnly bool   // also to a guest whose kernel thinks otherwise
}

// SharedFile is the name of the file in a Share of a single one.
const SharedFile = "file"

// Boot is what a VM boots.
type Boot struct {
	Kernel, Initrd string // paths
	Cmdline        string // kernel parameters; a panic must end the VM (panic=-1)
	// ISO is the path of a bootable CD with all of these, for a hypervisor that boots no kernel by itself; "" if there is none.
	ISO string `json:",omitempty"`
}

// A Booter provides the guest's kernel, initramfs and tether.
type Booter interface {
	Boot(ctx context.Context) (Boot, error)
}

// Disks makes the root disks of containers, and removes them.
type Disks interface {
	// Capacity is the size of every root disk in bytes.
	Capacity() int64
	// CreateContainerDisk makes a disk in the container's folder upon the image's, and
	// returns the path of its descriptor.
	CreateContainerDisk(id string, image digest.Digest) (string, error)
	// RemoveContainer removes the container's folder with all that is in it.
	RemoveContainer(id string) error
	// ContainerFS opens the root file system of a container that writes nothing meanwhile.
	ContainerFS(ctx context.Context, id string) (*layerstore.FS, error)
	// OpenChanges opens what such a container changed of its image's.
	OpenChanges(ctx context.Context, id string) (*layerstore.ContainerChanges, error)
	// ApplyToContainer applies the tar of a layer to the disk of a container without a VM.
	ApplyToContainer(ctx context.Context, id string, layer io.Reader) error
	// SettleContainer finishes what a crash left of an ApplyToContainer.
	SettleContainer(id string) error
}

// Registered are Disks that make of a container something with a name for people. CreateContainer is called in place of
// CreateContainerDisk.
type Registered interface {
	CreateContainer(ctx context.Context, id, name string, image digest.Digest) error
	// RenameContainer gives it another name. The container has that already.
	RenameContainer(ctx context.Context, id, name string) error
}
