package containervm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"vic/layerstore"
	"vic/tether/wire"
)

// maxVolumes is how many volumes a VM has room for.
const maxVolumes = 16

// checkVolumes refuses mounts that make no sense.
func (s *Spec) checkVolumes() error {
	names := map[string]bool{}
	for _, v := range s.Volumes {
		switch {
		case !path.IsAbs(v.Target):
			return refuse(ErrInvalid, "invalid mount path: '%s' mount path must be absolute", v.Target)
		case path.Clean(v.Target) == "/":
			return refuse(ErrInvalid, "invalid specification: destination can't be '/'")
		case v.Subpath != "" && !filepath.IsLocal(v.Subpath):
			return refuse(ErrInvalid, `invalid mount config for type "volume": subpath must be a relative path within the volume`)
		case v.Subpath != "" && v.Name == "":
			return refuse(ErrInvalid, "must not set Subpath when using anonymous volumes")
		}
		names[cmpName(v)] = true
	}
	if len(names) > maxVolumes {
		return refuse(ErrInvalid, "%d volumes are more than the %d that a virtual machine has room for", len(names), maxVolumes)
	}
	return nil
}

// cmpName is what tells volumes apart: those without a name will each get their own.
func cmpName(v VolumeMount) string {
	if v.Name == "" {
		return "at " + v.Target
	}
	return v.Name
}

// claimVolumes names the container's volumes, makes those that are not there, and notes that the container has them.
func (c *Container) claimVolumes() error {
	claims := []layerstore.VolumeClaim{}
	c.spec.Volumes = slices.Clone(c.spec.Volumes)
	for i := range c.spec.Volumes {
		v := &c.spec.Volumes[i]
		if v.Name == "" {
			v.Name, v.Own = newID(), true
		}
		claims = append(claims, layerstore.VolumeClaim{Own: v.Own,
			VolumeOptions: layerstore.VolumeOptions{Name: v.Name, Driver: v.Driver, Options: v.Options, Labels: v.Labels}})
	}
	made, err := c.m.o.Volumes.ClaimVolumes(c.id, claims)
	for _, v := range made {
		c.m.emitVolume("create", v.Name, map[string]string{"driver": v.Driver})
	}
	return err
}

// A holder is a container whose VM has a volume's disk.
type holder struct {
	c      *Container
	writes bool
}

// A volumeDisk is a volume as a VM gets it.
type volumeDisk struct {
	Disk
	name   string
	replay bool // of its journal
	grow   bool // its file system
	fill   bool // with the image's content, if it is empty
}

// takeVolumes takes hold of the container's volumes for a start. An ext4 file system can be written by one VM only, and
// read by others only while nobody writes it: the error is ErrConflict, and names the holder. Who writes one without a VM is
// waited for.
func (c *Container) takeVolumes(ctx context.Context) ([]volumeDisk, error) {
	c.m.volumes.Lock()
	defer c.m.volumes.Unlock()
	names := make([]string, len(c.spec.Volumes))
	for i, v := range c.spec.Volumes {
		names[i] = v.Name
	}
	if err := c.m.awaitCopies(ctx, names...); err != nil {
		return nil, err
	}
	var disks []volumeDisk
	for _, v := range c.spec.Volumes {
		i := slices.IndexFunc(disks, func(d volumeDisk) bool { return d.name == v.Name })
		if i < 0 {
			i = len(disks)
			disks = append(disks, volumeDisk{name: v.Name, Disk: Disk{Serial: volumeSerial(v.Name), ReadOnly: true}})
		}
		d := &disks[i]
		d.ReadOnly = d.ReadOnly && v.ReadOnly
		d.fill = d.fill || c.fills(v)
	}
	for i := range disks {
		if err := c.takeVolume(&disks[i]); err != nil {
			return nil, err
		}
	}
	return disks, nil
}

// fills tells whether a volume is to get what the image has at its place: with the container's first start.
func (c *Container) fills(v VolumeMount) bool {
	return !v.NoCopy && v.Subpath == "" && c.Info().State.Started.IsZero()
}

// takeVolume takes hold of one. Call it with Manager.volumes held.
func (c *Container) takeVolume(d *volumeDisk) error {
	v, err := c.m.o.Volumes.Volume(d.name)
	if err == nil {
		d.Path, err = c.m.o.Volumes.VolumeDisk(d.name)
	}
	if err != nil {
		if errors.Is(err, layerstore.ErrNotFound) && v == nil {
			return refuse(ErrNotFound, "get %s: no such volume", d.name)
		}
		return volumeError(err)
	}
	for _, h := range c.m.holders[d.name] {
		if h.writes || !d.ReadOnly {
			return inUse(d.name, h)
		}
	}
	switch {
	case len(c.m.holders[d.name]) > 0:
		d.fill = false // the others read what is there
	case v.Disk != "":
		c.lookFar(d)
	default:
		if err := c.lookInto(d); err != nil {
			return err
		}
	}
	if !d.ReadOnly {
		c.m.dropCopies(d.name)
	}
	if err := c.m.o.Volumes.ReleaseVolume(d.name); err != nil {
		return volumeError(err)
	}
	c.m.holders[d.name] = append(c.m.holders[d.name], holder{c, !d.ReadOnly})
	return nil
}

// lookFar is lookInto for a disk that is not in the store: what its guest can find out is left to that.
func (c *Container) lookFar(d *volumeDisk) {
	if d.ReadOnly {
		d.replay = true // its journal, in what is thrown away: the disk stays as it is
		if d.fill {
			st, err := c.m.o.Volumes.VolumeState(d.name)
			if err != nil { // perhaps a disk that cannot be read from here
				c.m.o.Log.Warn("look into volume", "volume", d.name, "error", err)
			}
			d.fill = err == nil && st.Empty
		}
		d.ReadOnly = !d.fill
	}
	d.grow = !d.ReadOnly // if there is room: only the disk's own record says that it has grown
}

// lookInto finds out whether a volume that is to be read has to be written first, and whether one that is written has to grow.
func (c *Container) lookInto(d *volumeDisk) error {
	st, err := c.m.o.Volumes.VolumeState(d.name)
	if err != nil && !d.ReadOnly {
		c.m.o.Log.Warn("look into volume", "volume", d.name, "error", err) // its guest may make more of it
		return nil
	}
	if err != nil {
		return err
	}
	if d.ReadOnly {
		d.replay = st.Unclean
		d.fill = d.fill && (st.Empty || st.Unclean)
		d.ReadOnly = !d.replay && !d.fill
	}
	d.grow = st.Grown && !d.ReadOnly
	return nil
}

func inUse(volume string, h holder) error {
	i := h.c.Info()
	if h.writes {
		return refuse(ErrConflict, "volume %s is in use by running container %s (%s), which can write it: a volume is a disk with a file system, "+
			"which one virtual machine at a time can write; stop that container first, or mount the volume read-only in both", volume, i.Name, i.ID[:12])
	}
	return refuse(ErrConflict, "volume %s is in use by running container %s (%s), which reads it: a volume is a disk with a file system, "+
		"which no virtual machine can write while others read it; stop that container first, or mount the volume read-only here too", volume, i.Name, i.ID[:12])
}

// holdVolumes takes hold of the volumes of a VM that was found running.
func (c *Container) holdVolumes() {
	c.m.volumes.Lock()
	defer c.m.volumes.Unlock()
	for _, v := range c.spec.Volumes {
		c.m.holders[v.Name] = append(c.m.holders[v.Name], holder{c, !v.ReadOnly})
	}
}

// releaseVolumes lets go of all volumes that the container has hold of.
func (c *Container) releaseVolumes() {
	c.m.volumes.Lock()
	defer c.m.volumes.Unlock()
	for _, v := range c.spec.Volumes {
		left := slices.DeleteFunc(c.m.holders[v.Name], func(h holder) bool { return h.c == c })
		if c.m.holders[v.Name] = left; len(left) == 0 {
			delete(c.m.holders, v.Name)
		}
	}
}

// volumeSerial is the serial number of a volume's disk, of the 20 bytes that virtio has room for.
func volumeSerial(name string) string {
	sum := sha256.Sum256([]byte(name))
	return "vol-" + hex.EncodeToString(sum[:8])
}

// volumeMounts is what the guest mounts. Call it with mu held.
func (c *Container) volumeMounts(disks []volumeDisk) []wire.Mount {
	var mounts []wire.Mount
	for _, v := range c.spec.Volumes {
		d := disks[slices.IndexFunc(disks, func(d volumeDisk) bool { return d.name == v.Name })]
		mounts = append(mounts, wire.Mount{Type: "disk", Serial: d.Serial, Target: v.Target, ReadOnly: v.ReadOnly, Subpath: v.Subpath,
			Copy: d.fill && !v.NoCopy && v.Subpath == "", Replay: d.replay, Grow: d.grow})
	}
	return mounts
}

// sortMounts puts what is mounted inside of another behind it.
func sortMounts(mounts []wire.Mount) {
	slices.SortStableFunc(mounts, func(a, b wire.Mount) int { return targetDepth(a.Target) - targetDepth(b.Target) })
}

func targetDepth(target string) int { return strings.Count(path.Clean(target), "/") }

// emitVolume tells of something that happened to a volume.
func (m *Manager) emitVolume(action, name string, attributes map[string]string) {
	if attributes == nil {
		attributes = map[string]string{"driver": layerstore.VolumeDrivers[0]}
	}
	m.events.send(Event{Type: "volume", Action: action, ID: name, Attributes: attributes})
}

// emitMounts tells that the container's volumes were mounted, or are no more.
func (c *Container) emitMounts(action string) {
	for _, v := range c.spec.Volumes {
		a := map[string]string{"container": c.id, "driver": layerstore.VolumeDrivers[0]}
		if action == "mount" {
			a["destination"], a["propagation"], a["read/write"] = v.Target, "", strconv.FormatBool(!v.ReadOnly)
		}
		c.m.emitVolume(action, v.Name, a)
	}
}
