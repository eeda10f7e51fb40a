package api

import (
	"errors"
	"net/http"

	"vic/layerstore"
)

// saveImages is docker save.
func (s *Server) saveImages(w http.ResponseWriter, r *http.Request) error {
	refs := r.URL.Query()["names"]
	if name := param(r, "name"); name != "" {
		refs = []string{name}
	}
	if len(refs) == 0 {
		return badRequest("no image is named")
	}
	p, err := platformOf(r)
	if err != nil {
		return err
	}
	sv, err := s.store.Save(refs, layerstore.SaveOptions{})
	if errors.Is(err, layerstore.ErrNotFound) {
		for _, ref := range refs { // in Docker's words
			one, err := s.store.Save([]string{ref}, layerstore.SaveOptions{})
			if errors.Is(err, layerstore.ErrNotFound) {
				return notFound("reference does not exist: %s", familiar(ref))
			}
			if err == nil {
				one.Close()
			}
		}
	}
	if err != nil {
		return err
	}
	defer sv.Close()
	for _, img := range sv.Images() {
		name := img.ID.String()
		if tags := img.RepoTags(); len(tags) > 0 {
			name = tags[0]
		}
		if err := checkPlatform(img, name, p); err != nil {
			return err
		}
	}
	w.Header().Set("Content-Type", "application/x-tar")
	if err := sv.Write(r.Context(), w); err != nil {
		s.log.Error("saving images", "images", refs, "error", err)
		panic(http.ErrAbortHandler) // the client must not take it for whole
	}
	return nil
}
