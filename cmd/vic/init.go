package main

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"vic/layerstore"
)

func initCommand() *cobra.Command {
	var dir, capacity string
	var depth int
	cmd := &cobra.Command{
		Use:   "init --store DIR [--capacity SIZE] [--depth N]",
		Short: "Make an image store",
		Long: `Make an image store in a folder that is empty or not there. Other commands do so as well, with the
defaults; what a store is made with holds as long as it exists. It is no error if there is a store of that
kind already.`,
		Example: `  vic init --store /var/lib/vic --capacity 200G`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			o := layerstore.Options{Depth: depth, Log: logger(cmd, slog.LevelWarn)}
			if o.Capacity, err = units.RAMInBytes(capacity); err != nil {
				return usageErrorf("--capacity %s: %w", capacity, err)
			}
			if o.Capacity <= 0 || o.Depth <= 0 {
				return usageErrorf("--capacity and --depth must be more than 0")
			}
			s, err := layerstore.Open(dir, o)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, s.Close()) }()
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: disks of %s, chains of %d\n", dir, units.BytesSize(float64(s.Capacity())), depth)
			return err
		},
	}
	storeFlag(cmd, &dir)
	cmd.Flags().StringVar(&capacity, "capacity", units.BytesSize(layerstore.DefaultCapacity), "`size` of every disk, a multiple of 64 KiB: what a container can hold")
	cmd.Flags().IntVar(&depth, "depth", layerstore.DefaultDepth, "greatest `number` of disks in a container's chain, its own included")
	return cmd
}
