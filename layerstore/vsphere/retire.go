package vsphere

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// Retire removes what a VCH that is no more has noted in the image store in d, the disks that nobody else needs, and with the last VCH and the
// last disk the store itself. Where there is no store, there is nothing to do.
func Retire(ctx context.Context, d *Datastore, vch string) error {
	if !vchName.MatchString(vch) {
		return fmt.Errorf("%q is no name of a VCH's folder", vch)
	}
	_, err := d.Stat(ctx, storeFile)
	if errors.Is(err, fs.ErrNotExist) {
		return d.removeStore(ctx) // what is left of one
	}
	if err != nil {
		return err
	}
	s, err := OpenStore(ctx, d, StoreOptions{VCH: vch})
	if err != nil {
		return err
	}
	if err := s.Leave(ctx); err != nil {
		return err
	}
	if _, err := s.Sweep(ctx); err != nil {
		return err
	}
	vchs, err := d.List(ctx, vchsFolder)
	if err != nil || slices.ContainsFunc(vchs, func(e Entry) bool { return e.Name != Seeds }) {
		return err
	}
	if none, err := d.noSeeds(ctx); err != nil || !none {
		return err
	}
	disks, err := d.List(ctx, disksFolder)
	if err != nil {
		return err
	}
	for _, f := range disks {
		if !strings.HasPrefix(f.Name, baseName+".") && !strings.HasPrefix(f.Name, baseName+"-flat.") {
			return nil // a virtual machine stands on it
		}
	}
	// The record first: without it there is no store, and who comes now makes another.
	if err := d.RemoveAll(ctx, storeFile); err != nil {
		return err
	}
	return d.removeStore(ctx)
}

// removeStore removes the folders of a store that has no record.
func (d *Datastore) removeStore(ctx context.Context) error {
	// The base disk may be an object, which does not go with its file.
	if err := d.deleteDisk(ctx, path.Join(disksFolder, baseName+".vmdk")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, name := range []string{disksFolder, vchsFolder} {
		if err := d.RemoveAll(ctx, name); err != nil {
			return err
		}
	}
	return nil
}
