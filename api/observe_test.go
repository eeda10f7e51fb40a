package api

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// observing is a Server with nothing behind it but a route table.
func observing(log *slog.Logger, routes ...route) *Server {
	s := &Server{log: log, metrics: newMetrics(nil, nil)}
	s.handler = s.observe(s.prepare(mux(routes)))
	return s
}

func TestObserve(t *testing.T) {
	var log bytes.Buffer
	s := observing(slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		route{"GET", "/images/{name*}/json", func(w http.ResponseWriter, _ *http.Request) error { return writeJSON(w, 200, "hello") }},
		route{"POST", "/exec/{id}/start", func(w http.ResponseWriter, r *http.Request) error {
			conn, err := hijack(w, r, "a/b")
			if err != nil {
				return err
			}
			return conn.close()
		}},
		route{"POST", "/nothing", func(http.ResponseWriter, *http.Request) error { return nil }},
		route{"*", "/swarm", noSwarm},
	)
	srv := httptest.NewServer(s)
	defer srv.Close()
	for _, tt := range []struct{ method, path, wantRoute, wantLog string }{
		{"GET", "/v1.50/images/reg:5000/x/json?password=hunter2", "GET /images/{name*}/json 200", `"path":"/v1.50/images/reg:5000/x/json","route":"/images/{name*}/json","status":200,"size":8,`},
		{"GET", "/images/y/json", "GET /images/{name*}/json 200", `"status":200`},
		{"POST", "/exec/1/start", "POST /exec/{id}/start 101", `"status":101`},
		{"POST", "/nothing", "POST /nothing 200", `"status":200,"size":0`},
		{"PATCH", "/swarm", "* /swarm 503", `"method":"PATCH"`},
		{"BREW", "/swarm", "  404", `"method":"BREW"`},
		{"GET", "/nope", "  404", `"route":"","status":404`},
		{"GET", "/v1.2/containers/y/json", "  400", `"route":"","status":400`},
	} {
		log.Reset()
		label := strings.SplitN(tt.wantRoute, " ", 3)
		counter := s.metrics.requests.WithLabelValues(label...)
		before := testutil.ToFloat64(counter)
		req, err := http.NewRequest(tt.method, srv.URL+tt.path, strings.NewReader(`{"Env":["SECRET=hunter2"]}`))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Registry-Auth", "hunter2")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		s.active.Wait()
		if got := testutil.ToFloat64(counter) - before; got != 1 {
			t.Errorf("%s %s: counted %v times as %s", tt.method, tt.path, got, tt.wantRoute)
		}
		if !strings.Contains(log.String(), tt.wantLog) || strings.Count(log.String(), "\n") != 1 || strings.Contains(log.String(), "hunter2") {
			t.Errorf("%s %s: log %s, want one line with %s and no secret", tt.method, tt.path, log.String(), tt.wantLog)
		}
	}
	if n := testutil.ToFloat64(s.metrics.active); n != 0 {
		t.Errorf("%v requests are active", n)
	}
}

// Prometheus's own linter reads what it is to scrape.
func TestMetricNames(t *testing.T) {
	r := prometheus.NewPedanticRegistry()
	m := newMetrics(nil, nil)
	r.MustRegister(m.active, m.requests, m.durations, m.starts, m.failed, m.pulls, m.layers, m.bytes)
	m.request(&observed{method: "GET", route: "/x", status: 200}, time.Second)
	m.pulled(nil)
	m.pulled(errors.New("x"))
	if err := m.start(func() error { return conflict("x") }); err == nil {
		t.Error("start lost its error")
	}
	problems, err := testutil.GatherAndLint(r)
	if err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
	if f, ok := testutil.ToFloat64(m.failed), testutil.ToFloat64(m.pulls.WithLabelValues("error")); f != 1 || ok != 1 {
		t.Errorf("%v failed starts, %v failed pulls", f, ok)
	}
}

// A client that sends its JSON too slowly is told so; one that was in time keeps its connection.
func TestPromptBody(t *testing.T) {
	const end = 100 * time.Millisecond
	late := make(chan error, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b := &promptBody{r.Body, http.NewResponseController(w), time.Now().Add(end)}
		if _, err := io.ReadAll(b); err != nil {
			late <- err
			return
		}
		select {
		case <-time.After(2 * end):
		case <-r.Context().Done():
			t.Error("the deadline of the body ended the request")
		}
	}))
	defer srv.Close()
	c, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{")
	if err := <-late; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	resp, err := http.Post(srv.URL, "application/json", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	for ct, want := range map[string]bool{"application/json": true, "application/json; charset=utf-8": true, "application/x-tar": false, "": false} {
		r := httptest.NewRequest("POST", "/", strings.NewReader("{}"))
		r.Header.Set("Content-Type", ct)
		prompt(httptest.NewRecorder(), r)
		if _, got := r.Body.(*promptBody); got != want {
			t.Errorf("%q: bounded in time: %v", ct, got)
		}
		if b, err := io.ReadAll(r.Body); err != nil || string(b) != "{}" {
			t.Errorf("%q: %q, %v", ct, b, err)
		}
	}
}
