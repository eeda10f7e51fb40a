package main

import (
	"context"
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"vic/diskfs"
	"vic/layerstore"
	datastore "vic/layerstore/vsphere"
)

func diffCommand() *cobra.Command {
	var store storeFlags
	var each, asJSON bool
	cmd := &cobra.Command{
		Use:   "diff {--store DIR | --image-store DATASTORE} REF [REF2]",
		Short: "Tell what a layer changes, or how images differ",
		Long: `Tell what the top layer of an image changes, what each of its layers does, or how to come from one image
to another, as docker diff tells it: C is a path that changed, A one that was added, D one that was
deleted. A directory in which something changed counts as changed; its time does not. Files are
compared by what their inodes say, and by their contents only if that is the same.

REF is a name as docker has it, or the beginning of an image's ID or of a layer's chain ID.

On a datastore it is the disks whose changes are told in place of layers'. Where a disk there holds several layers it is theirs
together, and the lowest is compared with an empty file system.`,
		Example: `  vic diff --store /var/lib/vic debian:12 debian:13
  vic diff --store /var/lib/vic --layers my/app`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if each && len(args) == 2 {
				return usageErrorf("--layers is about one image, but two are named")
			}
			return store.with(cmd, only{}, func(s *layerstore.Store) error { return diff(cmd, s, store.dir, args, each, asJSON) },
				func(s *datastore.Store) error { return diffRemote(cmd, s, args, each, asJSON) })
		},
	}
	store.add(cmd)
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
	return printDiff(cmd, pairs, each, asJSON, func(i int, fn func(diskfs.Change) error) error {
		return s.Diff(cmd.Context(), pairs[i].From, pairs[i].To, fn)
	})
}

// printDiff prints differences that are found one after the other.
func printDiff(cmd *cobra.Command, pairs []differences, each, asJSON bool, find func(i int, fn func(diskfs.Change) error) error) error {
	out := cmd.OutOrStdout()
	for i := range pairs {
		p := &pairs[i]
		p.Changes = []change{}
		if each && !asJSON {
			fmt.Fprintf(out, "layer %s\n", p.To)
		}
		err := find(i, func(c diskfs.Change) error {
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

// diffRemote is diff on a datastore: of disks, "" for the empty one.
func diffRemote(cmd *cobra.Command, s *datastore.Store, args []string, each, asJSON bool) error {
	ctx := cmd.Context()
	name, err := findDisk(ctx, s, args[0])
	if err != nil {
		return err
	}
	type pair struct{ from, to string }
	pairs := []pair{{to: name}}
	if len(args) == 2 {
		pairs[0].from = name
		if pairs[0].to, err = findDisk(ctx, s, args[1]); err != nil {
			return err
		}
	} else {
		d, err := s.OpenDisk(ctx, name)
		if err != nil {
			return err
		}
		if err := d.Close(); err != nil {
			return err
		}
		names := slices.DeleteFunc(slices.Clone(d.Names), func(name string) bool { return datastore.ChainOf(name) == "" })
		pairs = pairs[:0]
		for i, name := range names {
			p := pair{to: name}
			if i+1 < len(names) {
				p.from = names[i+1]
			}
			pairs = append([]pair{p}, pairs...)
		}
		if !each {
			pairs = append(pairs[max(0, len(pairs)-1):], make([]pair, max(0, 1-len(pairs)))...)
		}
	}
	told := make([]differences, len(pairs))
	for i, p := range pairs {
		told[i] = differences{From: datastore.ChainOf(p.from), To: datastore.ChainOf(p.to)}
	}
	return printDiff(cmd, told, each, asJSON, func(i int, fn func(diskfs.Change) error) error {
		return diffDisks(ctx, s, pairs[i].from, pairs[i].to, fn)
	})
}

// diffDisks compares the file systems of two disks, of which "" is an empty one. What both have in one file is not read.
func diffDisks(ctx context.Context, s *datastore.Store, from, to string, fn func(diskfs.Change) error) error {
	var disks [2]*datastore.Disk
	var systems [2]*diskfs.FS
	for i, name := range []string{from, to} {
		var err error
		if name == "" {
			systems[i], _, err = diskfs.Format(diskfs.FormatOptions{Capacity: s.Capacity()})
		} else if disks[i], systems[i], err = openRemoteFS(ctx, s, name); err == nil {
			defer disks[i].Close() // read only
		}
		if err != nil {
			return err
		}
	}
	var o diskfs.DiffOptions
	if disks[0] != nil && disks[1] != nil {
		o.Same = func(off, n int64) (bool, error) { return disks[0].Same(disks[1], off, n) }
	}
	return diskfs.Diff(systems[0], systems[1], o, fn)
}
