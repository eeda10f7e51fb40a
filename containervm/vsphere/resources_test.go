package vsphere

import (
	"testing"

	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"vic/bench/vcsim"
	"vic/containervm"
)

func TestEstate(t *testing.T) {
	ref := func(kind, name string) types.ManagedObjectReference {
		return types.ManagedObjectReference{Type: kind, Value: name}
	}
	cluster, root, parent, pool := ref("ClusterComputeResource", "c"), ref("ResourcePool", "root"), ref("VirtualApp", "parent"), ref("ResourcePool", "pool")
	const unlimited = int64(-1)
	host := func(threads int16, memory int64, state types.HostSystemConnectionState, maintained bool) []any {
		return []any{threads, int32(2000), memory, int32(128), state, maintained}
	}
	up, gone := types.HostSystemConnectionStateConnected, types.HostSystemConnectionStateNotResponding
	type object struct {
		ref   types.ManagedObjectReference
		names []string
		vals  []any
	}
	pools := func(cpu, memory, cpuAbove, memoryAbove int64) []object {
		return []object{{pool, poolProperties, []any{parent, cpu, memory}}, {parent, poolProperties, []any{root, cpuAbove, memoryAbove}},
			{root, poolProperties, []any{cluster, int64(1), int64(1)}}, {ref("ResourcePool", "below"), poolProperties, []any{pool, int64(1), int64(1)}}}
	}
	for _, tt := range []struct {
		name  string
		pools []object
		hosts [][]any
		want  containervm.Resources
	}{
		{"two hosts", pools(unlimited, unlimited, unlimited, unlimited), [][]any{host(8, 64<<30, up, false), host(16, 32<<30, up, false)},
			containervm.Resources{CPUs: 24, Memory: 96 << 30, VMCPUs: 16, VMMemory: 64 << 30}},
		{"one of them out of service", pools(unlimited, unlimited, unlimited, unlimited), [][]any{host(8, 64<<30, up, false), host(16, 32<<30, up, true), host(4, 8<<30, gone, false)},
			containervm.Resources{CPUs: 8, Memory: 64 << 30, VMCPUs: 16, VMMemory: 64 << 30}},
		{"a limit", pools(5000, 4096, unlimited, unlimited), [][]any{host(8, 64<<30, up, false)},
			containervm.Resources{CPUs: 3, Memory: 4 << 30, VMCPUs: 8, VMMemory: 64 << 30}},
		{"a limit above", pools(unlimited, 4096, 4000, 8192), [][]any{host(8, 64<<30, up, false)},
			containervm.Resources{CPUs: 2, Memory: 4 << 30, VMCPUs: 8, VMMemory: 64 << 30}},
		{"more CPUs than a VM can have", nil, [][]any{host(256, 64<<30, up, false)}, containervm.Resources{CPUs: 256, Memory: 64 << 30, VMCPUs: 128, VMMemory: 64 << 30}},
		{"hosts that this user does not see", pools(unlimited, unlimited, unlimited, unlimited), nil, containervm.Resources{}},
		{"pools in a circle", []object{{pool, poolProperties, []any{pool, unlimited, unlimited}}}, nil, containervm.Resources{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := newEstate()
			all := tt.pools
			for i, vals := range tt.hosts {
				all = append(all, object{ref("HostSystem", string(rune('a'+i))), hostProperties, vals})
			}
			for _, o := range all {
				u := types.ObjectUpdate{Kind: types.ObjectUpdateKindEnter, Obj: o.ref}
				for i, name := range o.names {
					u.ChangeSet = append(u.ChangeSet, types.PropertyChange{Name: name, Val: o.vals[i]})
				}
				e.apply(u)
			}
			if got := e.resources(pool); got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
			for i := range tt.hosts {
				e.apply(types.ObjectUpdate{Kind: types.ObjectUpdateKindLeave, Obj: ref("HostSystem", string(rune('a'+i)))})
			}
			if got := e.resources(pool); got.VMCPUs != 0 || got.Memory != 0 {
				t.Errorf("without hosts there are %+v", got)
			}
		})
	}
}

// TestResources has an administrator limit the pool, take a host out of service, and vCenter be away.
func TestResources(t *testing.T) {
	s := newSite(t, vcsim.Options{Hosts: 3, Pools: []string{"vch"}})
	s.Driver.Close()
	s.o.Pool = "vch"
	s.open()
	ctx := t.Context()
	var hosts []types.ManagedObjectReference
	var one mo.HostSystem
	for _, h := range s.sim.Service.Context.Map.All("HostSystem") {
		hosts = append(hosts, h.Reference())
	}
	if err := s.pool.Properties(ctx, hosts[0], []string{"summary.hardware"}, &one); err != nil {
		t.Fatal(err)
	}
	threads, memory := int(one.Summary.Hardware.NumCpuThreads), one.Summary.Hardware.MemorySize
	want := containervm.Resources{CPUs: 3 * threads, Memory: 3 * memory, VMCPUs: threads, VMMemory: memory}
	if got := s.Resources(); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	is := func(want containervm.Resources) {
		t.Helper()
		s.until("it is told", func() bool { return s.Resources() == want })
	}
	s.change(hosts[1], "runtime.inMaintenanceMode", true)
	want.CPUs, want.Memory = 2*threads, 2*memory
	is(want)
	s.change(s.pool.Reference(), "config.cpuAllocation", types.ResourceAllocationInfo{Limit: types.NewInt64(1024)})
	s.change(s.pool.Reference(), "config.memoryAllocation", types.ResourceAllocationInfo{Limit: types.NewInt64(1024)})
	want.CPUs, want.Memory = 1, 1<<30
	is(want)
	if err := s.sim.Away(); err != nil {
		t.Fatal(err)
	}
	s.until("it is lost", func() bool { return s.Available() != nil })
	is(want)
	if err := s.sim.Return(); err != nil {
		t.Fatal(err)
	}
	s.change(s.pool.Reference(), "config.memoryAllocation", types.ResourceAllocationInfo{Limit: types.NewInt64(2048)})
	want.Memory = 2 << 30
	is(want)
}
