package archive

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	stdgzip "compress/gzip"

	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

var emptyIndex = empty.Index

// A part is a member of a tar in a test.
type part struct {
	tar.Header
	data string
}

func regular(name, data string) part {
	return part{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}, data}
}

func link(kind byte, name, target string) part {
	return part{tar.Header{Typeflag: kind, Name: name, Linkname: target}, ""}
}

func makeTar(t testing.TB, parts ...part) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, p := range parts {
		p.Size = int64(len(p.data))
		if err := w.WriteHeader(&p.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, p.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// layerTar is a layer with one file.
func layerTar(t testing.TB, content string) string {
	return string(makeTar(t, regular("file", content)))
}

func marshal(t testing.TB, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// configOf is the configuration of an image with these layers' tars.
func configOf(t testing.TB, layers ...string) string {
	t.Helper()
	c := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}, RootFS: ocispec.RootFS{Type: "layers"}}
	for _, l := range layers {
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, digest.FromString(l))
	}
	return marshal(t, c)
}

// listOf is a manifest.json.
func listOf(t testing.TB, config string, layers ...string) part {
	return regular(dockerManifestFile, marshal(t, []dockerImage{{Config: config, RepoTags: []string{"app:1"}, Layers: layers}}))
}

// dockerTar is what docker save before 25 writes of an image that has a layer twice.
func dockerTar(t testing.TB) []byte {
	t.Helper()
	one, two := layerTar(t, "1"), layerTar(t, "2")
	config := configOf(t, one, two, one)
	return makeTar(t,
		part{tar.Header{Typeflag: tar.TypeDir, Name: "a/", Mode: 0o755}, ""}, regular("a/VERSION", "1.0"), regular("a/layer.tar", one),
		part{tar.Header{Typeflag: tar.TypeDir, Name: "b/", Mode: 0o755}, ""}, regular("b/layer.tar", two),
		part{tar.Header{Typeflag: tar.TypeDir, Name: "c/", Mode: 0o755}, ""}, link(tar.TypeSymlink, "c/layer.tar", "../a/layer.tar"),
		regular(digest.FromString(config).Encoded()+".json", config),
		listOf(t, digest.FromString(config).Encoded()+".json", "a/layer.tar", "b/layer.tar", "c/layer.tar"))
}

// readAll resolves every image of a tar and reads its layers.
func readAll(t testing.TB, b []byte) error {
	a, err := Read(t.Context(), bytes.NewReader(b), tempFile(t))
	if err != nil {
		return err
	}
	defer a.Close()
	return readEntries(t, a)
}

func readEntries(t testing.TB, a *Archive) error {
	for _, e := range a.Entries() {
		img, err := e.Resolve(t.Context(), nil)
		if err != nil {
			return err
		}
		for _, d := range img.docs.Layers {
			r, err := img.Blob(t.Context(), d)
			if err != nil {
				return err
			}
			_, err = io.Copy(io.Discard, r)
			if err := errors.Join(err, r.Close()); err != nil {
				return err
			}
		}
	}
	return nil
}

func TestDockerSymlinks(t *testing.T) {
	if err := readAll(t, dockerTar(t)); err != nil {
		t.Error(err)
	}
}

func TestHostileTar(t *testing.T) {
	layer := layerTar(t, "x")
	config := configOf(t, layer)
	hexJSON := digest.FromString(config).Encoded() + ".json"
	whole := dockerTar(t)
	ociLayout := regular("oci-layout", `{"imageLayoutVersion":"1.0.0"}`)
	index := func(d ocispec.Descriptor) part {
		return regular("index.json", marshal(t, ocispec.Index{Manifests: []ocispec.Descriptor{d}}))
	}
	noBlob := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("none"), Size: 4}
	var zeros bytes.Buffer // 1 MiB of them
	z := stdgzip.NewWriter(&zeros)
	z.Write(make([]byte, 1<<20))
	z.Close()
	bomb := bytes.Repeat(zeros.Bytes(), freeSpool>>20+200)

	for _, tt := range []struct {
		name string
		tar  []byte
		want string
	}{
		{"nothing", nil, "an empty tar"},
		{"no archive", makeTar(t, regular("x", "y")), "neither an OCI image layout nor made by docker save"},
		{"not a tar", bytes.Repeat([]byte("not a tar "), 500), "invalid tar header"},
		{"xz", []byte("\xfd7zXZ\x00 and so on"), "compressed with xz"},
		{"cut short", whole[:len(whole)/2], "unexpected EOF"},
		{"cut gzip", []byte("\x1f\x8b\x08\x00"), "unexpected EOF"},
		{"bomb", bomb, "500 times longer"},
		{"path outside", makeTar(t, listOf(t, "../../etc/passwd", "l"), regular("../../etc/passwd", config), regular("l", layer)), "names nothing in the archive"},
		{"absolute path", makeTar(t, listOf(t, "/etc/passwd", "l"), regular("l", layer)), "names nothing in the archive"},
		{"no config", makeTar(t, listOf(t, hexJSON, "l"), regular("l", layer)), hexJSON + ": is named and not there"},
		{"name for a terminal", makeTar(t, listOf(t, "\x1b[2J", "l"), regular("l", layer)), `"\x1b[2J": is named and not there`},
		{"no layer", makeTar(t, listOf(t, hexJSON, "l"), regular(hexJSON, config)), "l: is named and not there"},
		{"config twice", makeTar(t, listOf(t, hexJSON, "l"), regular(hexJSON, config), regular("l", layer), regular(hexJSON, "{}")), "is there twice"},
		{"layer twice", makeTar(t, listOf(t, hexJSON, "l"), regular("l", layer), regular("./l", layer), regular(hexJSON, config)), "is there twice"},
		{"wrong config", makeTar(t, listOf(t, strings.Repeat("0", 64)+".json", "l"), regular(strings.Repeat("0", 64)+".json", config), regular("l", layer)), "not what its name says"},
		{"wrong layer", makeTar(t, listOf(t, hexJSON, "l"), regular("l", layerTar(t, "other")), regular(hexJSON, config)), "digest is sha256:"},
		{"layers missing in the list", makeTar(t, listOf(t, hexJSON), regular("l", layer), regular(hexJSON, config)), "0 layers, but the config has 1 diff IDs"},
		{"link to nothing", makeTar(t, listOf(t, hexJSON, "l"), link(tar.TypeSymlink, "l", "../../etc/passwd"), regular(hexJSON, config)), `is a link to "../../etc/passwd"`},
		{"absolute link", makeTar(t, listOf(t, hexJSON, "l"), link(tar.TypeSymlink, "l", "/etc/passwd"), regular(hexJSON, config)), `is a link to "/etc/passwd"`},
		{"link to itself", makeTar(t, listOf(t, hexJSON, "l"), link(tar.TypeSymlink, "l", "l"), regular(hexJSON, config)), "a link to a link"},
		{"device", makeTar(t, listOf(t, hexJSON, "l"), part{tar.Header{Typeflag: tar.TypeBlock, Name: "l"}, ""}, regular(hexJSON, config)), "not a regular file"},
		{"folder for a layer", makeTar(t, listOf(t, hexJSON, "l"), part{tar.Header{Typeflag: tar.TypeDir, Name: "l"}, ""}, regular(hexJSON, config)), "is a folder"},
		{"bad name", makeTar(t, regular(dockerManifestFile, `[{"RepoTags":["Bad Name"]}]`)), "invalid reference format"},
		{"bad list", makeTar(t, regular(dockerManifestFile, `{`)), "unexpected end of JSON"},
		{"huge list", makeTar(t, regular(dockerManifestFile, strings.Repeat(" ", maxIndex+1))), "longer than"},
		{"many images", makeTar(t, regular(dockerManifestFile, "["+strings.Repeat("{},", maxEntries)+"{}]")), "4097 images"},
		{"many names", makeTar(t, regular(dockerManifestFile, `[{"RepoTags":["a:1"`+strings.Repeat(`,"a:1"`, maxEntries)+"]}]")), "more than 4096 names"},
		{"many manifests", makeTar(t, ociLayout, regular("index.json", `{"manifests":[{}`+strings.Repeat(",{}", maxEntries)+"]}")), "4097 images"},
		{"before 1.10", makeTar(t, regular("repositories", "{}")), "before version 1.10"},
		{"not linux", makeTar(t, listOf(t, "c"), regular("c", `{"os":"windows","rootfs":{"type":"layers"}}`)), "operating system"},
		{"layout of the future", makeTar(t, regular("oci-layout", `{"imageLayoutVersion":"2.0"}`)), `version "2.0"`},
		{"layout without index", makeTar(t, ociLayout), "index.json: is named and not there"},
		{"layout without manifest", makeTar(t, ociLayout, index(noBlob)), "is named and not there"},
		{"manifest of another digest", makeTar(t, ociLayout, index(noBlob), regular("blobs/sha256/"+noBlob.Digest.Encoded(), "four")), "verification failed"},
		{"digest that is a path", makeTar(t, ociLayout, index(ocispec.Descriptor{Digest: "sha256:../../../etc/passwd"})), "invalid checksum digest"},
		{"size that is negative", makeTar(t, ociLayout, index(ocispec.Descriptor{Digest: noBlob.Digest, Size: -1})), "is negative"},
		{"size that is huge", makeTar(t, ociLayout, index(ocispec.Descriptor{Digest: noBlob.Digest, Size: 1 << 40})), "more than"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := readAll(t, tt.tar)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
			if errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%v looks like an error of this machine's files", err)
			}
		})
	}
}

func TestManyMembers(t *testing.T) {
	if testing.Short() {
		t.Skip("slow with the race detector, and in one goroutine")
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	long := strings.Repeat("x/", 250_000)
	for i := range maxNameBytes/len(long) + 1 {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprint(long, i)}); err != nil {
			t.Fatal(err)
		}
	}
	w.Close()
	if err := readAll(t, b.Bytes()); err == nil || !strings.Contains(err.Error(), "bytes of names") {
		t.Errorf("a tar with long names: %v", err)
	}
}

// What is outside a folder is out of reach.
func TestHostileFolder(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		make func(path string) error
		want string
	}{
		{"link", func(p string) error { return os.Symlink(outside, p) }, "escapes"},
		{"FIFO", makeFIFO, "not a regular file"},
		{"folder", func(p string) error { return os.Mkdir(p, 0o700) }, "not a regular file"},
	} {
		dir := t.TempDir()
		if err := tt.make(filepath.Join(dir, "oci-layout")); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenFolder(dir); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
}

func FuzzArchive(f *testing.F) {
	f.Add(dockerTar(f))
	layer := layerTar(f, "x")
	config := configOf(f, layer)
	manifest := marshal(f, ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest,
		Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromString(config), Size: int64(len(config))},
		Layers: []ocispec.Descriptor{{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromString(layer), Size: int64(len(layer))}}})
	blob := func(s string) part { return regular("blobs/sha256/"+digest.FromString(s).Encoded(), s) }
	oci := makeTar(f, regular("oci-layout", `{"imageLayoutVersion":"1.0.0"}`), blob(config), blob(layer), blob(manifest),
		regular("index.json", marshal(f, ocispec.Index{Manifests: []ocispec.Descriptor{{
			MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString(manifest), Size: int64(len(manifest)),
			Annotations: map[string]string{ocispec.AnnotationRefName: "1", nameAnnotation: "app:1"},
		}}})))
	f.Add(oci)
	for _, seed := range [][]byte{dockerTar(f), oci} {
		if err := readAll(f, seed); err != nil {
			f.Fatal(err)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		fsys, err := indexTar(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		a, err := open(fsys, closers{})
		if err != nil {
			return
		}
		readEntries(t, a) // an error or not, but no more than that
	})
}
