package layerstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"vic/diskfs"
	"vic/vmdk"
)

// checkVolumes checks volumes: records, disks, and if it is deep the file systems of those that no VM has.
func (c *checker) checkVolumes(ctx context.Context) error {
	names, err := listDir(c.d.volumes())
	if err != nil {
		return err
	}
	users, err := c.d.volumeUsers(func(error) {}) // checkClaims tells
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		path := c.d.volume(name)
		if !validVolume.MatchString(name) {
			c.report(Finding{About: AboutFile, Path: path, Problem: "is no volume", Advice: "find out where it comes from, and move it elsewhere"})
			continue
		}
		if v, err := c.d.readVolume(name); err == nil && v.Disk != "" { // its record is all that is here
			continue
		}
		if c.d.growing(name) {
			c.report(Finding{About: AboutVolume, ID: name, Path: path, Problem: "enlarging it was interrupted", Harmless: true,
				Advice: "the next start of a container that mounts it goes on with it, and so does vic volume grow"})
			continue
		}
		pending, err := checkRedo(path)
		if err == nil && pending {
			if busy, err := isLocked(filepath.Join(path, containerExtent)); err != nil {
				return err
			} else if !busy { // by who is at it
				c.report(Finding{About: AboutVolume, ID: name, Path: filepath.Join(path, redoFile), Problem: "a copy into it was interrupted after it had been decided", Harmless: true,
					Advice: "the next use of the volume goes on with it"})
			}
			continue
		}
		if err == nil {
			err = c.d.checkVolume(name, c.o.Deep)
		}
		if still, statErr := exists(path); err == nil || statErr == nil && !still { // removed meanwhile
			continue
		}
		c.report(Finding{About: AboutVolume, ID: name, Path: path, Problem: err.Error(), Containers: users[name],
			Advice: fmt.Sprintf("restore the folder from a backup; or remove what uses it, and then vic volume rm %s", name)})
	}
	return nil
}

// growing tells whether a volume's extent file is larger than its descriptor or record says.
func (d Dir) growing(name string) bool {
	v, err := d.readVolume(name)
	if err != nil {
		return false
	}
	desc, err := d.readDescriptor(filepath.Join(d.volume(name), containerDisk))
	if err != nil {
		return false
	}
	f, err := os.Open(filepath.Join(d.volume(name), containerExtent))
	if err != nil {
		return false
	}
	defer f.Close() // read only
	fi, err := f.Stat()
	if err != nil {
		return false
	}
	e, err := vmdk.OpenExtent(f, fi.Size())
	return err == nil && e.Capacity() > min(v.Capacity, desc.Capacity())
}

// checkVolume says what is wrong with a volume.
func (d Dir) checkVolume(name string, deep bool) error {
	path := filepath.Join(d.volume(name), containerExtent)
	disk, err := d.openVolumeDisk(name, os.O_RDONLY)
	if err != nil {
		return err
	}
	defer disk.Close() // read only
	damage := func() error {
		if err := vmdk.Check(disk.links); err != nil || !deep {
			return err
		}
		fsys, err := diskfs.Open(disk, disk.Capacity())
		if err != nil || fsys.Unclean() || fsys.Foreign() { // the journal may mend what looks wrong
			return err
		}
		return fsys.Check(func(err error) error { return err })
	}
	// A VM that runs changes the disk while it is read.
	if busy, err := isLocked(path); busy || err != nil {
		return err
	}
	err = damage()
	if busy, lockErr := isLocked(path); busy || lockErr != nil {
		return lockErr
	}
	return err
}

// checkClaims checks which volumes containers say that they mount.
func (c *checker) checkClaims(ctx context.Context) error {
	return c.eachContainer(ctx, c.checkClaim)
}

func (c *checker) checkClaim(id string) error {
	lock, err := c.d.lockExclusive() // none is made or removed meanwhile
	if err != nil {
		return err
	}
	defer lock.unlock()
	remove := fmt.Sprintf("remove container %s", id)
	uses, err := c.d.readVolumeUses(id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		c.container(id, c.d.volumePin(id), remove+"; until then no volume can be removed", "%v", err)
		return nil
	}
	for _, u := range uses {
		if there, err := exists(c.d.volume(u.Name)); err != nil {
			return err
		} else if !there && u.Own { // which goes before the container does
			c.report(Finding{About: AboutContainer, ID: id, Path: c.d.volumePin(id), Problem: fmt.Sprintf("its own volume %s is missing: making or removing the container was interrupted", u.Name),
				Advice: remove, Harmless: true})
		} else if !there {
			c.container(id, c.d.volumePin(id), fmt.Sprintf("restore the volume from a backup, make it (vic volume create %s), or %s", u.Name, remove), "its volume %s is missing", u.Name)
		}
	}
	return nil
}
