package vsphere

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
)

// RetireVolumes removes what a VCH that is no more has noted in a folder of volumes: the volumes stay. Where there are none, and no other VCH's notes,
// the rest goes too.
func RetireVolumes(ctx context.Context, d *Datastore, vch string) error {
	if !vchName.MatchString(vch) {
		return fmt.Errorf("%q is no name of a VCH's folder", vch)
	}
	u := underWay{d, vch}
	if err := u.recoverAll(ctx); err != nil {
		return err
	}
	all, err := u.all(ctx)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for name := range all {
		for _, suffix := range []string{usesSuffix, writesSuffix} {
			if err := d.RemoveAll(ctx, path.Join(volumesFolder, name, vch+suffix)); err != nil {
				return err
			}
		}
	}
	if err := d.RemoveAll(ctx, path.Join(vchsFolder, vch)); err != nil || len(all) > 0 {
		return err
	}
	if others, err := d.List(ctx, vchsFolder); err != nil && !errors.Is(err, fs.ErrNotExist) || len(others) > 0 {
		return err
	}
	empty, err := d.List(ctx, emptyFolder)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range empty { // which may be objects, that do not go with their files
		if strings.HasSuffix(e.Name, ".vmdk") && !strings.HasSuffix(e.Name, "-flat.vmdk") {
			if err := d.discard(ctx, path.Join(emptyFolder, e.Name)); err != nil {
				return err
			}
		}
	}
	for _, name := range []string{emptyFolder, volumesFolder, vchsFolder} {
		if err := d.RemoveAll(ctx, name); err != nil {
			return err
		}
	}
	return nil
}
