package vsphere

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
)

// TestReuse reads only the beginning of replies: the same connection serves them all where the end is near, and no more of a long one is read.
func TestReuse(t *testing.T) {
	for _, tt := range []struct {
		name, length string
		size         int
		conns        int32
	}{
		{"of unknown length", "", 3000, 1},
		{"of known length", "3000", 3000, 1},
		{"empty", "0", 0, 1},
		{"long", "1000000", 1000000, 4},
		{"long, of unknown length", "", 1000000, 4},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var conns atomic.Int32
			srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				if tt.length != "" {
					w.Header().Set("Content-Length", tt.length)
				} else {
					w.(http.Flusher).Flush() // chunks from here on
				}
				_, _ = io.WriteString(w, strings.Repeat("x", tt.size)) // a client that does not want it all may go
			}))
			srv.Config.ConnState = func(_ net.Conn, s http.ConnState) {
				if s == http.StateNew {
					conns.Add(1)
				}
			}
			srv.Start()
			defer srv.Close()
			transport := &http.Transport{}
			defer transport.CloseIdleConnections()
			client := http.Client{Transport: reusing{transport}}
			for range 4 {
				res, err := client.Get(srv.URL)
				if err != nil {
					t.Fatal(err)
				}
				if n, err := io.ReadFull(res.Body, make([]byte, min(10, tt.size))); err != nil {
					t.Errorf("read %d bytes: %v", n, err)
				}
				if err := res.Body.Close(); err != nil {
					t.Error(err)
				}
			}
			if n := conns.Load(); n != tt.conns {
				t.Errorf("%d connections for 4 replies, want %d", n, tt.conns)
			}
		})
	}
}
