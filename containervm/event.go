package containervm

import "time"

// Event is something that happened to a container or, with Type "network", to its
// connection. The names are docker's.
type Event struct {
	Time time.Time
	Type string // container or network
	// Action is create, attach, detach, start, kill, oom, die, stop, restart, rename,
	// resize, destroy, "exec_create: COMMAND", "exec_start: COMMAND", exec_detach, exec_die;
	// of a network: connect, disconnect.
	Action string
	// ID of the container, or the name of the network.
	ID string
	// Attributes of a container: its labels, image, name, and what belongs to the action:
	// signal, exitCode, execDuration (seconds), oldName, execID, height, width. Of a network:
	// container, name, type. The map is shared by all who get the event.
	Attributes map[string]string
}
