package layerstore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// rebuild returns the digest of the tar that the store makes of a layer.
func rebuild(t *testing.T, s *Store, chain digest.Digest) digest.Digest {
	t.Helper()
	h := sha256.New()
	if err := s.WriteTar(t.Context(), chain, h); err != nil {
		t.Fatal(err)
	}
	return digest.NewDigest(digest.SHA256, h)
}

// TestWriteTar: every layer's tar comes out as it went in, whatever is over it.
func TestWriteTar(t *testing.T) {
	s := openStore(t, Options{})
	big := strings.Repeat("0123456789abcdef", 100000)
	img := pullImage(t, s, makeImage(t,
		memLayer{tar: makeTar(t, folder("d"), file("d/a", big), file("d/b", "b"), symlink("l", "d/a"))},
		memLayer{tar: append(makeTar(t, file("d/a", big), file("d/c", string(randomBytes(5, 500_000))), file("d/c", "replaced")), "behind the end"...), packing: packZstd},
		memLayer{tar: makeTar(t, file("d/.wh.a", ""), hardlink("d/e", "d/b"))},
		memLayer{tar: append(makeTar(t), make([]byte, 3000)...)}, // empty, not as they usually are
		memLayer{tar: make([]byte, 1024)},
		memLayer{tar: makeTar(t, file("d/a", big)), packing: packPlain},
	), "tars")
	for _, il := range img.Layers {
		l, err := s.Layer(il.Chain)
		if err != nil {
			t.Fatal(err)
		}
		if got := rebuild(t, s, l.Chain); got != l.DiffID {
			t.Errorf("layer %s: tar has digest %s, want %s", l.Chain, got, l.DiffID)
		}
	}
	checkClean(t, s)
	if err := s.WriteTar(t.Context(), digest.FromString("no"), io.Discard); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("tar of no layer: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.WriteTar(ctx, img.Layers[0].Chain, io.Discard); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestDonor: a layer whose tar the store has over another parent is not fetched, and its
// disk is the same as if it had been.
func TestDonor(t *testing.T) {
	app := memLayer{tar: makeTar(t, folder("app"), file("app/run", strings.Repeat("run", 1000)), file("base", "of the app"))}
	first := makeImage(t, memLayer{tar: makeTar(t, file("base", "one"))}, app)
	second := func() *memImage {
		return makeImage(t, memLayer{tar: makeTar(t, file("base", "two"), file("more", "m"))}, app)
	}
	fetchedApp := func(m *memImage) int {
		m.mu.Lock()
		defer m.mu.Unlock()
		var man ocispec.Manifest
		m.change(t, func(_ *ocispec.Image, x *ocispec.Manifest) { man = *x })
		return m.fetched[man.Layers[1].Digest]
	}

	fresh := openStore(t, Options{})
	want := pullImage(t, fresh, second(), "second")

	s := openStore(t, Options{})
	pullImage(t, s, first, "first")
	src := second()
	img := pullImage(t, s, src, "second")
	if n := fetchedApp(src); n != 0 {
		t.Errorf("the layer was fetched %d times", n)
	}
	a, err := os.ReadFile(s.dir.extent(img.Chain()))
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(fresh.dir.extent(want.Chain()))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a, b) {
		t.Error("the disk is not the one that fetching makes")
	}
	checkClean(t, s)

	// A donor that is damaged is no reason to fail.
	t.Run("damaged", func(t *testing.T) {
		s := openStore(t, Options{})
		one := pullImage(t, s, first, "first")
		path := s.dir.recipe(one.Chain())
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		b[len(b)/3] ^= 0xff
		if err := os.WriteFile(path, b, diskMode); err != nil {
			t.Fatal(err)
		}
		src := second()
		img := pullImage(t, s, src, "second")
		if n := fetchedApp(src); n != 1 {
			t.Errorf("the layer was fetched %d times, want once", n)
		}
		l, err := s.Layer(img.Chain())
		if err != nil {
			t.Fatal(err)
		}
		if got := rebuild(t, s, l.Chain); got != l.DiffID {
			t.Errorf("tar has digest %s, want %s", got, l.DiffID)
		}
		var found []string
		if err := s.Check(t.Context(), CheckOptions{Deep: true}, func(f Finding) { found = append(found, fmt.Sprint(filepath.Base(f.Path), ": ", f.Problem)) }); err != nil {
			t.Fatal(err)
		}
		if len(found) != 1 || !strings.HasPrefix(found[0], filepath.Base(path)+": checksum is") {
			t.Errorf("check finds %q", found)
		}
	})
}
