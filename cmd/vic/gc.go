package main

import (
	"errors"
	"fmt"

	"github.com/docker/go-units"
	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"vic/layerstore"
	datastore "vic/layerstore/vsphere"
)

// sweep is what vic gc tells as JSON.
type sweep struct {
	Layers []digest.Digest `json:"layers"`          // chain IDs of those that were removed
	Disks  []string        `json:"disks,omitempty"` // of a datastore: those that were removed
	Bytes  int64           `json:"bytes"`           // that they took
}

func gcCommand() *cobra.Command {
	var store storeFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "gc {--store DIR | --image-store DATASTORE}",
		Short: "Remove the layers that nothing needs",
		Long: `Remove every layer that no image, no container and no pull in flight needs, and what crashes left:
layers of pulls that were cut short, and of images whose removal was.

Images stay, with or without a name. A vic serve on the same store may be running, and pulls may go on.

On a datastore, what any VCH has or is pulling stays, and what a virtual machine stands on, whoever made
that. Images that vic seed has brought stay until vic rm removes them. What a vic seed that was killed has
left goes a day later.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return store.with(cmd, only{}, func(s *layerstore.Store) error {
				swept, err := s.Sweep(cmd.Context())
				if asJSON {
					return errors.Join(err, printJSON(cmd, sweep{Layers: append([]digest.Digest{}, swept.Layers...), Bytes: swept.Bytes}))
				}
				for _, chain := range swept.Layers {
					fmt.Fprintln(cmd.OutOrStdout(), "deleted ", chain)
				}
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%d layers removed, %s freed\n", len(swept.Layers), units.HumanSize(float64(swept.Bytes)))
				return err
			}, func(s *datastore.Store) error { return gcRemote(cmd, s, asJSON) })
		},
	}
	store.add(cmd)
	jsonFlag(cmd, &asJSON)
	return cmd
}
