package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"vic/layerstore"
	"vic/layerstore/mount"
	datastore "vic/layerstore/vsphere"
)

func mountCommand() *cobra.Command {
	var store storeFlags
	var allowOther bool
	cmd := &cobra.Command{
		Use:   "mount {--store DIR | --image-store DATASTORE} FOLDER",
		Short: "Show images and layers as files, read-only",
		Long: `Show what a store has as files, read-only, by FUSE, until it is interrupted or somebody unmounts FOLDER:

  images/NAME/rootfs        an image's root file system, as containers see it
  images/ID/rootfs          the same; NAME (docker.io/library/debian:12) is a symlink to ID
  images/ID/config.json, manifest.json, disk.raw, layers/
  layers/CHAINID/disk.raw   the disk with this layer on top, as raw bytes
  layers/CHAINID/diff       what the layer itself brought, whiteouts as .wh. files
  layers/CHAINID/layer.json

images/debian:12 and images/3f29 (the beginning of an ID) work as well, although they are not listed.

On a datastore there are rootfs, disk.raw and layers of each image, and disk.raw of each layer: its images have
no config and no changesets there. Files are read as they are asked for, and ahead. What VCHs have brought since
is seen within seconds.

Pulls, removals and vic serve may go on: new images appear, removed ones vanish, and a file that is open
stays readable until it is closed. Without root it takes fusermount3 (package fuse3). Only the user who
mounts may look inside, and sees all; --allow-other lets others see what files' owners and modes let them.

If FOLDER is in use when the command is interrupted, it is detached: nobody new gets in, and the command
ends with the last user, or when it is interrupted again.`,
		Example: `  vic mount --store /var/lib/vic /mnt/vic &
  tar -C /mnt/vic/images/debian:12/rootfs --xattrs -cf debian.tar .
  fusermount3 -u /mnt/vic`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return mountStore(cmd, &store, args[0], allowOther)
		},
	}
	store.add(cmd)
	cmd.Flags().BoolVar(&allowOther, "allow-other", false, "let other users look inside; takes root or user_allow_other in /etc/fuse.conf")
	return cmd
}

func mountStore(cmd *cobra.Command, store *storeFlags, folder string, allowOther bool) error {
	if err := store.check(cmd.Flags(), only{}, false); err != nil {
		return err
	}
	if store.imageStore == "" {
		if _, err := os.Stat(store.dir); err != nil { // there is nothing to see in a new one
			return fmt.Errorf("open store: %w", err)
		}
	}
	died, err := mount.Recover(folder)
	if err != nil {
		return err
	}
	if died {
		fmt.Fprintf(cmd.ErrOrStderr(), "%s: unmounted what a vic mount that died had left\n", folder)
	}
	o := mount.Options{AllowOther: allowOther, Log: logger(cmd, slog.LevelWarn)}
	show := func(v *mount.View, what string) error {
		fmt.Fprintf(cmd.OutOrStdout(), "%s shows %s; interrupt this, or fusermount3 -u %s, to end it\n", folder, what, folder)
		return untilUnmounted(cmd.Context(), cmd, v, folder)
	}
	return store.with(cmd, only{}, func(s *layerstore.Store) error {
		v, err := mount.Mount(s, folder, o)
		if err != nil {
			return err
		}
		return show(v, store.dir)
	}, func(s *datastore.Store) error {
		// Who has a file open when this is interrupted reads on.
		ctx, cancel := context.WithCancel(context.WithoutCancel(cmd.Context()))
		defer cancel()
		v, err := mount.MountSource(&datastoreSource{Store: s, ctx: ctx}, s.Path(), folder, o)
		if err != nil {
			return err
		}
		return show(v, s.Path())
	})
}

// untilUnmounted returns once the view is no more: unmounted by others, or because ctx ended.
func untilUnmounted(ctx context.Context, cmd *cobra.Command, v *mount.View, folder string) error {
	select {
	case <-v.Done():
		return nil
	case <-ctx.Done():
	}
	again := make(chan os.Signal, 1)
	signal.Notify(again, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(again)
	users := v.Users()
	err := v.Unmount()
	if !errors.Is(err, mount.ErrBusy) {
		return err
	}
	if err := v.Detach(); err != nil {
		return err
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "%s is in use%s: detached, this ends with its last user; interrupt again to cut them off\n", folder, listUsers(users))
	select {
	case <-v.Done():
		return nil
	case <-again:
		return fmt.Errorf("%s: ended while files were open: their users get errors", folder)
	}
}

// listUsers names some of the processes that use a view.
func listUsers(users []mount.User) string {
	const most = 5
	var names []string
	for _, u := range users[:min(most, len(users))] {
		names = append(names, u.String())
	}
	switch {
	case len(users) == 0:
		return ""
	case len(users) > most:
		names = append(names, "others")
	}
	return " by " + strings.Join(names, ", ")
}
