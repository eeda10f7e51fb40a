package api

import (
	"cmp"
	"encoding/json"
	"net/http"
	"net/url"
	"runtime"
	"time"

	"github.com/distribution/reference"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/events"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"vic/api/build"
	"vic/fetch/archive"
	"vic/layerstore"
)

// newName reads the name that a new image is to have: none, or one with a tag.
func newName(q url.Values) ([]reference.Named, error) {
	if q.Get("repo") == "" {
		return nil, nil
	}
	name, err := reference.ParseNormalizedNamed(q.Get("repo"))
	if err == nil && q.Get("tag") != "" {
		name, err = reference.WithTag(reference.TrimNamed(name), q.Get("tag"))
	}
	if err != nil {
		return nil, badRequest("%w", err)
	}
	if _, isDigest := name.(reference.Digested); isDigest {
		return nil, badRequest("cannot import digest reference")
	}
	return []reference.Named{reference.TagNameOnly(name)}, nil
}

// importImage is docker import: a tar becomes an image of one layer.
func (s *Server) importImage(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	if q.Get("fromSrc") != "-" {
		return notImplemented("importing from a URL: this host cannot do that, download it and import the file")
	}
	names, err := newName(q)
	if err != nil {
		return err
	}
	platform := ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}
	want, err := parsePlatform(q.Get("platform"))
	if err != nil {
		return err
	}
	if want != nil {
		if want.OS != "linux" {
			return badRequest("operating system is not supported")
		}
		platform = *want
	}
	var cfg dockerspec.DockerOCIImageConfig
	if err := build.Change(&cfg, nil, q["changes"]); err != nil {
		return err
	}
	a, err := archive.FromTar(r.Context(), r.Body, s.store.TempFile, nil, func(diffID digest.Digest) ([]byte, error) {
		now := time.Now().UTC()
		comment := cmp.Or(q.Get("message"), "Imported from -")
		img := dockerspec.DockerOCIImage{Image: ocispec.Image{
			Created: &now, Platform: platform, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{diffID}},
			History: []ocispec.History{{Created: &now, Comment: comment}},
		}, Config: cfg}
		return json.Marshal(img)
	})
	if err != nil {
		return err
	}
	defer a.Close()
	src, err := a.Entries()[0].Resolve(r.Context(), nil)
	if err != nil {
		return err
	}
	img, err := s.store.Pull(r.Context(), src, nil, layerstore.PullOptions{Tags: names})
	if err != nil {
		return err
	}
	out := newProgressStream(w)
	out.say("", img.ID.String())
	s.imageEvent(events.ActionImport, img.ID.String(), img.ID.String(), img)
	return nil
}
