package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"

	"vic/api"
)

const (
	// headerTimeout is how long a client may take to say what it wants.
	headerTimeout = time.Minute
	// idleTimeout is how long a connection is kept for a next request.
	idleTimeout = 10 * time.Minute
	// maxHeader bounds a request's header. The credentials for many registries are the largest in it.
	maxHeader = 256 << 10
	// shutdownTimeout is how long requests may take to end once the server is to.
	shutdownTimeout = 20 * time.Second
)

// serveHTTP serves until ctx ends or a listener fails. Then what follows something, pulls and waits
// are cut short, and what is being done to a container is finished.
func serveHTTP(ctx context.Context, handler *api.Server, listeners []net.Listener, log *slog.Logger) error {
	requests, cancel := context.WithCancel(context.Background())
	defer cancel()
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true) // a connection of HTTP/2 cannot be taken over
	srv := &http.Server{
		Handler:           handler,
		BaseContext:       func(net.Listener) context.Context { return requests },
		ReadHeaderTimeout: headerTimeout, // of the TLS handshake, too
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		Protocols:         protocols,
	}
	failed := make(chan error, len(listeners))
	for _, l := range listeners {
		go func() { failed <- srv.Serve(l) }()
		log.Info("serving the Docker API", "address", l.Addr().Network()+"://"+addrOf(l))
	}
	running := len(listeners)
	var err error
	select {
	case <-ctx.Done():
		log.Info("shutting down; containers run on")
	case err = <-failed:
		running--
	}
	cancel()
	stop, cancelStop := context.WithTimeout(context.Background(), shutdownTimeout)
	defer cancelStop()
	err = errors.Join(err, srv.Shutdown(stop))
	for range running {
		if e := <-failed; !errors.Is(e, http.ErrServerClosed) {
			err = errors.Join(err, e)
		}
	}
	done := make(chan struct{})
	go func() {
		handler.Close()
		close(done)
	}()
	select {
	case <-done:
	case <-stop.Done():
		log.Warn("requests did not end in time")
	}
	return err
}
