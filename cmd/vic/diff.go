package main

import (
	"fmt"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"vic/diskfs"
	"vic/layerstore"
)

func diffCommand() *cobra.Command {
	var dir string
	var each, asJSON bool
	cmd := &cobra.Command{
		Use:   "diff --store DIR REF [REF2]",
		Short: "Tell what a layer changes, or how images differ",
		Long: `Tell what the top layer of an image changes, what each of its layers does, or how to come from one image
to another, as docker diff tells it: C is a path that changed, A one that was added, D one that was
deleted. A directory in which something changed counts as changed; its time does not. Files are
compared by what their inodes say, and by their contents only if that is the same.

REF is a name as docker has it, or the beginning of an image's ID or of a layer's chain ID.`,
		Example: `  vic diff --store /var/lib/vic debian:12 debian:13
  vic diff --store /var/lib/vic --layers my/app`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if each && len(args) == 2 {
				return usageErrorf("--layers is about one image, but two are named")
			}
			return withStore(cmd, dir, func(s *layerstore.Store) error { return diff(cmd, s, dir, args, each, asJSON) })
		},
	}
	storeFlag(cmd, &dir)
	jsonFlag(cmd, &asJSON)
	cmd.Flags().BoolVar(&each, "layers", false, "tell of each layer of the image, the lowest first")
	return cmd
}

// differences are what vic diff tells as JSON.
type differences struct {
	From    digest.Digest `json:"from,omitempty"` // chain ID; none for the empty disk
	To      digest.Digest `json:"to,omitempty"`
	Changes []change      `json:"changes"`
}

type change struct {
	Path    string   `json:"path"`
	RawPath []byte   `json:"rawPath,omitempty"` // if the path is not UTF-8
	Kind    string   `json:"kind"`              // C, A or D
	What    []string `json:"what,omitempty"`    // differs, if the kind is C
}

func diff(cmd *cobra.Command, s *layerstore.Store, dir string, args []string, each, asJSON bool) error {
	chain, err := findChain(s, dir, args[0])
	if err != nil {
		return err
	}
	pairs := []differences{{To: chain}}
	if len(args) == 2 {
		pairs[0].From = chain
		if pairs[0].To, err = findChain(s, dir, args[1]); err != nil {
			return err
		}
	} else if layers, err := s.Lineage(chain); err != nil {
		return err
	} else if each {
		pairs = pairs[:0]
		for _, l := range layers {
			pairs = append(pairs, differences{From: l.Parent, To: l.Chain})
		}
	} else if len(layers) > 0 {
		pairs[0].From = layers[len(layers)-1].Parent
	}
	out := cmd.OutOrStdout()
	for i := range pairs {
		p := &pairs[i]
		p.Changes = []change{}
		if each && !asJSON {
			fmt.Fprintf(out, "layer %s\n", p.To)
		}
		err := s.Diff(cmd.Context(), p.From, p.To, func(c diskfs.Change) error {
			if asJSON {
				p.Changes = append(p.Changes, change{c.Path, rawName(c.Path), c.Kind.String(), c.What})
				return nil
			}
			_, err := fmt.Fprintf(out, "%s %s\n", c.Kind, shown(out, c.Path))
			return err
		})
		if err != nil {
			return err
		}
	}
	if asJSON {
		return printJSON(cmd, pairs)
	}
	return nil
}
