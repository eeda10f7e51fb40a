//go:build linux

package vsphere

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"

	"vic/layerstore"
)

// marks is the file that keeps other VCHs from the disk of a volume.
func (v *Volumes) marks(volume string) string {
	return path.Join(volumesFolder, volume, v.vch+writesSuffix)
}

// Write implements layerstore.VolumeDisks, by the virtual machine in which this runs.
func (v *Volumes) Write(ctx context.Context, disk string, fn func(d layerstore.GuestDevice, capacity int64) error) error {
	d, name, err := v.find(disk)
	if err != nil {
		return err
	}
	if v.own == nil {
		return &layerstore.DistantVolumeError{Name: volumeOf(disk), Disk: d.Path(name + ".vmdk")}
	}
	h, err := v.hold(ctx, disk, v.own.take)
	if err != nil {
		return err
	}
	err = fn(h.disk, h.capacity)
	if err == nil {
		err = h.disk.Sync()
	}
	v.heldMu.Lock()
	h.unsettled = errors.Is(err, layerstore.ErrUnsettled) || err != nil && h.unsettled
	v.heldMu.Unlock()
	return errors.Join(err, v.letGo(ctx, h))
}

// alone makes sure that nobody else is at a volume's disk, nor will be as long as the file is there that marks names.
func (v *Volumes) alone(ctx context.Context, d *Datastore, volume, id string) error {
	f, err := v.look(ctx, d, volume)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if !slices.Contains(f.ids, id) {
		return fmt.Errorf("write to %s: no such volume: another host has just removed it: %w", volume, layerstore.ErrNotFound)
	}
	if err := v.others(f, volume); err != nil {
		return err
	}
	for _, vch := range f.vchs {
		if vch != v.vch {
			return &layerstore.VolumeBusyError{Name: volume, Why: fmt.Sprintf("containers of virtual container host %s mount it too, and may start meanwhile: "+
				"copy by a container that runs", vch)}
		}
	}
	users, err := v.machines(ctx, d, volume+"-"+id)
	if err != nil {
		return err
	}
	users = slices.DeleteFunc(running(users), func(u diskUser) bool { return v.own.is(u.vm.Self) })
	if len(users) > 0 {
		return inUseBy(volume+"-"+id, users)
	}
	return nil
}

// others returns an error if another VCH writes a volume's disk.
func (v *Volumes) others(f volumeFolder, volume string) error {
	for _, vch := range f.writers {
		if vch != v.vch {
			return &layerstore.VolumeBusyError{Name: volume, Why: fmt.Sprintf("virtual container host %s writes to its disk, or did when it broke off: then it finishes that at its next start", vch)}
		}
	}
	return nil
}

// unmark removes the file that keeps others from a volume's disk.
func (v *Volumes) unmark(ctx context.Context, d *Datastore, disk, volume string) error {
	ctx, cancel := context.WithTimeout(ctx, volumeTime)
	defer cancel()
	if err := d.RemoveAll(ctx, v.marks(volume)); err != nil {
		return err
	}
	v.setLeft(disk, false)
	return nil
}

// Unsettled implements layerstore.VolumeDisks.
func (v *Volumes) Unsettled(disk string) (bool, error) {
	ctx, cancel := volumeContext()
	defer cancel()
	d, name, err := v.find(disk)
	if err != nil {
		return false, err
	}
	volume, id, err := splitName(name)
	if err != nil {
		return false, err
	}
	f, err := v.look(ctx, d, volume)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !slices.Contains(f.ids, id) { // others tell that it is gone
		v.setLeft(disk, false)
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if err := v.others(f, volume); err != nil {
		return false, err
	}
	left := slices.Contains(f.writers, v.vch)
	v.setLeft(disk, left)
	return left && !v.heldSettled(disk), nil
}

// Left implements layerstore.VolumeDisks.
func (v *Volumes) Left() []string {
	v.usesMu.Lock()
	defer v.usesMu.Unlock()
	return slices.Sorted(maps.Keys(v.left))
}

func (v *Volumes) isLeft(disk string) bool {
	v.usesMu.Lock()
	defer v.usesMu.Unlock()
	return v.left[disk]
}

func (v *Volumes) setLeft(disk string, left bool) {
	v.usesMu.Lock()
	defer v.usesMu.Unlock()
	if left {
		v.left[disk] = true
	} else {
		delete(v.left, disk)
	}
}
