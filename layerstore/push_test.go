package layerstore

import (
	"bytes"
	stdgzip "compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A memTarget is a repository in memory, and a Source of what was pushed to it.
type memTarget struct {
	mu        sync.Mutex
	blobs     map[digest.Digest][]byte
	elsewhere map[digest.Digest][]byte // what can be mounted
	manifest  []byte
	desc      ocispec.Descriptor
	put       int
	broken    int // how many uploads break once
}

func newTarget() *memTarget { return &memTarget{blobs: make(map[digest.Digest][]byte)} }

func (m *memTarget) HasBlob(_ context.Context, d ocispec.Descriptor) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, ok := m.blobs[d.Digest]
	return ok, nil
}

func (m *memTarget) MountBlob(_ context.Context, d ocispec.Descriptor) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if b, ok := m.elsewhere[d.Digest]; ok {
		m.blobs[d.Digest] = b
		return "lib/other", nil
	}
	return "", nil
}

func (m *memTarget) PutBlob(ctx context.Context, d ocispec.Descriptor, open func(context.Context) (io.ReadCloser, error)) error {
	m.mu.Lock()
	again := m.broken > 0
	m.broken--
	m.mu.Unlock()
	if again {
		r, err := open(ctx)
		if err != nil {
			return err
		}
		r.Read(make([]byte, 10))
		if err := r.Close(); err != nil {
			return err
		}
	}
	r, err := open(ctx)
	if err != nil {
		return err
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if d.Digest.Algorithm().FromBytes(b) != d.Digest || int64(len(b)) != d.Size {
		return errors.New("digest or size of the blob is wrong")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.blobs[d.Digest] = b
	m.put++
	return nil
}

func (m *memTarget) PutManifest(_ context.Context, d ocispec.Descriptor, b []byte) error {
	if digest.FromBytes(b) != d.Digest || int64(len(b)) != d.Size {
		return errors.New("digest or size of the manifest is wrong")
	}
	var man ocispec.Manifest
	if err := json.Unmarshal(b, &man); err != nil {
		return err
	}
	for _, l := range append(man.Layers, man.Config) {
		if int64(len(m.blobs[l.Digest])) != l.Size {
			return errors.New("blob unknown to registry: " + l.Digest.String())
		}
	}
	m.manifest, m.desc = b, d
	return nil
}

// pushed is what a target has, as a Source.
func (m *memTarget) pushed(t *testing.T) *memImage {
	var man ocispec.Manifest
	if err := json.Unmarshal(m.manifest, &man); err != nil {
		t.Fatal(err)
	}
	return &memImage{manifest: m.manifest, desc: m.desc, config: m.blobs[man.Config.Digest], blobs: m.blobs, fetched: make(map[digest.Digest]int)}
}

func mustPush(t *testing.T, s *Store, ref string, to Target, o PushOptions) *Pushed {
	t.Helper()
	p, err := s.Push(t.Context(), ref, to, o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// checkPushed pulls what was pushed into another store, and compares.
func checkPushed(t *testing.T, to *memTarget, img *Image) {
	t.Helper()
	again := pullImage(t, openStore(t, Options{}), to.pushed(t), "again")
	if again.ID != img.ID {
		t.Errorf("pushed and pulled, the image is %s, not %s", again.ID, img.ID)
	}
}

func packedWith(t *testing.T, open func(io.Writer) (io.WriteCloser, error), b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := open(&out)
	if err == nil {
		_, err = w.Write(b)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// Of every packer's blobs the digests are had again.
func TestPushUnchanged(t *testing.T) {
	var layers []memLayer
	for i, p := range packers {
		repeats := 10
		if i == 0 {
			repeats = 100 // more than packers are handed at once
		}
		tar := makeTar(t, file("f", string(bytes.Repeat(randomBytes(uint64(i), 5000), repeats))), file("g", string(randomBytes(uint64(i+100), 30_000))))
		media := ocispec.MediaTypeImageLayerGzip
		if p.kind == kindZstd {
			media = ocispec.MediaTypeImageLayerZstd
		}
		layers = append(layers, memLayer{tar: tar, blob: packedWith(t, p.open, tar), media: media})
	}
	plain := makeTar(t, file("plain", "p"))
	empty := make([]byte, 1024)
	layers = append(layers, memLayer{tar: plain, blob: plain, media: ocispec.MediaTypeImageLayer}, layers[0], memLayer{tar: empty})
	src := makeImage(t, layers...)
	s := openStore(t, Options{})
	img := pullImage(t, s, src, "app:1")

	to := newTarget()
	to.broken = 3
	var mu sync.Mutex
	stages := make(map[PushStage]int)
	pushed := mustPush(t, s, "app:1", to, PushOptions{Name: mustName(t, "reg.example/app:2"), Progress: func(e PushEvent) {
		mu.Lock()
		defer mu.Unlock()
		stages[e.Stage]++
	}})
	if pushed.Repacked != 0 || !bytes.Equal(to.manifest, src.manifest) {
		t.Errorf("%d layers were compressed otherwise", pushed.Repacked)
	}
	for d, b := range src.blobs {
		if !bytes.Equal(to.blobs[d], b) {
			t.Errorf("blob %s is another", d)
		}
	}
	if n := len(src.blobs); stages[PushSent] != n || stages[PushSending] != n || stages[PushPreparing] != n || to.put != n+1 {
		t.Errorf("stages %v, %d blobs sent, want %d layers", stages, to.put, n)
	}
	if img, err := s.Image("reg.example/app@" + src.desc.Digest.String()); err != nil || img.ID != pushed.Image.ID {
		t.Errorf("the image has no name by digest: %v", err)
	}
	// Records of earlier do not say how blobs began.
	for _, il := range img.Layers {
		l, err := s.dir.readLayer(il.Chain)
		if err != nil {
			t.Fatal(err)
		}
		l.BlobHead = ""
		if err := s.dir.replaceFile(s.dir.layer(l.Chain), l.marshal()); err != nil {
			t.Fatal(err)
		}
	}
	if pushed := mustPush(t, s, "app:1", newTarget(), PushOptions{}); pushed.Repacked != 0 {
		t.Errorf("without the blobs' beginnings, %d layers were compressed otherwise", pushed.Repacked)
	}
	// Nothing is sent twice; what is elsewhere is not sent at all.
	before := to.put
	mustPush(t, s, "app:1", to, PushOptions{})
	other := newTarget()
	other.elsewhere = to.blobs
	mustPush(t, s, "app:1", other, PushOptions{})
	if to.put != before || other.put != 0 {
		t.Errorf("%d blobs sent again, and %d that could be mounted", to.put-before, other.put)
	}
	checkPushed(t, other, img)
}

// Blobs of unknown programs become others; the image stays the same.
func TestPushRepacked(t *testing.T) {
	gnu := func(w io.Writer) (io.WriteCloser, error) {
		z, err := stdgzip.NewWriterLevel(w, 3)
		z.OS = 3
		return z, err
	}
	odd := makeTar(t, file("odd", string(bytes.Repeat([]byte("odd "), 10000))))
	good := memLayer{tar: makeTar(t, file("good", "g"))}
	for _, tt := range []struct {
		name     string
		layer    memLayer
		media    string // of the manifest
		want     string // media type of the layer
		repacked int
	}{
		{"OCI gzip", memLayer{tar: odd, blob: packedWith(t, gnu, odd)}, ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageLayerGzip, 1},
		{"OCI zstd", memLayer{tar: odd, blob: append([]byte{0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0}, packZstd.pack(t, odd)...), media: ocispec.MediaTypeImageLayerZstd},
			ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageLayerZstd, 1},
		{"schema 2", memLayer{tar: odd, blob: packedWith(t, gnu, odd), media: dockerLayer + "diff.tar.gzip"}, "application/vnd.docker.distribution.manifest.v2+json", dockerLayer + "diff.tar.gzip", 1},
		{"docker save", memLayer{tar: odd, blob: odd, media: dockerLayer + "diff.tar"}, "application/vnd.docker.distribution.manifest.v2+json", dockerLayer + "diff.tar.gzip", 1},
		{"plain", memLayer{tar: odd, blob: odd, media: ocispec.MediaTypeImageLayer}, ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageLayer, 0},
		{"plain, said to be gzip", memLayer{tar: odd, blob: odd}, ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageLayerGzip, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			src := makeImage(t, good, tt.layer, good).change(t, func(_ *ocispec.Image, m *ocispec.Manifest) {
				m.MediaType, m.Annotations = tt.media, map[string]string{"kept": "yes"}
			})
			src.desc.MediaType = tt.media
			s := openStore(t, Options{})
			img := pullImage(t, s, src, "app")
			to := newTarget()
			pushed := mustPush(t, s, "app", to, PushOptions{})
			if pushed.Repacked != tt.repacked || (tt.repacked == 0) != bytes.Equal(to.manifest, src.manifest) {
				t.Errorf("%d layers were compressed otherwise, want %d", pushed.Repacked, tt.repacked)
			}
			var m, was ocispec.Manifest
			if err := errors.Join(json.Unmarshal(to.manifest, &m), json.Unmarshal(src.manifest, &was)); err != nil {
				t.Fatal(err)
			}
			if m.Layers[1].MediaType != tt.want || m.MediaType != tt.media || to.desc.MediaType != tt.media || m.Annotations["kept"] != "yes" {
				t.Errorf("manifest is now\n%s", to.manifest)
			}
			if m.Config.Digest != was.Config.Digest || m.Layers[0].Digest != was.Layers[0].Digest {
				t.Errorf("more has changed than had to:\n%s", to.manifest)
			}
			checkPushed(t, to, img)
			before := to.put
			if again := mustPush(t, s, "app", to, PushOptions{}); again.Manifest.Digest != pushed.Manifest.Digest || to.put != before {
				t.Errorf("a second push made %s of %s and sent %d blobs", again.Manifest.Digest, pushed.Manifest.Digest, to.put-before)
			}
		})
	}
}

func TestPushFails(t *testing.T) {
	s := openStore(t, Options{})
	img := pullImage(t, s, makeImage(t, memLayer{tar: makeTar(t, file("one", "damage me"))}), "app")
	if _, err := s.Push(t.Context(), "nope", newTarget(), PushOptions{}); !errors.Is(err, ErrNotFound) {
		t.Errorf("push of no image: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Push(ctx, "app", newTarget(), PushOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	extent := s.dir.extent(img.Chain())
	b, err := os.ReadFile(extent)
	if err != nil {
		t.Fatal(err)
	}
	b[bytes.Index(b, []byte("damage me"))] = 'D'
	os.Remove(extent)
	if err := os.WriteFile(extent, b, diskMode); err != nil {
		t.Fatal(err)
	}
	to := newTarget()
	if _, err := s.Push(t.Context(), "app", to, PushOptions{}); err == nil || to.manifest != nil {
		t.Errorf("a damaged layer was pushed: %v", err)
	}
}
