package vch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/view"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"vic/containervm/appliance"
	"vic/layerstore/vsphere"
)

// A VCH is one that is installed, as it was when it was looked for.
type VCH struct {
	Record
	VM    string                         // managed object ID of the appliance
	Path  string                         // its inventory path
	Power types.VirtualMachinePowerState // its power state
	// Status is what the appliance says of itself, nil if it says nothing.
	Status *appliance.Status
	// Snapshot says that there is something to roll back to.
	Snapshot bool

	site    *Site
	object  mo.VirtualMachine
	earlier map[string]string // what extraConfig had of an earlier change, before this process made one
}

// vmProperties are what is read of VMs to find VCHs.
var vmProperties = []string{"name", "config.extraConfig", "config.uuid", "config.template", "config.hardware.device", "runtime.powerState",
	"resourcePool", "parent", "guest.ipAddress", "guest.net", "snapshot"}

// vms reads all VMs below a container of the inventory.
func (s *Site) vms(ctx context.Context, root types.ManagedObjectReference, properties []string) (_ []mo.VirtualMachine, err error) {
	v, err := view.NewManager(s.client).CreateContainerView(ctx, root, []string{"VirtualMachine"}, true)
	if err != nil {
		return nil, fmt.Errorf("list VMs: %w", err)
	}
	defer func() { err = errors.Join(err, v.Destroy(context.WithoutCancel(ctx))) }()
	var all []mo.VirtualMachine
	if err := v.Retrieve(ctx, []string{"VirtualMachine"}, properties, &all); err != nil {
		return nil, fmt.Errorf("list VMs: %w", err)
	}
	return all, nil
}

// marked reads the Record of a VM, nil if it is not the appliance of a VCH.
func marked(vm *mo.VirtualMachine) (*Record, error) {
	if vm.Config == nil || vm.Config.Template {
		return nil, nil
	}
	text := extraConfig(vm.Config.ExtraConfig, recordKey)
	if text == "" {
		return nil, nil
	}
	r, err := parseRecord([]byte(text))
	if err != nil {
		return nil, fmt.Errorf("VM %s: %w", vm.Name, err)
	}
	if !strings.EqualFold(r.ID, vm.Config.Uuid) {
		return nil, nil // a copy
	}
	return r, nil
}

// List returns the VCHs of the site in the order of their names; with a compute resource only those in it, or in its pools. VCHs that
// cannot be read are told of in the error, beside the others.
func (s *Site) List(ctx context.Context, computeResource string) ([]*VCH, error) {
	root := s.dc.Reference()
	if computeResource != "" {
		var p Problems
		pool, err := s.pool(ctx, &p, computeResource)
		if err == nil && len(p) > 0 {
			err = p
		}
		if err != nil {
			return nil, err
		}
		root = pool.Reference()
		if pool.path == rootPoolPath(pool.path) {
			root = pool.owner // its VMs and those of all pools
		}
	}
	all, err := s.vms(ctx, root, vmProperties)
	if err != nil {
		return nil, err
	}
	var out []*VCH
	var unreadable error
	for _, vm := range all {
		r, err := marked(&vm)
		if err != nil {
			unreadable = errors.Join(unreadable, err)
		}
		if r == nil {
			continue
		}
		v := &VCH{Record: *r, VM: vm.Self.Value, Power: vm.Runtime.PowerState, Snapshot: vm.Snapshot != nil, site: s, object: vm}
		if v.Path, err = find.InventoryPath(ctx, s.client, vm.Self); err != nil {
			return nil, fmt.Errorf("find VM %s: %w", vm.Name, err)
		}
		if text := extraConfig(vm.Config.ExtraConfig, appliance.StatusKey); text != "" && v.Power == types.VirtualMachinePowerStatePoweredOn {
			v.Status, _ = appliance.ParseStatus(text) // the guest may write anything; then it has no status
		}
		out = append(out, v)
	}
	slices.SortFunc(out, func(a, b *VCH) int { return cmp.Or(cmp.Compare(a.Spec.Name, b.Spec.Name), cmp.Compare(a.VM, b.VM)) })
	return out, unreadable
}

// Find returns the VCH of a name, or of a managed object ID such as vm-12. The error of a wrong name is Problems, of the option name.
func (s *Site) Find(ctx context.Context, name string) (*VCH, error) {
	all, unreadable := s.List(ctx, "")
	var names []string
	var found []*VCH
	for _, v := range all {
		if v.Spec.Name == name || v.VM == name {
			found = append(found, v)
		}
		names = append(names, v.Spec.Name)
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		var p Problems
		for i := range names {
			names[i] = all[i].VM + " (" + all[i].Path + ")"
		}
		p.suggest("name", fmt.Sprintf("there are several VCHs %q: say which by its ID", name), names)
		return nil, p
	case unreadable != nil:
		return nil, unreadable
	}
	var p Problems
	p.suggest("name", fmt.Sprintf("there is no VCH %q", name), names)
	return nil, p
}

// Addresses are the IP addresses of the appliance by the roles of its interfaces, as far as they are known.
func (v *VCH) Addresses() map[string][]string {
	out := map[string][]string{}
	if v.Status != nil {
		for name, all := range v.Status.Addresses {
			for _, p := range all {
				out[name] = append(out[name], p.Addr().String())
			}
		}
	}
	macs := map[string]string{} // of interfaces: names
	if c, err := v.config(); err == nil {
		for _, n := range c.NICs {
			macs[strings.ToLower(n.MAC)] = n.Name
			if len(out[n.Name]) == 0 {
				for _, p := range n.Addresses {
					out[n.Name] = append(out[n.Name], p.Addr().String())
				}
			}
		}
	}
	if v.object.Guest != nil {
		for _, n := range v.object.Guest.Net {
			if name := macs[strings.ToLower(n.MacAddress)]; name != "" && len(out[name]) == 0 && len(n.IpAddress) > 0 {
				out[name] = n.IpAddress
			}
		}
	}
	return out
}

// config is what the appliance is told, without its secrets.
func (v *VCH) config() (*appliance.Config, error) {
	return appliance.Read(func(key string) (string, error) { return extraConfig(v.object.Config.ExtraConfig, key), nil })
}

// APIAddress is where the Docker API is, "" if that is not known yet.
func (v *VCH) APIAddress() string {
	return apiAddress(v.Spec, v.Addresses(), v.object.Guest)
}

// machine is the VM.
func (v *VCH) machine() *object.VirtualMachine {
	return object.NewVirtualMachine(v.site.client, v.object.Self)
}

// readRecord reads vch.json of a container store; nil if there is none.
func readRecord(ctx context.Context, d *vsphere.Datastore) (*Record, error) {
	text, err := d.ReadFile(ctx, recordFile, recordLimit)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	r, err := parseRecord(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.Path(recordFile), err)
	}
	return r, nil
}

// containers is the VCH's container store.
func (v *VCH) containers(ctx context.Context) (*vsphere.Datastore, location, error) {
	l, err := v.Spec.containers()
	if err != nil {
		return nil, l, err
	}
	d, err := v.site.open(ctx, l)
	return d, l, err
}

// state reads the VCH's record in its container store, by which it is told what is being done to it.
func (v *VCH) state(ctx context.Context) (*Record, error) {
	d, _, err := v.containers(ctx)
	if err != nil {
		return nil, err
	}
	r, err := readRecord(ctx, d)
	if err == nil && r == nil {
		r = new(Record)
		*r = v.Record
	}
	if err == nil && r.ID != v.ID {
		err = fmt.Errorf("%s is of another VCH", d.Path(recordFile))
	}
	return r, err
}

func (v *VCH) putState(ctx context.Context, r *Record) error {
	d, _, err := v.containers(ctx)
	if err != nil {
		return err
	}
	return putRecord(ctx, d, r)
}

// Doing is what is being done to the VCH, "" most of the time.
func (v *VCH) Doing(ctx context.Context) (string, error) {
	r, err := v.state(ctx)
	if err != nil {
		return "", err
	}
	return r.Changing, nil
}
