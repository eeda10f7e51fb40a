package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// Config is what a container VM is and runs. The VCH writes it into the VM's
// hardware; the guest reads it at every boot.
type Config struct {
	ID    string `json:"id"`    // of the container
	Token string `json:"token"` // the host must show it to open a control session

	Hostname string `json:"hostname,omitempty"`
	Domain   string `json:"domain,omitempty"`

	// Args is the command. Args[0] is looked up in PATH of Env if it has no slash.
	Args []string `json:"args"`
	// Env is KEY=VALUE. PATH, HOME, HOSTNAME and, with TTY, TERM are added where absent.
	Env []string `json:"env,omitempty"`
	// Dir is the working directory, made if it is not there. "" means "/".
	Dir string `json:"dir,omitempty"`
	// User is NAME|UID[:GROUP|GID] as in docker's USER. "" means root.
	User string `json:"user,omitempty"`
	// Groups are further groups by name or number.
	Groups []string `json:"groups,omitempty"`

	TTY       bool `json:"tty,omitempty"`       // run on a pseudo terminal
	Size      Size `json:"size,omitzero"`       // of the terminal; zero leaves the kernel's 0 by 0
	OpenStdin bool `json:"openStdin,omitempty"` // stdin is fed from the control channel; else it is /dev/null
	// StopSignal is what OpShutdown sends first. 0 means SIGTERM (15).
	StopSignal int `json:"stopSignal,omitempty"`

	// Restart says whether the process is started again in the same VM when it has ended.
	Restart Restart `json:"restart,omitzero"`

	Health *Health `json:"health,omitempty"` // nil is none

	Root Root `json:"root"`
	Network
	Mounts  []Mount           `json:"mounts,omitempty"`  // in this order, after the root's
	ShmSize int64             `json:"shmSize,omitempty"` // of /dev/shm in bytes; 0 means 64 MiB
	Sysctls map[string]string `json:"sysctls,omitempty"` // net.ipv4.ip_forward = 1
	Rlimits []Rlimit          `json:"rlimits,omitempty"` // of the container's process and of execs

	// Init keeps the tether the parent of the container's process, to reap orphans and so that signals
	// without a handler do what they do to any process. Without it the process is PID 1 of a namespace of
	// its own, as in docker, and its end is the end of every other.
	Init       bool       `json:"init,omitempty"`
	Privileges Privileges `json:"privileges,omitzero"`
	Limits     Limits     `json:"limits,omitzero"`
	// Umask of the container's process and of execs; nil means 022.
	Umask *uint32 `json:"umask,omitempty"`
	// Masked are paths that show nothing, ReadOnly such that cannot be written to. What is not there is
	// passed over.
	Masked   []string `json:"masked,omitempty"`
	ReadOnly []string `json:"readOnly,omitempty"`

	// Seed goes into the kernel's random number generator and is credited in full.
	// It must be new for every boot that must not repeat another's random numbers.
	Seed []byte `json:"seed,omitempty"`
	// Time is when the VM was started, ns since 1970. The guest sets its clock by it. 0 keeps
	// the hardware clock's.
	Time int64 `json:"time,omitempty"`
}

// Size is a terminal's, in characters.
type Size struct {
	Rows uint16 `json:"rows"`
	Cols uint16 `json:"cols"`
}

// Root says which disk holds the container's root file system, an ext4.
type Root struct {
	// Serial of the disk as given to the hypervisor. "" means the first disk that
	// the guest finds, by name.
	Serial   string `json:"serial,omitempty"`
	ReadOnly bool   `json:"readOnly,omitempty"`
}

// Network is how the container is connected.
type Network struct {
	// Later says that interfaces may be plugged in although there are none yet.
	Later bool `json:"later,omitempty"`
	// Filters says that some of them may have a Filter.
	Filters bool   `json:"filters,omitempty"`
	NICs    []NIC  `json:"nics,omitempty"`
	DNS     DNS    `json:"dns,omitzero"`
	Hosts   []Host `json:"hosts,omitempty"` // further lines of /etc/hosts
}

// NIC is one network interface.
type NIC struct {
	// Name of the interface; "" calls the i-th one eth<i>.
	Name string `json:"name,omitempty"`
	// MAC address, 52:54:00:…; "" means the i-th interface the guest finds.
	MAC string `json:"mac,omitempty"`
	// DHCP asks for address, routes and DNS servers, and what is set below is added.
	DHCP bool `json:"dhcp,omitempty"`
	// Unrouted does not take the default route that DHCP offers.
	Unrouted  bool           `json:"unrouted,omitempty"`
	Addresses []netip.Prefix `json:"addresses,omitempty"`
	Gateways  []netip.Addr   `json:"gateways,omitempty"` // at most one each of IPv4 and IPv6
	MTU       int            `json:"mtu,omitempty"`      // 0 leaves the device's
	// Neighbours are stations whose hardware addresses need not be asked for, and are believed from nobody else.
	Neighbours []Neighbour `json:"neighbours,omitempty"`
	Filter     *Filter     `json:"filter,omitempty"` // nil lets everything through
}

// Neighbour is a station on the wire of a NIC.
type Neighbour struct {
	Addr netip.Addr `json:"addr"`
	MAC  string     `json:"mac"`
}

// DNS is what goes into /etc/resolv.conf.
type DNS struct {
	Servers []netip.Addr `json:"servers,omitempty"`
	Search  []string     `json:"search,omitempty"`
	Options []string     `json:"options,omitempty"`
}

// Host is a line of /etc/hosts.
type Host struct {
	Addr  netip.Addr `json:"addr"`
	Names []string   `json:"names"`
}

// Copying is the name of a file at the root of a "disk" as long as what is in that is an unfinished copy, which
// Mount.Copy begins again.
const Copying = ".vic-copying"

// Mount is a further file system of the container.
type Mount struct {
	// Type is "tmpfs", "disk" for a volume: an ext4 file system on a disk, or "share" for a folder of the host, by
	// virtiofs.
	Type string `json:"type"`
	// Serial of a "disk", tag of a "share". Several mounts may be of one disk; a disk that all of them want
	// read-only is not written, so that other VMs may read it.
	Serial string `json:"serial,omitempty"`
	// Subpath of a "disk" or "share" is what is mounted of it, a folder or a file that is there. Symlinks in
	// it are resolved inside the disk. "" is all of it.
	Subpath string `json:"subpath,omitempty"`
	// Copy has a "disk" that is empty filled, before anything is mounted, with what the root has at Target.
	// It makes the disk writable, also where all mount it read-only.
	Copy bool `json:"copy,omitempty"`
	// Replay makes the disk writable likewise, for its journal.
	Replay bool `json:"replay,omitempty"`
	// Grow has the file system of a "disk" that is writable take all of the disk.
	Grow bool `json:"grow,omitempty"`
	// Target is the absolute path, made if it is not there. Symlinks in it are
	// resolved inside the root.
	Target   string `json:"target"`
	ReadOnly bool   `json:"readOnly,omitempty"`
	// Options as mount(8) takes them: "size=64m", "mode=1777", "noexec", ….
	Options []string `json:"options,omitempty"`
}

// Rlimit is a resource limit by its number in setrlimit(2).
type Rlimit struct {
	Resource int    `json:"resource"`
	Soft     uint64 `json:"soft"`
	Hard     uint64 `json:"hard"`
}

// Privileges bound what the container's process and execs may do. The zero value takes nothing away.
type Privileges struct {
	// Capabilities has bit n set for each capability n (capability.h) that there may be; nil means all.
	Capabilities *uint64 `json:"capabilities,omitempty"`
	// NoNew lets no exec of a set-user-ID file or one with capabilities gain any (PR_SET_NO_NEW_PRIVS).
	NoNew       bool `json:"noNew,omitempty"`
	OOMScoreAdj int  `json:"oomScoreAdj,omitempty"`
}

// Restart is a restart policy. It counts for a process that ran; one that could not be started ends the VM.
type Restart struct {
	Policy string `json:"policy,omitempty"` // "" or no, always, unless-stopped, on-failure
	Max    int    `json:"max,omitempty"`    // of on-failure; 0 is no bound
	Done   int    `json:"done,omitempty"`   // restarts before this boot
}

// Any says whether there is a case in which the process is started again.
func (r Restart) Any() bool { return r.Policy != "" && r.Policy != "no" }

// Wants says whether a process that nobody stopped and that ended with code is started again.
func (r Restart) Wants(code int) bool {
	switch r.Policy {
	case "always", "unless-stopped":
		return true
	case "on-failure":
		return code != 0 && (r.Max == 0 || r.Done < r.Max)
	}
	return false
}

const (
	minBackOff = 100 * time.Millisecond
	maxBackOff = time.Minute
	// steady is how long a process runs that is not in a loop of failing.
	steady = 10 * time.Second
)

// BackOff is how long to wait before a process is started again that ran for so long, if the wait
// before was last; 0 for none.
func BackOff(last, ran time.Duration) time.Duration {
	if last == 0 || ran >= steady {
		return minBackOff
	}
	return min(2*last, maxBackOff)
}

// Limits are those of the container's control group (cgroup v2). Zero is none.
type Limits struct {
	CPUQuota  int64 `json:"cpuQuota,omitempty"`  // µs of CPU time in each CPUPeriod
	CPUPeriod int64 `json:"cpuPeriod,omitempty"` // µs; 0 means 100 ms
	Pids      int64 `json:"pids,omitempty"`
	Memory    int64 `json:"memory,omitempty"`    // bytes, below the VM's
	MemoryLow int64 `json:"memoryLow,omitempty"` // bytes that are reclaimed last
}

const configPrefix = "vic1:"

// Strings encodes c as OEM strings, to be given to QEMU one file each without a line
// end (-smbios type=11,path=FILE), so that nothing of it shows in process arguments.
// The order does not matter. The same c gives the same strings. The error is ErrConfigTooLarge.
func (c *Config) Strings() ([]string, error) {
	text, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode configuration: %w", err)
	}
	return Pack(configPrefix, text)
}

// ParseConfig decodes the strings of a Config from among a machine's OEM strings, in
// any order. ErrNoConfig is returned if there are none.
func ParseConfig(oem []string) (*Config, error) {
	text, err := Unpack(configPrefix, oem)
	if err != nil {
		return nil, err
	}
	c := new(Config)
	if err := json.Unmarshal(text, c); err != nil {
		return nil, fmt.Errorf("wire: parse configuration: %w", err)
	}
	return c, nil
}

// ParseOEMStrings takes the strings out of an SMBIOS type 11 structure as Linux
// shows it in /sys/firmware/dmi/entries/11-*/raw: the formatted part, whose length is
// in its second byte, then strings ended by NUL, then one more NUL.
func ParseOEMStrings(raw []byte) ([]string, error) {
	if len(raw) < 5 || raw[0] != 11 || int(raw[1]) < 5 || int(raw[1]) > len(raw) {
		return nil, errors.New("wire: not an SMBIOS type 11 structure")
	}
	count := int(raw[4])
	rest := raw[raw[1]:]
	var out []string
	for range count {
		s, after, ok := bytes.Cut(rest, []byte{0})
		if !ok {
			return nil, fmt.Errorf("wire: SMBIOS structure has %d of %d strings", len(out), count)
		}
		out, rest = append(out, string(s)), after
	}
	return out, nil
}
