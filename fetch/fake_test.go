package fetch

import (
	"bytes"
	"encoding/json"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A fakeRegistry is a registry that does as it is told: each test that uses it
// is about what a real one would hardly ever do.
type fakeRegistry struct {
	*httptest.Server
	host string // host:port

	// before may answer a request and then returns true.
	before func(http.ResponseWriter, *http.Request) bool

	mu        sync.Mutex
	blobs     map[digest.Digest][]byte
	manifests map[string]fakeManifest // by tag and by digest
	log       []string                // "GET /v2/a/blobs/sha256:… bytes=5-"
}

type fakeManifest struct {
	mediaType string
	body      []byte
}

func newFakeRegistry(t testing.TB) *fakeRegistry {
	t.Helper()
	f := &fakeRegistry{blobs: map[digest.Digest][]byte{}, manifests: map[string]fakeManifest{}}
	f.Server = httptest.NewServer(f)
	t.Cleanup(f.Close)
	f.host = strings.TrimPrefix(f.URL, "http://")
	return f
}

func (f *fakeRegistry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.log = append(f.log, strings.TrimSpace(r.Method+" "+r.URL.Path+" "+r.Header.Get("Range")))
	f.mu.Unlock()
	if f.before != nil && f.before(w, r) {
		return
	}
	_, last, _ := cutLast(r.URL.Path, "/")
	switch {
	case r.URL.Path == "/v2/":
		w.WriteHeader(http.StatusOK)
	case strings.Contains(r.URL.Path, "/manifests/"):
		f.mu.Lock()
		m, ok := f.manifests[last]
		f.mu.Unlock()
		if !ok {
			sayError(w, http.StatusNotFound, "MANIFEST_UNKNOWN", "manifest unknown")
			return
		}
		w.Header().Set("Content-Type", m.mediaType)
		w.Header().Set("Docker-Content-Digest", digest.FromBytes(m.body).String())
		w.Write(m.body)
	case strings.Contains(r.URL.Path, "/blobs/"):
		b, ok := f.blobs[digest.Digest(last)]
		if !ok {
			sayError(w, http.StatusNotFound, "BLOB_UNKNOWN", "blob unknown to registry")
			return
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
	default:
		http.NotFound(w, r)
	}
}

// asked lists the requests so far for paths that contain s.
func (f *fakeRegistry) asked(s string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(f.log), func(l string) bool { return !strings.Contains(l, s) })
}

// addBlob stores a blob.
func (f *fakeRegistry) addBlob(mediaType string, b []byte) ocispec.Descriptor {
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	f.blobs[d.Digest] = b
	return d
}

// addManifest stores a manifest or an index under its digest and tags.
func (f *fakeRegistry) addManifest(t testing.TB, mediaType string, v any, tags ...string) ocispec.Descriptor {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	for _, name := range append(tags, d.Digest.String()) {
		f.manifests[name] = fakeManifest{mediaType, b}
	}
	return d
}

// addImage stores an image for a platform, with layers of the type given.
func (f *fakeRegistry) addImage(t testing.TB, p ocispec.Platform, layerType string, layers [][]byte, tags ...string) ocispec.Descriptor {
	t.Helper()
	m := testManifest(f, t, p, layerType, layers)
	return f.addManifest(t, m.MediaType, m, tags...)
}

// testManifest stores the blobs of an image and returns its manifest.
func testManifest(f *fakeRegistry, t testing.TB, p ocispec.Platform, layerType string, layers [][]byte) ocispec.Manifest {
	t.Helper()
	c := ocispec.Image{Platform: p, RootFS: ocispec.RootFS{Type: "layers"}}
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	for _, l := range layers {
		// Nobody here decompresses: any digest will do as a diff ID.
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, digest.FromBytes(append([]byte("diff"), l...)))
		m.Layers = append(m.Layers, f.addBlob(layerType, l))
	}
	b, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	m.Config = f.addBlob(ocispec.MediaTypeImageConfig, b)
	return m
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// sayError writes the error reply of the distribution specification.
func sayError(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string]any{"errors": []any{map[string]string{"code": code, "message": message}}})
}

// quick is a client that loses no time between attempts.
func quick() *Client { return &Client{Backoff: time.Microsecond} }

var (
	amd64 = ocispec.Platform{OS: "linux", Architecture: "amd64"}
	arm64 = ocispec.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"}
)

// named parses a reference.
func named(t testing.TB, s string) reference.Named {
	t.Helper()
	ref, err := reference.ParseNormalizedNamed(s)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// mustResolve resolves a reference for amd64, whatever runs the test.
func mustResolve(t testing.TB, c *Client, ref string, o ResolveOptions) *Image {
	t.Helper()
	if o.Platform == nil {
		o.Platform = &amd64
	}
	img, err := c.Resolve(t.Context(), named(t, ref), o)
	if err != nil {
		t.Fatalf("Resolve(%s): %v", ref, err)
	}
	return img
}

// readBlob reads a blob to its end.
func readBlob(t testing.TB, img *Image, d ocispec.Descriptor) ([]byte, error) {
	t.Helper()
	r, err := img.Blob(t.Context(), d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// randomBytes are the same in each run.
func randomBytes(n int) []byte {
	b := make([]byte, n)
	rng := rand.New(rand.NewPCG(1, uint64(n)))
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

func mustURL(t testing.TB, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// rangeStart is where a request wants a blob to begin.
func rangeStart(t testing.TB, r *http.Request) int {
	h := r.Header.Get("Range")
	if h == "" {
		return 0
	}
	n, err := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(h, "bytes="), "-"))
	if err != nil {
		t.Errorf("Range: %s", h)
	}
	return n
}
