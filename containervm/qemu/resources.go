package qemu

import (
	"runtime"

	"golang.org/x/sys/unix"

	"vic/containervm"
)

// Resources implements containervm.Hypervisor: they are the machine's. Its kernel decides how much memory VMs may promise.
func (d *Driver) Resources() containervm.Resources {
	r := containervm.Resources{CPUs: runtime.NumCPU(), VMCPUs: runtime.NumCPU(), CPUSet: runtime.NumCPU()}
	var si unix.Sysinfo_t
	if err := unix.Sysinfo(&si); err == nil {
		r.Memory = int64(si.Totalram) * int64(si.Unit)
	}
	return r
}
