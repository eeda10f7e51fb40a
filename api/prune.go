package api

import (
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/volume"

	"vic/containervm"
	"vic/layerstore"
)

// untilOf reads the until filter of what takes one: seconds since 1970, an RFC 3339 time, or a duration before now.
func untilOf(f filters) (time.Time, error) {
	switch len(f["until"]) {
	case 0:
		return time.Time{}, nil
	case 1:
	default:
		return time.Time{}, badRequest("more than one until filter specified")
	}
	return parseUntil(f["until"][0])
}

func parseUntil(text string) (time.Time, error) {
	if t, err := parseTime(text); err == nil {
		return t, nil
	}
	if t, err := time.Parse(time.RFC3339Nano, text); err == nil {
		return t, nil
	}
	if d, err := time.ParseDuration(text); err == nil {
		return time.Now().Add(-d), nil
	}
	return time.Time{}, badRequest("invalid filter 'until=%s'", text)
}

// labelsPass says whether labels pass the filters label and label!.
func (f filters) labelsPass(labels map[string]string) bool {
	return f.labels("label", labels) && !(f.has("label!") && f.labels("label!", labels))
}

func (s *Server) pruneContainers(w http.ResponseWriter, r *http.Request) error {
	f, err := filtersOf(r, "label", "label!", "until")
	if err != nil {
		return err
	}
	until, err := untilOf(f)
	if err != nil {
		return err
	}
	var disks map[string]int64 // measured when the first is to go
	report := container.PruneReport{ContainersDeleted: []string{}}
	for _, c := range s.containers.List() {
		info := c.Info()
		if info.State.Status.Alive() || info.State.Status == containervm.Removing ||
			!until.IsZero() && !info.Created.Before(until) || !f.labelsPass(info.Spec.Labels) {
			continue
		}
		if disks == nil {
			if disks, err = s.containers.DiskBytes(r.Context()); err != nil {
				return err
			}
		}
		if err := c.Remove(r.Context(), containervm.RemoveOptions{}); err != nil {
			if r.Context().Err() != nil {
				return nil
			}
			s.log.Warn("container not pruned", "container", info.ID, "error", err)
			continue
		}
		report.ContainersDeleted = append(report.ContainersDeleted, info.ID)
		report.SpaceReclaimed += uint64(disks[info.ID])
	}
	s.pruned(events.ContainerEventType, report.SpaceReclaimed)
	return writeJSON(w, http.StatusOK, report)
}

// pruneImages removes the images without a name, or with the filter dangling=false those that no
// container uses.
func (s *Server) pruneImages(w http.ResponseWriter, r *http.Request) error {
	f, err := filtersOf(r, "dangling", "label", "label!", "until")
	if err != nil {
		return err
	}
	dangling, err := f.boolean("dangling", true)
	if err != nil {
		return err
	}
	delete(f, "dangling")
	images, err := s.filterImages(f)
	if err != nil {
		return err
	}
	if images, err = s.heads(images); err != nil {
		return err
	}
	used := make(map[string]bool)
	for _, c := range s.containers.List() {
		used[c.Info().Spec.ImageID.String()] = true
	}
	before, err := s.store.Stored()
	if err != nil {
		return err
	}
	report := image.PruneReport{ImagesDeleted: []image.DeleteResponse{}}
	for _, img := range images {
		if used[img.ID.String()] || dangling && len(img.RepoTags()) > 0 {
			continue
		}
		if r.Context().Err() != nil {
			return nil
		}
		if s.builds.holds(img.ID) {
			continue
		}
		list, err := s.deleteImage(img.ID.String(), img, true, false)
		report.ImagesDeleted = append(report.ImagesDeleted, list...)
		if err != nil && !errors.Is(err, layerstore.ErrNotFound) {
			s.log.Warn("image not pruned", "image", img.ID, "error", err)
		}
	}
	// Layers that cancelled pulls left go too.
	if _, err := s.store.Sweep(r.Context()); err != nil {
		s.log.Warn("store not swept", "error", err)
	}
	after, err := s.store.Stored()
	if err != nil {
		return err
	}
	report.SpaceReclaimed = uint64(max(0, before-after))
	s.pruned(events.ImageEventType, report.SpaceReclaimed)
	return writeJSON(w, http.StatusOK, report)
}

func (s *Server) pruned(t events.Type, reclaimed uint64) {
	s.events.publish(events.Message{Type: t, Action: events.ActionPrune, Actor: events.Actor{
		Attributes: map[string]string{"reclaimed": strconv.FormatUint(reclaimed, 10)},
	}})
}

// pruneBuilds has nothing to do, but docker system prune ends with it.
func (s *Server) pruneBuilds(w http.ResponseWriter, _ *http.Request) error {
	return writeJSON(w, http.StatusOK, struct {
		CachesDeleted  []string
		SpaceReclaimed uint64
	}{})
}

// A usageReply is the reply of /system/df up to version 1.51.
type usageReply struct {
	LayersSize int64
	Images     []image.Summary
	Containers []containerSummary
	Volumes    []volume.Volume
	BuildCache []struct{}
}

func (s *Server) diskUsage(w http.ResponseWriter, r *http.Request) error {
	size, err := s.store.Stored()
	if err != nil {
		return err
	}
	disks, err := s.containers.DiskBytes(r.Context())
	if err != nil {
		return err
	}
	reply := usageReply{LayersSize: size, Images: []image.Summary{}, Containers: []containerSummary{}, BuildCache: []struct{}{}}
	users := make(map[string]int64)
	now := time.Now()
	for _, c := range s.containers.List() {
		info := c.Info()
		sum := s.summaryOf(info, now)
		sum.SizeRw = disks[info.ID]
		sum.SizeRootFs = s.rootSize(info, sum.SizeRw)
		reply.Containers = append(reply.Containers, sum)
		users[sum.ImageID]++
	}
	images, err := s.filterImages(nil)
	if err == nil {
		images, err = s.heads(images)
	}
	if err != nil {
		return err
	}
	shared, err := s.sharedSizes()
	if err != nil {
		return err
	}
	for _, img := range images {
		sum := image.Summary{
			ID: img.ID.String(), Created: unixOf(img.Created()), Labels: img.Config.Config.Labels, RepoTags: orEmpty(img.RepoTags()),
			RepoDigests: orEmpty(img.RepoDigests()), Size: img.Size(), Containers: users[img.ID.String()],
		}
		sum.SharedSize = shared[img.ID.String()]
		reply.Images = append(reply.Images, sum)
	}
	if reply.Volumes, err = s.volumeUsage(); err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, reply)
}

// sharedSizes is for each image how many of its bytes other images have too.
func (s *Server) sharedSizes() (map[string]int64, error) {
	layers, err := s.store.Layers()
	if err != nil {
		return nil, err
	}
	shared := make(map[string]int64)
	for _, l := range layers {
		if len(l.Images) < 2 {
			continue
		}
		for _, id := range l.Images {
			shared[id.String()] += l.Stored
		}
	}
	return shared, nil
}
