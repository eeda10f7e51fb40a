package bench

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"vic/bench/corpus"
	"vic/bench/layout"
)

func generate(t *testing.T, s corpus.Shape) layout.Dir {
	t.Helper()
	d, err := corpus.Write(t.Context(), filepath.Join(t.TempDir(), "image"), s)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func openImage(t *testing.T, d layout.Dir) *image {
	t.Helper()
	img, err := serve(t.Context(), d, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { img.close() })
	return img
}

func empty(t *testing.T, dir string) {
	t.Helper()
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestOnePass(t *testing.T) {
	for _, c := range []corpus.Compression{"gzip", "zstd", "none"} {
		t.Run(c.String(), func(t *testing.T) {
			img := openImage(t, generate(t, corpus.Shape{Layers: 3, Files: 90, Sizes: corpus.Fixed(50_000), Compressible: 0.5, Whiteouts: 0.1, Compression: c}))
			work := t.TempDir()
			costs, err := onePass(t.Context(), img, work)
			if err != nil {
				t.Fatal(err)
			}
			for i, l := range costs {
				entries := 30 + 2 // files, and the folders that they are in
				if i > 0 {
					entries += 3
				}
				if l.entries != entries || l.blob != img.layers[i].blob.Size || l.tar < 30*50_000 || l.stored < 30*50_000 {
					t.Errorf("layer %d: %+v, want %d entries", i, l, entries)
				}
				for s := StageFetch; s < numStages; s++ {
					if l.spent[s].wall <= 0 {
						t.Errorf("layer %d: %s took no time", i, s)
					}
				}
			}
			empty(t, work)
		})
	}
}

func TestOnePassDamaged(t *testing.T) {
	d := generate(t, corpus.Shape{Layers: 2, Files: 20, Sizes: corpus.Fixed(5000)})
	img := openImage(t, d)
	path := d.Blob(img.layers[1].blob.Digest)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	work := t.TempDir()
	if _, err := onePass(t.Context(), img, work); err == nil || !strings.Contains(err.Error(), "layer 1: ") {
		t.Errorf("damaged: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := onePass(ctx, img, work); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	empty(t, work)
}

// TestFetch copies an image from one layout into another, over HTTP.
func TestFetch(t *testing.T) {
	img := openImage(t, generate(t, corpus.Shape{Layers: 2, Files: 20, Sizes: corpus.Fixed(5000)}))
	dir := filepath.Join(t.TempDir(), "copy")
	if err := Fetch(t.Context(), img.src, dir); err != nil {
		t.Fatal(err)
	}
	copied := openImage(t, layout.Dir(dir))
	if len(copied.layers) != 2 || copied.layers[1].diffID != img.layers[1].diffID || copied.layers[1].blob.Digest != img.layers[1].blob.Digest {
		t.Errorf("got %+v, want %+v", copied.layers, img.layers)
	}
	for _, l := range copied.layers {
		if _, err := copied.fetch(t.Context(), l); err != nil {
			t.Error(err)
		}
	}
}

func TestServeRefused(t *testing.T) {
	d, err := layout.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	config, err := json.Marshal(ocispec.Image{Platform: ocispec.Platform{OS: "linux"}, RootFS: ocispec.RootFS{Type: "layers"}})
	if err != nil {
		t.Fatal(err)
	}
	layer := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: "sha256:" + ociZeros, Size: 1}
	if err := d.AddImage("", config, []ocispec.Descriptor{layer}); err != nil {
		t.Fatal(err)
	}
	if img, err := serve(t.Context(), d, ""); err == nil {
		img.close()
		t.Error("a layer without diff ID was taken")
	}
}

const ociZeros = "0000000000000000000000000000000000000000000000000000000000000000"

func TestMedium(t *testing.T) {
	dir := t.TempDir()
	n, u, err := writeMedium(t.Context(), dir, 1)
	if err != nil || n != minMedium || u.wall <= 0 {
		t.Errorf("%d bytes in %v, %v", n, u, err)
	}
	empty(t, dir)
}
