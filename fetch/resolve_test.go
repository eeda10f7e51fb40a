package fetch

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// An image in an index, with what docker buildx puts there besides.
func TestResolveIndex(t *testing.T) {
	for _, kind := range []string{ocispec.MediaTypeImageIndex, dockerManifestList} {
		t.Run(kind, func(t *testing.T) {
			f := newFakeRegistry(t)
			var entries []ocispec.Descriptor
			byArch := map[string]ocispec.Descriptor{}
			for _, p := range []ocispec.Platform{
				{OS: "windows", Architecture: "amd64", OSVersion: "10.0.1"},
				{OS: "linux", Architecture: "386"},
				amd64, arm64,
				{OS: "linux", Architecture: "arm", Variant: "v6"},
				{OS: "linux", Architecture: "arm", Variant: "v7"},
			} {
				d := f.addImage(t, p, ocispec.MediaTypeImageLayerGzip, [][]byte{[]byte(p.Architecture + p.Variant)})
				d.Platform = &p
				entries = append(entries, d)
				byArch[p.OS+"/"+p.Architecture+p.Variant] = d
			}
			attestation := f.addManifest(t, ocispec.MediaTypeImageManifest, ocispec.Manifest{
				Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
				Config: f.addBlob(ocispec.MediaTypeImageConfig, []byte("{}")),
				Layers: []ocispec.Descriptor{f.addBlob("application/vnd.in-toto+json", []byte("{}"))},
			})
			attestation.Platform = &ocispec.Platform{OS: "unknown", Architecture: "unknown"}
			attestation.Annotations = map[string]string{attestationType: "attestation-manifest"}
			entries = append(entries, attestation)
			index := f.addManifest(t, kind, ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: kind, Manifests: entries}, "latest")

			for want, key := range map[string]string{
				"linux/amd64":      "linux/amd64",
				"linux/arm64/v8":   "linux/arm64v8",
				"linux/arm64/":     "linux/arm64v8",
				"linux/arm64/v9":   "linux/arm64v8",
				"linux/arm/v7":     "linux/armv7",
				"linux/arm/v6":     "linux/armv6",
				"linux/arm/":       "linux/armv7",
				"linux/386":        "linux/386",
				"linux/x86_64":     "linux/amd64",
				"/amd64":           "linux/amd64",
				"linux/arm/v5":     "",
				"linux/riscv64":    "",
				"freebsd/amd64/":   "",
				"unknown/unknown/": "",
			} {
				parts := append(strings.Split(want, "/"), "")
				p := ocispec.Platform{OS: parts[0], Architecture: parts[1], Variant: parts[2]}
				img, err := quick().Resolve(t.Context(), named(t, f.host+"/a"), ResolveOptions{Platform: &p})
				if key == "" {
					if !errors.Is(err, ErrNoPlatform) {
						t.Errorf("%s: %v", want, err)
					}
					continue
				}
				if err != nil {
					t.Errorf("%s: %v", want, err)
					continue
				}
				if img.Digest() != index.Digest || img.Index() != index.Digest {
					t.Errorf("%s: digest %s, index %s, want %s", want, img.Digest(), img.Index(), index.Digest)
				}
				b, d := img.Manifest()
				if d.Digest != byArch[key].Digest || digest.FromBytes(b) != d.Digest || d.Size != int64(len(b)) || d.MediaType != ocispec.MediaTypeImageManifest {
					t.Errorf("%s: manifest %+v, want %s", want, d, byArch[key].Digest)
				}
				if got := img.Platform(); got.OS+"/"+got.Architecture+got.Variant != key {
					t.Errorf("%s: platform %+v", want, got)
				}
				if img.Reference().String() != f.host+"/a:latest" {
					t.Errorf("reference %s", img.Reference())
				}
			}
			_, err := quick().Resolve(t.Context(), named(t, f.host+"/a"), ResolveOptions{Platform: &ocispec.Platform{OS: "linux", Architecture: "arm64", Variant: "v7"}})
			if err == nil || err.Error() != "no matching manifest for linux/arm64/v7 in the manifest list entries" {
				t.Errorf("error: %v", err)
			}
		})
	}
}

// Entries without a platform are better than none, in their order.
func TestResolveIndexWithoutPlatform(t *testing.T) {
	f := newFakeRegistry(t)
	a := f.addImage(t, amd64, ocispec.MediaTypeImageLayer, [][]byte{{1}})
	b := f.addImage(t, amd64, ocispec.MediaTypeImageLayer, [][]byte{{2}})
	c := f.addImage(t, amd64, ocispec.MediaTypeImageLayer, [][]byte{{3}})
	c.Platform = &amd64
	b.Platform = &ocispec.Platform{}
	sbom := f.addManifest(t, ocispec.MediaTypeImageManifest, ocispec.Manifest{ArtifactType: "application/spdx+json"})
	sbom.ArtifactType = "application/spdx+json"
	f.addManifest(t, ocispec.MediaTypeImageIndex, ocispec.Index{Manifests: []ocispec.Descriptor{sbom, a, b, c}}, "three")
	f.addManifest(t, ocispec.MediaTypeImageIndex, ocispec.Index{Manifests: []ocispec.Descriptor{sbom, b, a}}, "two")
	f.addManifest(t, ocispec.MediaTypeImageIndex, ocispec.Index{Manifests: []ocispec.Descriptor{sbom}}, "none")
	f.addManifest(t, ocispec.MediaTypeImageIndex, ocispec.Index{}, "empty")
	for tag, want := range map[string]digest.Digest{"three": c.Digest, "two": b.Digest, "none": "", "empty": ""} {
		img, err := quick().Resolve(t.Context(), named(t, f.host+"/a:"+tag), ResolveOptions{Platform: &amd64})
		if want == "" {
			if !errors.Is(err, ErrNoPlatform) {
				t.Errorf("%s: %v", tag, err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, d := img.Manifest(); d.Digest != want {
			t.Errorf("%s: %s, want %s", tag, d.Digest, want)
		}
	}
}

// Resolving by tag, by digest, by both, and by nothing.
func TestResolveReference(t *testing.T) {
	f := newFakeRegistry(t)
	one := f.addImage(t, arm64, ocispec.MediaTypeImageLayer, [][]byte{{1}}, "latest")
	two := f.addImage(t, amd64, ocispec.MediaTypeImageLayer, [][]byte{{2}}, "two")
	for ref, want := range map[string]digest.Digest{
		"":                               one.Digest,
		":latest":                        one.Digest,
		":two":                           two.Digest,
		"@" + one.Digest.String():        one.Digest,
		":two@" + one.Digest.String():    one.Digest,
		":absent@" + two.Digest.String(): two.Digest,
	} {
		img := mustResolve(t, quick(), f.host+"/lib/a"+ref, ResolveOptions{})
		if img.Digest() != want || img.Index() != "" {
			t.Errorf("%q: digest %s, index %s", ref, img.Digest(), img.Index())
		}
		if !strings.HasPrefix(img.Reference().String(), f.host+"/lib/a"+ref) {
			t.Errorf("%q: reference %s", ref, img.Reference())
		}
	}
	// Without an index, the image is taken for what it is.
	if p := mustResolve(t, quick(), f.host+"/lib/a", ResolveOptions{Platform: &amd64}).Platform(); p.Architecture != "arm64" {
		t.Errorf("platform %+v", p)
	}
	// No more is asked for than is needed.
	g := newFakeRegistry(t)
	d := g.addImage(t, amd64, ocispec.MediaTypeImageLayer, [][]byte{{1}}, "latest")
	img := mustResolve(t, quick(), g.host+"/a", ResolveOptions{})
	if got := g.asked("/"); len(got) != 3 || got[0] != "GET /v2/" || got[1] != "GET /v2/a/manifests/latest" || !strings.HasPrefix(got[2], "GET /v2/a/blobs/") {
		t.Errorf("asked for %q", got)
	}
	if b, _ := img.Manifest(); digest.FromBytes(b) != d.Digest {
		t.Error("other manifest")
	}
	if digest.FromBytes(img.Config()).String() != strings.TrimPrefix(g.asked("/blobs/")[0], "GET /v2/a/blobs/") {
		t.Error("other configuration")
	}
}

// What a registry says no to, in dockerd's words.
func TestResolveErrors(t *testing.T) {
	for _, tc := range []struct {
		name   string
		status int
		body   string
		class  error
		want   string // with REF for the reference, NAME for the repository
		asked  int
	}{
		{"manifest unknown", 404, `{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown","detail":{"Tag":"1"}}]}`, ErrNotFound,
			"manifest for REF not found: manifest unknown: manifest unknown", 1},
		{"name unknown", 404, `{"errors":[{"code":"NAME_UNKNOWN","message":"repository name not known to registry"}]}`, ErrNotFound,
			"repository NAME not found: name unknown: repository name not known to registry", 1},
		{"denied", 403, `{"errors":[{"code":"DENIED","message":"requested access to the resource is denied"}]}`, ErrDenied,
			"pull access denied for NAME, repository does not exist or may require 'docker login': denied: requested access to the resource is denied", 1},
		{"denied without a word", 403, ``, ErrDenied,
			"pull access denied for NAME, repository does not exist or may require 'docker login': received unexpected HTTP status: 403 Forbidden", 1},
		{"404 of another server", 404, "<html>nothing here", ErrNotFound,
			`manifest for REF not found: error parsing HTTP 404 response body: "<html>nothing here"`, 1},
		{"rate limit", 429, `{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your pull rate limit."}]}`, ErrTooManyRequests,
			"toomanyrequests: You have reached your pull rate limit.", 3},
		{"unknown code", 400, `{"errors":[{"code":"WHATEVER","message":"no"}]}`, nil, "unknown: no", 1},
		{"several", 400, `{"errors":[{"code":"TAG_INVALID"},{"code":"NAME_INVALID","message":"x"}]}`, nil,
			"errors:\ntag invalid: manifest tag did not match URI\nname invalid: x", 1},
		{"escape sequences", 400, `{"errors":[{"code":"UNSUPPORTED","message":"\u001b[2J\u202e\nx"}]}`, nil, "unsupported: [2J  x", 1},
		{"down", 503, "", nil, "received unexpected HTTP status: 503 Service Unavailable", 3},
		{"teapot", 418, "", nil, "received unexpected HTTP status: 418 I'm a teapot", 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFakeRegistry(t)
			f.before = func(w http.ResponseWriter, r *http.Request) bool {
				if r.URL.Path == "/v2/" {
					return false
				}
				w.WriteHeader(tc.status)
				fmt.Fprint(w, tc.body)
				return true
			}
			_, err := quick().Resolve(t.Context(), named(t, f.host+"/x/y:1"), ResolveOptions{})
			want := strings.NewReplacer("REF", f.host+"/x/y:1", "NAME", f.host+"/x/y").Replace(tc.want)
			if err == nil || err.Error() != want {
				t.Errorf("got  %v\nwant %s", err, want)
			}
			for _, class := range []error{ErrNotFound, ErrDenied, ErrUnauthorized, ErrTooManyRequests} {
				if errors.Is(err, class) != (class == tc.class) {
					t.Errorf("errors.Is(%v) is %v", class, !(class == tc.class))
				}
			}
			re, ok := errors.AsType[*RegistryError](err)
			if !ok || re.Status != tc.status {
				t.Errorf("no *RegistryError with status %d in %#v", tc.status, err)
			}
			if n := len(f.asked("/manifests/")); n != tc.asked {
				t.Errorf("asked %d times, want %d", n, tc.asked)
			}
		})
	}
}

// Documents that are not what they should be.
func TestResolveDocuments(t *testing.T) {
	const oci, list = ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex
	good := func(f *fakeRegistry) ocispec.Manifest {
		return testManifest(f, t, amd64, ocispec.MediaTypeImageLayerGzip, [][]byte{{1}, {2}})
	}
	serve := func(f *fakeRegistry, contentType string, v any) {
		d := f.addManifest(t, contentType, v, "latest")
		f.manifests["latest"] = fakeManifest{contentType, f.manifests[d.Digest.String()].body}
	}
	for _, tc := range []struct {
		name  string
		setup func(f *fakeRegistry)
		class error
		msg   string // "" if it shall work
	}{
		{"no type in the header", func(f *fakeRegistry) { serve(f, "application/json", good(f)) }, nil, ""},
		{"no type anywhere", func(f *fakeRegistry) {
			m := good(f)
			m.MediaType = ""
			serve(f, "text/plain; charset=utf-8", m)
		}, nil, ""},
		{"type only in the header", func(f *fakeRegistry) {
			m := good(f)
			m.MediaType = ""
			serve(f, oci+"; charset=utf-8", m)
		}, nil, ""},
		{"docker schema 2", func(f *fakeRegistry) {
			m := testManifest(f, t, amd64, dockerLayer+".gzip", [][]byte{{1}})
			m.MediaType, m.Config.MediaType = dockerManifest, dockerConfig
			serve(f, dockerManifest, m)
		}, nil, ""},
		{"types disagree", func(f *fakeRegistry) { serve(f, dockerManifest, good(f)) }, ErrVerification, "manifest says it is of type"},
		{"manifest and index in one", func(f *fakeRegistry) {
			serve(f, oci, struct {
				ocispec.Manifest
				Manifests []ocispec.Descriptor `json:"manifests"`
			}{good(f), []ocispec.Descriptor{}})
		}, ErrVerification, `should not have "manifests"`},
		{"index and manifest in one", func(f *fakeRegistry) {
			serve(f, list, map[string]any{"manifests": []any{}, "layers": []any{}})
		}, ErrVerification, `should not have "config", "layers"`},
		{"schema 1", func(f *fakeRegistry) {
			serve(f, dockerSchema1, map[string]any{"schemaVersion": 1, "fsLayers": []any{}})
		}, ErrSchema1,
			"Docker Image Format v1 and Docker Image manifest version 2, schema 1 support has been removed. Suggest the author of REF to upgrade the image to the OCI Format or Docker Image manifest v2, schema 2. More information at https://docs.docker.com/go/deprecated-image-specs/"},
		{"schema 1, signed", func(f *fakeRegistry) { serve(f, dockerSchema1JWS, map[string]any{"schemaVersion": 1}) }, ErrSchema1, "schema 1 support has been removed"},
		{"schema 1, untyped", func(f *fakeRegistry) {
			serve(f, "application/json", map[string]any{"schemaVersion": 1, "fsLayers": []any{}})
		}, ErrSchema1, "schema 1 support has been removed"},
		{"Helm chart", func(f *fakeRegistry) {
			m := good(f)
			m.Config.MediaType = "application/vnd.cncf.helm.config.v1+json"
			serve(f, oci, m)
		}, ErrMediaType, "unsupported media type application/vnd.cncf.helm.config.v1+json"},
		{"artifact", func(f *fakeRegistry) {
			m := good(f)
			m.Config.MediaType, m.ArtifactType = ocispec.MediaTypeEmptyJSON, "application/vnd.example.sbom"
			serve(f, oci, m)
		}, ErrMediaType, "unsupported media type application/vnd.example.sbom"},
		{"docker plugin", func(f *fakeRegistry) {
			m := good(f)
			m.MediaType, m.Config.MediaType = dockerManifest, "application/vnd.docker.plugin.v1+json"
			serve(f, dockerManifest, m)
		}, ErrMediaType, "unsupported media type application/vnd.docker.plugin.v1+json"},
		{"unknown layer", func(f *fakeRegistry) {
			m := good(f)
			m.Layers[1].MediaType = "application/vnd.in-toto+json"
			serve(f, oci, m)
		}, ErrMediaType, "unsupported media type application/vnd.in-toto+json"},
		{"encrypted layer", func(f *fakeRegistry) {
			m := good(f)
			m.Layers[1].MediaType += "+encrypted"
			serve(f, oci, m)
		}, ErrMediaType, "tar+gzip+encrypted"},
		{"unknown manifest", func(f *fakeRegistry) { serve(f, "text/html", map[string]any{}) }, ErrMediaType, "unsupported manifest format"},
		{"unknown manifest type", func(f *fakeRegistry) { serve(f, "application/vnd.example+json", map[string]any{}) }, ErrMediaType, "unsupported manifest media type application/vnd.example+json"},
		{"index in index", func(f *fakeRegistry) {
			d := f.addManifest(t, list, ocispec.Index{})
			d.MediaType = oci
			f.addManifest(t, list, ocispec.Index{Manifests: []ocispec.Descriptor{d}}, "latest")
		}, ErrVerification, "its descriptor says application/vnd.oci.image.manifest.v1+json"},
		{"not JSON", func(f *fakeRegistry) { f.manifests["latest"] = fakeManifest{oci, []byte("<html>")} }, nil, "parse manifest: invalid character"},
		{"wrong JSON", func(f *fakeRegistry) { serve(f, oci, map[string]any{"config": 1, "layers": "x"}) }, nil, "parse manifest: json: cannot unmarshal"},
		{"null", func(f *fakeRegistry) { serve(f, oci, nil) }, ErrVerification, "image configuration: digest"},
		{"bad digest of a layer", func(f *fakeRegistry) {
			m := good(f)
			m.Layers[1].Digest = "sha256:../x"
			serve(f, oci, m)
		}, ErrVerification, `layer 1: digest "sha256:../x"`},
		{"negative size of a layer", func(f *fakeRegistry) {
			m := good(f)
			m.Layers[0].Size = -5
			serve(f, oci, m)
		}, ErrVerification, "layer 0: size -5"},
		{"bad digest in the index", func(f *fakeRegistry) {
			f.addManifest(t, list, ocispec.Index{Manifests: []ocispec.Descriptor{{MediaType: oci, Digest: "x"}}}, "latest")
		}, ErrVerification, `manifest in index: digest "x"`},
		{"huge manifest", func(f *fakeRegistry) {
			f.manifests["latest"] = fakeManifest{oci, make([]byte, maxDocument+1)}
		}, ErrVerification, "more than 4194304"},
		{"huge manifest in the index", func(f *fakeRegistry) {
			f.addManifest(t, list, ocispec.Index{Manifests: []ocispec.Descriptor{{MediaType: oci, Digest: digest.FromString("x"), Size: maxDocument + 1}}}, "latest")
		}, ErrVerification, "more than 4194304"},
		{"wrong size in the index", func(f *fakeRegistry) {
			d := f.addImage(t, amd64, ocispec.MediaTypeImageLayer, nil)
			d.Size++
			f.addManifest(t, list, ocispec.Index{Manifests: []ocispec.Descriptor{d}}, "latest")
		}, ErrVerification, "its descriptor says"},
		{"other manifest in the index", func(f *fakeRegistry) {
			d := f.addImage(t, amd64, ocispec.MediaTypeImageLayer, [][]byte{{1}})
			e := f.addImage(t, amd64, ocispec.MediaTypeImageLayer, [][]byte{{2}})
			f.manifests[d.Digest.String()] = f.manifests[e.Digest.String()]
			f.addManifest(t, list, ocispec.Index{Manifests: []ocispec.Descriptor{d}}, "latest")
		}, ErrVerification, "manifest verification failed for digest sha256:"},
		{"missing manifest in the index", func(f *fakeRegistry) {
			f.addManifest(t, list, ocispec.Index{Manifests: []ocispec.Descriptor{{MediaType: oci, Digest: digest.FromString("x"), Size: 1}}}, "latest")
		}, ErrNotFound, "manifest for REF not found: manifest unknown: manifest unknown"},
		{"huge configuration", func(f *fakeRegistry) {
			m := good(f)
			m.Config.Size = maxDocument + 1
			serve(f, oci, m)
		}, ErrVerification, "more than 4194304"},
		{"missing configuration", func(f *fakeRegistry) {
			m := good(f)
			delete(f.blobs, m.Config.Digest)
			serve(f, oci, m)
		}, ErrNotFound, "error pulling image configuration: unknown blob"},
		{"other configuration", func(f *fakeRegistry) {
			m := good(f)
			f.blobs[m.Config.Digest] = bytes.Repeat([]byte{' '}, int(m.Config.Size))
			serve(f, oci, m)
		}, ErrVerification, "verification failed for digest sha256:"},
		{"configuration without a file system", func(f *fakeRegistry) {
			m := good(f)
			m.Config = f.addBlob(m.Config.MediaType, []byte(`{"os":"linux"}`))
			serve(f, oci, m)
		}, ErrVerification, "invalid rootfs in image configuration"},
		{"layer without a diff ID", func(f *fakeRegistry) {
			m := good(f)
			m.Layers = append(m.Layers, m.Layers[0])
			serve(f, oci, m)
		}, ErrVerification, "layers from manifest don't match image configuration"},
		{"bad diff ID", func(f *fakeRegistry) {
			m := good(f)
			m.Config = f.addBlob(m.Config.MediaType, []byte(`{"rootfs":{"type":"layers","diff_ids":["x","y"]}}`))
			serve(f, oci, m)
		}, ErrVerification, `diff ID "x"`},
		{"configuration is no JSON", func(f *fakeRegistry) {
			m := good(f)
			m.Config = f.addBlob(m.Config.MediaType, []byte(`[]`))
			serve(f, oci, m)
		}, nil, "parse image configuration"},
		{"Windows", func(f *fakeRegistry) {
			f.addImage(t, ocispec.Platform{OS: "windows", Architecture: "amd64"}, ocispec.MediaTypeImageLayer, nil, "latest")
		}, ErrNoPlatform, `cannot download image with operating system "windows" when requesting "linux"`},
		{"no layers", func(f *fakeRegistry) { f.addImage(t, amd64, "", nil, "latest") }, nil, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFakeRegistry(t)
			tc.setup(f)
			_, err := quick().Resolve(t.Context(), named(t, f.host+"/x/y"), ResolveOptions{Platform: &amd64})
			if tc.msg == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), strings.ReplaceAll(tc.msg, "REF", f.host+"/x/y:latest")) {
				t.Errorf("got  %v\nwant %s", err, tc.msg)
			}
			if tc.class != nil && !errors.Is(err, tc.class) {
				t.Errorf("error is no %v: %v", tc.class, err)
			}
		})
	}
}

// What the registry says about the digest of a tag must be true.
func TestResolveContentDigest(t *testing.T) {
	f := newFakeRegistry(t)
	f.addImage(t, amd64, ocispec.MediaTypeImageLayer, nil, "latest")
	for header, ok := range map[string]bool{
		"":                                   true,
		"nonsense":                           true,
		digest.FromString("other").String():  false,
		"sha512:" + strings.Repeat("0", 128): false,
	} {
		f.before = func(w http.ResponseWriter, r *http.Request) bool {
			m := f.manifests["latest"]
			if !strings.HasSuffix(r.URL.Path, "/latest") {
				return false
			}
			w.Header().Set("Content-Type", m.mediaType)
			w.Header().Set("Docker-Content-Digest", header)
			w.Write(m.body)
			return true
		}
		_, err := quick().Resolve(t.Context(), named(t, f.host+"/a"), ResolveOptions{})
		if ok && err != nil || !ok && !errors.Is(err, ErrVerification) {
			t.Errorf("%q: %v", header, err)
		}
	}
}

// A manifest that breaks off is asked for again.
func TestResolveBroken(t *testing.T) {
	f := newFakeRegistry(t)
	f.addImage(t, amd64, ocispec.MediaTypeImageLayer, nil, "latest")
	n := 0
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/manifests/") {
			if n++; n < 3 {
				w.Header().Set("Content-Length", "1000")
				w.Write([]byte("{"))
				http.NewResponseController(w).Flush()
				panic(http.ErrAbortHandler)
			}
		}
		return false
	}
	mustResolve(t, quick(), f.host+"/a", ResolveOptions{})
	n = -10
	if _, err := quick().Resolve(t.Context(), named(t, f.host+"/a"), ResolveOptions{}); err == nil || !strings.Contains(err.Error(), "unexpected EOF") {
		t.Errorf("error: %v", err)
	}
	if n != -7 {
		t.Errorf("%d attempts, want 3", n+10)
	}
}

// No registry at all.
func TestResolveNobody(t *testing.T) {
	f := newFakeRegistry(t)
	f.Close()
	_, err := quick().Resolve(t.Context(), named(t, f.host+"/a"), ResolveOptions{})
	want := fmt.Sprintf(`Get "http://%s/v2/": dial tcp %s: connect: connection refused`, f.host, f.host)
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

func FuzzParseManifest(f *testing.F) {
	reg := newFakeRegistry(f)
	m := testManifest(reg, f, amd64, ocispec.MediaTypeImageLayerZstd, [][]byte{{1}, {2}})
	d := reg.addManifest(f, m.MediaType, m)
	d.Platform = &arm64
	reg.addManifest(f, ocispec.MediaTypeImageIndex, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{d}})
	seeds := 0
	for _, m := range reg.manifests {
		f.Add(m.mediaType, m.body)
		f.Add("", m.body)
		seeds++
	}
	if seeds == 0 {
		f.Fatal("no seeds")
	}
	f.Add(dockerManifestList, []byte(`{"schemaVersion":2,"mediaType":"`+dockerManifestList+`","manifests":[{"mediaType":"`+dockerManifest+
		`","size":528,"digest":"sha256:c71d239df91726fc519c6eb72d318ec65820627232b2f796219e87dcf35d0ab4","platform":{"architecture":"arm","os":"linux","variant":"v7"}}]}`))
	f.Add("application/json", []byte(`{"schemaVersion":1,"fsLayers":[{"blobSum":"sha256:aa"}],"history":[]}`))
	f.Fuzz(func(t *testing.T, contentType string, body []byte) {
		doc, err := parseManifest(contentType, body)
		if err != nil {
			return
		}
		if (doc.manifest == nil) == (doc.index == nil) {
			t.Fatal("neither manifest nor index, or both")
		}
		if doc.index != nil {
			d, err := chooseManifest(doc.index, arm64)
			if err == nil && (d.Digest.Validate() != nil || d.Size < 0) {
				t.Errorf("chose %+v", d)
			}
			return
		}
		if checkMediaTypes(doc.manifest) != nil {
			return
		}
		for _, d := range append(doc.manifest.Layers, doc.manifest.Config) {
			if d.Digest.Validate() != nil || d.Size < 0 {
				t.Errorf("accepted %+v", d)
			}
		}
		// What we understood is what others will.
		b, err := json.Marshal(doc.manifest)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseManifest(doc.desc.MediaType, b); err != nil {
			t.Errorf("written again: %v", err)
		}
	})
}

func FuzzParseImageConfig(f *testing.F) {
	f.Add([]byte(`{"created":"2026-01-02T03:04:05.678Z","architecture":"amd64","os":"linux","config":{"Env":["PATH=/bin"],"Cmd":["sh"]},`+
		`"rootfs":{"type":"layers","diff_ids":["sha256:c71d239df91726fc519c6eb72d318ec65820627232b2f796219e87dcf35d0ab4"]},"history":[{"empty_layer":true}]}`), 1)
	f.Add([]byte(`{"rootfs":{"type":"layers"}}`), 0)
	f.Fuzz(func(t *testing.T, b []byte, layers int) {
		p, err := parseConfig(b, layers)
		if err == nil && (layers < 0 || p.OS != "" && p.OS != "linux") {
			t.Errorf("%d layers for %+v", layers, p)
		}
	})
}

func FuzzErrorReply(f *testing.F) {
	f.Add(404, []byte(`{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown","detail":{"Tag":"latest"}}]}`))
	f.Add(401, []byte(`{"errors":[{"code":"UNAUTHORIZED","message":"authentication required","detail":[{"Type":"repository","Class":"","Name":"a","Action":"pull"}]}]}`))
	f.Add(401, []byte(`{"details":"incorrect username or password"}`))
	f.Add(502, []byte("<html>\x00\xff"))
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		e := &RegistryError{Status: status}
		e.parseBody(body)
		if len(e.Details) > maxErrorDetails {
			t.Errorf("%d details", len(e.Details))
		}
		msg := e.Error()
		if msg == "" || len(msg) > (maxErrorDetails+1)*(3*maxMessage+100) || strings.ContainsAny(msg, "\x00\x1b\r\u202e") {
			t.Errorf("message %q", msg)
		}
	})
}
