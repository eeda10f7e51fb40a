package containervm

import (
	"encoding/json"
	"net/netip"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"

	"vic/tether/wire"
)

// A Spec says what a container is to be. Create keeps it, and it does not
// change afterwards but for Name, Network.Endpoints, and what Update changes.
type Spec struct {
	// Name without a slash; "" makes one up.
	Name string `json:"name"`
	// Image is the reference as the user gave it; Manager only keeps it.
	Image string `json:"image,omitempty"`
	// ImageID is the digest of the image's config. The disk is made from it.
	ImageID digest.Digest `json:"imageID"`

	// Args is the command, entrypoint and all. Args[0] is looked up in PATH of Env
	// inside the container if it has no slash.
	Args []string `json:"args"`
	// Env is KEY=VALUE, the image's included. PATH, HOME, HOSTNAME and, with TTY, TERM
	// are added where absent. KEY alone is not to be there.
	Env []string `json:"env,omitempty"`
	// Dir is the working directory, absolute, made if it is not there. "" means "/".
	Dir string `json:"dir,omitempty"`
	// User is NAME|UID[:GROUP|GID]. "" means root.
	User string `json:"user,omitempty"`
	// Groups are further groups, by name or number.
	Groups []string `json:"groups,omitempty"`
	// Hostname; "" means the first 12 digits of the ID.
	Hostname string `json:"hostname,omitempty"`
	Domain   string `json:"domain,omitempty"`

	TTY  bool `json:"tty,omitempty"` // run on a terminal
	Size Size `json:"size,omitzero"` // of the terminal at the start
	// OpenStdin lets Attachments write to stdin; without it, it is /dev/null.
	OpenStdin bool `json:"openStdin,omitempty"`
	// StdinOnce closes stdin when the first Attachment that had it ends its input.
	StdinOnce bool `json:"stdinOnce,omitempty"`

	// StopSignal is what Stop sends first. 0 means SIGTERM.
	StopSignal syscall.Signal `json:"stopSignal,omitempty"`
	// StopGrace is how long Stop waits before SIGKILL; nil means 10 s, and less
	// than zero for ever.
	StopGrace *time.Duration `json:"stopGrace,omitempty"`
	// AutoRemove removes the container when it has ended, or could not be started.
	// Its disk is then not synced to the host's.
	AutoRemove bool `json:"autoRemove,omitempty"`
	// Transient is a container that is worth nothing without who made it: opening its store again removes it, running
	// or not, unless Retain was called.
	Transient bool `json:"transient,omitempty"`
	// Restart is of no use with AutoRemove, and then refused.
	Restart RestartPolicy `json:"restart,omitzero"`

	// Health is how the guest finds out whether the container is well; nil is not at all.
	Health *HealthCheck `json:"health,omitempty"`

	// Memory of the VM in bytes; 0 means 256 MiB, less than 96 MiB is refused.
	Memory int64 `json:"memory,omitempty"`
	// CPUs of the VM; 0 means 1, more than the host has is refused.
	CPUs int `json:"cpus,omitempty"`
	// CPUSet are the host's CPUs that the VM may use; none means all.
	CPUSet []int `json:"cpuSet,omitempty"`
	// Limits are the guest's to keep, below what the VM has.
	Limits Limits `json:"limits,omitzero"`

	// Init runs the process beside an init, which reaps orphans, instead of as PID 1.
	Init bool `json:"init,omitempty"`
	// Privileges of the process and of execs; the zero value has all.
	Privileges Privileges `json:"privileges,omitzero"`
	// Umask of the process and of execs; nil means 022.
	Umask *uint32 `json:"umask,omitempty"`
	// Masked are paths that show nothing, ReadOnly such that cannot be written to.
	Masked   []string `json:"masked,omitempty"`
	ReadOnly []string `json:"readOnly,omitempty"`

	ReadOnlyRoot bool              `json:"readOnlyRoot,omitempty"`
	Tmpfs        []Tmpfs           `json:"tmpfs,omitempty"`
	Volumes      []VolumeMount     `json:"volumes,omitempty"`
	Binds        []BindMount       `json:"binds,omitempty"`
	ShmSize      int64             `json:"shmSize,omitempty"` // of /dev/shm in bytes; 0 means 64 MiB
	Sysctls      map[string]string `json:"sysctls,omitempty"`
	Rlimits      []Rlimit          `json:"rlimits,omitempty"`

	Network NetworkSpec `json:"network,omitzero"`

	Log LogSpec `json:"log,omitzero"`

	Labels map[string]string `json:"labels,omitempty"`
	// Extra is the caller's own, such as a create request's body: kept as it
	// is and given back, at most 1 MiB.
	Extra json.RawMessage `json:"extra,omitempty"`
}

// LogSpec says what is kept of a container's output.
type LogSpec struct {
	// Room is about how many bytes of the log there are at most; the oldest go first, except before what an
	// Attachment has yet to stream. 0 is no bound.
	Room int64 `json:"room,omitempty"`
	// Unread says that the output is for Attachments alone.
	Unread bool `json:"unread,omitempty"`
}

// Size of a terminal, in characters.
type Size = wire.Size

// Rlimit is a resource limit by its number in setrlimit(2).
type Rlimit = wire.Rlimit

// Limits are those of the container's control group in the guest.
type Limits = wire.Limits

// Privileges bound what processes may do in the guest.
type Privileges = wire.Privileges

// Socket is a TCP connection of a guest's.
type Socket = wire.Socket

// Tmpfs is a file system in memory, mounted at Target.
type Tmpfs struct {
	Target  string   `json:"target"`
	Options []string `json:"options,omitempty"` // as mount(8) takes them: size=64m, mode=1777, noexec, …
}

// VolumeMount mounts a volume, which Create makes if it is not there.
type VolumeMount struct {
	// Name of the volume; Create makes one up where it is "", and the volume is then the container's Own.
	Name   string `json:"name"`
	Target string `json:"target"` // absolute
	// Driver, Options and Labels are for a volume that is made.
	Driver  string            `json:"driver,omitempty"`
	Options map[string]string `json:"options,omitempty"`
	Labels  map[string]string `json:"labels,omitempty"`
	// Own marks a volume that goes with the container: see RemoveOptions.Volumes.
	Own      bool `json:"own,omitempty"`
	ReadOnly bool `json:"readOnly,omitempty"`
	// Subpath is what is mounted of the volume, which must be there; "" is all of it.
	Subpath string `json:"subpath,omitempty"`
	// NoCopy leaves an empty volume empty. Without it, and without a Subpath, the first start copies what the image has at Target.
	NoCopy bool `json:"noCopy,omitempty"`
	// Mode is the caller's own, such as the options in docker's notation.
	Mode string `json:"mode,omitempty"`
}

// BindMount shares a folder or a regular file of the host with the container. User and group IDs are the same on both sides.
type BindMount struct {
	Source string `json:"source"` // absolute
	Target string `json:"target"` // absolute
	// Create makes a folder of Source with each start if nothing is there.
	Create   bool `json:"create,omitempty"`
	ReadOnly bool `json:"readOnly,omitempty"`
	// Mode is the caller's own, such as the options in docker's notation.
	Mode string `json:"mode,omitempty"`
}

// NetworkSpec says how a container is connected. The zero value connects it to the
// network that is called "bridge".
type NetworkSpec struct {
	// Mode is what the user said: "", "default" or the name of a network, or "none" for no
	// network interface at all.
	Mode string `json:"mode,omitempty"`
	// Endpoints are the networks that the container is on. nil means that of Mode. Connect and
	// Disconnect change it.
	Endpoints []EndpointSpec `json:"endpoints"`
	// Ports to be published on the host.
	Ports []PortBinding `json:"ports,omitempty"`
	// DNS are the servers asked for names that are not containers'; none
	// means the host's.
	DNS        []netip.Addr `json:"dns,omitempty"`
	DNSSearch  []string     `json:"dnsSearch,omitempty"`
	DNSOptions []string     `json:"dnsOptions,omitempty"`
	// Hosts are further lines of /etc/hosts.
	Hosts []Host `json:"hosts,omitempty"`

	// Aliases, IP and MAC are what stores of before have for the one network that there was.
	Aliases []string   `json:"aliases,omitempty"`
	IP      netip.Addr `json:"ip,omitzero"`
	MAC     string     `json:"mac,omitempty"`
}

// EndpointSpec says how a container is on a network.
type EndpointSpec struct {
	Network string `json:"network"` // its name
	// ID of the network, so that another one of the same name is not taken for it; "" if there was none
	// when the container was made.
	ID string `json:"id,omitempty"`
	// Aliases are further names that other containers on the network find this one by, beside
	// its name, the first 12 digits of its ID and its host name.
	Aliases []string `json:"aliases,omitempty"`
	// Links are other containers on the network, and the names that this one, and no other, knows them by.
	Links []Link `json:"links,omitempty"`
	// IP and IP6 ask for these addresses; the zero Addr takes the next that is free at each start.
	IP  netip.Addr `json:"ip,omitzero"`
	IP6 netip.Addr `json:"ip6,omitzero"`
	// MAC asks for this hardware address, as "02:42:ac:11:00:02"; "" derives it
	// from the IP.
	MAC string `json:"mac,omitempty"`
	// Priority of the endpoint for the default route; of equal ones the first name has it.
	Priority int `json:"priority,omitempty"`
}

// Link is a name for another container.
type Link struct {
	Container string `json:"container"` // its name or ID, as the user gave it
	Alias     string `json:"alias"`
}

// Host is a line of /etc/hosts. The zero Addr stands for the network's gateway.
type Host struct {
	Addr  netip.Addr `json:"addr,omitzero"`
	Names []string   `json:"names"`
}

// PortBinding publishes a port of a container on the host.
type PortBinding struct {
	Proto string `json:"proto"` // tcp or udp; "" means tcp
	Port  uint16 `json:"port"`  // in the container
	// HostIP to listen on. The zero Addr means all, of IPv4 and IPv6.
	HostIP netip.Addr `json:"hostIP,omitzero"`
	// HostPort to listen on. 0 takes one that is free, at each start.
	HostPort uint16 `json:"hostPort,omitempty"`
	// HostPortEnd, if not 0, is the last of the ports from HostPort on of which the first free one is taken.
	HostPortEnd uint16 `json:"hostPortEnd,omitempty"`
}
