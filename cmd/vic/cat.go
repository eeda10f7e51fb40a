package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"vic/diskfs"
	"vic/layerstore"
	datastore "vic/layerstore/vsphere"
)

func catCommand() *cobra.Command {
	var store storeFlags
	cmd := &cobra.Command{
		Use:   "cat {--store DIR | --image-store DATASTORE} REF PATH...",
		Short: "Print files of an image",
		Long: `Print files of an image, one after the other. Symlinks lead to where they lead in the image, never out of it.

REF is a name as docker has it, or the beginning of an image's ID or of a layer's chain ID.`,
		Example: `  vic cat --store /var/lib/vic debian:12 /etc/os-release`,
		Args:    cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withRootFS(cmd, &store, args[0], func(_ digest.Digest, f *diskfs.FS) error {
				var failed error
				for _, path := range args[1:] {
					failed = errors.Join(failed, catFile(cmd.OutOrStdout(), f, path))
				}
				return failed
			})
		},
	}
	store.add(cmd)
	return cmd
}

// withRootFS opens the file system of an image or a layer for the time of a function, which is told its topmost layer.
func withRootFS(cmd *cobra.Command, store *storeFlags, ref string, do func(digest.Digest, *diskfs.FS) error) error {
	return store.with(cmd, only{}, func(s *layerstore.Store) error {
		chain, err := findChain(s, store.dir, ref)
		if err != nil {
			return err
		}
		f, err := s.RootFS(cmd.Context(), chain)
		if err != nil {
			return err
		}
		defer f.Close() // read only
		return do(chain, f.FS)
	}, func(s *datastore.Store) error {
		name, err := findDisk(cmd.Context(), s, ref)
		if err != nil {
			return err
		}
		d, f, err := openRemoteFS(cmd.Context(), s, name)
		if err != nil {
			return err
		}
		defer d.Close() // read only
		return do(d.Chain(), f)
	})
}

func catFile(w io.Writer, f *diskfs.FS, path string) error {
	name, err := f.Find(path, true)
	if err != nil {
		return err
	}
	file, err := f.Open(name)
	if err != nil {
		return err
	}
	defer file.Close() // read only
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s: is a %s, not a file", quoted(path), typeNames[info.Mode().Type()])
	}
	_, err = io.Copy(w, file)
	return err
}
