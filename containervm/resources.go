package containervm

import (
	"cmp"
)

// Resources are what a Hypervisor has for VMs. What is 0 is not known, and bounds nothing.
type Resources struct {
	// CPUs, and bytes of Memory, are what all VMs have together.
	CPUs   int
	Memory int64
	// VMCPUs and VMMemory are the most that one VM can have.
	VMCPUs   int
	VMMemory int64
	// CPUSet is how many CPUs VM.CPUSet chooses from; 0 if there is no choosing.
	CPUSet int
}

// maxCPUs is how many the guest's kernel takes: CONFIG_NR_CPUS of its configuration.
const maxCPUs = 64

// Resources are what there is for containers. VMCPUs is never 0.
func (m *Manager) Resources() Resources {
	r := m.o.Hypervisor.Resources()
	r.VMCPUs = min(cmp.Or(r.VMCPUs, maxCPUs), maxCPUs)
	return r
}

// check refuses what no VM can have.
func (r Resources) check(s *Spec) error {
	switch {
	case s.CPUs > r.VMCPUs:
		return refuse(ErrInvalid, "range of CPUs is from 1 to %d, as there are only %d CPUs available", r.VMCPUs, r.VMCPUs)
	case r.VMMemory > 0 && s.Memory > r.VMMemory:
		return refuse(ErrInvalid, "Maximum memory limit allowed is %dMB: a container is a virtual machine, and no host has more for one", r.VMMemory>>20)
	}
	return nil
}
