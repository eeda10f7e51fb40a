package api

import (
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"vic/fetch"
	"vic/layerstore"
)

// pushImage is docker push: of one tag, or of all tags of a repository.
func (s *Server) pushImage(w http.ResponseWriter, r *http.Request) error {
	repo, err := reference.ParseNormalizedNamed(param(r, "name"))
	if err != nil {
		return badRequest("%w", err)
	}
	if _, isDigest := repo.(reference.Digested); isDigest {
		return badRequest("cannot push a digest reference")
	}
	tag := r.URL.Query().Get("tag")
	if t, ok := repo.(reference.Tagged); ok && tag == "" {
		tag = t.Tag()
	}
	repo = reference.TrimNamed(repo)
	want, err := platformOf(r)
	if err != nil {
		return err
	}
	creds, err := credentialsOf(r)
	if err != nil {
		return err
	}
	refs, err := s.tagsOf(repo)
	if err != nil {
		return err
	}
	missing := errors.New("An image does not exist locally with the tag: " + reference.FamiliarName(repo))
	if tag != "" && len(refs) > 0 {
		ref, err := reference.WithTag(repo, tag)
		if err != nil {
			return badRequest("%w", err)
		}
		refs = []reference.NamedTagged{ref}
	}
	out := newProgressStream(w)
	defer out.end()
	out.say("", "The push refers to repository ["+repo.Name()+"]")
	if len(refs) == 0 {
		return out.fail(missing)
	}
	for _, ref := range refs {
		if err := s.pushTag(r, out, ref, creds, want); err != nil {
			return out.fail(err)
		}
	}
	return nil
}

// tagsOf lists the names that images have in a repository.
func (s *Server) tagsOf(repo reference.Named) ([]reference.NamedTagged, error) {
	images, err := s.store.Images()
	if err != nil {
		return nil, err
	}
	var refs []reference.NamedTagged
	for _, img := range images {
		for _, name := range img.Names {
			if tagged, ok := name.(reference.NamedTagged); ok && name.Name() == repo.Name() {
				refs = append(refs, tagged)
			}
		}
	}
	return refs, nil
}

// pushTag pushes what one name names.
func (s *Server) pushTag(r *http.Request, out *progressStream, ref reference.NamedTagged, creds fetch.Credentials, want *ocispec.Platform) error {
	img, err := s.store.Image(ref.String())
	if errors.Is(err, layerstore.ErrNotFound) {
		return fmt.Errorf("tag does not exist: %s", reference.FamiliarString(ref))
	}
	if err == nil {
		err = checkPlatform(img, reference.FamiliarString(ref), want)
	}
	if err != nil {
		return err
	}
	t := pushTeller{out: out, layers: make(map[digest.Digest]string)}
	to, err := s.registry.Repository(r.Context(), ref, fetch.PushOptions{Credentials: creds, From: img.Names, Progress: t.wire})
	if err != nil {
		return err
	}
	pushed, err := s.store.Push(r.Context(), img.ID.String(), to, layerstore.PushOptions{Name: ref, Progress: t.layer})
	if err != nil {
		return err
	}
	if pushed.Repacked > 0 {
		out.say("", fmt.Sprintf("%d of %d layers could not be compressed as they were, and have other digests; the image is the same", pushed.Repacked, len(img.Layers)))
	}
	d := pushed.Manifest
	out.say("", fmt.Sprintf("%s: digest: %s size: %d", ref.Tag(), d.Digest, d.Size))
	out.send(progressMessage{Detail: &jsonstream.Progress{}, Aux: struct {
		Tag, Digest string
		Size        int64
	}{ref.Tag(), d.Digest.String(), d.Size}})
	s.imageEvent(events.ActionPush, reference.FamiliarString(ref), reference.FamiliarName(ref), img)
	return nil
}

// A pushTeller says in Docker's words how a push goes. Clients know layers by their diff IDs, the
// wire by their blobs.
type pushTeller struct {
	out *progressStream

	mu     sync.Mutex
	layers map[digest.Digest]string // by blob
}

func (t *pushTeller) layer(e layerstore.PushEvent) {
	id := shortDigest(e.DiffID)
	switch e.Stage {
	case layerstore.PushPreparing:
		t.out.layer(id, "Preparing", 0, 0)
	case layerstore.PushSending:
		t.mu.Lock()
		t.layers[e.Blob] = id
		t.mu.Unlock()
		t.out.layer(id, "Pushing", 0, e.Size)
	case layerstore.PushSent:
		t.out.layer(id, "Pushed", 0, 0)
	case layerstore.PushExists:
		t.out.layer(id, "Layer already exists", 0, 0)
	case layerstore.PushMounted:
		t.out.layer(id, "Mounted from "+e.From, 0, 0)
	}
}

func (t *pushTeller) wire(e fetch.Event) {
	t.mu.Lock()
	id := t.layers[e.Digest]
	t.mu.Unlock()
	switch {
	case id == "": // the config or the manifest
	case e.Retry > 0:
		t.out.layer(id, fmt.Sprintf("Retrying in %d seconds", (e.Retry+time.Second-1)/time.Second), 0, 0)
	default:
		t.out.layer(id, "Pushing", e.Received, e.Total)
	}
}
