package layout

import (
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A Server offers one image of a layout on a port of 127.0.0.1, to read, as OCI's distribution
// specification has it.
type Server struct {
	// Ref is the image's reference: HOST:PORT/bench/image:1.
	Ref string

	dir  Dir
	desc ocispec.Descriptor
	http http.Server
	done chan error
}

// Names of the image that a Server offers.
const (
	servedRepo = "bench/image"
	servedTag  = "1"
)

// Serve starts a Server of the image that Find finds. Close it when done.
func (d Dir) Serve(name string) (*Server, error) {
	desc, err := d.Find(name)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &Server{Ref: l.Addr().String() + "/" + servedRepo + ":" + servedTag, dir: d, desc: desc, done: make(chan error, 1)}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v2/{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	})
	mux.HandleFunc("GET /v2/"+servedRepo+"/manifests/{reference}", s.manifest)
	mux.HandleFunc("GET /v2/"+servedRepo+"/blobs/{digest}", s.blob)
	s.http.Handler = mux
	go func() { s.done <- s.http.Serve(l) }()
	return s, nil
}

// Close ends the Server and what it is sending.
func (s *Server) Close() error {
	err := s.http.Close()
	if served := <-s.done; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}

func (s *Server) manifest(w http.ResponseWriter, r *http.Request) {
	ref := r.PathValue("reference")
	if ref == servedTag {
		ref = s.desc.Digest.String()
	}
	dg, ok := s.find(ref)
	if !ok {
		refuse(w, "MANIFEST_UNKNOWN")
		return
	}
	b, err := readBounded(s.dir.Blob(dg))
	if err != nil {
		refuse(w, "MANIFEST_UNKNOWN")
		return
	}
	var m struct {
		MediaType string `json:"mediaType"`
	}
	if err := json.Unmarshal(b, &m); err != nil || (m.MediaType == "" && dg != s.desc.Digest) {
		m.MediaType = ocispec.MediaTypeImageManifest
	} else if m.MediaType == "" {
		m.MediaType = s.desc.MediaType
	}
	s.send(w, r, dg, m.MediaType)
}

func (s *Server) blob(w http.ResponseWriter, r *http.Request) {
	dg, ok := s.find(r.PathValue("digest"))
	if !ok {
		refuse(w, "BLOB_UNKNOWN")
		return
	}
	s.send(w, r, dg, "application/octet-stream")
}

// find parses a digest and tells whether the layout has that blob.
func (s *Server) find(text string) (digest.Digest, bool) {
	dg, err := digest.Parse(text)
	if err != nil {
		return "", false
	}
	_, err = os.Stat(s.dir.Blob(dg))
	return dg, err == nil
}

// send sends a file, or the part of it that is asked for, without copying it through this
// process where the kernel can.
func (s *Server) send(w http.ResponseWriter, r *http.Request, dg digest.Digest, mediaType string) {
	f, err := os.Open(s.dir.Blob(dg))
	if err != nil {
		refuse(w, "BLOB_UNKNOWN")
		return
	}
	defer f.Close()
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Docker-Content-Digest", dg.String())
	http.ServeContent(w, r, "", time.Time{}, f)
}

func refuse(w http.ResponseWriter, code string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusNotFound)
	w.Write([]byte(`{"errors":[{"code":"` + code + `","message":"` + strings.ToLower(strings.ReplaceAll(code, "_", " ")) + `"}]}`))
}
