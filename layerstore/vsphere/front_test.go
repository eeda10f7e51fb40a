package vsphere

import (
	"crypto/tls"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"sync/atomic"
)

// A front stands between the client and the server.
type front struct {
	*httputil.ReverseProxy
	fault atomic.Pointer[func(http.ResponseWriter, *http.Request) bool] // says whether it has answered
}

func (f *front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if fault := f.fault.Load(); fault != nil && (*fault)(w, r) {
		return
	}
	f.ReverseProxy.ServeHTTP(w, r)
}

func (f *front) set(fn func(http.ResponseWriter, *http.Request) bool) { f.fault.Store(&fn) }

// behind connects through a front.
func (s *site) behind() (*front, *Session) {
	u := *s.URL()
	u.User, u.Path = nil, ""
	f := &front{ReverseProxy: httputil.NewSingleHostReverseProxy(&u)}
	f.Transport = &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	f.ErrorLog = log.New(io.Discard, "", 0)
	srv := httptest.NewUnstartedServer(f)
	srv.Config.ErrorLog = f.ErrorLog
	srv.Start()
	s.t.Cleanup(srv.Close)
	e := s.endpoint()
	e.Server = srv.URL
	return f, s.connect(e)
}
