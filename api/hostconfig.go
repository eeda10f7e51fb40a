package api

import (
	"maps"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
)

// checkValues refuses what is no value of its field, whether this host honours the field or not.
func checkValues(h *hostConfig) error {
	switch {
	case !h.IpcMode.Valid():
		return badRequest("invalid IPC mode: %s", h.IpcMode)
	case !h.PidMode.Valid():
		return badRequest("invalid PID mode: %s", h.PidMode)
	case !h.UTSMode.Valid():
		return badRequest("invalid UTS mode: %s", h.UTSMode)
	case h.CPUShares < 0:
		return badRequest("invalid CPU shares (%d): value must be a positive integer", h.CPUShares)
	}
	for _, m := range h.Mounts {
		switch m.Type {
		case mount.TypeBind, mount.TypeVolume, mount.TypeTmpfs, mount.TypeNamedPipe, mount.TypeCluster, mount.TypeImage:
		default:
			return badRequest("invalid mount config for type %q: mount type unknown", string(m.Type))
		}
	}
	if _, ok := h.Annotations[""]; ok {
		return badRequest("invalid Annotations: the empty string is not permitted as an annotation key")
	}
	return nil
}

// defaultShmSize is the size of /dev/shm where nobody says it.
const defaultShmSize = 64 << 20

// fillIn gives what a request leaves open the value that it means in the request's version of the API: clients read it
// back.
func fillIn(body *createBody, v version) error {
	h := body.HostConfig
	if n := body.NetworkingConfig; n != nil && len(n.EndpointsConfig) > 1 && v.less(version{1, 44}) {
		return badRequest("Container cannot be created with multiple network endpoints: %s", strings.Join(slices.Sorted(maps.Keys(n.EndpointsConfig)), ", "))
	}
	if h.IpcMode == "" {
		h.IpcMode = container.IPCModePrivate
		if v.less(version{1, 40}) {
			h.IpcMode = container.IPCModeShareable
		}
	}
	if h.ShmSize == 0 {
		h.ShmSize = defaultShmSize
	}
	return nil
}
