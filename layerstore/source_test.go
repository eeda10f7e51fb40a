package layerstore

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/distribution/reference"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// testCapacity keeps the disks of tests small.
const testCapacity = 1 << 30

func openStore(t testing.TB, o Options) *Store {
	t.Helper()
	return openStoreIn(t, t.TempDir()+"/store", o)
}

func openStoreIn(t testing.TB, dir string, o Options) *Store {
	t.Helper()
	if o.Capacity == 0 {
		o.Capacity = testCapacity
	}
	s, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func mustName(t testing.TB, name string) reference.Named {
	t.Helper()
	ref, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

func pullImage(t testing.TB, s *Store, src Source, name string) *Image {
	t.Helper()
	img, err := s.Pull(t.Context(), src, mustName(t, name), PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// A tarEntry is what a test layer has; the zero Mode is 0644, or 0755 for a
// directory.
type tarEntry struct {
	tar.Header
	data []byte
}

func file(name, data string) tarEntry {
	return tarEntry{Header: tar.Header{Name: name, Typeflag: tar.TypeReg}, data: []byte(data)}
}

func folder(name string) tarEntry {
	return tarEntry{Header: tar.Header{Name: name + "/", Typeflag: tar.TypeDir}}
}

func symlink(name, target string) tarEntry {
	return tarEntry{Header: tar.Header{Name: name, Linkname: target, Typeflag: tar.TypeSymlink}}
}

func hardlink(name, target string) tarEntry {
	return tarEntry{Header: tar.Header{Name: name, Linkname: target, Typeflag: tar.TypeLink}}
}

// makeTar writes entries as an uncompressed layer.
func makeTar(t testing.TB, entries ...tarEntry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if e.Mode == 0 {
			e.Mode = 0o644
			if e.Typeflag == tar.TypeDir {
				e.Mode = 0o755
			}
		}
		if e.ModTime.IsZero() {
			e.ModTime = time.Unix(1700000000, 0)
		}
		e.Size = int64(len(e.data))
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(e.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// How a test layer is compressed.
type packing int

const (
	packGzip packing = iota
	packZstd
	packPlain
)

func (p packing) pack(t testing.TB, b []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	var w io.WriteCloser
	var err error
	switch p {
	case packGzip:
		w, err = gzip.NewWriterLevel(&buf, gzip.BestSpeed)
	case packZstd:
		w, err = zstd.NewWriter(&buf)
	case packPlain:
		return b
	}
	if err == nil {
		_, err = w.Write(b)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// A memImage is an image in memory, and a Source of it.
type memImage struct {
	manifest []byte
	desc     ocispec.Descriptor
	config   []byte
	blobs    map[digest.Digest][]byte
	top      digest.Digest // "" means that of the manifest

	// hook, if set, replaces the reader of a blob.
	hook func(ctx context.Context, d ocispec.Descriptor, r io.Reader) io.Reader

	mu      sync.Mutex
	fetched map[digest.Digest]int // how often each blob was asked for
}

// A memLayer is one layer of a memImage.
type memLayer struct {
	tar     []byte
	packing packing
	blob    []byte // instead of the packed tar
	media   string // "" means gzip's, whatever the packing
}

func makeImage(t testing.TB, layers ...memLayer) *memImage {
	t.Helper()
	m := &memImage{blobs: make(map[digest.Digest][]byte), fetched: make(map[digest.Digest]int)}
	created := time.Unix(1600000000, 0).UTC()
	cfg := ocispec.Image{Created: &created, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{}}}
	cfg.OS, cfg.Architecture = "linux", "amd64"
	man := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Layers: []ocispec.Descriptor{}}
	for i, l := range layers {
		blob := l.blob
		if blob == nil {
			blob = l.packing.pack(t, l.tar)
		}
		media := l.media
		if media == "" {
			media = ocispec.MediaTypeImageLayerGzip
		}
		d := ocispec.Descriptor{MediaType: media, Digest: digest.FromBytes(blob), Size: int64(len(blob))}
		m.blobs[d.Digest] = blob
		man.Layers = append(man.Layers, d)
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, digest.FromBytes(l.tar))
		cfg.History = append(cfg.History, ocispec.History{Created: &created, CreatedBy: fmt.Sprintf("step %d", i)})
	}
	m.setConfig(t, cfg, man)
	return m
}

func (m *memImage) setConfig(t testing.TB, cfg ocispec.Image, man ocispec.Manifest) {
	t.Helper()
	var err error
	if m.config, err = json.Marshal(cfg); err != nil {
		t.Fatal(err)
	}
	man.Config = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(m.config), Size: int64(len(m.config))}
	if m.manifest, err = json.Marshal(man); err != nil {
		t.Fatal(err)
	}
	m.desc = ocispec.Descriptor{MediaType: man.MediaType, Digest: digest.FromBytes(m.manifest), Size: int64(len(m.manifest))}
}

// change edits the manifest and the config.
func (m *memImage) change(t testing.TB, edit func(*ocispec.Image, *ocispec.Manifest)) *memImage {
	t.Helper()
	var cfg ocispec.Image
	var man ocispec.Manifest
	if err := json.Unmarshal(m.config, &cfg); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(m.manifest, &man); err != nil {
		t.Fatal(err)
	}
	edit(&cfg, &man)
	m.setConfig(t, cfg, man)
	return m
}

func (m *memImage) Digest() digest.Digest {
	if m.top != "" {
		return m.top
	}
	return m.desc.Digest
}

func (m *memImage) Manifest() ([]byte, ocispec.Descriptor) { return m.manifest, m.desc }
func (m *memImage) Config() []byte                         { return m.config }

func (m *memImage) Blob(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	m.mu.Lock()
	m.fetched[d.Digest]++
	m.mu.Unlock()
	b, ok := m.blobs[d.Digest]
	if !ok {
		return nil, fmt.Errorf("blob %s unknown", d.Digest)
	}
	var r io.Reader = &ctxReader{ctx, bytes.NewReader(b)}
	if m.hook != nil {
		r = m.hook(ctx, d, r)
	}
	return io.NopCloser(r), nil
}

// total returns how often any blob was asked for.
func (m *memImage) total() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	for _, k := range m.fetched {
		n += k
	}
	return n
}

// A ctxReader ends with its context, as a network connection does.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (r *ctxReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

// randomBytes returns n bytes that do not compress.
func randomBytes(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)})
	r.Read(b)
	return b
}

// webImage is an image of five layers: one of each packing, one empty, one with
// whiteouts.
func webImage(t testing.TB) *memImage {
	t.Helper()
	return makeImage(t,
		memLayer{tar: makeTar(t, folder("etc"), file("etc/os-release", "ID=test\n"), folder("bin"),
			file("bin/sh", string(randomBytes(1, 300_000))), hardlink("bin/ash", "bin/sh"), symlink("sbin", "bin"),
			folder("tmp"), file("tmp/a", "a"), file("tmp/b", "b"))},
		memLayer{tar: makeTar(t)},
		memLayer{tar: makeTar(t, file("etc/passwd", "root:x:0:0::/:/bin/sh\n"), file("tmp/.wh.a", "")), packing: packZstd},
		memLayer{tar: makeTar(t, folder("srv"), file("srv/index.html", string(randomBytes(2, 70_000))), file("tmp/.wh..wh..opq", "")), packing: packPlain},
		memLayer{tar: makeTar(t, file("etc/os-release", "ID=web\n"))},
	)
}
