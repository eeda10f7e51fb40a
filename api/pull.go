package api

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/events"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"vic/fetch"
	"vic/layerstore"
)

// pullImage is docker pull. What goes wrong before the first line of progress is an ordinary error
// reply; afterwards it is the last line.
func (s *Server) pullImage(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	if q.Get("fromSrc") != "" {
		return s.importImage(w, r)
	}
	ref, err := pullReference(q.Get("fromImage"), q.Get("tag"))
	if err != nil {
		return err
	}
	creds, err := credentialsOf(r)
	if err != nil {
		return err
	}
	want, err := parsePlatform(q.Get("platform"))
	if err != nil {
		return err
	}
	out := newProgressStream(w)
	// A download that several pulls share goes on, and tells of itself, when this request is over.
	defer out.end()
	if _, err := s.pull(r.Context(), ref, creds, want, out); err != nil {
		if r.Context().Err() != nil {
			s.log.Info("pull broken off by its client", "image", reference.FamiliarString(ref))
		} else {
			s.log.Warn("pull", "image", reference.FamiliarString(ref), "error", err)
		}
		return out.fail(err)
	}
	return nil
}

// pull brings an image, whose platform is the one wanted if that is not nil, and tells of it.
func (s *Server) pull(ctx context.Context, ref reference.Named, creds fetch.Credentials, want *ocispec.Platform, out *progressStream) (*layerstore.Image, error) {
	src, err := s.registry.Resolve(ctx, ref, fetch.ResolveOptions{
		Platform: want, Credentials: creds,
		Progress: func(e fetch.Event) {
			if e.Retry > 0 && e.Digest != "" {
				out.layer(shortDigest(e.Digest), fmt.Sprintf("Retrying in %d seconds", (e.Retry+time.Second-1)/time.Second), 0, 0)
			}
		},
	})
	if err != nil {
		s.metrics.pulled(err)
		return nil, err
	}
	out.say(tagOf(ref), "Pulling from "+reference.Path(ref))
	updated := false
	img, err := s.store.Pull(ctx, src, ref, layerstore.PullOptions{Progress: func(e layerstore.ProgressEvent) {
		if e.Layer == "" {
			updated = e.Updated
			return
		}
		s.metrics.layer(e)
		tellLayer(out, e)
	}})
	s.metrics.pulled(err)
	if err != nil {
		return nil, err
	}
	out.say("", "Digest: "+src.Digest().String())
	if want != nil && !platforms.Only(*want).Match(imagePlatform(img)) {
		out.say("", fmt.Sprintf("WARNING: image with reference %s was found but does not match the specified platform: wanted %s, actual: %s",
			reference.FamiliarString(ref), platforms.Format(*want), platforms.Format(imagePlatform(img))))
	}
	if updated {
		out.say("", "Status: Downloaded newer image for "+reference.FamiliarString(ref))
	} else {
		out.say("", "Status: Image is up to date for "+reference.FamiliarString(ref))
	}
	s.imageEvent(events.ActionPull, reference.FamiliarString(ref), reference.FamiliarName(ref), img)
	return img, nil
}

// pullReference joins the two parameters that say what to pull; the tag may be a digest.
func pullReference(name, tag string) (reference.Named, error) {
	if name == "" {
		return nil, badRequest("invalid reference format: no image is named")
	}
	ref, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return nil, badRequest("%w", err)
	}
	if tag == "" {
		if reference.IsNameOnly(ref) {
			return nil, notImplemented("pulling all tags of %s: this host cannot do that yet, name one", reference.FamiliarName(ref))
		}
		return ref, nil
	}
	if d, derr := digest.Parse(tag); derr == nil {
		return reference.WithDigest(reference.TrimNamed(ref), d)
	}
	tagged, err := reference.WithTag(reference.TrimNamed(ref), tag)
	if err != nil {
		return nil, badRequest("%w", err)
	}
	return tagged, nil
}

// tagOf is the tag or digest of a reference that has one.
func tagOf(ref reference.Named) string {
	switch r := ref.(type) {
	case reference.Digested:
		return r.Digest().String()
	case reference.Tagged:
		return r.Tag()
	}
	return ""
}

// tellLayer says in Docker's words how far a layer has come.
func tellLayer(out *progressStream, e layerstore.ProgressEvent) {
	id := shortDigest(e.Layer)
	switch e.Stage {
	case layerstore.StageQueued:
		out.layer(id, "Pulling fs layer", 0, 0)
	case layerstore.StageWaiting:
		out.layer(id, "Waiting", 0, 0)
	case layerstore.StageFetching:
		out.layer(id, "Downloading", e.Current, e.Total)
	case layerstore.StageFetched:
		out.layer(id, "Verifying Checksum", 0, 0)
		out.layer(id, "Download complete", 0, 0)
	case layerstore.StageBound:
		// Its files were unpacked while they came.
		out.layer(id, "Extracting", e.Total, e.Total)
	case layerstore.StageSending:
		out.layer(id, "Sending to datastore", e.Sent, e.ToSend)
	case layerstore.StageDone:
		out.layer(id, "Pull complete", 0, 0)
	case layerstore.StageExists:
		out.layer(id, "Already exists", 0, 0)
	}
}

// shortDigest is how clients show a layer.
func shortDigest(d digest.Digest) string {
	hex := d.Encoded()
	return hex[:min(12, len(hex))]
}
