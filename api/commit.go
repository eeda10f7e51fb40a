package api

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/distribution/reference"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/common"
	"github.com/moby/moby/api/types/container"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"vic/api/build"
	"vic/containervm"
	"vic/fetch/archive"
	"vic/layerstore"
)

// commitContainer is docker commit: what a container changed becomes a layer upon its image's.
func (s *Server) commitContainer(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	changed, err := commitBody(r)
	if err != nil {
		return err
	}
	c, err := s.containers.Container(q.Get("container"))
	if err != nil {
		return err
	}
	names, err := newName(q)
	if err != nil {
		return err
	}
	info := c.Info()
	cfg, err := commitConfig(changed, q["changes"], info)
	if err != nil {
		return err
	}
	// Clients before 1.13 of docker cannot say that there is to be no pause.
	pause := !q.Has("pause") || boolParam(r, "pause")
	img, err := s.commit(r.Context(), c, cfg, commitOptions{names: names, pause: pause, author: q.Get("author"), comment: q.Get("comment")})
	if err != nil {
		return err
	}
	ref := ""
	if len(names) > 0 {
		ref = reference.FamiliarString(names[0])
	}
	c.Committed(img.ID, ref, q.Get("comment"))
	return writeJSON(w, http.StatusCreated, common.IDResponse{ID: img.ID.String()})
}

// commitBody reads the configuration in the request's body. Most clients send none.
func commitBody(r *http.Request) (*container.Config, error) {
	changed := new(container.Config)
	body := bufio.NewReader(r.Body)
	if _, err := body.Peek(1); err != nil {
		return changed, nil
	}
	r.Body = io.NopCloser(body)
	return changed, decodeBody(r, changed)
}

// commitConfig is the configuration of the new image: the container's, less what the request changes.
func commitConfig(changed *container.Config, changes []string, info containervm.Info) (dockerspec.DockerOCIImageConfig, error) {
	var cfg dockerspec.DockerOCIImageConfig
	if err := convert(changed, &cfg); err != nil {
		return cfg, err
	}
	var own dockerspec.DockerOCIImageConfig
	if err := convert(createdOf(info).Config, &own); err != nil {
		return cfg, err
	}
	if err := build.Change(&cfg, own.Env, changes); err != nil {
		return cfg, err
	}
	changed = new(container.Config)
	if err := convert(&cfg, changed); err != nil {
		return cfg, err
	}
	if err := merge(changed, &own); err != nil {
		return cfg, err
	}
	changed.Env = own.Env // in its order
	for _, v := range cfg.Env {
		if name, value, ok := strings.Cut(v, "="); ok {
			changed.Env = build.SetEnv(changed.Env, name, value)
		}
	}
	onBuild, shell := cfg.OnBuild, cfg.Shell
	cfg = dockerspec.DockerOCIImageConfig{}
	err := convert(changed, &cfg)
	cfg.OnBuild = onBuild
	if cfg.Shell = shell; shell == nil {
		cfg.Shell = own.Shell
	}
	return cfg, err
}

// convert makes of a container's configuration an image's, or the reverse: they have the same JSON.
func convert(from, to any) error {
	text, err := json.Marshal(from)
	if err == nil {
		err = json.Unmarshal(text, to)
	}
	if err != nil {
		return badRequest("configuration: %w", err)
	}
	return nil
}

type commitOptions struct {
	names           []reference.Named
	pause           bool
	author, comment string
}

// commit makes the image. The layer's tar goes through a file: its digest is known at its end.
func (s *Server) commit(ctx context.Context, c *containervm.Container, cfg dockerspec.DockerOCIImageConfig, o commitOptions) (*layerstore.Image, error) {
	info := c.Info()
	base, err := s.findImage(info.Spec.ImageID.String())
	if err != nil {
		return nil, conflict("the image of container %s is not in the store any more: %w", info.ID, err)
	}
	var below ocispec.Manifest
	if err := json.Unmarshal(base.RawManifest, &below); err != nil {
		return nil, fmt.Errorf("manifest of image %s: %w", base.ID, err)
	}
	tar, out := io.Pipe()
	go func() { out.CloseWithError(c.WriteLayer(ctx, out, o.pause)) }()
	defer tar.Close()
	a, err := archive.FromTar(ctx, tar, s.store.TempFile, below.Layers, func(diffID digest.Digest) ([]byte, error) {
		return commitDocument(base, info, cfg, diffID, o)
	})
	if err != nil {
		return nil, err
	}
	defer a.Close()
	src, err := a.Entries()[0].Resolve(ctx, nil)
	if err != nil {
		return nil, err
	}
	return s.store.Pull(ctx, src, nil, layerstore.PullOptions{Tags: o.names, Descent: layerstore.Descent{Parent: base.ID}})
}

// commitDocument is the new image's configuration file: the base's with one step more.
func commitDocument(base *layerstore.Image, info containervm.Info, cfg dockerspec.DockerOCIImageConfig, diffID digest.Digest, o commitOptions) ([]byte, error) {
	now := time.Now().UTC()
	doc := dockerspec.DockerOCIImage{Image: *base.Config, Config: cfg}
	doc.Created, doc.Author = &now, o.author
	doc.RootFS.DiffIDs = append(append([]digest.Digest(nil), base.Config.RootFS.DiffIDs...), diffID)
	doc.History = append(append([]ocispec.History(nil), base.Config.History...), ocispec.History{
		Created: &now, CreatedBy: strings.Join(info.Spec.Args, " "), Author: o.author, Comment: o.comment,
	})
	return json.Marshal(doc)
}
