package vsphere

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"strings"

	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/view"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// used are the names of the disks that virtual machines have, or stand on, as far as the server shows them to this user. Virtual
// machines that imports have left, whose disks nobody needs, go.
func (s *Store) used(ctx context.Context) (map[string]bool, error) {
	vms, err := s.d.s.machines(ctx)
	if err != nil {
		return nil, err
	}
	var needed map[string]bool // as it is after the look at the machines: a pull that imports names its disk before
	used := map[string]bool{}
	for _, vm := range vms {
		names := s.disksIn(vm)
		carrier := strings.HasPrefix(vm.Name, carrierPrefix) && len(names) == 1
		if carrier && needed == nil {
			if needed, err = s.needed(ctx); err != nil {
				return nil, err
			}
		}
		if carrier && !needed[names[0]] {
			if err := s.destroyLeft(ctx, vm); err != nil {
				return nil, err
			}
			continue
		}
		for _, name := range names {
			used[name] = true
		}
	}
	for name := range maps.Clone(used) { // those above bring theirs along
		for d, err := range s.stack(ctx, name) {
			if d.name != name && used[d.name] {
				break
			}
			used[d.name] = true
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errCircle) {
				break
			}
			if err != nil {
				return nil, err
			}
		}
	}
	return used, nil
}

// machines are all virtual machines that the server shows to this user: their names, disks and power states.
func (s *Session) machines(ctx context.Context) ([]mo.VirtualMachine, error) {
	var vms []mo.VirtualMachine
	err := s.retry.do(ctx, unreachable, func() error {
		c := s.client
		v, err := view.NewManager(c).CreateContainerView(ctx, c.ServiceContent.RootFolder, []string{"VirtualMachine"}, true)
		if err != nil {
			return err
		}
		vms = nil
		err = v.Retrieve(ctx, []string{"VirtualMachine"}, []string{"name", "config.hardware.device", "runtime.powerState"}, &vms)
		return errors.Join(err, v.Destroy(context.WithoutCancel(ctx)))
	})
	if err != nil {
		return nil, fmt.Errorf("look at the disks of virtual machines: %w", unavailable(err))
	}
	return vms, nil
}

// disksIn are the names of the store's disks that a virtual machine has, with their parents.
func (s *Store) disksIn(vm mo.VirtualMachine) []string {
	if vm.Config == nil { // of one that is being made
		return nil
	}
	var names []string
	for _, d := range vm.Config.Hardware.Device {
		disk, ok := d.(*types.VirtualDisk)
		if !ok {
			continue
		}
		for _, file := range lineage(disk) {
			if s.isDisk(file) {
				names = append(names, strings.TrimSuffix(path.Base(file), ".vmdk"))
			}
		}
	}
	return names
}

// lineage are the datastore paths of a disk and its parents.
func lineage(disk *types.VirtualDisk) []string {
	var files []string
	switch b := disk.Backing.(type) {
	case *types.VirtualDiskFlatVer2BackingInfo:
		for ; b != nil; b = b.Parent {
			files = append(files, b.FileName)
		}
	case *types.VirtualDiskSeSparseBackingInfo:
		for ; b != nil; b = b.Parent {
			files = append(files, b.FileName)
		}
	}
	return files
}

// destroyLeft removes a virtual machine that an import has left, with its disk.
func (s *Store) destroyLeft(ctx context.Context, vm mo.VirtualMachine) error {
	s.log.Info("remove a virtual machine that an import has left", "vm", vm.Name)
	err := s.d.s.Do(ctx, func() (*object.Task, error) { return object.NewVirtualMachine(s.d.s.client, vm.Self).Destroy(ctx) })
	if err != nil && !fault.Is(err, &types.ManagedObjectNotFound{}) {
		return fmt.Errorf("remove virtual machine %s, which an import has left: %w", vm.Name, unavailable(err))
	}
	return nil
}
