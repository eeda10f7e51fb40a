package vsphere

import (
	"strings"
	"sync"

	"github.com/vmware/govmomi/vim25/types"

	"vic/containervm"
)

var (
	// poolProperties are what is watched of a resource pool, the pools that it is in, and those in it.
	poolProperties = []string{"parent", "config.cpuAllocation.limit", "config.memoryAllocation.limit"}
	// hostProperties are what is watched of the hosts that run the pool's VMs.
	hostProperties = []string{"summary.hardware.numCpuThreads", "summary.hardware.cpuMhz", "summary.hardware.memorySize", "capability.maxSupportedVcpus",
		"runtime.connectionState", "runtime.inMaintenanceMode"}
)

// An estate is the resource pools and the hosts that the watcher sees, with their properties.
type estate struct {
	mu  sync.Mutex
	all map[types.ManagedObjectReference]map[string]any
}

func newEstate() *estate { return &estate{all: map[types.ManagedObjectReference]map[string]any{}} }

func (e *estate) apply(u types.ObjectUpdate) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if u.Kind == types.ObjectUpdateKindLeave {
		delete(e.all, u.Obj)
		return
	}
	o := e.all[u.Obj]
	if o == nil {
		o = map[string]any{}
		e.all[u.Obj] = o
	}
	for _, c := range u.ChangeSet {
		o[c.Name] = c.Val
	}
}

// resources are what the hosts give to a pool: together what those in service have, as far as neither it nor a pool that it is in is
// limited to less, and for one VM what the largest has, in service or not. A limit of CPU is in MHz: it is as many CPUs as run at it.
func (e *estate) resources(pool types.ManagedObjectReference) (r containervm.Resources) {
	e.mu.Lock()
	defer e.mu.Unlock()
	var mhz int64
	for ref, o := range e.all {
		if ref.Type != "HostSystem" {
			continue
		}
		threads, memory := int(number(o["summary.hardware.numCpuThreads"])), number(o["summary.hardware.memorySize"])
		most := threads
		if n := int(number(o["capability.maxSupportedVcpus"])); n > 0 {
			most = min(most, n)
		}
		r.VMCPUs, r.VMMemory = max(r.VMCPUs, most), max(r.VMMemory, memory)
		mhz = max(mhz, number(o["summary.hardware.cpuMhz"]))
		maintained, _ := o["runtime.inMaintenanceMode"].(bool)
		if o["runtime.connectionState"] == types.HostSystemConnectionStateConnected && !maintained {
			r.CPUs += threads
			r.Memory += memory
		}
	}
	seen := map[types.ManagedObjectReference]bool{}
	for o := e.all[pool]; o != nil && !seen[pool]; o = e.all[pool] {
		seen[pool] = true
		pool, _ = o["parent"].(types.ManagedObjectReference)
		if strings.HasSuffix(pool.Type, "ComputeResource") { // the cluster's own: its limits are what there is
			break
		}
		if limit := number(o["config.cpuAllocation.limit"]); limit > 0 && mhz > 0 {
			r.CPUs = min(r.CPUs, int((limit+mhz-1)/mhz))
		}
		if limit := number(o["config.memoryAllocation.limit"]); limit > 0 { // MB
			r.Memory = min(r.Memory, limit<<20)
		}
	}
	return r
}

// number is a property's value; 0 if there is none.
func number(v any) int64 {
	switch n := v.(type) {
	case int16:
		return int64(n)
	case int32:
		return int64(n)
	case int64:
		return n
	}
	return 0
}

// Resources implements containervm.Hypervisor. While vCenter is away they are what they were.
func (d *Driver) Resources() containervm.Resources {
	d.watch.mu.Lock()
	e := d.watch.estate
	d.watch.mu.Unlock()
	return e.resources(d.watch.pool)
}
