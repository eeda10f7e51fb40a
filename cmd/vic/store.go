package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"text/tabwriter"
	"time"

	"github.com/docker/go-units"
	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"vic/layerstore"
)

// storeFlag adds --store to a command.
func storeFlag(cmd *cobra.Command, dir *string) {
	cmd.Flags().StringVar(dir, "store", "", "`folder` of the image store; made if it is not there")
	if err := cmd.MarkFlagRequired("store"); err != nil {
		panic(err) // the flag was added above
	}
}

// withStore opens the store for the time of f.
func withStore(cmd *cobra.Command, dir string, f func(*layerstore.Store) error) (err error) {
	s, err := layerstore.Open(dir, layerstore.Options{Log: logger(cmd, slog.LevelWarn)})
	if err != nil {
		return fmt.Errorf("open store %s: %w", dir, err)
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	return f(s)
}

// logger writes what is told to nobody else to standard error.
func logger(cmd *cobra.Command, level slog.Level) *slog.Logger {
	return slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: level}))
}

func lsCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "ls --store DIR",
		Short: "List images and layers",
		Long: `List the images of a store and the layers that they are made of.

SIZE is what the disks take on the datastore; images share layers, so the sizes of images add up to
more than the store takes. A layer with no images is left over from a pull that did not end.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withStore(cmd, dir, func(s *layerstore.Store) error { return list(cmd, s) })
		},
	}
	storeFlag(cmd, &dir)
	return cmd
}

func list(cmd *cobra.Command, s *layerstore.Store) error {
	images, err := s.Images()
	if err != nil {
		return err
	}
	layers, err := s.Layers()
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "IMAGE\tID\tLAYERS\tSIZE\tPULLED")
	for _, img := range images {
		for _, name := range orNone(namesOf(img)) {
			fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\n", name, short(img.ID), len(img.Layers), units.HumanSize(float64(img.Size())), img.Pulled.Format(time.RFC3339))
		}
	}
	fmt.Fprintln(w, "\nLAYER\tPARENT\tDEPTH\tSIZE\tIMAGES")
	for _, l := range layers {
		parent := "-"
		if l.Parent != "" {
			parent = short(l.Parent)
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%d\n", short(l.Chain), parent, l.Depth, units.HumanSize(float64(l.Stored)), len(l.Images))
	}
	return w.Flush()
}

// short is how IDs are shown to people.
func short(d digest.Digest) string { return d.Encoded()[:12] }

func diskCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "disk --store DIR REF",
		Short: "Print the path of an image's top VMDK",
		Long: `Print the path of the descriptor of an image's top disk. QEMU and its tools open it with the whole
chain below: qemu-img info, qemu-img convert, qemu-nbd --read-only. Nothing may write to it.

REF is a name as docker has it, or the beginning of an image's ID.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withStore(cmd, dir, func(s *layerstore.Store) error {
				img, err := findImage(s, dir, args[0])
				if err != nil {
					return err
				}
				path, err := s.DiskPath(img)
				if err != nil {
					return err
				}
				_, err = fmt.Fprintln(cmd.OutOrStdout(), path)
				return err
			})
		},
	}
	storeFlag(cmd, &dir)
	return cmd
}

func findImage(s *layerstore.Store, dir, ref string) (*layerstore.Image, error) {
	img, err := s.Image(ref)
	if errors.Is(err, layerstore.ErrNotFound) {
		return nil, fmt.Errorf("%w: vic ls --store %s lists what is there, vic pull gets it", err, dir)
	}
	return img, err
}

func rmCommand() *cobra.Command {
	var dir string
	var force bool
	cmd := &cobra.Command{
		Use:   "rm --store DIR REF...",
		Short: "Remove names of images, and what nothing needs any more",
		Long: `Remove a name of an image. With its last name the image goes, and every layer that no other image and
no container needs. An ID instead of a name removes the image with all its names.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withStore(cmd, dir, func(s *layerstore.Store) error {
				var failed error
				for _, ref := range args {
					deleted, err := s.Remove(ref, layerstore.RemoveOptions{Force: force})
					for _, d := range deleted {
						if d.Untagged != "" {
							fmt.Fprintln(cmd.OutOrStdout(), "untagged", d.Untagged)
						} else {
							fmt.Fprintln(cmd.OutOrStdout(), "deleted ", d.Deleted)
						}
					}
					failed = errors.Join(failed, err)
				}
				return failed
			})
		},
	}
	storeFlag(cmd, &dir)
	cmd.Flags().BoolVarP(&force, "force", "f", false, "also an image that a container uses, or that has names in several repositories;\nlayers that containers need stay")
	return cmd
}

func checkCommand() *cobra.Command {
	var dir string
	var deep bool
	cmd := &cobra.Command{
		Use:   "check --store DIR",
		Short: "Say what is damaged in a store and what to do about it",
		Long: `Check the disks, records and names of a store. Nothing is changed, and pulls and containers may go on.
The exit status is 1 if anything is damaged.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withStore(cmd, dir, func(s *layerstore.Store) error { return check(cmd.Context(), cmd, s, deep) })
		},
	}
	storeFlag(cmd, &dir)
	cmd.Flags().BoolVar(&deep, "deep", false, "also read every byte of every disk and compare checksums")
	return cmd
}

func check(ctx context.Context, cmd *cobra.Command, s *layerstore.Store, deep bool) error {
	damaged := 0
	out := cmd.OutOrStdout()
	err := s.Check(ctx, layerstore.CheckOptions{Deep: deep}, func(f layerstore.Finding) {
		kind := "damaged"
		if f.Harmless {
			kind = "left over"
		} else {
			damaged++
		}
		fmt.Fprintf(out, "%s: %s: %s\n", kind, f.Path, f.Problem)
		if f.Advice != "" {
			fmt.Fprintf(out, "  %s\n", f.Advice)
		}
	})
	if err != nil {
		return err
	}
	if damaged > 0 {
		return fmt.Errorf("%d things are damaged: do as it says below each", damaged)
	}
	_, err = fmt.Fprintln(out, "the store is sound")
	return err
}
