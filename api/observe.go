package api

import (
	"bufio"
	"context"
	"io"
	"mime"
	"net"
	"net/http"
	"time"
)

// An observed reply knows what is measured of a request and told to the log: never the query, the header
// or the body, which can have passwords and a container's environment.
type observed struct {
	http.ResponseWriter
	method, route string // the line of the route table; "" for a request that fits none
	status        int    // 0 until there is one
	size          int64  // of the body, in bytes; not of what went over a connection that was taken over
}

func (o *observed) WriteHeader(status int) {
	if o.status == 0 && status >= 200 {
		o.status = status
	}
	o.ResponseWriter.WriteHeader(status)
}

func (o *observed) Write(p []byte) (int, error) {
	if o.status == 0 {
		o.status = http.StatusOK
	}
	n, err := o.ResponseWriter.Write(p)
	o.size += int64(n)
	return n, err
}

// Unwrap is how http.ResponseController reaches the rest.
func (o *observed) Unwrap() http.ResponseWriter { return o.ResponseWriter }

// Hijack gives the connection away, which is the reply.
func (o *observed) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(o.ResponseWriter).Hijack()
	if err == nil {
		o.status = http.StatusSwitchingProtocols
	}
	return conn, rw, err
}

type observedKey struct{}

// observe measures requests, and tells the log of each when it has been answered.
func (s *Server) observe(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		o := &observed{ResponseWriter: w}
		begun := time.Now()
		s.metrics.active.Inc()
		defer func() {
			s.metrics.active.Dec()
			if o.status == 0 {
				o.status = http.StatusOK // what net/http makes of a reply without one
			}
			took := time.Since(begun)
			s.metrics.request(o, took)
			s.log.Debug("request", "method", r.Method, "path", r.URL.Path, "route", o.route, "status", o.status, "size", o.size, "duration", took)
		}()
		next.ServeHTTP(o, r.WithContext(context.WithValue(r.Context(), observedKey{}, o)))
	})
}

// found notes which line of the route table a request fits.
func (rt route) found(r *http.Request) {
	if o, ok := r.Context().Value(observedKey{}).(*observed); ok {
		o.method, o.route = rt.method, rt.path
	}
}

// bodyTimeout is how long a client may take to send a JSON body. Archives may take as long as they want.
const bodyTimeout = time.Minute

// A promptBody is a body that must come in time. The deadline is the connection's, so it is set only while
// the body is read: afterwards a read is how the server learns that a client has gone.
type promptBody struct {
	io.ReadCloser
	w   *http.ResponseController
	end time.Time
}

// prompt bounds the time in which a JSON body comes.
func prompt(w http.ResponseWriter, r *http.Request) {
	if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err == nil && t == "application/json" && r.Body != http.NoBody {
		r.Body = &promptBody{r.Body, http.NewResponseController(w), time.Now().Add(bodyTimeout)}
	}
}

func (b *promptBody) Read(p []byte) (int, error) {
	if b.w.SetReadDeadline(b.end) != nil {
		return b.ReadCloser.Read(p) // a connection without deadlines
	}
	n, err := b.ReadCloser.Read(p)
	b.w.SetReadDeadline(time.Time{}) // if this fails the connection is gone
	return n, err
}
