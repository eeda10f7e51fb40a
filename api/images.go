package api

import (
	"cmp"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/storage"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"vic/layerstore"
)

// findImage looks an image up, with Docker's words for one that is not there.
func (s *Server) findImage(ref string) (*layerstore.Image, error) {
	if _, err := reference.ParseAnyReference(ref); err != nil {
		return nil, badRequest("%w", err)
	}
	img, err := s.store.Image(ref)
	if errors.Is(err, layerstore.ErrNotFound) {
		return nil, notFound("No such image: %s", familiar(ref))
	}
	return img, err
}

// familiar is a reference as docker prints it.
func familiar(ref string) string {
	if named, err := reference.ParseNormalizedNamed(ref); err == nil {
		return reference.FamiliarString(reference.TagNameOnly(named))
	}
	return ref
}

// platformOf reads a platform parameter that is JSON, nil if it is absent.
func platformOf(r *http.Request) (*ocispec.Platform, error) {
	text := r.URL.Query().Get("platform")
	if text == "" {
		return nil, nil
	}
	if len(r.URL.Query()["platform"]) > 1 {
		return nil, badRequest("multiple platform parameters not supported")
	}
	var p ocispec.Platform
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		return nil, badRequest("invalid platform: %w", err)
	}
	return &p, nil
}

// checkPlatform says that an image is not for a platform, if it is not; nil asks for none.
func checkPlatform(img *layerstore.Image, ref string, want *ocispec.Platform) error {
	if want == nil {
		return nil
	}
	actual := imagePlatform(img)
	if platforms.Only(*want).Match(actual) {
		return nil
	}
	return notFound("image with reference %s was found but its platform (%s) does not match the specified platform (%s)",
		ref, platforms.FormatAll(actual), platforms.FormatAll(*want))
}

func imagePlatform(img *layerstore.Image) ocispec.Platform {
	return platforms.Normalize(img.Config.Platform)
}

// A summaryReply is an image in a list, with a field that clients before 1.44 read.
type summaryReply struct {
	image.Summary
	VirtualSize int64 `json:",omitempty"`
}

func (s *Server) listImages(w http.ResponseWriter, r *http.Request) error {
	f, err := filtersOf(r, "dangling", "label", "label!", "before", "since", "reference", "until")
	if err != nil {
		return err
	}
	images, err := s.filterImages(f)
	if err != nil {
		return err
	}
	if !boolParam(r, "all") || f.has("dangling") {
		if images, err = s.heads(images); err != nil {
			return err
		}
	}
	out := []summaryReply{}
	for _, img := range images {
		tags, digests, ok, err := matchNames(img, f["reference"])
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		sum := summaryReply{Summary: image.Summary{
			ID: img.ID.String(), ParentID: img.Descent.Parent.String(), Created: unixOf(img.Created()), Labels: img.Config.Config.Labels,
			RepoTags: tags, RepoDigests: digests, Size: img.Size(), SharedSize: -1, Containers: -1,
		}}
		if v := versionOf(r); v.less(version{1, 44}) {
			sum.VirtualSize = sum.Size
			if v.less(version{1, 43}) && len(tags)+len(digests) == 0 {
				sum.RepoTags, sum.RepoDigests = []string{"<none>:<none>"}, []string{"<none>@<none>"}
			}
		}
		out = append(out, sum)
	}
	return writeJSON(w, http.StatusOK, out)
}

// filterImages returns the images that pass all filters but reference, the newest first.
func (s *Server) filterImages(f filters) ([]*layerstore.Image, error) {
	images, err := s.store.Images()
	if err != nil {
		return nil, err
	}
	untagged, err := f.boolean("dangling", false)
	if err != nil {
		return nil, err
	}
	var before, since time.Time
	for key, t := range map[string]*time.Time{"before": &before, "since": &since} {
		for _, ref := range f[key] {
			img, err := s.findImage(ref)
			if err != nil {
				return nil, err
			}
			*t = img.Created()
		}
	}
	var until time.Time // the earliest counts
	for _, text := range f["until"] {
		t, err := parseUntil(text)
		if err != nil {
			return nil, err
		}
		if until.IsZero() || t.Before(until) {
			until = t
		}
	}
	images = slices.DeleteFunc(images, func(img *layerstore.Image) bool {
		at := img.Created()
		return f.has("dangling") && untagged != (len(img.RepoTags()) == 0) ||
			!before.IsZero() && !at.Before(before) || !since.IsZero() && !at.After(since) || !until.IsZero() && !at.Before(until) ||
			!f.labelsPass(img.Config.Config.Labels)
	})
	slices.SortStableFunc(images, func(a, b *layerstore.Image) int {
		return cmp.Or(b.Created().Compare(a.Created()), cmp.Compare(a.ID, b.ID))
	})
	return images, nil
}

// heads leaves those images out that have no name and that others were made from.
func (s *Server) heads(images []*layerstore.Image) ([]*layerstore.Image, error) {
	all, err := s.store.Images()
	if err != nil {
		return nil, err
	}
	parents := make(map[digest.Digest]bool)
	for _, img := range all {
		parents[img.Descent.Parent] = true
	}
	return slices.DeleteFunc(images, func(img *layerstore.Image) bool { return len(img.Names) == 0 && parents[img.ID] }), nil
}

// matchNames returns the names of an image that match one of the patterns, or all if there are none,
// and whether the image is to be shown at all.
func matchNames(img *layerstore.Image, patterns []string) (tags, digests []string, ok bool, err error) {
	tags, digests = []string{}, []string{}
	for _, name := range img.Names {
		match := len(patterns) == 0
		for _, p := range patterns {
			m, err := reference.FamiliarMatch(p, name)
			if err != nil {
				return nil, nil, false, badRequest("invalid filter 'reference=%s': %w", p, err)
			}
			match = match || m
		}
		if !match {
			continue
		}
		if _, isDigest := name.(reference.Canonical); isDigest {
			digests = append(digests, reference.FamiliarString(name))
		} else {
			tags = append(tags, reference.FamiliarString(name))
		}
	}
	return tags, digests, len(patterns) == 0 || len(tags)+len(digests) > 0, nil
}

// unixOf is a time in seconds since 1970, 0 for none.
func unixOf(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

// An imageReply is what inspect tells of an image, with fields that clients of earlier versions read.
type imageReply struct {
	image.InspectResponse
	Parent        string
	DockerVersion string
	VirtualSize   int64 `json:",omitempty"`
	// ContainerConfig is that of the container an image was made of; Docker's own are empty since long ago.
	ContainerConfig *struct{} `json:",omitempty"`
}

// requestedImage is the image that a request names, if it is for the platform that it asks for.
func (s *Server) requestedImage(r *http.Request) (*layerstore.Image, error) {
	ref := param(r, "name")
	img, err := s.findImage(ref)
	if err != nil {
		return nil, err
	}
	want, err := platformOf(r)
	if err != nil {
		return nil, err
	}
	return img, checkPlatform(img, ref, want)
}

func (s *Server) inspectImage(w http.ResponseWriter, r *http.Request) error {
	img, err := s.requestedImage(r)
	if err != nil {
		return err
	}
	cfg, err := imageConfig(img.RawConfig)
	if err != nil {
		return err
	}
	disk, err := s.store.DiskPath(img)
	if err != nil {
		return err
	}
	reply := imageReply{Parent: img.Descent.Parent.String(), InspectResponse: image.InspectResponse{
		ID:           img.ID.String(),
		RepoTags:     orEmpty(img.RepoTags()),
		RepoDigests:  orEmpty(img.RepoDigests()),
		Author:       img.Config.Author,
		Config:       cfg,
		Architecture: img.Config.Architecture,
		Variant:      img.Config.Variant,
		Os:           img.Config.OS,
		OsVersion:    img.Config.OSVersion,
		Size:         img.Size(),
		GraphDriver:  &storage.DriverData{Name: diskDriver, Data: map[string]string{"Disk": disk}},
		RootFS:       image.RootFS{Type: img.Config.RootFS.Type},
		Metadata:     image.Metadata{LastTagTime: img.Pulled},
	}}
	if t := img.Created(); !t.IsZero() {
		reply.Created = t.Format(time.RFC3339Nano)
	}
	for _, d := range img.Config.RootFS.DiffIDs {
		reply.RootFS.Layers = append(reply.RootFS.Layers, d.String())
	}
	if steps := img.History(); len(steps) > 0 {
		reply.Comment = steps[0].Comment
	}
	if versionOf(r).less(version{1, 44}) {
		reply.VirtualSize = reply.Size
	}
	if versionOf(r).less(version{1, 45}) {
		reply.ContainerConfig = new(struct{})
	}
	return writeJSON(w, http.StatusOK, reply)
}

// orEmpty makes a nil list an empty one: clients see [] instead of null.
func orEmpty(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}

func (s *Server) imageHistory(w http.ResponseWriter, r *http.Request) error {
	img, err := s.requestedImage(r)
	if err != nil {
		return err
	}
	out := []image.HistoryResponseItem{}
	at := img // the image that the step came to, as far as that is known
	for _, h := range img.History() {
		item := image.HistoryResponseItem{
			ID: "<missing>", Created: unixOf(h.Created), CreatedBy: h.CreatedBy, Comment: h.Comment, Size: h.Size,
		}
		if at != nil {
			item.ID, item.Tags = at.ID.String(), at.RepoTags()
			if at, err = s.parentOf(at); err != nil {
				return err
			}
		}
		out = append(out, item)
	}
	return writeJSON(w, http.StatusOK, out)
}

// parentOf is the image that one was made from, nil if it is not known or not there.
func (s *Server) parentOf(img *layerstore.Image) (*layerstore.Image, error) {
	if img.Descent.Parent == "" {
		return nil, nil
	}
	parent, err := s.store.Image(img.Descent.Parent.String())
	if errors.Is(err, layerstore.ErrNotFound) {
		return nil, nil
	}
	return parent, err
}

func (s *Server) tagImage(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	img, err := s.findImage(param(r, "name"))
	if err != nil {
		return err
	}
	name, err := reference.ParseNormalizedNamed(q.Get("repo"))
	if err != nil {
		return badRequest("%w", err)
	}
	if _, isDigest := name.(reference.Digested); isDigest {
		return badRequest("refusing to create a tag with a digest reference")
	}
	if tag := q.Get("tag"); tag != "" {
		if name, err = reference.WithTag(reference.TrimNamed(name), tag); err != nil {
			return badRequest("%w", err)
		}
	}
	name = reference.TagNameOnly(name)
	if reference.FamiliarName(name) == string(digest.Canonical) {
		return badRequest("refusing to create an ambiguous tag using digest algorithm as name")
	}
	if err := s.store.Tag(img.ID.String(), name); err != nil {
		return err
	}
	s.imageEvent(events.ActionTag, img.ID.String(), reference.FamiliarString(name), img)
	w.WriteHeader(http.StatusCreated)
	return nil
}

// imageEvent tells of an image; img may be nil.
func (s *Server) imageEvent(action events.Action, id, name string, img *layerstore.Image) {
	attr := make(map[string]string)
	if img != nil {
		maps.Copy(attr, img.Config.Config.Labels)
	}
	attr["name"] = name
	s.events.publish(events.Message{Type: events.ImageEventType, Action: action, Actor: events.Actor{ID: id, Attributes: attr}})
}

func (s *Server) removeImage(w http.ResponseWriter, r *http.Request) error {
	if r.URL.Query().Has("platforms") {
		return notImplemented("removing an image for some platforms: this host keeps one platform of an image")
	}
	if strings.TrimSpace(param(r, "name")) == "" {
		return badRequest("image name cannot be blank")
	}
	img, err := s.findImage(param(r, "name"))
	if err != nil {
		return err
	}
	deleted, err := s.deleteImage(param(r, "name"), img, boolParam(r, "force"), boolParam(r, "noprune"))
	if err != nil && len(deleted) == 0 {
		return err
	}
	if err != nil {
		s.log.Warn("image removed in part", "image", img.ID, "error", err)
	}
	return writeJSON(w, http.StatusOK, deleted)
}

// deleteImage removes what ref, a name or ID of img, refers to, and tells of it.
func (s *Server) deleteImage(ref string, img *layerstore.Image, force, keepParents bool) ([]image.DeleteResponse, error) {
	list, err := s.store.Remove(ref, layerstore.RemoveOptions{Force: force, KeepParents: keepParents, Running: s.runs, Building: s.builds.holds})
	out := make([]image.DeleteResponse, 0, len(list))
	for _, d := range list {
		if d.Untagged != "" {
			out = append(out, image.DeleteResponse{Untagged: d.Untagged})
			s.imageEvent(events.ActionUnTag, img.ID.String(), img.ID.String(), img)
			continue
		}
		out = append(out, image.DeleteResponse{Deleted: d.Deleted.String()})
		if d.Deleted == img.ID {
			s.imageEvent(events.ActionDelete, img.ID.String(), img.ID.String(), img)
		}
	}
	return out, err
}

// runs tells whether a container's VM runs.
func (s *Server) runs(id string) bool {
	c, err := s.containers.Container(id)
	return err == nil && c.Info().State.Status.Alive()
}
