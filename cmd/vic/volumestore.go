package main

import (
	"errors"
	"log/slog"

	"github.com/spf13/cobra"

	"vic/layerstore"
	datastore "vic/layerstore/vsphere"
)

// volumeStoreFlags name the store of a command about a volume: a folder of this machine, or a volume store of vSphere.
type volumeStoreFlags struct {
	dir         string
	volumeStore string
	site        siteFlags
	siteNames   []string // of the flags that are of use with --volume-store alone
}

func (f *volumeStoreFlags) add(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringVar(&f.dir, "store", "", "`folder` of the store")
	fl.StringVar(&f.volumeStore, "volume-store", "", "in place of --store: `DATASTORE/FOLDER` of volumes on vSphere")
	f.siteNames = named(fl, func() { f.site.add(fl) })
}

// location is that of --volume-store, after what is wrong with the flags.
func (f *volumeStoreFlags) location(cmd *cobra.Command) (l location, err error) {
	switch {
	case f.dir == "" && f.volumeStore == "":
		return l, usageErrorf("name a store: --store DIR, or --volume-store DATASTORE/FOLDER of vSphere")
	case f.dir != "" && f.volumeStore != "":
		return l, usageErrorf("--store and --volume-store: give one of them")
	case f.dir != "":
		return l, refuse(cmd.Flags(), f.siteNames, "is of no use without --volume-store")
	}
	l, err = parseLocation("volume-store", f.volumeStore, "")
	if err == nil && l.folder == "" {
		err = usageErrorf("--volume-store %s: it must be DATASTORE/FOLDER", f.volumeStore)
	}
	return l, errors.Join(err, f.site.check("--volume-store"))
}

// nobody is who looks at a volume store and is no VCH: none has such a name.
const nobody = "_"

// with opens the store that the flags name for the time of a function. What is kept of volumes on vSphere is gone after it.
func (f *volumeStoreFlags) with(cmd *cobra.Command, do func(*layerstore.Store) error) error {
	l, err := f.location(cmd)
	if err != nil {
		return err
	}
	if f.dir != "" {
		return withStore(cmd, f.dir, do)
	}
	return f.site.open(cmd, l, "volume-store", func(d *datastore.Datastore, log *slog.Logger) error {
		volumes := datastore.NewVolumes(map[string]*datastore.Datastore{datastore.DefaultVolumes: d}, datastore.VolumesOptions{VCH: nobody, Log: log})
		return withStoreOrNew("", "vic-volume-", layerstore.Options{VolumeDisks: volumes, Log: log}, do)
	})
}
