package api

import (
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"github.com/moby/moby/api/types/events"
)

// An eventReply is an event as clients read it: status, id and from are gone from newer versions of
// the API, but old clients know no others.
type eventReply struct {
	Status string `json:"status,omitempty"`
	ID     string `json:"id,omitempty"`
	From   string `json:"from,omitempty"`
	events.Message
}

func (s *Server) followEvents(w http.ResponseWriter, r *http.Request) error {
	f, err := filtersOf(r, "type", "event", "container", "image", "label", "network", "volume", "daemon", "scope",
		"plugin", "service", "node", "secret", "config")
	if err != nil {
		return err
	}
	since, err := timeParam(r, "since")
	if err != nil {
		return err
	}
	until, err := timeParam(r, "until")
	if err != nil {
		return err
	}
	pos := s.events.end()
	if !since.IsZero() || !until.IsZero() { // an end without a beginning asks for what there was, too
		pos = 0
	}
	var over <-chan time.Time
	if !until.IsZero() {
		t := time.NewTimer(time.Until(until))
		defer t.Stop()
		over = t.C
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	flush := http.NewResponseController(w)
	enc := json.NewEncoder(w)
	for {
		list, next, more := s.events.read(pos)
		pos = next
		for _, m := range list {
			at := time.Unix(0, m.TimeNano)
			if at.Before(since) || !until.IsZero() && at.After(until) || !matchEvent(f, m) {
				continue
			}
			if err := enc.Encode(replyOf(m)); err != nil {
				return nil // the client left
			}
		}
		// Clients wait for the headers before they go on.
		if err := flush.Flush(); err != nil {
			return nil
		}
		select {
		case <-more:
		case <-over:
			return nil
		case <-r.Context().Done():
			return nil
		}
	}
}

func replyOf(m events.Message) eventReply {
	e := eventReply{Message: m}
	if m.Type == events.ContainerEventType || m.Type == events.ImageEventType {
		e.Status, e.ID, e.From = string(m.Action), m.Actor.ID, m.Actor.Attributes["image"]
	}
	return e
}

// matchEvent says whether an event passes the filters.
func matchEvent(f filters, m events.Message) bool {
	attr := m.Actor.Attributes
	// Actions of execs and health checks go on with a colon and details.
	action, _, _ := strings.Cut(string(m.Action), ":")
	return f.exact("type", string(m.Type)) && f.exact("scope", m.Scope) &&
		(f.exact("event", string(m.Action)) || f.exact("event", action)) &&
		f.actor("container", m, events.ContainerEventType) && f.actor("network", m, events.NetworkEventType) &&
		f.actor("volume", m, events.VolumeEventType) && f.actor("daemon", m, events.DaemonEventType) &&
		f.actor("plugin", m, events.PluginEventType) && f.actor("service", m, events.ServiceEventType) &&
		f.actor("node", m, events.NodeEventType) && f.actor("secret", m, events.SecretEventType) &&
		f.actor("config", m, events.ConfigEventType) && f.image(m) && f.labels("label", attr)
}

// actor says whether an event is of one of key's objects, known by ID, the beginning of it, or name.
func (f filters) actor(key string, m events.Message, t events.Type) bool {
	if !f.has(key) {
		return true
	}
	return m.Type == t && (f.prefix(key, m.Actor.ID) || f.exact(key, m.Actor.Attributes["name"]))
}

// image says whether an event is of one of the images, or of a container of one, with or without tag.
func (f filters) image(m events.Message) bool {
	const key = "image"
	if !f.has(key) {
		return true
	}
	var names []string
	switch m.Type {
	case events.ImageEventType:
		names = []string{m.Actor.ID, m.Actor.Attributes["name"]}
	case events.ContainerEventType:
		names = []string{m.Actor.Attributes["image"]}
	}
	for _, n := range names {
		if n != "" && (f.exact(key, n) || f.exact(key, untagged(n))) {
			return true
		}
	}
	return false
}

// untagged takes the tag off an image's name; a colon before a slash belongs to a registry's port.
func untagged(name string) string {
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		return name[:i]
	}
	return name
}
