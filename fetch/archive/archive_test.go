package archive

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	stdgzip "compress/gzip"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"vic/bench/oracle"
	"vic/bench/testimage"
	"vic/layerstore"
	"vic/layerstore/inflate"
)

var _ layerstore.Source = (*Image)(nil)

// tool runs a program that judges.
func tool(t testing.TB, program string, args ...string) string {
	t.Helper()
	oracle.Need(t, program)
	out, err := exec.CommandContext(t.Context(), program, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", program, args, err, out)
	}
	return string(out)
}

// testImage is an image of which one layer is there twice.
func testImage(t testing.TB) v1.Image {
	t.Helper()
	random := testimage.RandomBytes(300_000)
	img, err := testimage.Build(v1.Config{Cmd: []string{"sh"}}, testimage.SmallFiles(100), random, testimage.LowerLink(), random)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func tempFile(t testing.TB) func() (*os.File, error) {
	return func() (*os.File, error) {
		f, err := os.CreateTemp(t.TempDir(), "")
		if err == nil {
			err = os.Remove(f.Name())
		}
		return f, err
	}
}

// sameImage reads everything of an image and compares it with the one that was put in. It returns
// the media types of the layers.
func sameImage(t testing.TB, img *Image, want v1.Image) (types []string) {
	t.Helper()
	id, err := want.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	if got := digest.FromBytes(img.Config()); got.String() != id.String() {
		t.Errorf("image is %s, want %s", got, id)
	}
	manifest, desc := img.Manifest()
	if digest.FromBytes(manifest) != desc.Digest || int64(len(manifest)) != desc.Size {
		t.Errorf("manifest is not what its descriptor says")
	}
	layers, err := want.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for i, d := range img.docs.Layers {
		r, err := img.Blob(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		var content io.Reader = r
		switch {
		case strings.HasSuffix(d.MediaType, "gzip"):
			content = inflate.NewReader(r)
		case strings.HasSuffix(d.MediaType, "zstd"):
			z, err := zstd.NewReader(r)
			if err != nil {
				t.Fatal(err)
			}
			defer z.Close()
			content = z
		}
		hash := digest.SHA256.Digester()
		if _, err := io.Copy(hash.Hash(), content); err != nil {
			t.Fatalf("layer %d: %v", i, err)
		}
		diffID, err := layers[i].DiffID()
		if err != nil {
			t.Fatal(err)
		}
		if hash.Digest().String() != diffID.String() {
			t.Errorf("layer %d: diff ID is %s, want %s", i, hash.Digest(), diffID)
		}
		if _, err := r.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("layer %d: after its end: %v", i, err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		types = append(types, d.MediaType)
	}
	if len(types) != len(layers) {
		t.Errorf("%d layers, want %d", len(types), len(layers))
	}
	return types
}

func openAny(t testing.TB, path string) (*Archive, error) {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		return OpenFolder(path)
	}
	return OpenFile(t.Context(), path, tempFile(t))
}

func TestForeignWriters(t *testing.T) {
	img := testImage(t)
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	path, err := layout.Write(in("layout"), emptyIndex)
	if err != nil {
		t.Fatal(err)
	}
	if err := path.AppendImage(img, layout.WithAnnotations(map[string]string{ocispec.AnnotationRefName: "1.0"})); err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag("example.com/lib/app:2")
	if err != nil {
		t.Fatal(err)
	}
	if err := tarball.WriteToFile(in("ggcr.tar"), tag, img); err != nil {
		t.Fatal(err)
	}
	from := "oci:" + in("layout") + ":1.0"
	tool(t, "skopeo", "copy", "-q", from, "oci:"+in("skopeo")+":example.com/lib/app:2")
	tool(t, "skopeo", "copy", "-q", from, "oci-archive:"+in("oci.tar")+":example.com/lib/app:2")
	tool(t, "skopeo", "copy", "-q", from, "docker-archive:"+in("docker.tar")+":example.com/lib/app:2")
	tool(t, "skopeo", "copy", "-q", from, "oci:"+in("umoci")+":old")
	tool(t, "umoci", "tag", "--image", in("umoci")+":old", "new")
	compress(t, in("docker.tar"), in("docker.tar.gz"), func(w io.Writer) io.WriteCloser { return stdgzip.NewWriter(w) })
	compress(t, in("oci.tar"), in("oci.tar.zst"), func(w io.Writer) io.WriteCloser {
		z, err := zstd.NewWriter(w)
		if err != nil {
			t.Fatal(err)
		}
		return z
	})
	tool(t, "tar", "-C", in("skopeo"), "-cf", in("gnu.tar"), ".")

	const name = "[example.com/lib/app:2] [example.com/lib/app:2]"
	for _, tt := range []struct{ file, names string }{
		{"layout", "[] [1.0]"},
		{"skopeo", name},
		{"umoci", "[] [old new]"},
		{"oci.tar", name},
		{"oci.tar.zst", name},
		{"gnu.tar", name},
		{"docker.tar", name},
		{"docker.tar.gz", name},
		{"ggcr.tar", name},
	} {
		t.Run(tt.file, func(t *testing.T) {
			a, err := openAny(t, in(tt.file))
			if err != nil {
				t.Fatal(err)
			}
			defer a.Close()
			if len(a.Entries()) != 1 {
				t.Fatalf("%d images, want 1", len(a.Entries()))
			}
			e := a.Entries()[0]
			if got := fmt.Sprint(e.Names, " ", e.labels); got != tt.names || !e.Is(e.labels[0]) || e.Is("other") {
				t.Errorf("names %q, want %q", got, tt.names)
			}
			got, err := e.Resolve(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			types := sameImage(t, got, img)
			if plain := strings.HasSuffix(types[0], ".tar"); plain != strings.HasPrefix(tt.file, "docker") {
				t.Errorf("layers are of type %s", types[0])
			}
			if _, err := e.Resolve(t.Context(), &ocispec.Platform{OS: "linux", Architecture: "s390x"}); err == nil {
				t.Error("an image for another platform was found")
			}
		})
	}
}

func compress(t testing.TB, from, to string, writer func(io.Writer) io.WriteCloser) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	w := writer(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
}

// A pipe is spooled, a file is not.
func TestSpool(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.tar")
	if err := os.WriteFile(path, dockerTar(t), 0o600); err != nil {
		t.Fatal(err)
	}
	spooled := 0
	temp := func() (*os.File, error) { spooled++; return tempFile(t)() }
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, tt := range []struct {
		name string
		r    io.Reader
		want int
	}{
		{"file", f, 0},
		{"stream", bytes.NewReader(dockerTar(t)), 1},
	} {
		spooled = 0
		a, err := Read(t.Context(), tt.r, temp)
		if err != nil {
			t.Fatal(err)
		}
		img, err := a.Entries()[0].Resolve(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		r, err := img.Blob(t.Context(), img.docs.Layers[0])
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, r); err != nil {
			t.Error(err)
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		if spooled != tt.want {
			t.Errorf("%s: spooled %d times, want %d", tt.name, spooled, tt.want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Read(ctx, bytes.NewReader(dockerTar(t)), temp); err != context.Canceled && !strings.Contains(fmt.Sprint(err), context.Canceled.Error()) {
		t.Errorf("cancelled: %v", err)
	}
}
