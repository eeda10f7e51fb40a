package api

import (
	"errors"
	"net/http"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/events"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"vic/fetch/archive"
	"vic/layerstore"
)

// loadImages is docker load. The archive is read to its end before anything of it is answered.
func (s *Server) loadImages(w http.ResponseWriter, r *http.Request) error {
	want, err := platformOf(r)
	if err != nil {
		return err
	}
	out := newProgressStream(w)
	defer out.end()
	if err := s.loadArchive(r, out, want); err != nil {
		out.abort(err) // Docker begins to answer before it reads
	}
	return nil
}

func (s *Server) loadArchive(r *http.Request, out *progressStream, want *ocispec.Platform) error {
	a, err := archive.Read(r.Context(), r.Body, s.store.TempFile)
	if err != nil {
		return err
	}
	defer a.Close()
	for _, e := range a.Entries() {
		if err := s.loadImage(r, out, e, want); err != nil {
			return err
		}
	}
	return nil
}

// loadImage brings one image of an archive into the store.
func (s *Server) loadImage(r *http.Request, out *progressStream, e *archive.Entry, want *ocispec.Platform) error {
	src, err := e.Resolve(r.Context(), want)
	if err != nil {
		return err
	}
	before := make(map[string]digest.Digest) // what had the names
	for _, name := range e.Names {
		img, err := s.store.Image(name.String())
		if err == nil {
			before[name.String()] = img.ID
		} else if !errors.Is(err, layerstore.ErrNotFound) {
			return err
		}
	}
	o := layerstore.PullOptions{Tags: e.Names}
	if !boolParam(r, "quiet") {
		o.Progress = func(e layerstore.ProgressEvent) { tellLoading(out, e) }
	}
	img, err := s.store.Pull(r.Context(), src, nil, o)
	if err != nil {
		return err
	}
	for _, name := range e.Names {
		if old := before[name.String()]; old != "" && old != img.ID {
			out.stream("The image " + reference.FamiliarString(name) + " already exists, renaming the old one with ID " + old.String() + " to empty string\n")
		}
		out.stream("Loaded image: " + reference.FamiliarString(name) + "\n")
	}
	if len(e.Names) == 0 {
		out.stream("Loaded image ID: " + img.ID.String() + "\n")
	}
	s.imageEvent(events.ActionLoad, img.ID.String(), img.ID.String(), img)
	return nil
}

// tellLoading says in Docker's words how far a layer has come.
func tellLoading(out *progressStream, e layerstore.ProgressEvent) {
	switch {
	case e.Layer == "":
	case e.Stage == layerstore.StageSending:
		out.layer(shortDigest(e.Layer), "Sending to datastore", e.Sent, e.ToSend)
	case e.Stage >= layerstore.StageFetching && e.Stage < layerstore.StageDone:
		out.layer(shortDigest(e.Layer), "Loading layer", e.Current, e.Total)
	}
}
