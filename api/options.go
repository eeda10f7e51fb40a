package api

import (
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
)

// A createBody is the body of POST /containers/create. Fields that clients before 1.44 put there and
// the published types no longer have are here so that they can be refused instead of ignored.
type createBody struct {
	*container.Config
	MacAddress       string
	HostConfig       *hostConfig
	NetworkingConfig *network.NetworkingConfig
}

type hostConfig struct {
	container.HostConfig
	KernelMemory    int64
	KernelMemoryTCP int64
}

// An option is a field of the create body and what this host does with it. A field that is absent,
// zero or empty asks for nothing. Every field has exactly one line in options.
type option struct {
	field string         // path in the body, as createBody names it
	flag  string         // what it is on docker's command line; "" if it cannot be given there
	takes func(any) bool // whether the value is honoured, or is what happens anyway
	why   string         // why other values are refused, after "is not supported: "
	yet   bool           // refused as not implemented (501) rather than as impossible (400)
}

// Why an option is refused.
const (
	oneVM     = "a container is a virtual machine with a kernel of its own"
	noCgroups = "the limits of a container are those of its virtual machine: use --memory and --cpus"
	noShared  = "a container is a virtual machine with a network of its own: use a network's name, bridge or none"
	noWindows = "it is for Windows containers"
)

// options is what becomes of the fields of a create request.
var options = []option{
	{field: "Hostname", flag: "--hostname", takes: all},
	{field: "Domainname", flag: "--domainname", takes: all},
	{field: "User", flag: "--user", takes: all},
	{field: "AttachStdin", flag: "--attach", takes: all},
	{field: "AttachStdout", flag: "--attach", takes: all},
	{field: "AttachStderr", flag: "--attach", takes: all},
	{field: "ExposedPorts", flag: "--expose", takes: all},
	{field: "Tty", flag: "--tty", takes: all},
	{field: "OpenStdin", flag: "--interactive", takes: all},
	{field: "StdinOnce", flag: "--interactive", takes: all},
	{field: "Env", flag: "--env", takes: all},
	{field: "Cmd", takes: all},
	{field: "Healthcheck", flag: "--health-cmd", takes: all},
	{field: "ArgsEscaped", takes: all}, // says how Windows is to read Cmd
	{field: "Image", takes: all},
	{field: "Volumes", flag: "--volume", takes: all},
	{field: "WorkingDir", flag: "--workdir", takes: all},
	{field: "Entrypoint", flag: "--entrypoint", takes: all},
	{field: "NetworkDisabled", takes: all},
	{field: "OnBuild", takes: all}, // for builds from this container's image
	{field: "Labels", flag: "--label", takes: all},
	{field: "StopSignal", flag: "--stop-signal", takes: all},
	{field: "StopTimeout", flag: "--stop-timeout", takes: all},
	{field: "Shell", takes: all}, // for builds
	{field: "MacAddress", flag: "--mac-address", takes: all},

	{field: "HostConfig.Binds", flag: "--volume", takes: all},            // setMounts
	{field: "HostConfig.ContainerIDFile", flag: "--cidfile", takes: all}, // written by the client
	{field: "HostConfig.LogConfig", flag: "--log-driver, --log-opt", takes: knownLog, why: "this host has the log drivers json-file, local and none"},
	{field: "HostConfig.NetworkMode", flag: "--network", takes: ownNetwork, why: noShared},
	{field: "HostConfig.PortBindings", flag: "--publish", takes: all},
	{field: "HostConfig.RestartPolicy", flag: "--restart", takes: all},
	{field: "HostConfig.AutoRemove", flag: "--rm", takes: all},
	{field: "HostConfig.VolumeDriver", flag: "--volume-driver", takes: all},
	{field: "HostConfig.VolumesFrom", flag: "--volumes-from", takes: all},
	{field: "HostConfig.ConsoleSize", takes: all},
	{field: "HostConfig.Annotations", flag: "--annotation", takes: all}, // kept, for who asks
	{field: "HostConfig.CapAdd", flag: "--cap-add", takes: all},
	{field: "HostConfig.CapDrop", flag: "--cap-drop", takes: all},
	{field: "HostConfig.CgroupnsMode", flag: "--cgroupns", takes: only("private"), why: oneVM},
	{field: "HostConfig.DNS", flag: "--dns", takes: all},
	{field: "HostConfig.DNSOptions", flag: "--dns-option", takes: all},
	{field: "HostConfig.DNSSearch", flag: "--dns-search", takes: all},
	{field: "HostConfig.ExtraHosts", flag: "--add-host", takes: all},
	{field: "HostConfig.GroupAdd", flag: "--group-add", takes: all},
	{field: "HostConfig.IpcMode", flag: "--ipc", takes: only("private", "shareable"), why: oneVM},
	{field: "HostConfig.Cgroup", takes: none, why: oneVM},
	{field: "HostConfig.Links", flag: "--link", takes: all},
	{field: "HostConfig.OomScoreAdj", flag: "--oom-score-adj", takes: all},
	{field: "HostConfig.PidMode", flag: "--pid", takes: only("private"), why: oneVM},
	{field: "HostConfig.Privileged", flag: "--privileged", takes: all}, // in its own VM
	{field: "HostConfig.PublishAllPorts", flag: "--publish-all", takes: all},
	{field: "HostConfig.ReadonlyRootfs", flag: "--read-only", takes: all},
	{field: "HostConfig.SecurityOpt", flag: "--security-opt", takes: securityOptions, why: "this host has no seccomp, AppArmor or SELinux profiles: unconfined is there, and no-new-privileges"},
	{field: "HostConfig.StorageOpt", flag: "--storage-opt", takes: none, why: "a container's disk has the capacity of the store's"},
	{field: "HostConfig.Tmpfs", flag: "--tmpfs", takes: all},
	{field: "HostConfig.UTSMode", flag: "--uts", takes: none, why: oneVM},
	{field: "HostConfig.UsernsMode", flag: "--userns", takes: only("host"), why: oneVM}, // user IDs are not mapped
	{field: "HostConfig.ShmSize", flag: "--shm-size", takes: all},
	{field: "HostConfig.Sysctls", flag: "--sysctl", takes: all},
	{field: "HostConfig.Runtime", flag: "--runtime", takes: only(runtimeName), why: "there is one runtime, " + runtimeName},
	{field: "HostConfig.Umask", takes: all},
	{field: "HostConfig.Isolation", flag: "--isolation", takes: only("default"), why: noWindows},
	{field: "HostConfig.Mounts", flag: "--mount", takes: knownMounts, why: "this host has mounts of type volume, bind and tmpfs"},
	{field: "HostConfig.MaskedPaths", takes: all},
	{field: "HostConfig.ReadonlyPaths", takes: all},
	{field: "HostConfig.Init", flag: "--init", takes: all},
	{field: "HostConfig.KernelMemory", flag: "--kernel-memory", takes: none, why: noCgroups},
	{field: "HostConfig.KernelMemoryTCP", takes: none, why: noCgroups},

	{field: "HostConfig.CPUShares", flag: "--cpu-shares", takes: none, why: "virtual machines have no shares of each other's CPU time: use --cpus"},
	{field: "HostConfig.Memory", flag: "--memory", takes: all},
	{field: "HostConfig.NanoCPUs", flag: "--cpus", takes: all},
	{field: "HostConfig.CgroupParent", flag: "--cgroup-parent", takes: none, why: noCgroups},
	{field: "HostConfig.BlkioWeight", flag: "--blkio-weight", takes: none, why: noCgroups},
	{field: "HostConfig.BlkioWeightDevice", flag: "--blkio-weight-device", takes: none, why: noCgroups},
	{field: "HostConfig.BlkioDeviceReadBps", flag: "--device-read-bps", takes: none, why: noCgroups},
	{field: "HostConfig.BlkioDeviceWriteBps", flag: "--device-write-bps", takes: none, why: noCgroups},
	{field: "HostConfig.BlkioDeviceReadIOps", flag: "--device-read-iops", takes: none, why: noCgroups},
	{field: "HostConfig.BlkioDeviceWriteIOps", flag: "--device-write-iops", takes: none, why: noCgroups},
	{field: "HostConfig.CPUPeriod", flag: "--cpu-period", takes: all},
	{field: "HostConfig.CPUQuota", flag: "--cpu-quota", takes: all},
	{field: "HostConfig.CPURealtimePeriod", flag: "--cpu-rt-period", takes: none, why: noCgroups},
	{field: "HostConfig.CPURealtimeRuntime", flag: "--cpu-rt-runtime", takes: none, why: noCgroups},
	{field: "HostConfig.CpusetCpus", flag: "--cpuset-cpus", takes: all},
	{field: "HostConfig.CpusetMems", flag: "--cpuset-mems", takes: none, why: noCgroups},
	{field: "HostConfig.Devices", flag: "--device", takes: none, why: oneVM},
	{field: "HostConfig.DeviceCgroupRules", flag: "--device-cgroup-rule", takes: none, why: oneVM},
	{field: "HostConfig.DeviceRequests", flag: "--gpus", takes: none, why: oneVM},
	{field: "HostConfig.MemoryReservation", flag: "--memory-reservation", takes: all},
	{field: "HostConfig.MemorySwap", flag: "--memory-swap", takes: all}, // warned about: no VM has swap
	{field: "HostConfig.MemorySwappiness", flag: "--memory-swappiness", takes: only("-1", "0"), why: "a container's virtual machine does not swap"},
	{field: "HostConfig.OomKillDisable", flag: "--oom-kill-disable", takes: only("false"), why: oneVM},
	{field: "HostConfig.PidsLimit", flag: "--pids-limit", takes: all},
	{field: "HostConfig.Ulimits", flag: "--ulimit", takes: all},
	{field: "HostConfig.CPUCount", flag: "--cpu-count", takes: none, why: noWindows},
	{field: "HostConfig.CPUPercent", flag: "--cpu-percent", takes: none, why: noWindows},
	{field: "HostConfig.IOMaximumIOps", flag: "--io-maxiops", takes: none, why: noWindows},
	{field: "HostConfig.IOMaximumBandwidth", flag: "--io-maxbandwidth", takes: none, why: noWindows},
}

// endpointOptions are those of NetworkingConfig.EndpointsConfig, for each network.
var endpointOptions = []option{
	{field: "IPAMConfig", flag: "--link-local-ip", takes: noLinkLocal, why: "an interface has one link-local address, made from its MAC address"},
	{field: "Links", flag: "--link", takes: all},
	{field: "Aliases", flag: "--network-alias", takes: all},
	{field: "DriverOpts", flag: "--network driver-opt", takes: none, why: "an interface has no options"},
	{field: "GwPriority", flag: "--network gw-priority", takes: all},
	{field: "MacAddress", flag: "--mac-address", takes: all},
	// What follows is what a running container has; clients that copy an inspect's reply send it back.
	{field: "NetworkID", takes: all},
	{field: "EndpointID", takes: all},
	{field: "Gateway", takes: all},
	{field: "IPAddress", takes: all},
	{field: "IPPrefixLen", takes: all},
	{field: "IPv6Gateway", takes: all},
	{field: "GlobalIPv6Address", takes: all},
	{field: "GlobalIPv6PrefixLen", takes: all},
	{field: "DNSNames", takes: all},
}

func all(any) bool  { return true }
func none(any) bool { return false }

// only takes the values that print like one of these.
func only(values ...string) func(any) bool {
	return func(v any) bool { return slices.Contains(values, fmt.Sprint(v)) }
}

// knownLog takes what is no log driver that Docker has and this host has not; setLog looks at the rest.
func knownLog(v any) bool { return !slices.Contains(foreignDrivers, v.(container.LogConfig).Type) }

// knownMounts are the types of mounts that there are; setMounts looks at each.
func knownMounts(v any) bool {
	return !slices.ContainsFunc(v.([]mount.Mount), func(m mount.Mount) bool {
		return !slices.Contains([]mount.Type{mount.TypeVolume, mount.TypeBind, mount.TypeTmpfs}, m.Type)
	})
}

// ownNetwork takes the modes that are not another's network: the host's or another container's.
func ownNetwork(v any) bool {
	m := v.(container.NetworkMode)
	return !m.IsHost() && !m.IsContainer() && !strings.Contains(string(m), ":")
}

func noLinkLocal(v any) bool {
	return len(v.(network.EndpointIPAMConfig).LinkLocalIPs) == 0
}

// securityOptions takes those that ask for no profile, and no-new-privileges.
func securityOptions(v any) bool {
	return !slices.ContainsFunc(v.([]string), func(opt string) bool {
		name, value, _ := strings.Cut(strings.Replace(opt, ":", "=", 1), "=")
		switch name {
		case "seccomp", "apparmor", "systempaths":
			return value != "unconfined"
		case "label":
			return value != "disable"
		case "no-new-privileges":
			return value != "" && value != "true" && value != "false"
		}
		return true
	})
}

// checkOptions refuses the fields of body, a pointer to a struct, that table says are not honoured.
func checkOptions(table []option, body any) error {
	for _, o := range table {
		v := fieldAt(reflect.ValueOf(body), o.field)
		if !v.IsValid() || asksNothing(v) || o.takes(reflect.Indirect(v).Interface()) {
			continue
		}
		name := o.field
		if o.flag != "" {
			name = o.flag
		}
		err := fmt.Errorf("%s is not supported: %s", name, o.why)
		if o.yet {
			return &statusError{http.StatusNotImplemented, err}
		}
		return &statusError{http.StatusBadRequest, err}
	}
	return nil
}

// fieldAt follows a path of field names through pointers; the zero Value if one on the way is nil.
func fieldAt(v reflect.Value, path string) reflect.Value {
	for name := range strings.SplitSeq(path, ".") {
		v = reflect.Indirect(v)
		if !v.IsValid() {
			return v
		}
		// A promoted field of a nil embedded pointer would panic.
		f, _ := v.Type().FieldByName(name)
		var err error
		if v, err = v.FieldByIndexErr(f.Index); err != nil {
			return reflect.Value{}
		}
	}
	return v
}

func asksNothing(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.Slice, reflect.Map:
		return v.Len() == 0
	}
	return v.IsZero()
}
