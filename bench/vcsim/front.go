package vcsim

import (
	"bytes"
	"cmp"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// maxCall bounds a SOAP request.
const maxCall = 16 << 20

// front stands before the simulator's HTTP handlers: it counts, asks for sessions where the simulator forgets to, and makes uploads
// fail.
type front struct {
	s        *Server
	failures failures

	mu    sync.Mutex
	calls map[string]int
}

// Calls returns how often each method of the API was called, and under "GET /folder", "PUT /folder", "POST /nfc" and so on how many
// requests there were for files.
func (s *Server) Calls() map[string]int {
	s.front.mu.Lock()
	defer s.front.mu.Unlock()
	return maps.Clone(s.front.calls)
}

func (f *front) count(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.calls == nil {
		f.calls = map[string]int{}
	}
	f.calls[name]++
}

func (f *front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	mux := f.s.Service.ServeMux
	switch {
	case strings.HasPrefix(r.URL.Path, "/folder"):
		f.count(r.Method + " /folder")
		f.serveFolder(w, r)
	case strings.HasPrefix(r.URL.Path, "/nfc/"):
		f.count(r.Method + " /nfc")
		f.serveNFC(w, r)
	case r.Method == http.MethodPost && strings.HasPrefix(r.URL.Path, "/sdk"):
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxCall))
		if err != nil {
			http.Error(w, err.Error(), http.StatusRequestEntityTooLarge)
			return
		}
		method := calledMethod(body)
		f.count(method)
		if method == "AnswerVM" { // of which the simulator knows nothing
			f.serveAnswer(w, r, body)
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		mux.ServeHTTP(w, r)
	default:
		mux.ServeHTTP(w, r)
	}
}

// calledMethod is the name of the element in a SOAP envelope's body.
func calledMethod(envelope []byte) string {
	d := xml.NewDecoder(bytes.NewReader(envelope))
	for in := false; ; {
		t, err := d.Token()
		if err != nil {
			return "no method"
		}
		if e, ok := t.(xml.StartElement); ok {
			if in {
				return e.Name.Local
			}
			in = e.Name.Local == "Body"
		}
	}
}

// keep writes a file of a datastore with the folders that it is in; as new only if there is none.
func keep(file string, body io.Reader, asNew bool) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	flags := os.O_RDWR | os.O_CREATE | os.O_TRUNC
	if asNew {
		flags |= os.O_EXCL
	}
	f, err := os.OpenFile(file, flags, 0o666)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, body)
	return errors.Join(err, f.Close())
}

// serveFolder serves the files of a datastore. The simulator does so too, but reads its datastores while tasks change them.
func (f *front) serveFolder(w http.ResponseWriter, r *http.Request) {
	if ok, err := f.authentic(r); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	} else if !ok {
		w.Header().Set("WWW-Authenticate", `Basic realm="VMware HTTP server"`)
		http.Error(w, "no session", http.StatusUnauthorized)
		return
	}
	datastore, name := r.URL.Query().Get("dsName"), strings.TrimPrefix(r.URL.Path, "/folder/")
	file, err := f.s.Path(fmt.Sprintf("[%s] %s", datastore, cmp.Or(name, ".")))
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		if !f.s.datastores[datastore].objects() || !serveObject(w, r, name, file) {
			http.ServeFile(w, r, file)
		}
	case http.MethodPut, http.MethodPost:
		body := f.failures.upload(r, datastore)
		switch err := keep(file, body, r.Method == http.MethodPost); {
		case err == nil:
		case errors.Is(err, fs.ErrExist):
			http.Error(w, err.Error(), http.StatusConflict)
		case body.err == nil:
			http.Error(w, err.Error(), http.StatusInternalServerError)
		case errors.Is(body.err, errFull):
			http.Error(w, body.err.Error(), http.StatusInsufficientStorage)
		default:
			panic(http.ErrAbortHandler) // breaks the connection
		}
	default:
		http.Error(w, "the simulator does not "+r.Method, http.StatusNotImplemented)
	}
}

// authentic tells whether a request comes with a session, a ticket or the user's password. The simulator does not remember which tickets it
// gave: any will do.
func (f *front) authentic(r *http.Request) (bool, error) {
	if user, password, ok := r.BasicAuth(); ok {
		own, _ := f.s.url.User.Password()
		return user == f.s.url.User.Username() && password == own, nil
	}
	if _, err := r.Cookie("vmware_cgi_ticket"); err == nil {
		return true, nil
	}
	c, err := r.Cookie(soap.SessionCookieName)
	if err != nil {
		return false, nil // there is none
	}
	sessions, err := f.s.sessions(r.Context())
	if err != nil {
		return false, err
	}
	for _, s := range sessions {
		if s.Key == strings.Trim(c.Value, `"`) {
			return true, nil
		}
	}
	return false, nil
}

// sessions lists who is logged in.
func (s *Server) sessions(ctx context.Context) ([]types.UserSession, error) {
	c, err := s.Administrator(ctx)
	if err != nil {
		return nil, err
	}
	var m mo.SessionManager
	if err := mo.RetrieveProperties(ctx, c, c.ServiceContent.PropertyCollector, *c.ServiceContent.SessionManager, &m); err != nil {
		return nil, fmt.Errorf("list sessions: %w", err)
	}
	return m.SessionList, nil
}
