package layout

import (
	"crypto/rand"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"vic/bench/oracle"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// makeLayout returns a layout with an image of two layers, and these.
func makeLayout(t *testing.T) (Dir, []ocispec.Descriptor) {
	t.Helper()
	d, err := Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	var layers []ocispec.Descriptor
	var diffIDs []string
	for range 2 {
		l, err := d.Add(ocispec.MediaTypeImageLayer, func(w io.Writer) error {
			_, err := io.CopyN(w, rand.Reader, 100_000)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		layers, diffIDs = append(layers, l), append(diffIDs, `"`+l.Digest.String()+`"`)
	}
	config := `{"os":"linux","architecture":"amd64","config":{},"rootfs":{"type":"layers","diff_ids":[` + strings.Join(diffIDs, ",") + `]}}`
	if err := d.AddImage("", []byte(config), layers); err != nil {
		t.Fatal(err)
	}
	return d, layers
}

// TestServeSkopeo lets skopeo pull from the server, and verify what comes.
func TestServeSkopeo(t *testing.T) {
	oracle.Need(t, "skopeo")
	d, layers := makeLayout(t)
	s, err := d.Serve("")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	copied := Dir(filepath.Join(t.TempDir(), "copy"))
	out, err := exec.Command("skopeo", "--insecure-policy", "copy", "--preserve-digests", "--src-tls-verify=false", "docker://"+s.Ref, "oci:"+string(copied)+":1").CombinedOutput()
	if err != nil {
		t.Fatalf("skopeo copy: %v\n%s", err, out)
	}
	want, err := d.Find("")
	if err != nil {
		t.Fatal(err)
	}
	got, err := copied.Find("1")
	if err != nil || got.Digest != want.Digest {
		t.Errorf("manifest %s, want %s; %v", got.Digest, want.Digest, err)
	}
	for _, l := range layers {
		if fi, err := os.Stat(copied.Blob(l.Digest)); err != nil || fi.Size() != l.Size {
			t.Errorf("layer %s: %v, %v", l.Digest, fi, err)
		}
	}
}

func TestServe(t *testing.T) {
	d, layers := makeLayout(t)
	if err := os.WriteFile(filepath.Join(string(d), "secret"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := d.Serve("")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(s.Ref, "127.0.0.1:") {
		t.Errorf("serves on %s", s.Ref)
	}
	host, _, _ := strings.Cut(s.Ref, "/")
	blob := "/v2/bench/image/blobs/" + layers[0].Digest.String()
	for _, tt := range []struct {
		method, path, ranges string
		status               int
		length               int64
	}{
		{"GET", "/v2/", "", 200, 0},
		{"HEAD", "/v2/bench/image/manifests/1", "", 200, -2},
		{"GET", blob, "", 200, layers[0].Size},
		{"GET", blob, "bytes=99000-", 206, 1000},
		{"GET", "/v2/bench/image/manifests/2", "", 404, -2},
		{"GET", "/v2/bench/other/manifests/1", "", 404, -2},
		{"GET", "/v2/bench/image/blobs/" + digest.FromString("none").String(), "", 404, -2},
		{"GET", "/v2/bench/image/blobs/sha256:..%2f..%2fsecret", "", 404, -2},
		{"GET", "/v2/bench/image/blobs/..%2f..%2fsecret", "", 404, -2},
		{"POST", "/v2/bench/image/blobs/uploads/", "", 404, -2},
		{"DELETE", blob, "", 405, -2},
	} {
		req, err := http.NewRequestWithContext(t.Context(), tt.method, "http://"+host+tt.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if tt.ranges != "" {
			req.Header.Set("Range", tt.ranges)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != tt.status || (tt.length != -2 && n != tt.length) {
			t.Errorf("%s %s: %s, %d bytes, %v; want %d, %d bytes", tt.method, tt.path, resp.Status, n, err, tt.status, tt.length)
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestFind(t *testing.T) {
	one := `{"digest":"` + digest.FromString("1").String() + `","annotations":{"org.opencontainers.image.ref.name":"one"}}`
	two := `{"digest":"` + digest.FromString("2").String() + `","annotations":{"org.opencontainers.image.ref.name":"two"}}`
	for _, tt := range []struct {
		name, index, find, want string // an error, or the digest of what
	}{
		{"only one", one, "", "1"},
		{"by name", one + "," + two, "two", "2"},
		{"which", one + "," + two, "", `2 images are called ""; there are "one", "two"`},
		{"none of that name", one, "two", `0 images are called "two"; there are "one"`},
		{"twice the name", two + "," + two, "two", "2 images"},
		{"no images", "", "", "0 images"},
		{"bad digest", `{"digest":"sha256:../../../../etc/passwd"}`, "", "digest"},
		{"not JSON", "}", "", "index.json"},
		{"too long", `{"mediaType":"` + strings.Repeat("x", indexLimit) + `"}`, "", "longer than"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := Dir(t.TempDir())
			if err := os.WriteFile(filepath.Join(string(d), "index.json"), []byte(`{"schemaVersion":2,"manifests":[`+tt.index+`]}`), 0o644); err != nil {
				t.Fatal(err)
			}
			desc, err := d.Find(tt.find)
			if err == nil && desc.Digest != digest.FromString(tt.want) {
				t.Errorf("found %s", desc.Digest)
			}
			if err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
	if _, err := Dir(t.TempDir()).Find(""); err == nil || !strings.Contains(err.Error(), "index.json") {
		t.Errorf("no layout: %v", err)
	}
}
