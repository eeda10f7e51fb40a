package main

import (
	"io"

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
				m := newMeter(cmd.ErrOrStderr(), "save")
				defer m.clear()
				return writeOutput(cmd, output, func(w io.Writer) error { return sv.Write(cmd.Context(), io.MultiWriter(w, m)) })
			})
		},
	}
	storeFlag(cmd, &dir)
	outputFlag(cmd, &output)
	return cmd
}
