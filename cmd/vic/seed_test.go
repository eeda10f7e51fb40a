package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"vic/bench/oracle"
	"vic/bench/testimage"
)

// A seedbed is an image in a registry and, copied by skopeo, in files.
type seedbed struct {
	dir      string
	registry *testimage.Registry
	ref      string // in the registry
	id       string // of the image
	digest   string // of its manifest
}

func newSeedbed(t *testing.T) *seedbed {
	t.Helper()
	oracle.Need(t, "docker-registry", "busybox", "skopeo")
	b := &seedbed{dir: t.TempDir()}
	t.Setenv("DOCKER_CONFIG", b.in("none"))
	var err error
	if b.registry, err = testimage.StartRegistry(t.Context(), b.in("registry")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.registry.Stop() })
	busybox, err := testimage.Busybox()
	if err != nil {
		t.Fatal(err)
	}
	random := testimage.RandomBytes(1 << 20)
	img, err := testimage.Build(v1.Config{Cmd: []string{"sh"}}, busybox, random, testimage.SmallFiles(20), random)
	if err != nil {
		t.Fatal(err)
	}
	id, err := img.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	d, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	b.id, b.digest = id.String(), d.String()
	if b.ref, err = b.registry.Push(t.Context(), "lib/app:1", img); err != nil {
		t.Fatal(err)
	}
	b.skopeo(t, "copy", "--src-tls-verify=false", "docker://"+b.ref, "oci:"+b.in("layout")+":1")
	for _, kind := range []string{"oci-archive", "docker-archive"} {
		b.skopeo(t, "copy", "oci:"+b.in("layout")+":1", kind+":"+b.in(kind+".tar")+":example.com/app:1")
	}
	if out, err := exec.Command("gzip", "-k", b.in("docker-archive.tar")).CombinedOutput(); err != nil {
		t.Fatalf("gzip: %v\n%s", err, out)
	}
	return b
}

func (b *seedbed) in(name string) string { return filepath.Join(b.dir, name) }

func (b *seedbed) skopeo(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "skopeo", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("skopeo %q: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// seed runs vic seed, and returns what it says in JSON.
func (b *seedbed) seed(t *testing.T, stdin io.Reader, store string, args ...string) ([]seedResult, error) {
	t.Helper()
	var out bytes.Buffer
	err := run(t.Context(), append([]string{"seed", "--json", "--store", store}, args...), stdin, &out, io.Discard)
	var all []seedResult
	for d := json.NewDecoder(&out); ; {
		var r seedResult
		if e := d.Decode(&r); errors.Is(e, io.EOF) {
			return all, err
		} else if e != nil {
			t.Fatalf("%v: %s", e, out.String())
		}
		all = append(all, r)
	}
}

func TestSeed(t *testing.T) {
	b := newSeedbed(t)
	store := b.in("store")
	if out, progress, err := vic(t, "seed", "--store", store, b.ref); err != nil || !strings.Contains(out, b.ref+" pulled: image ") || !strings.Contains(progress, ": pulled ") {
		t.Fatalf("seed: %q, %q, %v", out, progress, err)
	}
	docker, err := os.ReadFile(b.in("docker-archive.tar.gz"))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name  string
		stdin string
		args  []string
		want  string // names
	}{
		{"docker://", "", []string{"docker://" + b.ref}, b.ref},
		{"renamed", "", []string{b.ref, "--name", "app"}, "app:latest"},
		{"layout", "", []string{b.in("layout"), "--name", "app:3"}, "app:3"},
		{"layout without a name", "", []string{"oci:" + b.in("layout") + ":1"}, ""},
		{"OCI archive", "", []string{"oci-archive:" + b.in("oci-archive.tar")}, "example.com/app:1"},
		{"docker archive", "", []string{"docker-archive:" + b.in("docker-archive.tar") + ":example.com/app:1"}, "example.com/app:1"},
		{"path", "", []string{b.in("docker-archive.tar.gz")}, "example.com/app:1"},
		{"stream", string(docker), []string{"-"}, "example.com/app:1"},
		{"list", "# all of them\n\n" + b.ref + " app:7 # renamed\n", []string{"-f", "-"}, "app:7"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			again := filepath.Join(t.TempDir(), "store")
			got, err := b.seed(t, strings.NewReader(tt.stdin), again, tt.args...)
			if err != nil || len(got) != 1 || got[0].State != "pulled" || got[0].Image.String() != b.id || strings.Join(got[0].Names, " ") != tt.want {
				t.Fatalf("%+v, %v, want %s", got, err, tt.want)
			}
			if got, err = b.seed(t, strings.NewReader(tt.stdin), again, tt.args...); err != nil || got[0].State != "up to date" {
				t.Errorf("again: %+v, %v", got, err)
			}
			if out, err := exec.Command("diff", "-r", "--exclude=*.json", filepath.Join(store, "disks"), filepath.Join(again, "disks")).CombinedOutput(); err != nil {
				t.Errorf("the disks are others: %v\n%s", err, out)
			}
			left, err := os.ReadDir(filepath.Join(again, "tmp"))
			if err != nil || len(left) > 0 {
				t.Errorf("left in tmp: %v, %v", left, err)
			}
		})
	}
}

// What fails does not stop the rest.
func TestSeedFails(t *testing.T) {
	b := newSeedbed(t)
	list := b.in("list")
	missing := b.registry.Addr + "/lib/missing:1"
	cut := b.in("cut.tar")
	whole, err := os.ReadFile(b.in("docker-archive.tar"))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(list, []byte(missing+"\n"+cut+"\n"+b.ref+"\noci:"+b.in("layout")+":9\n"), 0o600), os.WriteFile(cut, whole[:len(whole)/2], 0o600)); err != nil {
		t.Fatal(err)
	}
	store := b.in("store")
	got, err := b.seed(t, nil, store, "-f", list)
	if err == nil || !strings.HasPrefix(err.Error(), "3 of 4 failed: ") || !strings.Contains(err.Error(), missing) || !strings.Contains(err.Error(), cut) {
		t.Errorf("seed: %v", err)
	}
	for _, r := range got {
		if good := r.Source == b.ref; (r.State == "failed") == good || (r.Error == "") != good {
			t.Errorf("%+v", r)
		}
	}
	if out, _, err := vic(t, "ls", "--store", store); err != nil || strings.Count(out, "lib/app") != 1 {
		t.Errorf("ls: %v\n%s", err, out)
	}
	if _, said, err := vic(t, "seed", "--store", store, missing); err == nil || !strings.Contains(said, missing+": manifest for ") {
		t.Errorf("seed of a missing image: %v, %q", err, said)
	}
}

func TestPush(t *testing.T) {
	b := newSeedbed(t)
	store := b.in("store")
	if _, err := b.seed(t, nil, store, b.ref); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		args   []string
		target string
	}{
		{"to where it is from", []string{b.ref}, b.ref},
		{"elsewhere", []string{b.ref, b.registry.Addr + "/other:2"}, b.registry.Addr + "/other:2"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out, _, err := vic(t, append([]string{"push", "--store", store, "--json"}, tt.args...)...)
			var r pushResult
			if err := errors.Join(err, json.Unmarshal([]byte(out), &r)); err != nil {
				t.Fatal(err)
			}
			if r.Target != tt.target || r.Image.String() != b.id || r.Digest.String() != b.digest || r.Repacked != 0 {
				t.Errorf("%+v, want digest %s", r, b.digest)
			}
			if got := b.skopeo(t, "inspect", "--tls-verify=false", "--format", "{{.Digest}}", "docker://"+tt.target); got != b.digest {
				t.Errorf("pushed %s, want %s", got, b.digest)
			}
		})
	}
	// Layers of an archive of docker's were not compressed, and are now.
	fresh := b.in("fresh")
	if _, err := b.seed(t, nil, fresh, b.in("docker-archive.tar")); err != nil {
		t.Fatal(err)
	}
	target := b.registry.Addr + "/fresh:1"
	out, progress, err := vic(t, "push", "--store", fresh, "example.com/app:1", target)
	if err != nil || !strings.HasPrefix(out, target+" pushed: image ") || !strings.Contains(out, "4 of 4 layers could not be") || !strings.Contains(progress, ": pushed ") {
		t.Errorf("push: %q, %q, %v", out, progress, err)
	}
	b.skopeo(t, "copy", "--src-tls-verify=false", "docker://"+target, "docker-archive:"+b.in("back.tar")+":back:1")
	again, err := b.seed(t, nil, b.in("again"), b.in("back.tar"))
	if err != nil || again[0].Image.String() != b.id {
		t.Errorf("pushed and copied by skopeo: %+v, %v, want %s", again, err, b.id)
	}
	if _, _, err := vic(t, "push", "--store", fresh, "nope"); err == nil || !strings.Contains(err.Error(), "no such image") {
		t.Errorf("push of no image: %v", err)
	}
}

// TestSaveCompressed: an image leaves the store with its own manifest, where its layers can be
// compressed as they were, and else with its own ID.
func TestSaveCompressed(t *testing.T) {
	b := newSeedbed(t)
	host, _, _ := strings.Cut(b.ref, "/")
	other, err := testimage.StartRegistry(t.Context(), b.in("other")) // skopeo compresses for one that has no blobs
	if err != nil {
		t.Fatal(err)
	}
	defer other.Stop()
	repacked := other.Addr + "/lib/skopeo:1"
	schema2 := host + "/lib/schema2:1"
	b.skopeo(t, "copy", "--dest-tls-verify=false", "docker-archive:"+b.in("docker-archive.tar"), "docker://"+repacked)
	b.skopeo(t, "copy", "--dest-tls-verify=false", "--src-tls-verify=false", "--format", "v2s2", "docker://"+b.ref, "docker://"+schema2)
	for _, tt := range []struct {
		name, ref string
		own       bool // it has its own manifest
	}{{"oci", b.ref, true}, {"schema2", schema2, true}, {"repacked", repacked, false}} {
		t.Run(tt.name, func(t *testing.T) {
			store, file := filepath.Join(t.TempDir(), "store"), filepath.Join(t.TempDir(), "save.tar")
			if _, said, err := vic(t, "pull", "--store", store, tt.ref); err != nil {
				t.Fatalf("%v\n%s", err, said)
			}
			want := b.skopeo(t, "inspect", "--tls-verify=false", "--raw", "docker://"+tt.ref)
			out, said, err := vic(t, "save", "--store", store, "--compress", "--json", "-o", file, tt.ref)
			var w written
			if err == nil {
				err = json.Unmarshal([]byte(out), &w)
			}
			fi, statErr := os.Stat(file)
			if err = errors.Join(err, statErr); err != nil {
				t.Fatalf("%v\n%s%s", err, out, said)
			}
			if w.File != file || w.Size != fi.Size() || len(w.Images) != 1 || (w.Repacked == 0) != tt.own {
				t.Errorf("save says %s", out)
			}
			got := b.skopeo(t, "inspect", "--raw", "oci-archive:"+file)
			if (got == want) != tt.own {
				t.Errorf("manifest\n got %s\nwant %s", got, want)
			}
			for _, kind := range []string{"oci-archive:", "docker-archive:"} { // skopeo verifies all digests
				to := filepath.Join(t.TempDir(), "layout")
				b.skopeo(t, "copy", kind+file, "oci:"+to+":1")
				if b.skopeo(t, "inspect", "--config", "--raw", kind+file) != b.skopeo(t, "inspect", "--tls-verify=false", "--config", "--raw", "docker://"+tt.ref) {
					t.Errorf("%s%s has another config", kind, file)
				}
			}
			again := filepath.Join(t.TempDir(), "again")
			if _, said, err := vic(t, "seed", "--store", again, file); err != nil {
				t.Fatalf("%v\n%s", err, said)
			}
			if out, _, err := vic(t, "check", "--deep", "--store", again); err != nil || out != "the store is sound\n" {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

func TestParseSource(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "a.tar")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		text string
		want seedSource
		err  string
	}{
		{text: "-", want: seedSource{file: "-"}},
		{text: dir, want: seedSource{folder: dir}},
		{text: file, want: seedSource{file: file}},
		{text: "oci:dir", want: seedSource{folder: "dir"}},
		{text: "oci:dir:1", want: seedSource{folder: "dir", image: "1"}},
		{text: "docker-archive:f:example.com/a:1", want: seedSource{file: "f", image: "example.com/a:1"}},
		{text: "oci:", err: "names no file"},
		{text: "missing.tar", err: "no such file"},
		{text: "/missing", err: "no such file"},
		{text: "Bad", err: "invalid reference format"},
	} {
		got, err := parseSource(tt.text, "")
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%s: %v, want %q", tt.text, err, tt.err)
			}
			continue
		}
		tt.want.text = tt.text
		if err != nil || got != tt.want {
			t.Errorf("%s: %+v, %v, want %+v", tt.text, got, err, tt.want)
		}
	}
	for _, tt := range []struct{ text, want string }{
		{"debian:12 example.com/debian:12 more", "line 1: more than a source"},
		{"debian:12\nBad", "line 2: source"},
		{"debian:12 a@sha256:" + strings.Repeat("0", 64), "a digest is nothing to be chosen"},
		{strings.Repeat("x", maxSourceLine+1), "token too long"},
	} {
		if _, err := readSources(strings.NewReader(tt.text)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%.40q: %v, want %q", tt.text, err, tt.want)
		}
	}
}
