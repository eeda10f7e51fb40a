package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"

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
		for _, name := range f.siteNames {
			if cmd.Flags().Changed(name) {
				err = errors.Join(err, usageErrorf("--%s is of no use without --volume-store", name))
			}
		}
		return l, err
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
func (f *volumeStoreFlags) with(cmd *cobra.Command, do func(*layerstore.Store) error) (err error) {
	l, err := f.location(cmd)
	if err != nil {
		return err
	}
	if f.dir != "" {
		return withStore(cmd, f.dir, do)
	}
	log := logger(cmd, slog.LevelWarn)
	session, logout, err := f.site.connect(cmd.Context(), log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, logout()) }()
	d, err := l.open(cmd.Context(), session, f.site.datacenter, "volume-store")
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "vic-volume-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	volumes := datastore.NewVolumes(map[string]*datastore.Datastore{datastore.DefaultVolumes: d}, datastore.VolumesOptions{VCH: nobody, Log: log})
	s, err := layerstore.Open(dir, layerstore.Options{VolumeDisks: volumes, Log: log})
	if err != nil {
		return fmt.Errorf("open store %s: %w", dir, err)
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	return do(s)
}
