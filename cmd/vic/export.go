package main

import (
	"io"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"vic/diskfs"
)

func exportCommand() *cobra.Command {
	var store storeFlags
	var output string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "export {--store DIR | --image-store DATASTORE} [-o FILE] REF",
		Short: "Write an image's root file system as one tar",
		Long: `Write the root file system of an image, all layers in one, as a tar that docker import and GNU tar read.
It begins with the root; names are in ascending order, and equal images give equal bytes. Hard links,
devices, extended attributes and nanoseconds are kept; sockets are not, since a tar cannot hold them.
Holes of sparse files are written as zeros.

REF is a name as docker has it, or the beginning of an image's ID or of a layer's chain ID. Without
--output the tar goes to standard output. A file appears whole or not at all.`,
		Example: `  vic export --store /var/lib/vic -o rootfs.tar debian:12
  vic export --store /var/lib/vic debian:12 | tar -C /srv/chroot --xattrs --xattrs-include='*' --numeric-owner -xpf -`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkJSON(asJSON, output); err != nil {
				return err
			}
			return withRootFS(cmd, &store, args[0], func(chain digest.Digest, f *diskfs.FS) error {
				m := newMeter(cmd.ErrOrStderr(), "export")
				defer m.clear()
				err := writeOutput(cmd, output, func(w io.Writer) error {
					return f.WriteTar(contextWriter{cmd.Context(), io.MultiWriter(w, m)})
				})
				if err != nil || !asJSON {
					return err
				}
				return written{Chain: chain}.print(cmd, output)
			})
		},
	}
	store.add(cmd)
	outputFlag(cmd, &output)
	jsonFlag(cmd, &asJSON)
	return cmd
}
