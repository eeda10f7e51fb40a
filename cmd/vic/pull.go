package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/spf13/cobra"

	"vic/fetch"
	"vic/layerstore"
	datastore "vic/layerstore/vsphere"
)

func pullCommand() *cobra.Command {
	var store storeFlags
	var seed seedFlags
	var platform string
	var insecure []string
	cmd := &cobra.Command{
		Use:   "pull {--store DIR | --image-store DATASTORE} REF",
		Short: "Pull an image without a daemon",
		Long: `Pull an image into a store, as docker pull does through vic serve. A vic serve on the same store may be
running, and has the image as soon as it is complete.

With --image-store the image is brought to a store on a datastore, for VCHs to come, as vic seed does.

Credentials are those that docker login has put into ~/.docker/config.json (or $DOCKER_CONFIG).`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return store.withSeeds(cmd, seed, func(s *layerstore.Store, seeds *datastore.Store) error {
				return pull(cmd.Context(), cmd, s, seeds, newRegistry(insecure), args[0], platform)
			})
		},
	}
	store.add(cmd)
	seed.add(cmd.Flags())
	insecureFlag(cmd, &insecure)
	cmd.Flags().StringVar(&platform, "platform", "", "`os/arch[/variant]` to choose from an image for several; default Linux on this machine's processor")
	return cmd
}

func insecureFlag(cmd *cobra.Command, hosts *[]string) {
	cmd.Flags().StringArrayVar(hosts, "insecure-registry", nil,
		"`HOST`, HOST:PORT or CIDR of a registry to speak to without verified TLS, or without TLS;\nloopback addresses always are (may be given several times)")
}

// newRegistry makes the client for registries. Proxies are those of the environment.
func newRegistry(insecure []string) *fetch.Client {
	return &fetch.Client{Insecure: insecure, Proxy: http.ProxyFromEnvironment, UserAgent: "vic/" + version}
}

func pull(ctx context.Context, cmd *cobra.Command, s *layerstore.Store, seeds *datastore.Store, registry *fetch.Client, text, platform string) error {
	ref, err := reference.ParseDockerRef(text)
	if err != nil {
		return usageErrorf("image name %q: %w", text, err)
	}
	bar := newProgress(cmd.ErrOrStderr(), reference.FamiliarString(ref), "pulled")
	defer bar.end()
	src, err := resolve(ctx, registry, ref, platform, bar.note)
	if err != nil {
		return err
	}
	var updated bool
	img, err := s.Pull(ctx, src, ref, layerstore.PullOptions{Progress: func(e layerstore.ProgressEvent) {
		if e.Layer == "" {
			updated = e.Updated
			return
		}
		bar.layer(e)
	}})
	if err != nil {
		return advise(err, reference.Domain(ref))
	}
	if seeds != nil {
		if err := seeds.AddNames(ctx, img.ID, ref.String()); err != nil {
			return err
		}
	}
	bar.end()
	state := "up to date"
	if updated {
		state = "pulled"
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s %s: image %s, digest %s\n", reference.FamiliarString(ref), state, short(img.ID), src.Digest())
	return err
}

// resolve finds an image in its registry, with the credentials that docker login keeps. An empty platform is this
// machine's. note is told what the user should know meanwhile.
func resolve(ctx context.Context, registry *fetch.Client, ref reference.Named, platform string, note func(string)) (*fetch.Image, error) {
	creds, err := storedCredentials(ctx, ref)
	if err != nil {
		return nil, err
	}
	o := fetch.ResolveOptions{Credentials: creds, Progress: func(e fetch.Event) {
		if e.Retry > 0 {
			note(fmt.Sprintf("trying again in %s: %v", e.Retry.Round(time.Second), e.Err))
		}
	}}
	if platform != "" {
		p, err := platforms.Parse(platform)
		if err != nil {
			return nil, usageErrorf("--platform: %w", err)
		}
		o.Platform = &p
	}
	src, err := registry.Resolve(ctx, ref, o)
	return src, advise(err, reference.Domain(ref))
}

// storedCredentials are those that docker login keeps for the registry of a reference.
func storedCredentials(ctx context.Context, ref reference.Named) (fetch.Credentials, error) {
	dir := os.Getenv("DOCKER_CONFIG")
	if dir == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return fetch.Credentials{}, nil // nobody is at home, so nobody has logged in
		}
		dir = filepath.Join(home, ".docker")
	}
	cfg, err := fetch.LoadConfig(filepath.Join(dir, "config.json"))
	if err != nil {
		return fetch.Credentials{}, err
	}
	return cfg.Credentials(ctx, reference.Domain(ref))
}

// advise adds to what went wrong what may be done about it.
func advise(err error, domain string) error {
	switch {
	case errors.Is(err, fetch.ErrUnauthorized), errors.Is(err, fetch.ErrDenied):
		return fmt.Errorf("%w\n(docker login %s keeps credentials that vic pull uses)", err, domain)
	case errors.Is(err, fetch.ErrTooManyRequests):
		return fmt.Errorf("%w\n(wait, or docker login %s for a higher limit)", err, domain)
	case errors.Is(err, fetch.ErrNoPlatform):
		return fmt.Errorf("%w\n(--platform os/arch chooses another)", err)
	}
	return err
}
