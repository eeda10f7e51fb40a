package api

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"maps"
	"net/http"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/volume"

	"vic/layerstore"
)

// defaultDriver is the driver of a volume that none was asked for.
var defaultDriver = layerstore.VolumeDrivers[0]

// mountpoint is where a volume is: a disk, which docker's volumes are not.
func (s *Server) mountpoint(name string) string {
	v, err := s.store.Volume(name)
	if err != nil { // it was just removed, or its record is damaged
		v = &layerstore.Volume{Name: name}
	}
	return s.store.VolumePath(v)
}

// volumeOf is a volume as the API tells of it.
func (s *Server) volumeOf(v *layerstore.Volume) volume.Volume {
	reply := volume.Volume{
		Name: v.Name, Driver: v.Driver, Mountpoint: s.store.VolumePath(v), Scope: "local", CreatedAt: v.Created.Format(time.RFC3339),
		Labels: v.Labels, Options: v.Options, Status: map[string]any{"Capacity": units.BytesSize(float64(v.Capacity))},
	}
	if reply.Labels == nil {
		reply.Labels = map[string]string{}
	}
	if reply.Options == nil {
		reply.Options = map[string]string{}
	}
	return reply
}

func (s *Server) createVolume(w http.ResponseWriter, r *http.Request) error {
	var body volume.CreateRequest
	if err := decodeBody(r, &body); err != nil {
		return err
	}
	if body.ClusterVolumeSpec != nil {
		return errNoSwarmVolumes
	}
	o := layerstore.VolumeOptions{Name: body.Name, Driver: body.Driver, Options: body.DriverOpts, Labels: body.Labels}
	if o.Name == "" {
		o.Name = randomID()
		o.Labels = maps.Clone(o.Labels)
		if o.Labels == nil {
			o.Labels = map[string]string{}
		}
		o.Labels[anonymousLabel] = ""
	}
	v, made, err := s.store.CreateVolume(o)
	if err != nil {
		return err
	}
	if made {
		s.volumeEvent(events.ActionCreate, v.Name, v.Driver)
	}
	return writeJSON(w, http.StatusCreated, s.volumeOf(v))
}

var errNoSwarmVolumes = badRequest("cluster volumes are not supported: this host is no part of a swarm")

// randomID makes 64 hex digits.
func randomID() string {
	var b [32]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

func (s *Server) volumeEvent(action events.Action, name, driver string) {
	s.events.publish(events.Message{Type: events.VolumeEventType, Action: action, Actor: events.Actor{
		ID: name, Attributes: map[string]string{"driver": driver},
	}})
}

func (s *Server) listVolumes(w http.ResponseWriter, r *http.Request) error {
	f, err := filtersOf(r, "dangling", "driver", "label", "name")
	if err != nil {
		return err
	}
	dangling, err := f.boolean("dangling", false)
	if err != nil {
		return err
	}
	all, damaged, err := s.store.Volumes()
	if err != nil {
		return err
	}
	reply := volume.ListResponse{Volumes: []volume.Volume{}, Warnings: []string{}}
	for _, err := range damaged {
		reply.Warnings = append(reply.Warnings, err.Error())
	}
	for _, v := range all {
		if f.has("dangling") && dangling != (len(v.Users) == 0) || !f.match("name", v.Name) || !f.exact("driver", v.Driver) || !f.labels("label", v.Labels) {
			continue
		}
		reply.Volumes = append(reply.Volumes, s.volumeOf(v))
	}
	return writeJSON(w, http.StatusOK, reply)
}

func (s *Server) inspectVolume(w http.ResponseWriter, r *http.Request) error {
	v, err := s.store.Volume(param(r, "name"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, s.volumeOf(v))
}

func (s *Server) removeVolume(w http.ResponseWriter, r *http.Request) error {
	name, driver := param(r, "name"), defaultDriver
	if v, err := s.store.Volume(name); err == nil {
		driver = v.Driver
	}
	err := s.store.RemoveVolume(name)
	if errors.Is(err, layerstore.ErrNotFound) && boolParam(r, "force") {
		err = nil
	} else if err == nil {
		s.volumeEvent(events.ActionDestroy, name, driver)
	}
	if err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// pruneVolumes removes the volumes that no container mounts: those without a name of their own, or with the filter
// all, as clients before 1.42 take for granted, any.
func (s *Server) pruneVolumes(w http.ResponseWriter, r *http.Request) error {
	f, err := filtersOf(r, "all", "label", "label!")
	if err != nil {
		return err
	}
	everything, err := f.boolean("all", versionOf(r).less(version{1, 42}))
	if err != nil {
		return err
	}
	all, _, err := s.store.Volumes()
	if err != nil {
		return err
	}
	report := volume.PruneReport{VolumesDeleted: []string{}}
	for _, v := range all {
		if _, anonymous := v.Labels[anonymousLabel]; len(v.Users) > 0 || !anonymous && !everything || !f.labelsPass(v.Labels) {
			continue
		}
		if r.Context().Err() != nil {
			return nil
		}
		size, err := s.store.VolumeStored(v.Name)
		if err == nil {
			err = s.store.RemoveVolume(v.Name)
		}
		if err != nil { // somebody else was faster, or uses it now
			s.log.Info("volume not pruned", "volume", v.Name, "error", err)
			continue
		}
		s.volumeEvent(events.ActionDestroy, v.Name, v.Driver)
		report.VolumesDeleted = append(report.VolumesDeleted, v.Name)
		report.SpaceReclaimed += uint64(size)
	}
	s.pruned(events.VolumeEventType, report.SpaceReclaimed)
	return writeJSON(w, http.StatusOK, report)
}

// volumeUsage is what volumes take on the datastore.
func (s *Server) volumeUsage() ([]volume.Volume, error) {
	all, _, err := s.store.Volumes()
	if err != nil {
		return nil, err
	}
	out := []volume.Volume{}
	for _, v := range all {
		size, err := s.store.VolumeStored(v.Name)
		if err != nil {
			continue // it was just removed
		}
		reply := s.volumeOf(v)
		reply.UsageData = &volume.UsageData{Size: size, RefCount: int64(len(v.Users))}
		out = append(out, reply)
	}
	return out, nil
}
