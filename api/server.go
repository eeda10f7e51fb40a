// Package api answers the Docker Engine API, versions 1.24 to 1.51, over a store of images and the
// containers of a Manager. What Docker does is the specification; the docker client is the judge.
//
//	client ─HTTP─► observe ─► prepare ─► mux (one route table) ─► handler ─► containervm, layerstore, fetch
//	                 │           │                                    │
//	             metrics, log  version, headers                   error ─► status and {"message": …}
//
// # Requests
//
// A path may begin with a version, /v1.50, that decides the shape of some replies; without one it is
// the newest. The table in routes.go has every endpoint of Docker: one that is not there answers 501
// with a sentence, one that Docker does not know 404. Handlers return errors, which are given their
// status in one place (errors.go) from their kind, and their text to the user: it is in Docker's words
// where clients look for them.
//
// The table in options.go has every field of a create request: honoured, or refused by the name of its
// flag. Nothing that a user asks for is left out silently.
//
// # Streams
//
// Clients run commands by several requests at once, and count on when each answers (docker run):
//
//	create ─► attach (101, before anything runs) ─► wait (headers at once, body at the end) ─► start
//
// Attach and exec take the connection over. From then on the client's bytes are the process's input, up
// to the half-close of the connection, and the process's output goes back raw if it has a terminal, else
// in frames (stdcopy.go). Logs are the same frames over plain HTTP, events and pulls a JSON object a
// line. All of them are flushed as they come and end with the request's context.
//
// # Trust
//
// Whoever can send a request controls every container, so who may is decided before: by the mode of a
// socket, by certificates. Requests that a web page has a browser send are refused. Bodies, filters and
// parameters are bounded and checked all the same, since clients pass on what users and projects wrote;
// a JSON body must also come within a minute. The log has neither queries nor bodies: there are passwords
// in them.
package api

import (
	"errors"
	"log/slog"
	"net/http"
	"sync"

	"github.com/moby/moby/api/types/events"
	"github.com/prometheus/client_golang/prometheus"

	"vic/containervm"
	"vic/fetch"
	"vic/layerstore"
)

// Options of a Server. All but Metrics and Log must be set.
type Options struct {
	Store      *layerstore.Store
	Containers *containervm.Manager
	Registry   *fetch.Client
	Host       Host
	// Metrics is where the server's are registered; nil for nowhere.
	Metrics prometheus.Registerer
	// Log is told of requests, at level debug; nil is silent.
	Log *slog.Logger
}

// Host is what the server tells of itself and of the machine it runs on.
type Host struct {
	Version   string // of this program
	GitCommit string
	BuildTime string // RFC 3339
	Name      string // of the machine
	// Kernel is the release of the container VMs' kernel, as uname -r prints it.
	Kernel string
	// Hypervisor names what runs the container VMs, for people.
	Hypervisor string
	// Templates is how many booted guests there are that container VMs can begin from; nil
	// for none.
	Templates func() int
	// Spares is how many VMs run already for containers that are yet to start; nil if Templates is.
	Spares func() int
	// Insecure are the registries that are spoken to without TLS or without verifying it, as in
	// fetch.Client.
	Insecure []string
	// Whitelist are the only registries that there are for the host, as in fetch.Client; none means all are.
	Whitelist []string
}

// A Server answers the Docker API. It is an http.Handler.
//
// Requests whose connection was taken over (attach, exec) and streams that follow something end with
// their request's context: derive http.Server.BaseContext from one that is cancelled to stop serving.
type Server struct {
	store      *layerstore.Store
	containers *containervm.Manager
	registry   *fetch.Client
	host       Host
	log        *slog.Logger
	metrics    *metrics
	handler    http.Handler
	events     eventLog
	builds     builds
	active     sync.WaitGroup // requests
	cancel     func()         // ends the subscription to the containers' events
}

// names that the server has for what Docker gives a choice of.
const (
	runtimeName = "vm"
	diskDriver  = "vmdk"
)

var errBrowser = errors.New("requests from web pages are refused")

// New makes a Server, which follows the containers' events until it is closed.
func New(o Options) *Server {
	s := &Server{store: o.Store, containers: o.Containers, registry: o.Registry, host: o.Host, log: o.Log}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.metrics = newMetrics(o.Metrics, o.Containers)
	s.handler = s.observe(s.prepare(mux(s.routes())))
	s.cancel = o.Containers.Subscribe(func(e containervm.Event) {
		actor := events.Actor{ID: e.ID, Attributes: e.Attributes}
		s.events.publish(events.Message{
			Type: events.Type(e.Type), Action: events.Action(e.Action), Actor: actor, TimeNano: e.Time.UnixNano(),
		})
	})
	return s
}

// ServeHTTP answers a request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.active.Add(1)
	defer s.active.Done()
	s.handler.ServeHTTP(w, r)
}

// Close waits until every request has been answered. No new one may come meanwhile: the http.Server
// has been shut down, which leaves taken over connections to this.
func (s *Server) Close() {
	s.active.Wait()
	s.cancel()
}
