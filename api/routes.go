package api

import (
	"io"
	"net/http"
)

// routes is the route table: every endpoint of the Docker API, those included that this host does not
// have. The version before a path is taken off by prepare.
func (s *Server) routes() []route {
	return []route{
		{http.MethodGet, "/_ping", s.ping},
		{http.MethodHead, "/_ping", s.ping},
		{http.MethodGet, "/version", s.version},
		{http.MethodGet, "/info", s.info},
		{http.MethodGet, "/events", s.followEvents},
		{http.MethodPost, "/auth", s.login},
		{http.MethodGet, "/system/df", s.diskUsage},

		{http.MethodGet, "/images/json", s.listImages},
		{http.MethodGet, "/images/{name*}/json", s.inspectImage},
		{http.MethodGet, "/images/{name*}/history", s.imageHistory},
		{http.MethodPost, "/images/create", s.reachable(s.pullImage)},
		{http.MethodPost, "/images/{name*}/tag", s.tagImage},
		{http.MethodDelete, "/images/{name*}", s.removeImage},
		{http.MethodPost, "/images/prune", s.pruneImages},
		{http.MethodPost, "/images/{name*}/push", s.pushImage},
		{http.MethodGet, "/images/{name*}/get", s.saveImages},
		{http.MethodGet, "/images/get", s.saveImages},
		{http.MethodPost, "/images/load", s.reachable(s.loadImages)},
		{http.MethodGet, "/images/search", missing("searching a registry")},
		{http.MethodGet, "/distribution/{name*}/json", missing("inspecting images in a registry")},
		{http.MethodPost, "/commit", s.reachable(s.commitContainer)},
		{http.MethodPost, "/build", s.reachable(s.buildImage)},
		{http.MethodPost, "/build/cancel", s.cancelBuild},
		{http.MethodPost, "/build/prune", s.pruneBuilds},
		{http.MethodPost, "/session", noBuildKit},
		{http.MethodPost, "/grpc", noBuildKit},

		{http.MethodGet, "/containers/json", s.listContainers},
		{http.MethodPost, "/containers/create", s.createContainer},
		{http.MethodPost, "/containers/prune", s.pruneContainers},
		{http.MethodGet, "/containers/{id}/json", s.inspectContainer},
		{http.MethodPost, "/containers/{id}/start", s.startContainer},
		{http.MethodPost, "/containers/{id}/stop", s.stopContainer},
		{http.MethodPost, "/containers/{id}/restart", s.restartContainer},
		{http.MethodPost, "/containers/{id}/kill", s.killContainer},
		{http.MethodPost, "/containers/{id}/wait", s.waitContainer},
		{http.MethodPost, "/containers/{id}/rename", s.renameContainer},
		{http.MethodPost, "/containers/{id}/resize", s.resizeContainer},
		{http.MethodDelete, "/containers/{id}", s.removeContainer},
		{http.MethodPost, "/containers/{id}/attach", s.attachContainer},
		{http.MethodGet, "/containers/{id}/logs", s.containerLogs},
		{http.MethodPost, "/containers/{id}/exec", s.createExec},
		{http.MethodPost, "/exec/{id}/start", s.startExec},
		{http.MethodPost, "/exec/{id}/resize", s.resizeExec},
		{http.MethodGet, "/exec/{id}/json", s.inspectExec},
		{http.MethodGet, "/containers/{id}/attach/ws", s.attachWebSocket},
		{http.MethodPost, "/containers/{id}/pause", s.pauseContainer},
		{http.MethodPost, "/containers/{id}/unpause", s.unpauseContainer},
		{http.MethodPost, "/containers/{id}/update", s.updateContainer},
		{http.MethodGet, "/containers/{id}/top", s.topContainer},
		{http.MethodGet, "/containers/{id}/stats", s.containerStats},
		{http.MethodGet, "/containers/{id}/changes", s.containerChanges},
		{http.MethodGet, "/containers/{id}/export", s.exportContainer},
		{http.MethodHead, "/containers/{id}/archive", s.statArchive},
		{http.MethodGet, "/containers/{id}/archive", s.readArchive},
		{http.MethodPut, "/containers/{id}/archive", s.writeArchive},
		{anyMethod, "/containers/{id}/checkpoints", missing("checkpoints")},
		{anyMethod, "/containers/{id}/checkpoints/{checkpoint}", missing("checkpoints")},

		{http.MethodGet, "/networks", s.listNetworks},
		{http.MethodGet, "/networks/", s.listNetworks}, // as old clients have it
		{http.MethodGet, "/networks/{name}", s.inspectNetwork},
		{http.MethodDelete, "/networks/{name}", s.removeNetwork},
		{http.MethodPost, "/networks/prune", s.pruneNetworks},
		{http.MethodPost, "/networks/create", s.createNetwork},
		{http.MethodPost, "/networks/{name}/connect", s.connectNetwork},
		{http.MethodPost, "/networks/{name}/disconnect", s.disconnectNetwork},

		{http.MethodGet, "/volumes", s.listVolumes},
		{http.MethodGet, "/volumes/{name}", s.inspectVolume},
		{http.MethodDelete, "/volumes/{name}", s.removeVolume},
		{http.MethodPost, "/volumes/prune", s.pruneVolumes},
		{http.MethodPost, "/volumes/create", s.createVolume},

		{http.MethodGet, "/plugins", s.listPlugins},
		{http.MethodGet, "/plugins/{name*}/json", s.noPlugin},
		{http.MethodGet, "/plugins/privileges", missing("plugins")},
		{http.MethodPost, "/plugins/pull", missing("plugins")},
		{http.MethodPost, "/plugins/create", missing("plugins")},
		{http.MethodPost, "/plugins/{name*}/enable", s.noPlugin},
		{http.MethodPost, "/plugins/{name*}/disable", s.noPlugin},
		{http.MethodPost, "/plugins/{name*}/upgrade", s.noPlugin},
		{http.MethodPost, "/plugins/{name*}/push", s.noPlugin},
		{http.MethodPost, "/plugins/{name*}/set", s.noPlugin},
		{http.MethodDelete, "/plugins/{name*}", s.noPlugin},

		{anyMethod, "/swarm", noSwarm},
		{anyMethod, "/swarm/{what*}", noSwarm},
		{anyMethod, "/nodes", noSwarm},
		{anyMethod, "/nodes/{what*}", noSwarm},
		{anyMethod, "/services", noSwarm},
		{anyMethod, "/services/{what*}", noSwarm},
		{anyMethod, "/tasks", noSwarm},
		{anyMethod, "/tasks/{what*}", noSwarm},
		{anyMethod, "/secrets", noSwarm},
		{anyMethod, "/secrets/{what*}", noSwarm},
		{anyMethod, "/configs", noSwarm},
		{anyMethod, "/configs/{what*}", noSwarm},
	}
}

// reachable refuses what makes an image as long as what manages the hypervisor is known to be away, for images are where its VMs are: the
// reply is 503 before anything of a stream is sent. What goes away later ends the stream with the same words.
func (s *Server) reachable(next handler) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		err := s.containers.Available()
		if err == nil {
			return next(w, r)
		}
		// A client that is still sending an image when the connection ends tells of that instead of the reply: it is read as long as
		// it sends.
		c := http.NewResponseController(w)
		if c.EnableFullDuplex() != nil {
			return err
		}
		writeError(w, err)
		c.Flush()
		io.Copy(io.Discard, r.Body)
		return nil
	}
}

// noBuildKit answers a client that wants to build with BuildKit.
func noBuildKit(http.ResponseWriter, *http.Request) error { return notImplemented("%s", errBuildKit) }

// missing answers for an endpoint that this host does not have.
func missing(what string) handler {
	return func(http.ResponseWriter, *http.Request) error {
		return notImplemented("%s: this host cannot do that yet", what)
	}
}
