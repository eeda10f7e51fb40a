package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"vic/layerstore"
)

func saveCommand() *cobra.Command {
	var dir, output string
	cmd := &cobra.Command{
		Use:   "save --store DIR [-o FILE] REF...",
		Short: "Write images to a tar",
		Long: `Write images to a tar that is an OCI image layout and that docker load reads as well. Layers are the
tars that they were made from, made again from their disks and verified; they are not compressed, so
images keep their IDs but get new manifests.

A name without a tag stands for all tags of the repository. Without --output the tar goes to standard
output. A file appears whole or not at all.`,
		Example: `  vic save --store /var/lib/vic -o debian.tar debian:12
  skopeo copy oci-archive:debian.tar docker://registry.example/debian:12`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withStore(cmd, dir, func(s *layerstore.Store) error {
				sv, err := s.Save(args)
				if err != nil {
					return err
				}
				defer sv.Close()
				if output != "" {
					return saveTo(cmd.Context(), sv, output)
				}
				if isTerminal(cmd.OutOrStdout()) {
					return errors.New("standard output is a terminal: name a file with --output, or redirect it")
				}
				return sv.Write(cmd.Context(), cmd.OutOrStdout())
			})
		},
	}
	storeFlag(cmd, &dir)
	cmd.Flags().StringVarP(&output, "output", "o", "", "`FILE` to write instead of standard output")
	return cmd
}

// saveTo writes a new file, which gets its name once it is complete and durable.
func saveTo(ctx context.Context, sv *layerstore.Saving, path string) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
			err = fmt.Errorf("write %s: %w", path, err)
		}
	}()
	err = sv.Write(ctx, f)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
