package vsphere

import (
	"cmp"
	"context"
	"fmt"

	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"

	"vic/containervm"
)

// network returns what an interface on a network has behind it; "" is the bridge's. What was found once stays: a port group that is made anew under
// the same name is found by forgetNetworks.
func (d *Driver) network(ctx context.Context, name string) (types.BaseVirtualDeviceBackingInfo, error) {
	if name = cmp.Or(name, d.o.Bridge); name == "" {
		return nil, refuse(containervm.ErrInvalid, "this container host has no port group for bridge networks")
	}
	d.mu.Lock()
	b := d.networks[name]
	d.mu.Unlock()
	if b != nil {
		return b, nil
	}
	err := d.o.Session.Call(ctx, func() error {
		f := find.NewFinder(d.client, false)
		f.SetDatacenter(d.dc)
		n, err := f.Network(ctx, name)
		if err == nil {
			b, err = n.EthernetCardBackingInfo(ctx)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("find network %s: %w", name, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.networks[name] = b
	return b, nil
}

// forgetNetworks has port groups be looked for again.
func (d *Driver) forgetNetworks() {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.networks)
}

// card is an interface to be added.
func (d *Driver) card(ctx context.Context, key int32, n nic) (types.BaseVirtualDeviceConfigSpec, error) {
	b, err := d.network(ctx, n.Network)
	if err != nil {
		return nil, err
	}
	return add(networkCard(key, n.MAC, b)), nil
}

// cards are the changes that give a VM these interfaces and no others.
func (d *Driver) cards(ctx context.Context, nics []nic, all []types.BaseVirtualDevice) ([]types.BaseVirtualDeviceConfigSpec, error) {
	var changes []types.BaseVirtualDeviceConfigSpec
	have := map[string]bool{}
	want := map[string]types.BaseVirtualDeviceBackingInfo{}
	for _, n := range nics {
		b, err := d.network(ctx, n.Network)
		if err != nil {
			return nil, err
		}
		want[n.MAC] = b
	}
	for _, old := range devices[*types.VirtualVmxnet3](all) {
		if b := want[old.MacAddress]; b != nil && !have[old.MacAddress] && sameNetwork(b, old.Backing) {
			have[old.MacAddress] = true
			continue
		}
		changes = append(changes, remove(old))
	}
	for i, n := range nics {
		if !have[n.MAC] {
			changes = append(changes, add(networkCard(nextKey-10-int32(i), n.MAC, want[n.MAC])))
		}
	}
	return changes, nil
}

// sameNetwork says whether two backings lead to one network. What vSphere adds to one, such as the number of a port, does not matter.
func sameNetwork(a, b types.BaseVirtualDeviceBackingInfo) bool {
	switch a := a.(type) {
	case *types.VirtualEthernetCardNetworkBackingInfo:
		b, ok := b.(*types.VirtualEthernetCardNetworkBackingInfo)
		return ok && a.DeviceName == b.DeviceName
	case *types.VirtualEthernetCardDistributedVirtualPortBackingInfo:
		b, ok := b.(*types.VirtualEthernetCardDistributedVirtualPortBackingInfo)
		return ok && a.Port.PortgroupKey == b.Port.PortgroupKey
	case *types.VirtualEthernetCardOpaqueNetworkBackingInfo:
		b, ok := b.(*types.VirtualEthernetCardOpaqueNetworkBackingInfo)
		return ok && a.OpaqueNetworkId == b.OpaqueNetworkId
	}
	return false
}

// reconfigure changes a VM in one task.
func (d *Driver) reconfigure(ctx context.Context, ref types.ManagedObjectReference, spec types.VirtualMachineConfigSpec) error {
	vm := object.NewVirtualMachine(d.client, ref)
	return d.o.Session.Do(ctx, func() (*object.Task, error) { return vm.Reconfigure(ctx, spec) })
}
