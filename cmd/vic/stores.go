package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"vic/diskfs"
	"vic/layerstore"
	datastore "vic/layerstore/vsphere"
)

// storeFlags name a store: a folder of this machine, or one on a datastore of vSphere.
type storeFlags struct {
	dir        string
	imageStore string
	site       siteFlags
	siteNames  []string // of the flags that are of use with --image-store alone
}

// add adds the flags to a command.
func (f *storeFlags) add(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringVar(&f.dir, "store", "", "`folder` of the store; made if it is not there")
	fl.StringVar(&f.imageStore, "image-store", "", "in place of --store: `DATASTORE[/FOLDER]` of an image store on vSphere, as vic serve has it; the default folder is "+imageFolder)
	f.siteNames = named(fl, func() { f.site.add(fl) })
}

// addRefused adds the flags to a command that works on stores of this machine alone, so that it says why.
func (f *storeFlags) addRefused(cmd *cobra.Command) {
	f.add(cmd)
	for _, name := range append(f.siteNames, "image-store") {
		if err := cmd.Flags().MarkHidden(name); err != nil {
			panic(err) // the flag was added above
		}
	}
}

// withLocal opens the store of this machine for the time of a function. Where one on a datastore is named, the error says what that lacks.
func (f *storeFlags) withLocal(cmd *cobra.Command, lacks string, do func(*layerstore.Store) error) error {
	if f.imageStore != "" {
		return usageErrorf("vic %s does not work on an image store on a datastore: %s", cmd.Name(), lacks)
	}
	if f.dir == "" {
		return usageErrorf("name a store: --store DIR")
	}
	if err := f.check(cmd.Flags(), only{}, false); err != nil {
		return err
	}
	return withStore(cmd, f.dir, do)
}

// lacksTars is why layers' tars cannot be had from a datastore.
const lacksTars = "that has the disks which virtual machines need, but no image's manifest and config, and not what its layers' tars are made again from, " +
	"bit for bit. The VCH that has the image has all of it: docker %s there; or vic pull --store DIR, and vic %[1]s --store DIR"

// only names flags that are of no use with --image-store, or without it.
type only struct {
	local, remote []string
}

// check refuses flags that do not go together. With both, --store may be given beside --image-store.
func (f *storeFlags) check(fl *pflag.FlagSet, o only, both bool) error {
	switch {
	case f.imageStore == "" && f.dir == "":
		return usageErrorf("name a store: --store DIR, or --image-store DATASTORE[/FOLDER] of vSphere")
	case f.imageStore == "":
		return refuse(fl, append(f.siteNames, o.remote...), "is of no use without --image-store")
	case f.dir != "" && !both:
		return usageErrorf("--store and --image-store: give one of them")
	}
	_, err := parseLocation("image-store", f.imageStore, imageFolder)
	return errors.Join(err, f.site.check("--image-store"), refuse(fl, o.local, "does not work on a datastore"))
}

// with opens the store that the flags name for the time of a function. A store on a datastore must be there.
func (f *storeFlags) with(cmd *cobra.Command, o only, local func(*layerstore.Store) error, remote func(*datastore.Store) error) error {
	if err := f.check(cmd.Flags(), o, false); err != nil {
		return err
	}
	if f.imageStore == "" {
		return withStore(cmd, f.dir, local)
	}
	return f.withRemote(cmd, remote)
}

// withRemote opens a store on a datastore that is there.
func (f *storeFlags) withRemote(cmd *cobra.Command, do func(*datastore.Store) error) error {
	return f.withDatastore(cmd, func(d *datastore.Datastore, log *slog.Logger) error {
		s, err := datastore.FindStore(cmd.Context(), d, log)
		if err != nil {
			return err
		}
		return do(s)
	})
}

// seedFlags are of commands that bring images to a store on a datastore, which may be made for them.
type seedFlags struct {
	encoding, pool, folder string
	names                  []string
}

func (f *seedFlags) add(fl *pflag.FlagSet) {
	f.names = named(fl, func() {
		fl.StringVar(&f.encoding, "image-format", "", "`format` of the disks of an image store that is made: vmfsSparse, blockWriter, flattened, or hosted, which only simulated hosts take; default what suits the datastore")
		fl.StringVar(&f.pool, "compute-resource", "", "inventory `path` of the resource pool of VMs that bring flattened disks; default the only one")
		fl.StringVar(&f.folder, "vm-folder", "", "inventory `path` of the folder of such VMs; default the datacenter's")
	})
}

// withSeeds opens the store for images to be brought to: the one of this machine, or one on a datastore, whose images belong to no VCH, behind
// a store of this machine through which they come: --store, or one for the time of this.
func (f *storeFlags) withSeeds(cmd *cobra.Command, sf seedFlags, do func(local *layerstore.Store, seeds *datastore.Store) error) error {
	if err := f.check(cmd.Flags(), only{remote: sf.names}, true); err != nil {
		return err
	}
	if f.imageStore == "" {
		return withStore(cmd, f.dir, func(s *layerstore.Store) error { return do(s, nil) })
	}
	return f.withDatastore(cmd, func(d *datastore.Datastore, log *slog.Logger) (err error) {
		seeds, err := datastore.OpenStore(cmd.Context(), d, datastore.StoreOptions{
			VCH: datastore.Seeds, Encoding: datastore.Encoding(sf.encoding), Place: datastore.Place{Pool: sf.pool, Folder: sf.folder}, Log: log,
		})
		if err != nil {
			return err
		}
		o := layerstore.Options{Capacity: seeds.Capacity(), Mirror: seeds, Log: log}
		return withStoreOrNew(f.dir, "vic-seed-", o, func(local *layerstore.Store) error { return do(local, seeds) })
	})
}

// withDatastore logs in and opens the folder of --image-store.
func (f *storeFlags) withDatastore(cmd *cobra.Command, do func(*datastore.Datastore, *slog.Logger) error) error {
	l, err := parseLocation("image-store", f.imageStore, imageFolder)
	if err != nil {
		return err
	}
	return f.site.open(cmd, l, "image-store", do)
}

// withStoreOrNew opens a store of this machine for the time of a function: that in dir, or a new one that is gone after it.
func withStoreOrNew(dir, prefix string, o layerstore.Options, do func(*layerstore.Store) error) (err error) {
	if dir == "" {
		if dir, err = os.MkdirTemp("", prefix); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	}
	return withStoreOf(dir, o, do)
}

// openRemoteFS opens a disk of a store on a datastore, and its file system. The caller closes the disk.
func openRemoteFS(ctx context.Context, s *datastore.Store, name string) (*datastore.Disk, *diskfs.FS, error) {
	d, err := s.OpenDisk(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	f, err := diskfs.Open(d, d.Capacity())
	if err != nil {
		d.Close() // read only
		return nil, nil, fmt.Errorf("open file system of disk %s: %w", s.DiskPath(name), err)
	}
	return d, f, nil
}

// findDisk returns the name of the disk that shows an image, or a layer by the beginning of its chain ID.
func findDisk(ctx context.Context, s *datastore.Store, ref string) (string, error) {
	img, err := s.Image(ctx, ref)
	if err == nil {
		return img.Disks[0], nil
	}
	if !errors.Is(err, layerstore.ErrNotFound) {
		return "", err
	}
	name, findErr := s.FindDisk(ctx, ref)
	if errors.Is(findErr, layerstore.ErrNotFound) {
		return "", fmt.Errorf("%w: vic ls --image-store lists what is there, vic seed brings it", findErr)
	}
	return name, findErr
}
