package fetch

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"vic/bench/oracle"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// The user and password that a registry with htpasswd lets in.
const (
	registryUser     = "vic"
	registryPassword = "secret"
	registryHtpasswd = "vic:$2y$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW\n"
)

// startRegistry runs docker-registry on loopback and returns its host:port.
func startRegistry(t testing.TB, htpasswd bool) string {
	t.Helper()
	program := oracle.Find(t, "docker-registry")
	dir := t.TempDir()
	auth := ""
	if htpasswd {
		path := filepath.Join(dir, "htpasswd")
		if err := os.WriteFile(path, []byte(registryHtpasswd), 0o600); err != nil {
			t.Fatal(err)
		}
		auth = fmt.Sprintf(", auth: {htpasswd: {realm: vic, path: %q}}", path)
	}
	conf := filepath.Join(dir, "config.yml")
	text := fmt.Sprintf("{version: 0.1, storage: {filesystem: {rootdirectory: %q}}, http: {addr: '127.0.0.1:0'}%s}\n", filepath.Join(dir, "data"), auth)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "serve", conf)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	host := make(chan string, 1)
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(host)
		sc := bufio.NewScanner(stderr)
		for sc.Scan() {
			if _, after, ok := strings.Cut(sc.Text(), "listening on "); ok {
				host <- strings.Trim(strings.Fields(after)[0], `"`)
				break
			}
		}
		io.Copy(io.Discard, stderr)
	})
	t.Cleanup(func() {
		cmd.Process.Kill()
		wg.Wait()
		cmd.Wait()
	})
	h, ok := <-host
	if !ok {
		t.Fatal("docker-registry did not start")
	}
	return h
}

// A pusher fills a repository of a registry.
type pusher struct {
	t    testing.TB
	host string
	name string
}

func (p pusher) send(method, url, contentType string, body []byte) *http.Response {
	p.t.Helper()
	req, err := http.NewRequestWithContext(p.t.Context(), method, url, bytes.NewReader(body))
	if err != nil {
		p.t.Fatal(err)
	}
	req.Header.Set("Content-Type", contentType)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		p.t.Fatal(err)
	}
	text, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		p.t.Fatalf("%s %s: %s %s", method, url, resp.Status, text)
	}
	return resp
}

func (p pusher) blob(mediaType string, b []byte) ocispec.Descriptor {
	p.t.Helper()
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	where := p.send(http.MethodPost, "http://"+p.host+"/v2/"+p.name+"/blobs/uploads/", "", nil).Header.Get("Location")
	p.send(http.MethodPut, where+"&digest="+d.Digest.String(), "application/octet-stream", b)
	return d
}

// manifest stores a manifest or an index, under its digest if tag is "".
func (p pusher) manifest(mediaType string, v any, tag string) ocispec.Descriptor {
	p.t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		p.t.Fatal(err)
	}
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	if tag == "" {
		tag = d.Digest.String()
	}
	p.send(http.MethodPut, "http://"+p.host+"/v2/"+p.name+"/manifests/"+tag, mediaType, b)
	return d
}

// layers are a changeset uncompressed and as gzip and zstd, each of another
// file.
func (p pusher) layers(salt string) (blobs []ocispec.Descriptor, diffIDs []digest.Digest) {
	p.t.Helper()
	for _, kind := range []string{ocispec.MediaTypeImageLayer, ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayerZstd} {
		var tarball, packed bytes.Buffer
		w := tar.NewWriter(&tarball)
		content := []byte(salt + kind + string(randomBytes(100_000)))
		if err := w.WriteHeader(&tar.Header{Name: salt, Mode: 0o644, Size: int64(len(content))}); err != nil {
			p.t.Fatal(err)
		}
		w.Write(content)
		if err := w.Close(); err != nil {
			p.t.Fatal(err)
		}
		diffIDs = append(diffIDs, digest.FromBytes(tarball.Bytes()))
		var c io.WriteCloser
		switch kind {
		case ocispec.MediaTypeImageLayerGzip:
			c = gzip.NewWriter(&packed)
		case ocispec.MediaTypeImageLayerZstd:
			c, _ = zstd.NewWriter(&packed)
		default:
			blobs = append(blobs, p.blob(kind, tarball.Bytes()))
			continue
		}
		if _, err := c.Write(tarball.Bytes()); err != nil {
			p.t.Fatal(err)
		}
		if err := c.Close(); err != nil {
			p.t.Fatal(err)
		}
		blobs = append(blobs, p.blob(kind, packed.Bytes()))
	}
	return blobs, diffIDs
}

// image stores an image with three layers.
func (p pusher) image(platform ocispec.Platform, tag string) ocispec.Descriptor {
	p.t.Helper()
	layers, diffIDs := p.layers(platform.Architecture)
	conf, err := json.Marshal(ocispec.Image{Platform: platform, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: diffIDs}})
	if err != nil {
		p.t.Fatal(err)
	}
	d := p.manifest(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    p.blob(ocispec.MediaTypeImageConfig, conf),
		Layers:    layers,
	}, tag)
	d.Platform = &platform
	return d
}

// run runs a program that must succeed.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), oracle.Find(t, name), args...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// buildImage makes an OCI layout with umoci: two layers over nothing.
func buildImage(t testing.TB) string {
	t.Helper()
	layout := filepath.Join(t.TempDir(), "layout")
	run(t, "umoci", "init", "--layout", layout)
	run(t, "umoci", "new", "--image", layout+":built")
	for i := range 2 {
		bundle := filepath.Join(t.TempDir(), "bundle")
		run(t, "umoci", "unpack", "--image", layout+":built", bundle)
		if err := os.WriteFile(filepath.Join(bundle, "rootfs", fmt.Sprint("file", i)), randomBytes(200_000+i), 0o644); err != nil {
			t.Fatal(err)
		}
		run(t, "umoci", "repack", "--image", layout+":built", bundle)
	}
	return layout
}

// sameAsSkopeo compares what we fetch with what skopeo copies of the same
// reference.
func sameAsSkopeo(t testing.TB, c *Client, ref string, platform ocispec.Platform, o ResolveOptions) *Image {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "skopeo")
	args := []string{"--override-os", platform.OS, "--override-arch", platform.Architecture, "--override-variant", platform.Variant,
		"copy", "--preserve-digests", "--src-tls-verify=false", "docker://" + ref, "dir:" + dir}
	if o.Credentials.Username != "" {
		args = append(args, "--src-creds", o.Credentials.Username+":"+o.Credentials.Password)
	}
	run(t, "skopeo", args...)
	o.Platform = &platform
	img := mustResolve(t, c, ref, o)

	manifest, desc := img.Manifest()
	want, err := os.ReadFile(filepath.Join(dir, "manifest.json"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(manifest, want) || desc.Digest != digest.FromBytes(want) {
		t.Errorf("%s: manifest %s, skopeo has %s", ref, desc.Digest, digest.FromBytes(want))
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(want, &m); err != nil {
		t.Fatal(err)
	}
	if want, err := os.ReadFile(filepath.Join(dir, m.Config.Digest.Encoded())); err != nil || !bytes.Equal(img.Config(), want) {
		t.Errorf("%s: configuration is not skopeo's (%v)", ref, err)
	}
	if len(img.Layers()) != len(m.Layers) {
		t.Fatalf("%s: %d layers, skopeo has %d", ref, len(img.Layers()), len(m.Layers))
	}
	for i, d := range img.Layers() {
		got, err := readBlob(t, img, d)
		if err != nil {
			t.Errorf("%s: layer %d: %v", ref, i, err)
		}
		if want, err := os.ReadFile(filepath.Join(dir, m.Layers[i].Digest.Encoded())); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: layer %d is not skopeo's (%v)", ref, i, err)
		}
	}
	return img
}

func TestRegistry(t *testing.T) {
	host := startRegistry(t, false)
	layout := buildImage(t)
	run(t, "skopeo", "copy", "--dest-tls-verify=false", "oci:"+layout+":built", "docker://"+host+"/lib/oci:1")
	run(t, "skopeo", "copy", "--dest-tls-verify=false", "--format", "v2s2", "oci:"+layout+":built", "docker://"+host+"/lib/docker:1")

	p := pusher{t, host, "lib/multi"}
	a, b := p.image(amd64, ""), p.image(arm64, "")
	attestation := p.manifest(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: p.blob(ocispec.MediaTypeImageConfig, []byte(`{"architecture":"unknown","os":"unknown","config":{},"rootfs":{"type":"layers","diff_ids":[]}}`)),
		Layers: []ocispec.Descriptor{p.blob("application/vnd.in-toto+json", []byte(`{"_type":"https://in-toto.io/Statement/v0.1"}`))},
	}, "")
	attestation.Platform = &ocispec.Platform{OS: "unknown", Architecture: "unknown"}
	attestation.Annotations = map[string]string{attestationType: "attestation-manifest", "vnd.docker.reference.digest": a.Digest.String()}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{attestation, b, a}}
	indexDesc := p.manifest(ocispec.MediaTypeImageIndex, index, "1")
	index.MediaType = dockerManifestList
	listDesc := p.manifest(dockerManifestList, index, "list")

	c := new(Client)
	t.Run("OCI", func(t *testing.T) {
		img := sameAsSkopeo(t, c, host+"/lib/oci:1", amd64, ResolveOptions{})
		if _, d := img.Manifest(); d.MediaType != ocispec.MediaTypeImageManifest || len(img.Layers()) != 2 {
			t.Errorf("%+v with %d layers", d, len(img.Layers()))
		}
		sameAsSkopeo(t, c, host+"/lib/oci@"+img.Digest().String(), amd64, ResolveOptions{})
	})
	t.Run("docker schema 2", func(t *testing.T) {
		img := sameAsSkopeo(t, c, host+"/lib/docker:1", amd64, ResolveOptions{})
		if _, d := img.Manifest(); d.MediaType != dockerManifest || img.Layers()[0].MediaType != dockerLayer+".gzip" {
			t.Errorf("%+v with %+v", d, img.Layers())
		}
	})
	t.Run("index", func(t *testing.T) {
		for _, want := range []ocispec.Descriptor{a, b} {
			img := sameAsSkopeo(t, c, host+"/lib/multi:1", *want.Platform, ResolveOptions{})
			if _, d := img.Manifest(); d.Digest != want.Digest || img.Digest() != indexDesc.Digest || img.Platform().Architecture != want.Platform.Architecture {
				t.Errorf("%s of %s for %+v", d.Digest, img.Digest(), img.Platform())
			}
			img = sameAsSkopeo(t, c, host+"/lib/multi:list", *want.Platform, ResolveOptions{})
			if img.Index() != listDesc.Digest {
				t.Errorf("list %s, want %s", img.Index(), listDesc.Digest)
			}
		}
		_, err := c.Resolve(t.Context(), named(t, host+"/lib/multi:1"), ResolveOptions{Platform: &ocispec.Platform{OS: "linux", Architecture: "s390x"}})
		if !errors.Is(err, ErrNoPlatform) {
			t.Errorf("error: %v", err)
		}
	})
	t.Run("nothing there", func(t *testing.T) {
		for _, ref := range []string{host + "/lib/oci:2", host + "/lib/nope:1"} {
			_, err := c.Resolve(t.Context(), named(t, ref), ResolveOptions{})
			if !errors.Is(err, ErrNotFound) || err.Error() != "manifest for "+ref+" not found: manifest unknown: manifest unknown" {
				t.Errorf("%s: %v", ref, err)
			}
		}
		img := mustResolve(t, c, host+"/lib/oci:1", ResolveOptions{})
		_, err := img.Blob(t.Context(), ocispec.Descriptor{Digest: digest.FromString("x"), Size: 1})
		if !errors.Is(err, ErrNotFound) || !strings.HasSuffix(err.Error(), "unknown blob") {
			t.Errorf("blob: %v", err)
		}
	})
}

// docker-registry's own answers to Range.
func TestRegistryRange(t *testing.T) {
	host := startRegistry(t, false)
	p := pusher{t, host, "lib/a"}
	p.image(amd64, "1")
	img := mustResolve(t, new(Client), host+"/lib/a:1", ResolveOptions{})
	d := img.Layers()[0]
	whole, err := readBlob(t, img, d)
	if err != nil {
		t.Fatal(err)
	}
	for _, off := range []int64{0, 1, d.Size / 2, d.Size - 1} {
		r, ranges, err := img.session.openBlob(t.Context(), d, off)
		if err != nil || !ranges {
			t.Fatalf("from %d: ranges %v, %v", off, ranges, err)
		}
		got, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(got, whole[off:]) {
			t.Errorf("from %d: %d bytes, %v", off, len(got), err)
		}
		r.Close()
	}
	r, err := img.session.openRange(t.Context(), d, 1, d.Size-2)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, whole[1:d.Size-1]) {
		t.Errorf("a range: %d bytes of %d, %v", len(got), d.Size-2, err)
	}
	// Beyond the end it answers 416, and we start over.
	if _, _, err := img.session.openBlob(t.Context(), d, d.Size+5); err == nil {
		t.Error("a range beyond the end was served")
	}
}

func TestRegistryPassword(t *testing.T) {
	host := startRegistry(t, true)
	layout := buildImage(t)
	run(t, "skopeo", "copy", "--dest-tls-verify=false", "--dest-creds", registryUser+":"+registryPassword,
		"oci:"+layout+":built", "docker://"+host+"/lib/oci:1")
	c := new(Client)
	good := Credentials{Username: registryUser, Password: registryPassword}
	sameAsSkopeo(t, c, host+"/lib/oci:1", amd64, ResolveOptions{Credentials: good})

	for name, tc := range map[string]struct {
		creds Credentials
		msg   string
	}{
		"nobody":         {Credentials{}, `Get "http://` + host + `/v2/lib/oci/manifests/1": no basic auth credentials`},
		"wrong password": {Credentials{Username: registryUser, Password: "x"}, "unauthorized: authentication required"},
		"wrong user":     {Credentials{Username: "x", Password: registryPassword}, "unauthorized: authentication required"},
	} {
		_, err := c.Resolve(t.Context(), named(t, host+"/lib/oci:1"), ResolveOptions{Credentials: tc.creds})
		if !errors.Is(err, ErrUnauthorized) || err.Error() != tc.msg {
			t.Errorf("%s: %v", name, err)
		}
	}
	if token, err := c.Login(t.Context(), host, good); err != nil || token != "" {
		t.Errorf("login: %q, %v", token, err)
	}
	_, err := c.Login(t.Context(), host, Credentials{Username: registryUser, Password: "x"})
	if !errors.Is(err, ErrUnauthorized) || err.Error() != "login attempt to http://"+host+"/v2/ failed with status: 401 Unauthorized" {
		t.Errorf("login with a wrong password: %v", err)
	}
	// As a docker client would have written it.
	conf, err := ParseConfig([]byte(`{"auths":{"` + host + `":{"auth":"dmljOnNlY3JldA=="}}}`))
	if err != nil {
		t.Fatal(err)
	}
	creds, err := conf.Credentials(t.Context(), host)
	if err != nil || creds != good {
		t.Errorf("from config.json: %+v, %v", creds, err)
	}
}

// A pull from docker-registry through a line that breaks every 50,000 bytes.
func TestRegistryBadLine(t *testing.T) {
	host := startRegistry(t, false)
	pusher{t, host, "lib/a"}.image(amd64, "1")
	line := newBadLine(t, host, 50_000)
	c := quick()
	c.Attempts = 20
	img := mustResolve(t, c, line.host+"/lib/a:1", ResolveOptions{})
	for i, d := range img.Layers() {
		if _, err := readBlob(t, img, d); err != nil {
			t.Errorf("layer %d: %v", i, err)
		}
	}
	if line.broken() < 3 {
		t.Errorf("the line broke %d times only", line.broken())
	}
}
