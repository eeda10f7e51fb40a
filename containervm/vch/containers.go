package vch

import (
	"context"
	"errors"
	"fmt"
	"path"
	"regexp"
	"strings"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
	"golang.org/x/sync/errgroup"
)

// A container is a container VM of a VCH.
type container struct {
	id string
	mo.VirtualMachine
}

// running says whether it would be cut off.
func (c *container) running() bool {
	return c.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOff
}

var (
	// containerFolder is the name of a container VM's folder: the container's ID.
	containerFolder = regexp.MustCompile(`^[0-9a-f]{64}$`)
	// containerNote is what the VCH writes in a VM's annotation.
	containerNote = regexp.MustCompile(`^Container ([0-9a-f]{64}) of the virtual container host (.+)\.$`)
)

// containerUUID is the BIOS UUID of a container's VM, without dashes: the beginning of the ID, but for the version, 4, and the variant of RFC 9562.
func containerUUID(id string) string {
	return id[:12] + "4" + id[13:16] + string("89ab"[strings.IndexByte("0123456789abcdef", id[16])&3]) + id[17:32]
}

// containerID returns the ID of the container that a VM is, "" if it is not one of this VCH. What proves it is the BIOS UUID, which is
// made of the ID: of the ID that the VM's folder in the VCH's container store is named by, or, for a VM that is in the VCH's own
// pool or folder, that is in its annotation.
func (v *VCH) containerID(vm *mo.VirtualMachine, store location) string {
	if vm.Config == nil || vm.Config.Template {
		return ""
	}
	uuid := strings.ToLower(strings.ReplaceAll(vm.Config.Uuid, "-", ""))
	proven := func(id string) bool { return containerFolder.MatchString(id) && containerUUID(id) == uuid }
	var p object.DatastorePath
	if p.FromString(vm.Config.Files.VmPathName) && p.Datastore == store.datastore {
		dir := path.Dir(p.Path)
		if id := path.Base(dir); path.Dir(dir) == store.folder && proven(id) {
			return id
		}
	}
	own := vm.ResourcePool != nil && vm.ResourcePool.Value == v.PoolID || vm.Parent != nil && vm.Parent.Value == v.FolderID
	m := containerNote.FindStringSubmatch(vm.Config.Annotation)
	if own && m != nil && m[2] == v.Spec.Name && proven(m[1]) {
		return m[1]
	}
	return ""
}

// containerVMs finds the VCH's container VMs, wherever in the datacenter they are.
func (v *VCH) containerVMs(ctx context.Context) ([]container, error) {
	store, err := v.Spec.containers()
	if err != nil {
		return nil, err
	}
	all, err := v.site.vms(ctx, v.site.dc.Reference(), []string{"name", "config.uuid", "config.template", "config.annotation", "config.files", "runtime.powerState", "runtime.host", "resourcePool", "parent"})
	if err != nil {
		return nil, err
	}
	var out []container
	for _, vm := range all {
		if id := v.containerID(&vm, store); id != "" {
			out = append(out, container{id, vm})
		}
	}
	return out, nil
}

// atOnce is how many VMs are removed at the same time.
const atOnce = 8

// removeContainers removes container VMs. Disks that are not in a VM's own folder, those of volumes, stay.
func (v *VCH) removeContainers(ctx context.Context, all []container, report func(Event)) error {
	d, store, err := v.containers(ctx)
	if err != nil {
		return err
	}
	removed := make(chan string)
	told := make(chan struct{})
	go func() {
		defer close(told)
		for name := range removed {
			report(Event{Note: "removed " + name})
		}
	}()
	var g errgroup.Group
	g.SetLimit(atOnce)
	for _, c := range all {
		g.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			err := v.removeContainer(ctx, c)
			if err == nil && c.folderIn(store) {
				// What a serial port wrote is no file of the VM's for vSphere.
				err = d.RemoveAll(ctx, c.id)
			}
			if err != nil {
				return fmt.Errorf("remove VM %s: %w", c.Name, err)
			}
			removed <- c.Name
			return nil
		})
	}
	err = g.Wait()
	close(removed)
	<-told
	return err
}

// folderIn says whether the VM's folder is in the container store, so that it is the VCH's.
func (c *container) folderIn(store location) bool {
	var p object.DatastorePath
	return p.FromString(c.Config.Files.VmPathName) && p.Datastore == store.datastore && path.Dir(p.Path) == path.Join(store.folder, c.id)
}

func (v *VCH) removeContainer(ctx context.Context, c container) error {
	vm := object.NewVirtualMachine(v.site.client, c.Self)
	err := v.site.powerOff(ctx, vm)
	if err == nil {
		err = v.detachForeign(ctx, vm, c.Config.Files.VmPathName)
	}
	if err == nil {
		err = v.site.destroy(ctx, vm)
	}
	if gone(err) {
		return nil
	}
	return err
}

// detachForeign takes from a VM the disks that are not in its own folder.
func (v *VCH) detachForeign(ctx context.Context, vm *object.VirtualMachine, vmx string) error {
	var own object.DatastorePath
	if !own.FromString(vmx) {
		return errors.New("the VM has no folder")
	}
	return v.site.detachDisks(ctx, vm, func(file string) bool {
		var p object.DatastorePath
		return !p.FromString(file) || p.Datastore != own.Datastore || path.Dir(p.Path) != path.Dir(own.Path)
	})
}
