package api

import (
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/sys/capability"

	"vic/containervm"
)

// defaultCapabilities are what a container's root may do unless the client says otherwise: Docker's. In a
// VM of its own root could have them all. But images are made under these, and behave by what they find
// (mount, iptables, service managers); and between a process and the host there is then the guest's
// kernel beside the hypervisor. --privileged has them all.
var defaultCapabilities = []capability.Cap{
	capability.CAP_CHOWN, capability.CAP_DAC_OVERRIDE, capability.CAP_FSETID, capability.CAP_FOWNER, capability.CAP_MKNOD,
	capability.CAP_NET_RAW, capability.CAP_SETGID, capability.CAP_SETUID, capability.CAP_SETFCAP, capability.CAP_SETPCAP,
	capability.CAP_NET_BIND_SERVICE, capability.CAP_SYS_CHROOT, capability.CAP_KILL, capability.CAP_AUDIT_WRITE,
}

// Docker's paths of the kernel that containers do not see, or cannot write to. /sys/firmware has the
// VM's configuration.
var (
	defaultMasked = []string{"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"}
	defaultReadOnly = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// setPrivileges reads what the container's processes may do.
func setPrivileges(s *containervm.Spec, body *createBody) error {
	h := &body.HostConfig.HostConfig
	s.Init = h.Init != nil && *h.Init
	if h.OomScoreAdj < -1000 || h.OomScoreAdj > 1000 {
		return badRequest("Invalid value %d, range for oom score adj is [-1000, 1000]", h.OomScoreAdj)
	}
	s.Privileges.OOMScoreAdj = h.OomScoreAdj
	s.Umask = h.Umask
	for _, opt := range h.SecurityOpt {
		name, value, _ := strings.Cut(strings.Replace(opt, ":", "=", 1), "=")
		if name == "no-new-privileges" {
			s.Privileges.NoNew = value != "false"
		}
	}
	caps, err := capabilities(h)
	if err != nil {
		return err
	}
	if h.Privileged {
		return nil
	}
	s.Privileges.Capabilities = &caps
	if h.MaskedPaths == nil {
		h.MaskedPaths = defaultMasked
	}
	if h.ReadonlyPaths == nil {
		h.ReadonlyPaths = defaultReadOnly
	}
	s.Masked = h.MaskedPaths
	s.ReadOnly = slices.Concat([]string{"/sys/fs/cgroup", "/sys"}, h.ReadonlyPaths)
	return nil
}

// capabilities are a container's, bit n for capability n: Docker's default, with what is added and
// without what is dropped.
func capabilities(h *container.HostConfig) (uint64, error) {
	add, err := parseCapabilities("CapAdd", h.CapAdd)
	if err != nil {
		return 0, err
	}
	drop, err := parseCapabilities("CapDrop", h.CapDrop)
	if err != nil {
		return 0, err
	}
	const every = ^uint64(0)
	switch {
	case add == every && drop == every:
		return 0, badRequest("invalid CapAdd and CapDrop: ALL cannot be both added and dropped")
	case add == every:
		return every &^ drop, nil
	case drop == every:
		return add, nil
	}
	var set uint64
	for _, c := range defaultCapabilities {
		set |= 1 << c
	}
	return (set | add) &^ drop, nil
}

// parseCapabilities reads names, with or without CAP_; ALL is all bits.
func parseCapabilities(field string, names []string) (set uint64, err error) {
	for _, name := range names {
		short := strings.ToLower(strings.TrimPrefix(strings.ToUpper(name), "CAP_"))
		if short == "all" {
			return ^uint64(0), nil
		}
		i := slices.IndexFunc(capability.ListKnown(), func(c capability.Cap) bool { return c.String() == short })
		if i < 0 {
			return 0, badRequest("invalid %s: unknown capability: %q", field, name)
		}
		set |= 1 << capability.ListKnown()[i]
	}
	return set, nil
}

// unlimited is what --ulimit, --pids-limit and others call no limit.
const unlimited = -1

// checkCPUs refuses what no container can have.
func checkCPUs(r *container.Resources, most containervm.Resources) error {
	if r.NanoCPUs > int64(most.VMCPUs)*1e9 || r.NanoCPUs > 0 && r.NanoCPUs < 1e7 {
		return badRequest("range of CPUs is from 0.01 to %d.00, as there are only %d CPUs available", most.VMCPUs, most.VMCPUs)
	}
	return nil
}

// setResources reads what the container may use, and refuses what makes no sense in Docker's words. The
// VM gets whole CPUs, and its kernel holds the container to fractions of them.
func setResources(s *containervm.Spec, r *container.Resources, most containervm.Resources) error {
	if err := checkMemory(r); err != nil {
		return err
	}
	s.Memory, s.Limits.MemoryLow = r.Memory, r.MemoryReservation
	if p := r.PidsLimit; p != nil && *p > 0 {
		s.Limits.Pids = *p
	}
	quota, period, err := cpuQuota(r, most)
	if err != nil {
		return err
	}
	cpus := int((quota + period - 1) / period)
	if r.CpusetCpus != "" {
		if s.CPUSet, err = parseCPUSet(r.CpusetCpus, most.CPUSet); err != nil {
			return err
		}
		if cpus == 0 || cpus > len(s.CPUSet) {
			cpus = len(s.CPUSet)
		}
	}
	s.CPUs = cpus
	s.Limits.CPUQuota, s.Limits.CPUPeriod = 0, 0
	if quota%period != 0 || quota > 0 && r.NanoCPUs == 0 {
		s.Limits.CPUQuota, s.Limits.CPUPeriod = quota, period
	}
	return nil
}

func checkMemory(r *container.Resources) error {
	const least = 6 << 20
	switch {
	case r.Memory < 0 || r.NanoCPUs < 0:
		return badRequest("a limit can not be less than 0")
	case r.MemorySwap > 0 && r.Memory == 0:
		return badRequest("You should always set the Memory limit when using Memoryswap limit, see usage")
	case r.MemorySwap > 0 && r.MemorySwap < r.Memory:
		return badRequest("Minimum memoryswap limit should be larger than memory limit, see usage")
	case r.MemoryReservation < 0 || r.MemoryReservation > 0 && r.MemoryReservation < least:
		return badRequest("Minimum memory reservation allowed is %dMB", least>>20)
	case r.MemoryReservation > 0 && r.Memory > 0 && r.Memory < r.MemoryReservation:
		return badRequest("Minimum memory limit can not be less than memory reservation limit, see usage")
	}
	return nil
}

// cpuQuota is how many µs of CPU time there are in each period: --cpus, or --cpu-quota and --cpu-period.
// A quota of 0 is none.
func cpuQuota(r *container.Resources, most containervm.Resources) (quota, period int64, err error) {
	const usual = 100_000
	switch {
	case r.NanoCPUs > 0 && r.CPUPeriod > 0:
		return 0, 0, badRequest("Conflicting options: Nano CPUs and CPU Period cannot both be set")
	case r.NanoCPUs > 0 && r.CPUQuota > 0:
		return 0, 0, badRequest("Conflicting options: Nano CPUs and CPU Quota cannot both be set")
	case r.CPUPeriod != 0 && (r.CPUPeriod < 1000 || r.CPUPeriod > 1_000_000):
		return 0, 0, badRequest("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)")
	case r.CPUQuota > 0 && r.CPUQuota < 1000:
		return 0, 0, badRequest("CPU cfs quota can not be less than 1ms (i.e. 1000)")
	}
	if r.NanoCPUs > 0 {
		return r.NanoCPUs / (1e9 / usual), usual, nil
	}
	period = usual
	if r.CPUPeriod > 0 {
		period = r.CPUPeriod
	}
	return min(max(r.CPUQuota, 0), int64(most.VMCPUs)*period), period, nil // more can never be used up
}

// parseCPUSet reads "0-2,4", of so many CPUs.
func parseCPUSet(text string, most int) ([]int, error) {
	if most == 0 {
		return nil, badRequest("--cpuset-cpus is not supported: the hypervisor chooses the CPUs of a virtual machine")
	}
	var set []int
	for part := range strings.SplitSeq(text, ",") {
		from, to, isRange := strings.Cut(strings.TrimSpace(part), "-")
		if !isRange {
			to = from
		}
		a, err1 := strconv.ParseUint(from, 10, 16)
		b, err2 := strconv.ParseUint(to, 10, 16)
		if err1 != nil || err2 != nil || a > b {
			return nil, badRequest("Invalid value %s for cpuset cpus", text)
		}
		if b >= uint64(most) {
			return nil, badRequest("Requested CPUs are not available - requested %s, available: 0-%d", text, most-1)
		}
		for n := a; n <= b; n++ {
			set = append(set, int(n))
		}
	}
	slices.Sort(set)
	return slices.Compact(set), nil
}

// swapWarning is Docker's on a host whose kernel cannot limit swap. A VM here has none.
func swapWarning(r *container.Resources) []string {
	if r.MemorySwap <= 0 || r.MemorySwap == r.Memory {
		return nil
	}
	r.MemorySwap = unlimited
	return []string{"Your kernel does not support swap limit capabilities or the cgroup is not mounted. Memory limited without swap."}
}
