package main

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"vic/fetch"
	"vic/layerstore"
)

func pushCommand() *cobra.Command {
	var store storeFlags
	var insecure []string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "push --store DIR REF [TARGET]",
		Short: "Push an image to a registry without a daemon",
		Long: `Push an image of a store to the registry that its name says, or TARGET does. Without a tag, TARGET gets
latest.

Layers are the tars that they were made from, made again from their disks and verified. What the
registry has is not sent. Each is compressed as it was when it was pulled, if it can be found out how:
then the image has the digest that it had. If not, its manifest is a new one, and vic push says so;
the image's ID and its diff IDs are the same either way.

Credentials are those that docker login has put into ~/.docker/config.json (or $DOCKER_CONFIG).`,
		Example: `  vic push --store /var/lib/vic debian:12 registry.example/debian:12`,
		Args:    cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			target := args[len(args)-1]
			ref, err := reference.ParseDockerRef(target)
			if err != nil {
				return usageErrorf("image name %q: %w", target, err)
			}
			return store.withLocal(cmd, fmt.Sprintf(lacksTars, "push"), func(s *layerstore.Store) error {
				img, err := findImage(s, store.dir, args[0])
				if err != nil {
					return err
				}
				return push(cmd, s, newRegistry(insecure), img, ref, asJSON)
			})
		},
	}
	store.addRefused(cmd)
	insecureFlag(cmd, &insecure)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print what was pushed as JSON")
	return cmd
}

// pushResult is what a push came to.
type pushResult struct {
	Target   string        `json:"target"`
	Image    digest.Digest `json:"image"`
	Digest   digest.Digest `json:"digest"`   // of the manifest
	Layers   int           `json:"layers"`   // their number
	Repacked int           `json:"repacked"` // of them, those with other blobs than the image came with
}

func push(cmd *cobra.Command, s *layerstore.Store, registry *fetch.Client, img *layerstore.Image, ref reference.Named, asJSON bool) error {
	ctx := cmd.Context()
	creds, err := storedCredentials(ctx, ref)
	if err != nil {
		return err
	}
	name := reference.FamiliarString(ref)
	bar := newProgress(cmd.ErrOrStderr(), name, "pushed")
	defer bar.end()
	to, err := registry.Repository(ctx, ref, fetch.PushOptions{Credentials: creds, From: img.Names, Progress: func(e fetch.Event) {
		if e.Retry > 0 {
			bar.note(fmt.Sprintf("trying again in %s: %v", e.Retry.Round(time.Second), e.Err))
		} else {
			bar.sent(e.Digest, e.Received)
		}
	}})
	if err != nil {
		return advise(err, reference.Domain(ref))
	}
	pushed, err := s.Push(ctx, img.ID.String(), to, layerstore.PushOptions{Name: ref, Progress: bar.push})
	if err != nil {
		return advise(err, reference.Domain(ref))
	}
	bar.end()
	r := pushResult{Target: name, Image: img.ID, Digest: pushed.Manifest.Digest, Layers: len(img.Layers), Repacked: pushed.Repacked}
	if asJSON {
		e := json.NewEncoder(cmd.OutOrStdout())
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	if _, err := fmt.Fprintf(cmd.OutOrStdout(), "%s pushed: image %s, digest %s\n", name, short(r.Image), r.Digest); err != nil || r.Repacked == 0 {
		return err
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "%d of %d layers could not be compressed as they were: the manifest and their digests are new, the image is the same\n", r.Repacked, r.Layers)
	return err
}
