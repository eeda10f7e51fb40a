package containervm

import (
	"maps"
	"sync"
	"time"
)

// Event is something that happened to a container or, with Type "network" or "volume", to one of
// those. The names are docker's.
type Event struct {
	Time time.Time
	Type string // container, network or volume
	// Action is create, attach, detach, start, kill, oom, die, stop, restart, rename,
	// resize, destroy, "exec_create: COMMAND", "exec_start: COMMAND", exec_detach, exec_die, top,
	// question (with question: a VM stands still until somebody answers), archive-path, extract-to-dir (with path), export, commit (with comment, imageID, imageRef);
	// of a network: create, connect, disconnect, destroy; of a volume: create, mount, unmount, destroy.
	Action string
	// ID of the container or the network, or the name of the volume.
	ID string
	// Attributes of a container: its labels, image, name, and what belongs to the action:
	// signal, exitCode, execDuration (seconds), oldName, execID, height, width. Of a network:
	// name, type, and of connect and disconnect container. Of a volume: driver, and of a mount container, destination,
	// driver, propagation, read/write. The map is shared by all who get the event.
	Attributes map[string]string
}

// events hands out what happens, in order and one at a time.
type events struct {
	mu   sync.Mutex
	subs map[*subscription]struct{}
}

type subscription struct{ fn func(Event) }

// Subscribe has fn called with every Event from now on, in order and one at a time.
// It must be quick and not call the Manager or a Container. The returned function ends it; no call is under way
// when that has returned.
func (m *Manager) Subscribe(fn func(Event)) (cancel func()) {
	s := &subscription{fn}
	m.events.mu.Lock()
	defer m.events.mu.Unlock()
	if m.events.subs == nil {
		m.events.subs = make(map[*subscription]struct{})
	}
	m.events.subs[s] = struct{}{}
	return func() {
		m.events.mu.Lock()
		defer m.events.mu.Unlock()
		delete(m.events.subs, s)
	}
}

func (e *events) send(ev Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	ev.Time = time.Now()
	for s := range e.subs {
		s.fn(ev)
	}
}

// emit tells of something that happened to the container.
func (c *Container) emit(action string, attributes map[string]string) {
	c.mu.Lock()
	all := map[string]string{}
	maps.Copy(all, c.spec.Labels)
	all["image"], all["name"] = c.spec.Image, c.spec.Name
	c.mu.Unlock()
	maps.Copy(all, attributes)
	c.m.events.send(Event{Type: "container", Action: action, ID: c.id, Attributes: all})
}
