package main

import (
	"fmt"

	"github.com/docker/go-units"
	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"vic/layerstore"
)

func flattenCommand() *cobra.Command {
	var store storeFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "flatten --store DIR [--json] REF",
		Short: "Make an image's chain of disks one disk",
		Long: `Make the chain of an image's disks one disk, which takes the place of the top one. A shorter chain is
quicker to open and to read. The image stays what it is: its ID and its layers' diff IDs, images built on
it, and containers, also while they run.

Disks of its layers that no other image and no container stands on are removed; where an image that is
pulled later has such a layer, its disk is made again from the one disk, without the network. While it
works the store needs room for the image a second time.

REF is a name as docker has it, or the beginning of an image's ID.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return store.withLocal(cmd, "disks there never change, as virtual machines stand on them; a store that is made with --image-format flattened has one disk for each image", func(s *layerstore.Store) error {
				m := newMeter(cmd.ErrOrStderr(), args[0])
				f, err := s.Flatten(cmd.Context(), args[0], m.set)
				m.clear()
				if err != nil {
					return err
				}
				return printFlattened(cmd, f, asJSON)
			})
		},
	}
	store.addRefused(cmd)
	jsonFlag(cmd, &asJSON)
	return cmd
}

func printFlattened(cmd *cobra.Command, f *layerstore.Flattened, asJSON bool) error {
	if asJSON {
		merged := f.Merged
		if merged == nil {
			merged = []digest.Digest{}
		}
		return printJSON(cmd, struct {
			Image   digest.Digest   `json:"image"`
			Was     int             `json:"was"` // disks in the chain
			Written int64           `json:"written"`
			Freed   int64           `json:"freed"`
			Merged  []digest.Digest `json:"merged"` // chain IDs
		}{f.Image.ID, f.Was, f.Written, f.Freed, merged})
	}
	w := cmd.OutOrStdout()
	if f.Written == 0 {
		fmt.Fprintf(w, "%s: one disk already\n", short(f.Image.ID))
	} else {
		fmt.Fprintf(w, "%s: %d disks are one, of %s\n", short(f.Image.ID), f.Was, units.HumanSize(float64(f.Written)))
	}
	_, err := fmt.Fprintf(w, "%d disks of layers removed, %s freed\n", len(f.Merged), units.HumanSize(float64(f.Freed)))
	return err
}
