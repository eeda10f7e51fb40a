package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"vic/diskfs"
	"vic/layerstore"
)

func catCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "cat --store DIR REF PATH...",
		Short: "Print files of an image",
		Long: `Print files of an image, one after the other. Symlinks lead to where they lead in the image, never out of it.

REF is a name as docker has it, or the beginning of an image's ID or of a layer's chain ID.`,
		Example: `  vic cat --store /var/lib/vic debian:12 /etc/os-release`,
		Args:    cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withStore(cmd, dir, func(s *layerstore.Store) error {
				chain, err := findChain(s, dir, args[0])
				if err != nil {
					return err
				}
				f, err := s.RootFS(cmd.Context(), chain)
				if err != nil {
					return err
				}
				defer f.Close() // read only
				var failed error
				for _, path := range args[1:] {
					failed = errors.Join(failed, catFile(cmd.OutOrStdout(), f.FS, path))
				}
				return failed
			})
		},
	}
	storeFlag(cmd, &dir)
	return cmd
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
