package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"vic/layerstore"
)

func saveCommand() *cobra.Command {
	var store storeFlags
	var output string
	var asJSON bool
	var o layerstore.SaveOptions
	cmd := &cobra.Command{
		Use:   "save --store DIR [--compress] [-o FILE] REF...",
		Short: "Write images to a tar",
		Long: `Write images to a tar that is an OCI image layout and that docker load reads as well. Layers are the
tars that they were made from, made again from their disks and verified. They are not compressed, so
images keep their IDs but get new manifests.

With --compress they are compressed as they were in the registry, and images keep their manifests, so
their digests too. How a layer was compressed is found out by trial among what Go programs such as
docker, containerd and BuildKit use; where nothing fits, it is compressed anew, which is said.

A name without a tag stands for all tags of the repository. Without --output the tar goes to standard
output. A file appears whole or not at all.`,
		Example: `  vic save --store /var/lib/vic -o debian.tar debian:12
  skopeo copy oci-archive:debian.tar docker://registry.example/debian:12`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkJSON(asJSON, output); err != nil {
				return err
			}
			return store.withLocal(cmd, fmt.Sprintf(lacksTars, "save"), func(s *layerstore.Store) error {
				sv, err := s.Save(args, o)
				if err != nil {
					return err
				}
				defer sv.Close()
				m := newMeter(cmd.ErrOrStderr(), "save")
				defer m.clear()
				err = writeOutput(cmd, output, func(w io.Writer) error { return sv.Write(cmd.Context(), io.MultiWriter(w, m)) })
				if err != nil {
					return err
				}
				if asJSON {
					w := written{Repacked: sv.Repacked}
					for _, img := range sv.Images() {
						w.Images = append(w.Images, img.ID)
					}
					return w.print(cmd, output)
				}
				if sv.Repacked > 0 {
					m.clear()
					_, err = fmt.Fprintf(cmd.ErrOrStderr(), "%d layers could not be compressed as they were, and have other digests; images are the same\n", sv.Repacked)
				}
				return err
			})
		},
	}
	store.addRefused(cmd)
	outputFlag(cmd, &output)
	jsonFlag(cmd, &asJSON)
	cmd.Flags().BoolVar(&o.Compress, "compress", false, "compress layers as they were in the registry")
	return cmd
}
