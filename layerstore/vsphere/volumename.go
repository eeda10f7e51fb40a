//go:build linux

package vsphere

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"

	"vic/layerstore"
)

// labels are those of the folders: that of the volumes that name none first.
func (v *Volumes) labels() []string {
	return slices.SortedFunc(maps.Keys(v.folders), func(a, b string) int {
		return cmp.Or(cmp.Compare(boolInt(a != DefaultVolumes), boolInt(b != DefaultVolumes)), cmp.Compare(a, b))
	})
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// splitName takes the name of a disk apart.
func splitName(name string) (volume, id string, err error) {
	i := strings.LastIndexByte(name, '-')
	if i <= 0 || !isID(name[i+1:]) {
		return "", "", fmt.Errorf("%q is no disk of a volume", name)
	}
	return name[:i], name[i+1:], nil
}

// look returns what is in the folder of a name. The error is fs.ErrNotExist if no volume has it.
func (v *Volumes) look(ctx context.Context, d *Datastore, name string) (volumeFolder, error) {
	list, err := d.List(ctx, path.Join(volumesFolder, name))
	if err != nil {
		return volumeFolder{}, err
	}
	f := readFolder(list)
	switch len(f.ids) {
	case 0:
		return f, fs.ErrNotExist // another VCH has marked what was just removed
	case 1:
		return f, nil
	}
	return f, fmt.Errorf("%s has %d records", d.Path(path.Join(volumesFolder, name)), len(f.ids))
}

// available is nil unless vSphere is known to be away.
func (v *Volumes) available() error {
	for _, d := range v.folders {
		return d.s.available() // all are of one session
	}
	return nil
}

// Find implements layerstore.VolumeDisks.
func (v *Volumes) Find(name string) (*layerstore.Volume, error) {
	ctx, cancel := volumeContext()
	defer cancel()
	if err := v.available(); err != nil {
		return nil, err
	}
	for _, label := range v.labels() {
		d := v.folders[label]
		f, err := v.look(ctx, d, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		return v.read(ctx, label, name, f.ids[0])
	}
	return nil, fmt.Errorf("volume %s: %w", name, layerstore.ErrNotFound)
}

// Read implements layerstore.VolumeDisks.
func (v *Volumes) Read(disk string) (*layerstore.Volume, error) {
	ctx, cancel := volumeContext()
	defer cancel()
	_, name, err := v.find(disk)
	if err != nil {
		return nil, err
	}
	label, _, _ := strings.Cut(disk, "/")
	volume, id, err := splitName(name)
	if err != nil {
		return nil, err
	}
	vol, err := v.read(ctx, label, volume, id)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: %w", layerstore.ErrNotFound, err)
	}
	return vol, err
}

// read reads the record of a volume, and its capacity from the disk.
func (v *Volumes) read(ctx context.Context, label, name, id string) (*layerstore.Volume, error) {
	d := v.folders[label]
	file := path.Join(volumesFolder, name, id+".json")
	text, err := d.ReadFile(ctx, file, recordLimit)
	if err != nil {
		return nil, err
	}
	var rec volumeRecord
	if err := json.Unmarshal(text, &rec); err != nil {
		return nil, fmt.Errorf("parse %s: %w", d.Path(file), err)
	}
	switch {
	case rec.Version != 1:
		return nil, fmt.Errorf("%s has version %d, which this program does not know", d.Path(file), rec.Version)
	case rec.Name != name:
		return nil, fmt.Errorf("%s is of a volume %.80q", d.Path(file), rec.Name)
	}
	desc, err := d.descriptor(ctx, name+"-"+id)
	if errors.Is(err, fs.ErrNotExist) { // it is not that there is no such volume
		err = errors.New("there is none")
	}
	if err != nil {
		return nil, fmt.Errorf("disk %s of volume %s: %w", d.Path(name+"-"+id+".vmdk"), name, err)
	}
	return &layerstore.Volume{Name: name, Driver: rec.Driver, Created: rec.Created, Labels: rec.Labels, Options: rec.Options,
		Capacity: desc.Capacity(), Disk: label + "/" + name + "-" + id, Published: true}, nil
}

// List implements layerstore.VolumeDisks: one search for each folder.
func (v *Volumes) List() (disks map[string]string, damaged []error, err error) {
	ctx, cancel := volumeContext()
	defer cancel()
	if err := v.available(); err != nil {
		return nil, nil, err
	}
	disks = map[string]string{}
	var own, left []string // that we are said to use, and to have been writing
	for _, label := range v.labels() {
		d := v.folders[label]
		all, err := v.at(d).all(ctx)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		for _, name := range slices.Sorted(maps.Keys(all)) {
			switch f := readFolder(all[name]); {
			case len(f.ids) > 1:
				damaged = append(damaged, fmt.Errorf("volume %.80q is damaged: %s has %d records", name, d.Path(path.Join(volumesFolder, name)), len(f.ids)))
			case len(f.ids) == 0: // what was removed
			case disks[name] != "":
				damaged = append(damaged, fmt.Errorf("volume %.80q is in two volume stores: that of %s is taken, and %s is not seen", name, disks[name], d.Path(name+"-"+f.ids[0]+".vmdk")))
			default:
				disks[name] = label + "/" + name + "-" + f.ids[0]
				if slices.Contains(f.vchs, v.vch) {
					own = append(own, disks[name])
				}
				if slices.Contains(f.writers, v.vch) {
					left = append(left, disks[name])
				}
			}
		}
	}
	v.usesMu.Lock()
	defer v.usesMu.Unlock()
	for _, disk := range own {
		v.uses[disk] = true
	}
	for _, disk := range left {
		v.left[disk] = true
	}
	return disks, damaged, nil
}

// Make implements layerstore.VolumeDisks.
func (v *Volumes) Make(vol *layerstore.Volume, used bool) (there *layerstore.Volume, made bool, err error) {
	ctx, cancel := volumeContext()
	defer cancel()
	if there, err := v.Find(vol.Name); !errors.Is(err, layerstore.ErrNotFound) {
		return there, false, err
	}
	d, name, err := v.find(vol.Disk)
	if err != nil {
		return nil, false, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	err = v.publish(ctx, d, name, vol, used)
	if errors.Is(err, fs.ErrExist) { // another was faster
		there, err = v.Find(vol.Name)
		return there, false, err
	}
	if err != nil {
		return nil, false, fmt.Errorf("make the volume's disk %s: %w", d.Path(name+".vmdk"), err)
	}
	copied := *vol
	copied.Published = true
	return &copied, true, nil
}

// publish makes a volume's folder and disk, if that is not complete. The error is fs.ErrExist if the name has gone to another.
func (v *Volumes) publish(ctx context.Context, d *Datastore, name string, vol *layerstore.Volume, used bool) error {
	volume, id, err := splitName(name)
	if err != nil {
		return err
	}
	there := true // a disk, as far as anybody knows, which is older than records of volumes
	if err = v.stage(ctx, d, id, vol, used); err == nil {
		there, err = complete(ctx, d, name)
		there = there || err != nil
	}
	if err == nil && !there {
		err = v.makeDisk(ctx, d, name, vol.Capacity)
	}
	if err == nil {
		err = v.give(ctx, d, id, volume)
	}
	if err != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), volumeTime)
		defer cancel()
		var undo error
		if there {
			undo = d.RemoveAll(ctx, v.at(d).staged(id))
		} else {
			undo = v.at(d).finish(ctx, id, name)
		}
		if undo != nil { // at the next start
			v.log.Warn("remove what is left of a volume that was not made", "volume", volume, "error", undo)
		}
		return err
	}
	v.setUses(vol.Disk, used)
	return nil
}

// stage makes a volume's folder aside, with its record.
func (v *Volumes) stage(ctx context.Context, d *Datastore, id string, vol *layerstore.Volume, used bool) error {
	folder := v.at(d).staged(id)
	for _, f := range []string{volumesFolder, folder} {
		if err := d.MakeFolder(ctx, f); err != nil {
			return err
		}
	}
	rec := volumeRecord{Version: 1, Name: vol.Name, Driver: vol.Driver, Created: vol.Created, Labels: vol.Labels, Options: vol.Options}
	if err := d.putRecord(ctx, path.Join(folder, id+".json"), rec); err != nil || !used {
		return err
	}
	return d.putRecord(ctx, path.Join(folder, v.vch+usesSuffix), struct{}{})
}

// give gives the folder of a volume its name. The error is fs.ErrExist if another has that.
func (v *Volumes) give(ctx context.Context, d *Datastore, id, volume string) error {
	for cleared := false; ; cleared = true {
		err := d.move(ctx, v.at(d).staged(id), path.Join(volumesFolder, volume))
		if err == nil {
			return nil
		}
		f, lookErr := v.look(ctx, d, volume)
		switch {
		case lookErr == nil && f.ids[0] == id: // the answer was lost
			return nil
		case lookErr == nil:
			return fs.ErrExist
		case cleared || !errors.Is(lookErr, fs.ErrNotExist):
			return err
		}
		// Perhaps there is what another VCH has written of a volume that was removed meanwhile.
		if clearErr := v.clear(ctx, d, volume); clearErr != nil {
			return errors.Join(err, clearErr)
		}
	}
}

// clear removes a folder that is no volume's.
func (v *Volumes) clear(ctx context.Context, d *Datastore, volume string) error {
	aside := v.at(d).staged(newID())
	if err := d.move(ctx, path.Join(volumesFolder, volume), aside); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	list, err := d.List(ctx, aside)
	if err != nil {
		return err
	}
	if len(readFolder(list).ids) > 0 { // since we have looked
		return d.move(ctx, aside, path.Join(volumesFolder, volume))
	}
	return d.Remove(ctx, aside)
}

// Remove implements layerstore.VolumeDisks.
func (v *Volumes) Remove(disk string) error {
	ctx, cancel := volumeContext()
	defer cancel()
	if err := v.available(); err != nil {
		return err
	}
	d, name, err := v.find(disk)
	if err != nil {
		return err
	}
	volume, id, err := splitName(name)
	if err != nil {
		return err
	}
	users, err := v.machines(ctx, d, name)
	if err != nil {
		return err
	}
	if len(users) > 0 {
		return &layerstore.VolumeInUseError{Name: volume, Containers: []string{"virtual machine " + users[0].Name}}
	}
	if err := v.take(ctx, d, volume, id); err != nil {
		return err
	}
	v.setUses(disk, false)
	return v.at(d).finish(ctx, id, name)
}

// take takes its name from a volume, if it has one, unless another VCH uses it.
func (v *Volumes) take(ctx context.Context, d *Datastore, volume, id string) error {
	f, err := v.look(ctx, d, volume)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err = nil; slices.Contains(f.ids, id) {
		if err = d.MakeFolder(ctx, path.Join(vchsFolder, v.vch)); err == nil {
			err = d.move(ctx, path.Join(volumesFolder, volume), v.at(d).staged(id))
		}
	}
	others, listErr := v.at(d).others(ctx, id)
	if errors.Is(listErr, fs.ErrNotExist) { // it was not moved, or there is only the disk
		return err
	}
	if err = listErr; err == nil && len(others) > 0 {
		err = &layerstore.VolumeInUseError{Name: volume, Containers: others}
	}
	if err != nil {
		return errors.Join(err, d.move(context.WithoutCancel(ctx), v.at(d).staged(id), path.Join(volumesFolder, volume)))
	}
	return nil
}

// Recover removes what a crash has left of volumes that the VCH was making or removing. Call it before all else, and where no other process
// has the VCH's name.
func (v *Volumes) Recover(ctx context.Context) error {
	var failed error
	for _, label := range v.labels() {
		failed = errors.Join(failed, v.at(v.folders[label]).recoverAll(ctx))
	}
	return failed
}

// at is what the VCH makes and removes in a folder.
func (v *Volumes) at(d *Datastore) underWay { return underWay{d, v.vch} }
