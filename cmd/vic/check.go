package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/distribution/reference"
	"github.com/spf13/cobra"

	"vic/fetch"
	"vic/layerstore"
	datastore "vic/layerstore/vsphere"
)

type checkFlags struct {
	deep, repair, drop, asJSON bool
	insecure                   []string
}

func checkCommand() *cobra.Command {
	var store storeFlags
	var f checkFlags
	cmd := &cobra.Command{
		Use:   "check {--store DIR | --image-store DATASTORE}",
		Short: "Say what is damaged in a store, and mend it",
		Long: `Check the disks, records and names of a store, and say which images and containers each damage affects
and what to do about it. Pulls and containers may go on. Nothing is changed without --repair.

With --repair, layers that are damaged or missing are made again: from other layers with the same tar,
from what is left of them, or from the registries that the images' names tell of. A new disk takes the
place of the old one only if it has the bytes that were there before. A layer under a container that
runs is left until that is stopped. Files that belong to nothing are removed, and damaged layers that
nothing needs. What cannot be mended stays, unless --drop says to remove such images, with their
names and what nothing else needs. What a container needs is never removed.

On a datastore it is the disks' files, descriptors and records, and the records of all VCHs' images, that
are checked; --deep reads every extent that was uploaded and compares its checksum. With --store as well,
each disk whose layers are there is read and compared with them byte by byte, which says something of
disks that the server made, too. With --repair, disks that were uploaded get the files again that they had,
made of the layers in --store or in their images' registries, if these give the same bytes; what nobody needs
goes as with vic gc. A disk that a virtual machine runs on is left until that is stopped.

The exit status is 1 if anything is damaged, after a repair if anything still is.`,
		Example: `  vic check --store /var/lib/vic --deep
  vic check --store /var/lib/vic --deep --repair
  vic check --target vcenter --user admin --thumbprint 1A:2B:... --image-store datastore1/vic --deep`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.drop && !f.repair {
				return usageErrorf("--drop removes what --repair cannot mend: give both")
			}
			if len(f.insecure) > 0 && !f.repair {
				return usageErrorf("--insecure-registry is about --repair, which is not given")
			}
			if err := store.check(cmd.Flags(), only{local: []string{"drop"}}, true); err != nil {
				return err
			}
			if store.imageStore != "" {
				return store.withRemote(cmd, func(s *datastore.Store) error { return checkRemote(cmd, s, store.dir, f) })
			}
			return withStore(cmd, store.dir, func(s *layerstore.Store) error { return check(cmd.Context(), cmd, s, f) })
		},
	}
	store.add(cmd)
	jsonFlag(cmd, &f.asJSON)
	insecureFlag(cmd, &f.insecure)
	cmd.Flags().BoolVar(&f.deep, "deep", false, "also read every byte of every disk, and rebuild every layer's tar:\nit must have the digest that the image's config gives")
	cmd.Flags().BoolVar(&f.repair, "repair", false, "mend what is damaged")
	cmd.Flags().BoolVar(&f.drop, "drop", false, "after a repair, remove images that are still damaged")
	return cmd
}

// checked is what vic check tells as JSON.
type checked struct {
	Findings []layerstore.Finding  `json:"findings"`
	Repaired []layerstore.Repaired `json:"repaired"`
	Left     []layerstore.Finding  `json:"left"`  // what is wrong after the repair, or without one
	Sound    bool                  `json:"sound"` // nothing is damaged, now
}

func check(ctx context.Context, cmd *cobra.Command, s *layerstore.Store, f checkFlags) error {
	out := cmd.OutOrStdout()
	m := newMeter(cmd.ErrOrStderr(), "check")
	bar := newProgress(cmd.ErrOrStderr(), "repair", "fetched")
	clear := func() {
		m.clear()
		bar.clear()
	}
	defer clear()
	result := checked{Findings: []layerstore.Finding{}, Repaired: []layerstore.Repaired{}, Left: []layerstore.Finding{}}
	found := func(x layerstore.Finding) {
		result.Findings = append(result.Findings, x)
		if !f.asJSON {
			clear()
			fmt.Fprint(out, findingText(x))
		}
	}
	o := layerstore.CheckOptions{Deep: f.deep, Progress: func(p layerstore.CheckProgress) {
		if p.TotalBytes > 0 {
			m.set(p.Bytes, p.TotalBytes)
		}
	}}
	if f.repair {
		ro := layerstore.RepairOptions{CheckOptions: o, Fetch: fetcher(newRegistry(f.insecure)), Drop: f.drop, Pulled: bar.layer}
		left, err := s.Repair(ctx, ro, found, func(r layerstore.Repaired) {
			result.Repaired = append(result.Repaired, r)
			if !f.asJSON {
				clear()
				fmt.Fprintln(out, "repair:", r.Done)
			}
		})
		if err != nil {
			return err
		}
		result.Left = append(result.Left, left...)
		for _, x := range left {
			if !f.asJSON {
				clear()
				fmt.Fprint(out, "still ", findingText(x))
			}
		}
	} else if err := s.Check(ctx, o, found); err != nil {
		return err
	} else {
		result.Left = result.Findings
	}
	clear()
	return result.end(cmd, f.asJSON)
}

// end tells the outcome, and is an error if something is damaged.
func (result *checked) end(cmd *cobra.Command, asJSON bool) (err error) {
	damaged := 0
	for _, x := range result.Left {
		if !x.Harmless {
			damaged++
		}
	}
	result.Sound = damaged == 0
	if asJSON {
		err = printJSON(cmd, result)
	} else if result.Sound {
		_, err = fmt.Fprintln(cmd.OutOrStdout(), "the store is sound")
	}
	if damaged > 0 {
		err = errors.Join(err, fmt.Errorf("%d things are damaged: do as it says below each", damaged))
	}
	return err
}

// findingText says what there is to say of a finding.
func findingText(x layerstore.Finding) string {
	var b strings.Builder
	kind := "damaged"
	if x.Harmless {
		kind = "left over"
	}
	fmt.Fprintf(&b, "%s: %s: %s\n", kind, x.Path, x.Problem)
	if len(x.Images) > 0 {
		fmt.Fprintf(&b, "  images: %s\n", strings.Join(x.Images, ", "))
	}
	if len(x.Containers) > 0 {
		fmt.Fprintf(&b, "  containers: %s\n", strings.Join(x.Containers, ", "))
	}
	if x.Unrepaired != "" {
		fmt.Fprintf(&b, "  not repaired: %s\n", x.Unrepaired)
	}
	if x.Advice != "" {
		fmt.Fprintf(&b, "  %s\n", x.Advice)
	}
	return b.String()
}

// fetcher finds images for a repair, with the credentials that docker login keeps.
func fetcher(registry *fetch.Client) func(context.Context, reference.Named) (layerstore.Source, error) {
	return func(ctx context.Context, name reference.Named) (layerstore.Source, error) {
		creds, err := storedCredentials(ctx, name)
		if err != nil {
			return nil, err
		}
		src, err := registry.Resolve(ctx, name, fetch.ResolveOptions{Credentials: creds})
		if err != nil {
			return nil, err
		}
		return src, nil
	}
}
