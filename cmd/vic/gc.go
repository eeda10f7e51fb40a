package main

import (
	"errors"
	"fmt"

	"github.com/docker/go-units"
	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"vic/layerstore"
)

// sweep is what vic gc tells as JSON.
type sweep struct {
	Layers []digest.Digest `json:"layers"` // chain IDs of those that were removed
	Bytes  int64           `json:"bytes"`  // that they took
}

func gcCommand() *cobra.Command {
	var dir string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "gc --store DIR",
		Short: "Remove the layers that nothing needs",
		Long: `Remove every layer that no image, no container and no pull in flight needs, and what crashes left:
layers of pulls that were cut short, and of images whose removal was.

Images stay, with or without a name. A vic serve on the same store may be running, and pulls may go on.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withStore(cmd, dir, func(s *layerstore.Store) error {
				swept, err := s.Sweep(cmd.Context())
				if asJSON {
					return errors.Join(err, printJSON(cmd, sweep{append([]digest.Digest{}, swept.Layers...), swept.Bytes}))
				}
				for _, chain := range swept.Layers {
					fmt.Fprintln(cmd.OutOrStdout(), "deleted ", chain)
				}
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%d layers removed, %s freed\n", len(swept.Layers), units.HumanSize(float64(swept.Bytes)))
				return err
			})
		},
	}
	storeFlag(cmd, &dir)
	jsonFlag(cmd, &asJSON)
	return cmd
}
