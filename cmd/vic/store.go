package main

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"vic/layerstore"
	datastore "vic/layerstore/vsphere"
)

// storeFlag adds --store to a command.
func storeFlag(cmd *cobra.Command, dir *string) {
	cmd.Flags().StringVar(dir, "store", "", "`folder` of the image store; made if it is not there")
	if err := cmd.MarkFlagRequired("store"); err != nil {
		panic(err) // the flag was added above
	}
}

// withStore opens the store for the time of f.
func withStore(cmd *cobra.Command, dir string, f func(*layerstore.Store) error) error {
	return withStoreOf(dir, layerstore.Options{Log: logger(cmd, slog.LevelWarn)}, f)
}

func withStoreOf(dir string, o layerstore.Options, f func(*layerstore.Store) error) (err error) {
	s, err := layerstore.Open(dir, o)
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

// short is how IDs are shown to people.
func short(d digest.Digest) string { return d.Encoded()[:12] }

func diskCommand() *cobra.Command {
	var store storeFlags
	cmd := &cobra.Command{
		Use:   "disk {--store DIR | --image-store DATASTORE} REF",
		Short: "Print the path of an image's top VMDK",
		Long: `Print the path of the descriptor of an image's top disk. QEMU and its tools open it with the whole
chain below: qemu-img info, qemu-img convert, qemu-nbd --read-only. Nothing may write to it. On a datastore it
is the datastore path, [DATASTORE] FOLDER/FILE, as vSphere's clients take it.

REF is a name as docker has it, or the beginning of an image's ID.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return store.with(cmd, only{}, func(s *layerstore.Store) error {
				img, err := findImage(s, store.dir, args[0])
				if err != nil {
					return err
				}
				path, err := s.DiskPath(img)
				if err != nil {
					return err
				}
				_, err = fmt.Fprintln(cmd.OutOrStdout(), path)
				return err
			}, func(s *datastore.Store) error {
				name, err := findDisk(cmd.Context(), s, args[0])
				if err != nil {
					return err
				}
				_, err = fmt.Fprintln(cmd.OutOrStdout(), s.DiskPath(name))
				return err
			})
		},
	}
	store.add(cmd)
	return cmd
}

func findImage(s *layerstore.Store, dir, ref string) (*layerstore.Image, error) {
	img, err := s.Image(ref)
	if errors.Is(err, layerstore.ErrNotFound) {
		return nil, fmt.Errorf("%w: vic ls --store %s lists what is there, vic pull gets it", err, dir)
	}
	return img, err
}

// findChain returns the chain ID of an image's top layer or of a layer.
func findChain(s *layerstore.Store, dir, ref string) (digest.Digest, error) {
	chain, err := s.Chain(ref)
	if errors.Is(err, layerstore.ErrNotFound) {
		return "", fmt.Errorf("%w: vic ls --store %s lists what is there, vic pull gets it", err, dir)
	}
	return chain, err
}

func rmCommand() *cobra.Command {
	var store storeFlags
	var force bool
	cmd := &cobra.Command{
		Use:   "rm {--store DIR | --image-store DATASTORE} REF...",
		Short: "Remove names of images, and what nothing needs any more",
		Long: `Remove a name of an image. With its last name the image goes, and every layer that no other image and
no container needs. An ID instead of a name removes the image with all its names.

On a datastore it is images that vic seed has brought which are removed. What a VCH has is removed there, with
docker rmi, and its disks stay as long.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return store.with(cmd, only{local: []string{"force"}}, func(s *layerstore.Store) error {
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
			}, func(s *datastore.Store) error { return rmRemote(cmd, s, args) })
		},
	}
	store.add(cmd)
	cmd.Flags().BoolVarP(&force, "force", "f", false, "also an image that a container uses, or that has names in several repositories;\nlayers that containers need stay")
	return cmd
}
