package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// hostileMemory bounds what vic pull may occupy, whatever it is offered. A pull of a small
// image takes a quarter of it, most of that the program itself.
const hostileMemory = 64 << 20

// A hostileImage is what the registry says of one image.
type hostileImage struct {
	manifest  answer
	blobs     map[digest.Digest]answer
	mediaType string // of the manifest; "" is an image manifest
}

// An answer is the body of one reply. Its length is not announced.
type answer func(w io.Writer)

func (p hostileImage) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
	if strings.Contains(r.URL.Path, "/manifests/") && !strings.Contains(name, ":") {
		w.Header().Set("Content-Type", p.mediaType)
		if p.mediaType == "" {
			w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
		}
		p.manifest(w)
	} else if a, ok := p.blobs[digest.Digest(name)]; ok {
		a(w)
	} else {
		http.NotFound(w, r)
	}
}

func exactly(p []byte) answer { return func(w io.Writer) { w.Write(p) } }

// endless repeats bytes up to a length.
func endless(p string, n int64) answer {
	return func(w io.Writer) {
		chunk := []byte(strings.Repeat(p, 64<<10/len(p)))
		for ; n > 0; n -= int64(len(chunk)) {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	}
}

// A hostileLayer is a layer as a hostile image has it.
type hostileLayer struct {
	blob   answer
	size   int64
	digest digest.Digest // of the blob
	diffID digest.Digest
}

func layerOf(blob, tar []byte) hostileLayer {
	return hostileLayer{exactly(blob), int64(len(blob)), digest.FromBytes(blob), digest.FromBytes(tar)}
}

func imageOf(t *testing.T, layers ...hostileLayer) hostileImage {
	t.Helper()
	p := hostileImage{blobs: map[digest.Digest]answer{}}
	man := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	cfg := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}, RootFS: ocispec.RootFS{Type: "layers"}}
	for _, l := range layers {
		man.Layers = append(man.Layers, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: l.digest, Size: l.size})
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, l.diffID)
		p.blobs[l.digest] = l.blob
	}
	p.seal(t, man, toJSON(t, cfg))
	return p
}

// seal adds the config and the manifest.
func (p *hostileImage) seal(t *testing.T, man ocispec.Manifest, config []byte) {
	t.Helper()
	man.Config = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(config), Size: int64(len(config))}
	if p.blobs == nil {
		p.blobs = map[digest.Digest]answer{}
	}
	p.blobs[man.Config.Digest] = exactly(config)
	p.manifest = exactly(toJSON(t, man))
}

func toJSON(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func tarOf(t *testing.T, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		h.Mode = 0755
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(w, zeros{}, h.Size); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func gzipOf(t *testing.T, p []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(p); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func zstdOf(t *testing.T, p []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	return w.EncodeAll(p, nil)
}

// bombHeader is the header of a file of 40 GiB, whose zeros are to follow.
func bombHeader(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := tar.NewWriter(&b).WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "bomb", Mode: 0644, Size: 40 << 30}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestHostile: a registry offers what none should. Each is a clear error, costs little
// memory, and leaves the store as it was, byte for byte.
func TestHostile(t *testing.T) {
	if testing.Short() {
		t.Skip("measures memory, of which the race detector takes more")
	}
	file := func(name string, size int64) tar.Header {
		return tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size}
	}
	good := tarOf(t, tar.Header{Typeflag: tar.TypeDir, Name: "etc/"}, file("etc/passwd", 20_000))
	base := layerOf(gzipOf(t, good), good)
	other := tarOf(t, file("other", 300_000))
	gz := gzipOf(t, other)
	gzZeros := gzipOf(t, make([]byte, 64<<20))
	over := func(l hostileLayer) hostileImage { return imageOf(t, base, l) }
	overTar := func(headers ...tar.Header) hostileImage {
		p := tarOf(t, headers...)
		return over(layerOf(gzipOf(t, p), p))
	}
	with := func(change func(*hostileLayer)) hostileImage {
		l := layerOf(gz, other)
		change(&l)
		return over(l)
	}
	many := func(n int) (l []hostileLayer) {
		for range n {
			l = append(l, base)
		}
		return l
	}
	withManifest := func(a answer) hostileImage {
		p := imageOf(t, base)
		p.manifest = a
		return p
	}
	list := func(before, element, after string, size int) []byte {
		n := (size - len(before) - len(after)) / (len(element) + 1)
		return []byte(before + strings.Repeat(element+",", n-1) + element + after)
	}
	withConfig := func(config []byte) (p hostileImage) {
		p.seal(t, ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Layers: []ocispec.Descriptor{}}, config)
		return p
	}
	const most = 4 << 20 // bytes of a manifest or config
	manifestOf := func(layers string) string {
		return `{"schemaVersion":2,"mediaType":"` + ocispec.MediaTypeImageManifest + `","config":{"mediaType":"` + ocispec.MediaTypeImageConfig + `","digest":"` + base.digest.String() + `","size":5},"layers":[` + layers
	}
	index := hostileImage{mediaType: ocispec.MediaTypeImageIndex, manifest: exactly(list(`{"schemaVersion":2,"mediaType":"`+ocispec.MediaTypeImageIndex+`","manifests":[`, "{}", "]}", most))}
	loop := toJSON(t, ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{
		{MediaType: ocispec.MediaTypeImageManifest, Digest: base.digest, Size: 100 << 20, Platform: &ocispec.Platform{OS: "linux", Architecture: "amd64"}}}})

	for _, tt := range []struct {
		name  string
		image hostileImage
		want  string // in the error
	}{
		{"manifest of 100 MB", withManifest(endless(" ", 100<<20)), "more than 4194304"},
		{"manifest of 100 MB in an index", hostileImage{mediaType: ocispec.MediaTypeImageIndex, manifest: exactly(loop)}, "more than 4194304"},
		{"manifest of a million layers", withManifest(exactly(list(manifestOf(""), "{}", "]}", most))), "manifest has"},
		{"manifest of nested arrays", withManifest(exactly([]byte(manifestOf("") + strings.Repeat("[", most/2) + strings.Repeat("]", most/2-1000)))), "manifest"},
		{"index of a million manifests", index, "manifest has"},
		{"config of 100 MB", func() hostileImage {
			p := imageOf(t, base)
			for d := range p.blobs {
				if d != base.digest {
					p.blobs[d] = endless("{", 100<<20)
				}
			}
			return p
		}(), "config"},
		{"config of a million diff IDs", withConfig(list(`{"os":"linux","rootfs":{"type":"layers","diff_ids":[`, `""`, "]}}", most)), "image configuration has"},
		{"config of a million steps", withConfig(list(`{"os":"linux","rootfs":{"type":"layers","diff_ids":[""]},"history":[`, `{}`, "]}", most)), "image configuration has"},
		{"501 layers", imageOf(t, many(501)...), "501 layers, 500 are allowed"},

		{"size too small", with(func(l *hostileLayer) { l.size -= 100 }), "its descriptor says 290"},
		{"size too large", with(func(l *hostileLayer) { l.size += 100 }), "its descriptor says 490"},
		{"size of 8 EiB", with(func(l *hostileLayer) { l.size = 1<<63 - 1 }), "its descriptor says 9223372036854775807"},
		{"blob truncated", with(func(l *hostileLayer) { l.blob = exactly(gz[:len(gz)/2]) }), "blob has 195 bytes"},
		{"blob without end", with(func(l *hostileLayer) { l.blob = endless("x", 100<<20) }), "more bytes than the 390"},
		{"wrong digest", with(func(l *hostileLayer) { l.blob = exactly(append(gz[:390-8:390-8], "12345678"...)) }), "digest"},
		{"wrong diff ID", with(func(l *hostileLayer) { l.diffID = digest.FromString("x") }), "diff ID"},
		{"gzip truncated, digest and size to match", over(layerOf(gz[:len(gz)-9], other)), "unexpected EOF"},
		{"tar truncated, digest and size to match", over(layerOf(gzipOf(t, other[:100_000]), other[:100_000])), "unexpected EOF"},
		{"tar of noise", over(layerOf(gzipOf(t, []byte(strings.Repeat("noise", 1000))), []byte(strings.Repeat("noise", 1000)))), "tar"},

		{"gzip bomb", bomb(t, gzipOf(t, bombHeader(t)), gzZeros, 40), "times longer"},
		{"zstd bomb", bomb(t, zstdOf(t, bombHeader(t)), zstdOf(t, make([]byte, 64<<20)), 40), "times longer"},
		{"gzip bomb behind the end of the tar", bomb(t, gzipOf(t, other), gzZeros, 40), "times longer"},
		{"bomb of a name", overTar(tar.Header{Typeflag: tar.TypeReg, Name: strings.Repeat("long/", 300_000) + "x", Format: tar.FormatGNU}), "tar"},
		{"zstd with a window of 1 GiB", over(layerOf([]byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa0, 0, 0, 0}, []byte("x"))), "zstd"},

		{"cyclic symlinks", overTar(tar.Header{Typeflag: tar.TypeSymlink, Name: "a", Linkname: "b"}, tar.Header{Typeflag: tar.TypeSymlink, Name: "b", Linkname: "a"}, file("a/x", 1)), "too many levels of symbolic links"},
		{"symlink to itself", overTar(tar.Header{Typeflag: tar.TypeSymlink, Name: "etc/a", Linkname: "../etc/a"}, tar.Header{Typeflag: tar.TypeLink, Name: "x", Linkname: "etc/a/b"}), "etc/a"},
		{"name of 256 bytes", overTar(file(strings.Repeat("n", 256), 1)), "256 bytes"},
		{"name of a whiteout of dot dot", overTar(file("etc/.wh...", 0)), "whiteout of an impossible name"},
		{"name below a file", overTar(file("etc/passwd/x", 1)), "not a directory"},
		{"hard link out of the root", overTar(tar.Header{Typeflag: tar.TypeLink, Name: "x", Linkname: "../../../../../../etc/shadow"}), "does not exist"},
		{"symlink of 1 MiB", overTar(tar.Header{Typeflag: tar.TypeSymlink, Name: "x", Linkname: strings.Repeat("l", 1<<20-1000), Format: tar.FormatPAX}), "symlink target"},
		{"extended attribute of 1 MiB", overTar(tar.Header{Typeflag: tar.TypeReg, Name: "x", Format: tar.FormatPAX, PAXRecords: map[string]string{"SCHILY.xattr.user.x": strings.Repeat("v", 1<<20-1000)}}), "extended attributes"},
	} {
		t.Run(strings.ReplaceAll(tt.name, " ", "_"), func(t *testing.T) {
			t.Parallel()
			store := filepath.Join(t.TempDir(), "store")
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				switch {
				case r.URL.Path == "/v2/":
				case strings.HasPrefix(r.URL.Path, "/v2/good/"):
					imageOf(t, base).ServeHTTP(w, r)
				default:
					tt.image.ServeHTTP(w, r)
				}
			}))
			defer s.Close()
			host := strings.TrimPrefix(s.URL, "http://")
			if _, out, err := runVic(t, "pull", "--store", store, host+"/good"); err != nil {
				t.Fatalf("the good image: %v\n%s", err, out)
			}
			before := fileSums(t, store)
			peak, out, err := runVic(t, "pull", "--store", store, host+"/evil")
			_, line, ok := strings.Cut(out, "vic: ")
			if err == nil || !ok || !strings.Contains(line, tt.want) {
				t.Errorf("%v, want an error with %q:\n%.2000s", err, tt.want, out)
			}
			if len(line) > 1000 {
				t.Errorf("an error of %d bytes", len(line))
			}
			if peak > hostileMemory {
				t.Errorf("it took %d MiB of memory, want %d at most", peak>>20, hostileMemory>>20)
			}
			t.Logf("%d MiB: %.300s", peak>>20, line)
			if after := fileSums(t, store); !maps.Equal(before, after) {
				t.Errorf("the store has changed: before\n%s\nafter\n%s", listSums(before), listSums(after))
			}
			if _, out, err := runVic(t, "check", "--deep", "--store", store); err != nil {
				t.Errorf("check: %v\n%s", err, out)
			}
		})
	}
}

// bomb is an image whose second layer has one blob and then n times another.
func bomb(t *testing.T, first, again []byte, n int) hostileImage {
	t.Helper()
	h := sha256.New()
	write := func(w io.Writer) {
		w.Write(first)
		for range n {
			if _, err := w.Write(again); err != nil {
				return
			}
		}
	}
	write(h)
	l := hostileLayer{write, int64(len(first) + n*len(again)), digest.NewDigest(digest.SHA256, h), digest.FromString("nobody unpacks it")}
	return imageOf(t, l)
}

// manyFilesMemory bounds what a pull may occupy, however many files an image has.
const manyFilesMemory = 512 << 20

// TestManyFiles: a layer of a million files is pulled in bounded memory.
func TestManyFiles(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute, and measures memory")
	}
	const n = 1_000_000
	var blob bytes.Buffer
	sum := sha256.New()
	z, err := gzip.NewWriterLevel(&blob, gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(io.MultiWriter(z, sum))
	for i := range n {
		name := fmt.Sprintf("usr/lib/node_modules/package-%03d/dist/module-%04d/file-%07d.js", i/10000, i/100, i)
		h := tar.Header{Name: name, Mode: 0o644, ModTime: time.Unix(1_700_000_000+int64(i), 0), Size: int64(i % 16 / 15)}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte("x")[:h.Size]); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(imageOf(t, hostileLayer{exactly(blob.Bytes()), int64(blob.Len()), digest.FromBytes(blob.Bytes()), digest.NewDigest(digest.SHA256, sum)}))
	defer s.Close()
	store := filepath.Join(t.TempDir(), "store")
	ref := strings.TrimPrefix(s.URL, "http://") + "/many"
	peak, out, err := runVic(t, "pull", "--store", store, ref)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if peak > manyFilesMemory {
		t.Errorf("it took %d MiB of memory, want %d at most", peak>>20, manyFilesMemory>>20)
	}
	t.Logf("%d MiB", peak>>20)
	if _, out, err := runVic(t, "ls", "--store", store, ref, fmt.Sprintf("usr/lib/node_modules/package-%03d/dist/module-%04d", 77, 7777)); err != nil || strings.Count(out, "\n") != 100 {
		t.Errorf("a folder of 100 files: %v\n%s", err, out)
	}
}

// runVic runs vic as a process. It returns how much memory that took at its peak, and
// what it wrote.
func runVic(t *testing.T, args ...string) (peak int64, out string, err error) {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
	cmd.Env = append(os.Environ(), asVic+"=1", vicStatus+"="+dir+"/status", "DOCKER_CONFIG="+dir)
	b, err := cmd.CombinedOutput()
	status, readErr := os.ReadFile(dir + "/status")
	if readErr != nil {
		t.Fatalf("%v\n%s", readErr, b)
	}
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	if _, err := fmt.Sscanf(rest, "%d kB", &peak); err != nil {
		t.Fatal(err)
	}
	return peak << 10, string(b), err
}

// fileSums returns the mode and the checksum of each file of a folder.
func fileSums(t *testing.T, dir string) map[string]string {
	t.Helper()
	sums := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		sum := sha256.New()
		if e.Type().IsRegular() {
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			defer f.Close()
			if _, err := io.Copy(sum, f); err != nil {
				return err
			}
		}
		name, err := filepath.Rel(dir, path)
		sums[name] = fmt.Sprintf("%v %x", info.Mode(), sum.Sum(nil))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return sums
}

func listSums(sums map[string]string) string {
	var lines []string
	for name, sum := range sums {
		lines = append(lines, name+" "+sum)
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}
