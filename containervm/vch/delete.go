package vch

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"vic/layerstore/vsphere"
)

// DeleteOptions say what goes with a VCH.
type DeleteOptions struct {
	Force   bool // also containers that run, and a VCH that something else is being done to
	Volumes bool // also what is in its volume stores
}

// Delete plans to remove a VCH: its container VMs, what it has noted in the image store, its pool and folder if nothing else is in them, and
// the appliance last, so that the plan can be made again as long as anything is left. What is not proven to be the VCH's stays.
func (v *VCH) Delete(ctx context.Context, o DeleteOptions) (*Plan, error) {
	var p Problems
	doing, err := v.Doing(ctx)
	if err != nil {
		return nil, err
	}
	if (doing == "configure" || doing == "upgrade" || doing == "rollback") && !o.Force {
		p.add("force", "the VCH is in the middle of %s: give it to remove the VCH nonetheless", doing)
	}
	containers, err := v.containerVMs(ctx)
	if err != nil {
		return nil, err
	}
	var running []string
	for _, c := range containers {
		if c.running() {
			running = append(running, c.Name)
		}
	}
	if len(running) > 0 && !o.Force {
		p.add("force", "%d containers run: give it to remove them nonetheless: %s", len(running), strings.Join(running[:min(len(running), 10)], ", "))
	}
	if o.Volumes {
		if err := v.checkVolumes(ctx, &p); err != nil {
			return nil, err
		}
	}
	if len(p) > 0 {
		return nil, p
	}
	plan := new(Plan)
	return plan, v.planDelete(ctx, plan, containers, o)
}

// checkVolumes refuses to remove volume stores that another VCH has as well.
func (v *VCH) checkVolumes(ctx context.Context, p *Problems) error {
	all, err := v.site.List(ctx, "")
	if err != nil {
		return err
	}
	for _, other := range all {
		if other.ID == v.ID {
			continue
		}
		for _, theirs := range other.Spec.volumeStores() {
			for _, mine := range v.Spec.volumeStores() {
				if theirs.overlaps(mine.location) {
					p.add("volumes", "VCH %s has volumes in %s as well", other.Spec.Name, theirs.location)
				}
			}
		}
	}
	return nil
}

// planDelete plans the steps: what runs, what is stored, what holds it together, and last what says so.
func (v *VCH) planDelete(ctx context.Context, plan *Plan, containers []container, o DeleteOptions) error {
	s, name := v.site, v.Spec.Name
	d, store, err := v.containers(ctx)
	if err != nil {
		return err
	}
	images, err := v.Spec.images()
	if err != nil {
		return err
	}
	plan.add("note in "+d.Path(recordFile)+" that the VCH is being deleted", simple(func(ctx context.Context) error {
		r := v.Record
		r.Changing = "delete"
		if err := d.MakeFolder(ctx, "."); err != nil {
			return err
		}
		return putRecord(ctx, d, &r)
	}), nil)
	plan.add("power off VM "+name, simple(func(ctx context.Context) error { return s.powerOff(ctx, v.machine()) }), nil)
	if len(containers) > 0 {
		plan.add(fmt.Sprintf("remove %d container VMs", len(containers)), func(ctx context.Context, report func(Event)) error {
			return v.removeContainers(ctx, containers, report)
		}, nil)
	}
	plan.add("leave image store "+images.String(), simple(func(ctx context.Context) error {
		d, err := s.open(ctx, images)
		if err != nil {
			return err
		}
		if err := vsphere.Retire(ctx, d, name); err != nil {
			return err
		}
		return s.removeEmpty(ctx, images)
	}), nil)
	for _, vs := range v.Spec.volumeStores() {
		if o.Volumes {
			plan.add("remove volume store "+vs.String(), simple(func(ctx context.Context) error { return s.removeAll(ctx, vs.location) }), nil)
		} else {
			plan.add("keep volume store "+vs.String()+", unless it is empty", simple(func(ctx context.Context) error {
				d, err := s.open(ctx, vs.location)
				if err == nil {
					err = vsphere.RetireVolumes(ctx, d, name)
				}
				if err != nil {
					return err
				}
				return s.removeEmpty(ctx, vs.location)
			}), nil)
		}
	}
	plan.add("delete disk "+d.Path(stateFile), simple(func(ctx context.Context) error {
		if err := s.detachDisks(ctx, v.machine(), func(string) bool { return true }); err != nil {
			return err
		}
		return s.deleteDisk(ctx, d.Path(stateFile))
	}), nil)
	if v.Spec.AffinityGroup {
		if g, err := v.group(ctx); err != nil {
			return err
		} else if g != nil && g.there {
			g.planRemoval(plan)
			plan.keep()
		}
	}
	if err := v.planPlaces(ctx, plan, containers); err != nil {
		return err
	}
	plan.add("remove the files of the VCH in "+d.Path("."), simple(func(ctx context.Context) error { return v.removeFiles(ctx, d) }), nil)
	plan.add("remove VM "+name, simple(func(ctx context.Context) error { return s.removeAppliance(ctx, v.machine()) }), nil)
	plan.add("remove folder "+d.Path(".")+", if nothing else is in it", simple(func(ctx context.Context) error {
		if err := d.RemoveAll(ctx, applianceFolder); err != nil {
			return err
		}
		return s.removeEmpty(ctx, store)
	}), nil)
	return nil
}

// planPlaces plans to remove the VCH's resource pool and folder. The appliance goes to those above.
func (v *VCH) planPlaces(ctx context.Context, plan *Plan, containers []container) error {
	going := []types.ManagedObjectReference{v.object.Self}
	for _, c := range containers {
		going = append(going, c.Self)
	}
	if v.PoolID != "" {
		ref := types.ManagedObjectReference{Type: "ResourcePool", Value: v.PoolID}
		var m mo.ResourcePool
		err := v.site.properties(ctx, ref, &m, "vm", "resourcePool", "name")
		left := len(m.ResourcePool) + others(m.Vm, going)
		switch {
		case gone(err):
		case err != nil:
			return fmt.Errorf("look at the VCH's resource pool: %w", err)
		case left > 0:
			plan.add(fmt.Sprintf("keep resource pool %s: %d other VMs or pools are in it", m.Name, left), nothing, nil)
		default:
			plan.add("remove resource pool "+m.Name, simple(func(ctx context.Context) error {
				return v.site.removePool(ctx, ref, v.object.Self)
			}), nil)
		}
	}
	if v.FolderID != "" {
		ref := types.ManagedObjectReference{Type: "Folder", Value: v.FolderID}
		var m mo.Folder
		err := v.site.properties(ctx, ref, &m, "childEntity", "name", "parent")
		left := others(m.ChildEntity, going)
		switch {
		case gone(err):
		case err != nil:
			return fmt.Errorf("look at the VCH's folder: %w", err)
		case left > 0 || m.Parent == nil:
			plan.add(fmt.Sprintf("keep folder of VMs %s: %d other VMs or folders are in it", m.Name, left), nothing, nil)
		default:
			plan.add("remove folder of VMs "+m.Name, simple(func(ctx context.Context) error {
				if slices.Contains(m.ChildEntity, v.object.Self) {
					above := object.NewFolder(v.site.client, *m.Parent)
					err := v.site.session.Do(ctx, func() (*object.Task, error) {
						return above.MoveInto(ctx, []types.ManagedObjectReference{v.object.Self})
					})
					if err != nil {
						return err
					}
				}
				return v.site.removeFolder(ctx, ref)
			}), nil)
		}
	}
	return nil
}

// nothing is a step that only says something.
func nothing(context.Context, func(Event)) error { return nil }

// removeFiles removes ISOs and the record.
func (v *VCH) removeFiles(ctx context.Context, d *vsphere.Datastore) error {
	if err := removeISOs(ctx, d, nil); err != nil {
		return err
	}
	if err := d.RemoveAll(ctx, mediaFolder); err != nil {
		return err
	}
	return d.RemoveAll(ctx, recordFile)
}

// removeAll removes a folder of a datastore with what is in it.
func (s *Site) removeAll(ctx context.Context, l location) error {
	d, err := s.open(ctx, l)
	if err != nil {
		return err
	}
	list, err := d.List(ctx, ".")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range list {
		if err := d.RemoveAll(ctx, e.Name); err != nil {
			return err
		}
	}
	return s.removeEmpty(ctx, l)
}

// volumeStores are those of a Spec that is known to be good.
func (s *Spec) volumeStores() (out []volumeStore) {
	for _, text := range s.VolumeStores {
		if v, err := parseVolumeStore(text); err == nil {
			out = append(out, v)
		}
	}
	return out
}
