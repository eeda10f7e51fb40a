package containervm

import (
	"net/netip"
	"time"
)

// Status is the state of a container in one word of docker's.
type Status string

const (
	Created Status = "created" // never started, or never successfully
	Running Status = "running" // its process runs
	Paused  Status = "paused"  // its VM stands still
	// Restarting: its process has ended and will be started again, by the guest or the VCH.
	Restarting Status = "restarting"
	Exited     Status = "exited"   // its process has ended
	Removing   Status = "removing" // it is being removed
	Dead       Status = "dead"     // it could not be removed whole, or its files are damaged; it can only be removed
)

// Alive says that there is a process, whether it runs at this moment or not. Docker calls that running.
func (s Status) Alive() bool { return s == Running || s == Paused || s == Restarting }

// Info is what is known of a container at one moment. It is the caller's own
// copy, except that maps and slices of Spec must not be changed.
type Info struct {
	ID      string // 64 hex digits
	Name    string // without a slash
	Created time.Time
	Spec    Spec
	State   State
	// Endpoints are the places in networks while the container runs, in the order of their interfaces.
	Endpoints []EndpointInfo
	// Restarts counts automatic restarts since the last start by somebody.
	Restarts int
	// Accel is how the VM that runs, or ran last, is carried out: "kvm" or "tcg"; "" if
	// there was none.
	Accel string
	// Files, for people: the disk's descriptor, the log of the process, the VM's console.
	DiskPath, LogPath, ConsolePath string
}

// State is what a container does or how it ended.
type State struct {
	Status Status
	PID    int // on the host, of the VM's process; 0 if there is none
	// ExitCode of the last run: 128+n for a process killed by signal n; 137 also for a
	// VM that was killed, or that died by itself and left no exit code.
	ExitCode int
	// Health is nil if the container has no health check.
	Health *Health `json:",omitempty"`
	// OOM says that the guest's kernel killed something for lack of memory.
	OOM bool
	// Error says why the last start failed or why a VM died. "" otherwise.
	Error string
	// Started and Finished are of the last run; zero if there was none, and
	// Finished also while it runs.
	Started, Finished time.Time
}

// EndpointInfo is a running container's place in a network.
type EndpointInfo struct {
	ID        string `json:"id,omitempty"` // 64 hex digits
	Network   string `json:"network"`      // its name
	NetworkID string `json:"networkID,omitempty"`
	// End of the NIC on the host; the guest calls the interface by the same number, eth<i>.
	End     string       `json:"end,omitempty"`
	MAC     string       `json:"mac"`
	IP      netip.Prefix `json:"ip"`
	Gateway netip.Addr   `json:"gateway"` // also if it leads nowhere
	// GatewayMAC is its hardware address, where others are on the same wire who could say that it is theirs.
	GatewayMAC string       `json:"gatewayMAC,omitempty"`
	IP6        netip.Prefix `json:"ip6,omitzero"`
	Gateway6   netip.Addr   `json:"gateway6,omitzero"`
	MTU        int          `json:"mtu,omitempty"` // 0 leaves the device's
	// Default says that the container's default route goes through this endpoint. Its ports are published here.
	Default bool `json:"default,omitempty"`
	// Ports as they are really bound: HostIP and HostPort are set, and a binding on all
	// addresses comes twice, as 0.0.0.0 and ::, if the host has both.
	Ports []PortBinding `json:"ports,omitempty"`
	Names []string      `json:"names,omitempty"` // by which other containers find this one
}
