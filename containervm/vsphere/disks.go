package vsphere

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"vic/containervm"
)

// Capacity implements containervm.Disks.
func (d *Driver) Capacity() int64 { return d.o.Local.Capacity() }

// folderOf is the folder of a container on this machine.
func (d *Driver) folderOf(id string) string { return filepath.Join(d.o.Local.Dir(), "containers", id) }

// CreateContainerDisk implements containervm.Disks.
func (d *Driver) CreateContainerDisk(id string, image digest.Digest) (string, error) {
	return "", d.CreateContainer(context.Background(), id, "container", image)
}

// CreateContainer implements containervm.Registered: it makes the container's VM, and what belongs to it on this machine. What an error
// leaves RemoveContainer removes.
func (d *Driver) CreateContainer(ctx context.Context, id, name string, image digest.Digest) error {
	if err := d.Available(); err != nil {
		return err
	}
	if _, err := d.o.Local.CreateContainerDisk(id, image); err != nil { // from here on the image's layers stay
		return err
	}
	parent, err := d.published(ctx, image)
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), taskTime) // a task goes on whoever waits
	defer cancel()
	ref, err := d.createVM(ctx, id, d.newVM(id, name, parent))
	if err == nil {
		err = d.enrol(ctx, ref)
	}
	if err != nil {
		return fmt.Errorf("make virtual machine: %w", err)
	}
	return nil
}

// published is the path of an image's disk on the datastore.
func (d *Driver) published(ctx context.Context, image digest.Digest) (string, error) {
	top, err := d.o.Images.TopDisk(ctx, image)
	if !errors.Is(err, fs.ErrNotExist) {
		return top, err
	}
	img, err := d.o.Local.ImageByID(image)
	if err != nil {
		return "", err
	}
	p, err := d.o.Images.Publish(ctx, d.o.Local, img)
	if err != nil {
		return "", err
	}
	return d.o.Images.DiskPath(p.Disks[0]), nil
}

// ContainerBytes implements containervm.Meter: it is of the files in the folders of VMs.
func (d *Driver) ContainerBytes(ctx context.Context, id string) (map[string]containervm.Bytes, error) {
	if err := d.Available(); err != nil {
		return nil, err
	}
	files, err := d.o.Containers.Tree(ctx, cmp.Or(id, "."))
	if err != nil && !(id != "" && errors.Is(err, fs.ErrNotExist)) {
		return nil, err
	}
	all := map[string]containervm.Bytes{}
	for _, e := range files {
		folder, name, _ := strings.Cut(path.Join(id, e.Name), "/")
		if !containervm.ValidID(folder) {
			continue
		}
		b := all[folder]
		switch path.Ext(name) {
		case ".vswp": // it is the memory, and charged as that
		case ".vmdk": // volumes are elsewhere
			b.Disk += e.Size
		default:
			b.Rest += e.Size
		}
		all[folder] = b
	}
	return all, nil
}

func (d *Driver) createVM(ctx context.Context, id string, spec types.VirtualMachineConfigSpec) (ref types.ManagedObjectReference, err error) {
	host, err := d.chooseHost(ctx)
	if err != nil {
		return ref, err
	}
	again := false
	result, err := d.o.Session.Run(ctx, func() (*object.Task, error) {
		if again { // the answer was lost: it may be there
			v, err := d.lookUp(ctx, id)
			if err != nil {
				return nil, err
			}
			if v.power != gone {
				ref = v.ref
				return nil, errThere
			}
		}
		again = true
		return d.folder.CreateVM(ctx, spec, d.pool, host)
	})
	if errors.Is(err, errThere) {
		return ref, nil
	}
	if err != nil {
		return ref, d.o.Containers.Blame(err)
	}
	ref, ok := result.(types.ManagedObjectReference)
	if !ok {
		return ref, fmt.Errorf("the task's result is a %T", result)
	}
	d.watch.learn(ref, UUID(id))
	return ref, nil
}

// errThere says that a VM is there that was about to be made.
var errThere = errors.New("it is there already")

// lookUp finds a container's VM, also one that the watcher has not seen, or not in the pool. Its power is gone if there is none.
func (d *Driver) lookUp(ctx context.Context, id string) (seen, error) {
	uuid := UUID(id)
	if v := d.watch.lookUp(uuid); v.power != gone {
		return v, nil
	}
	var found object.Reference
	err := d.o.Session.Call(ctx, func() (err error) {
		found, err = object.NewSearchIndex(d.client).FindByUuid(ctx, d.dc, uuid, true, nil)
		return err
	})
	if err != nil {
		return seen{}, fmt.Errorf("look for the container's VM: %w", err)
	}
	if found == nil {
		return seen{uuid: uuid}, nil
	}
	v := seen{ref: found.Reference(), uuid: uuid}
	err = d.o.Session.Call(ctx, func() (err error) {
		var vm mo.VirtualMachine
		err = property.DefaultCollector(d.client).RetrieveOne(ctx, v.ref, []string{"runtime"}, &vm)
		v.told = tellOf(vm.Runtime)
		v.power = v.told.power(gone)
		return err
	})
	if isGone(err) {
		return seen{uuid: uuid}, nil
	}
	return v, err
}

// isGone says whether an error is that an object is no more.
func isGone(err error) bool { return fault.Is(err, &types.ManagedObjectNotFound{}) }

// RemoveContainer implements containervm.Disks. The VM is destroyed, whatever it does.
func (d *Driver) RemoveContainer(id string) error {
	ctx, cancel := context.WithTimeout(context.Background(), taskTime)
	defer cancel()
	if err := d.Available(); err != nil {
		return fmt.Errorf("remove virtual machine: %w", err)
	}
	unlock, err := d.take(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	if err := d.destroy(ctx, id); err != nil {
		return fmt.Errorf("remove virtual machine: %w", err)
	}
	d.bringing.Delete(id)
	return d.o.Local.RemoveContainer(id)
}

// destroy destroys a container's VM, and what else is in its folder.
func (d *Driver) destroy(ctx context.Context, id string) error {
	v, err := d.lookUp(ctx, id)
	if err != nil {
		return err
	}
	if v.power != off && v.power != gone {
		if err := d.powerOff(ctx, v.ref); err != nil {
			return err
		}
	}
	if v.power != gone {
		if err := d.freeDisks(ctx, id, v.ref); err != nil {
			return err
		}
		vm := object.NewVirtualMachine(d.client, v.ref)
		err := d.o.Session.Do(ctx, func() (*object.Task, error) { return vm.Destroy(ctx) })
		if err != nil && !isGone(err) {
			return err
		}
		d.watch.forget(v.ref)
		d.dismiss(ctx, v.ref)
	}
	// What serial ports have written is not the VM's for vSphere.
	return d.o.Containers.RemoveAll(ctx, id)
}

// powerOff pulls the plug. It is no error if that was done already. A VM that asks something is told to give up first: it takes nothing else.
func (d *Driver) powerOff(ctx context.Context, ref types.ManagedObjectReference) error {
	vm := object.NewVirtualMachine(d.client, ref)
	if id, choice, ok := d.watch.giveUp(ref); ok {
		if err := d.o.Session.Call(ctx, func() error { return vm.Answer(ctx, id, choice) }); err != nil {
			d.log.Warn("answer what a VM asks", "vm", ref.Value, "error", err) // somebody else has, perhaps
		}
	}
	err := d.o.Session.Do(ctx, func() (*object.Task, error) { return vm.PowerOff(ctx) })
	if isGone(err) || isIn(err, off) {
		return nil
	}
	return err
}

// isIn says whether an error is that a VM has that power state, which is not the one that the call needs.
func isIn(err error, p power) bool {
	var state *types.InvalidPowerState
	_, ok := fault.As(err, &state)
	return ok && state.ExistingState == p
}

// RenameContainer implements containervm.Registered.
func (d *Driver) RenameContainer(ctx context.Context, id, name string) error {
	if err := d.Available(); err != nil {
		return err
	}
	v, err := d.lookUp(ctx, id)
	if err != nil || v.power == gone {
		return err
	}
	return d.reconfigure(ctx, v.ref, types.VirtualMachineConfigSpec{Name: d.o.Convention.Name(name, id)})
}
