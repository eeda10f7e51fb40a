package layerstore

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestMakePlan(t *testing.T) {
	change := func(edit func(*ocispec.Image, *ocispec.Manifest)) func(*testing.T, *memImage) {
		return func(t *testing.T, m *memImage) { m.change(t, edit) }
	}
	for _, test := range []struct {
		name string
		edit func(*testing.T, *memImage)
		lim  Limits
		want string // in the error; "" is none
	}{
		{name: "as it is", edit: func(*testing.T, *memImage) {}},
		{name: "no os", edit: change(func(c *ocispec.Image, _ *ocispec.Manifest) { c.OS = "" })},
		{name: "docker's media types", edit: change(func(_ *ocispec.Image, m *ocispec.Manifest) {
			for i := range m.Layers {
				m.Layers[i].MediaType = "application/vnd.docker.image.rootfs.diff.tar.gzip"
			}
		})},
		{name: "windows", want: "windows", edit: change(func(c *ocispec.Image, _ *ocispec.Manifest) { c.OS = "windows" })},
		{name: "a layer too few", want: "4 layers", edit: change(func(_ *ocispec.Image, m *ocispec.Manifest) { m.Layers = m.Layers[:4] })},
		{name: "a diff ID too few", want: "4 diff IDs", edit: change(func(c *ocispec.Image, _ *ocispec.Manifest) { c.RootFS.DiffIDs = c.RootFS.DiffIDs[:4] })},
		{name: "bad diff ID", want: "diff ID 2", edit: change(func(c *ocispec.Image, _ *ocispec.Manifest) { c.RootFS.DiffIDs[2] = "sha256:../../../etc/passwd" })},
		{name: "sha512 diff ID", want: "sha512", edit: change(func(c *ocispec.Image, _ *ocispec.Manifest) { c.RootFS.DiffIDs[2] = digest.SHA512.FromString("x") })},
		{name: "bad rootfs type", want: "rootfs", edit: change(func(c *ocispec.Image, _ *ocispec.Manifest) { c.RootFS.Type = "squash" })},
		{name: "bad blob digest", want: "layer 1", edit: change(func(_ *ocispec.Image, m *ocispec.Manifest) { m.Layers[1].Digest = "x" })},
		{name: "negative size", want: "size -1", edit: change(func(_ *ocispec.Image, m *ocispec.Manifest) { m.Layers[1].Size = -1 })},
		{name: "a chart", want: "not a file system layer", edit: change(func(_ *ocispec.Image, m *ocispec.Manifest) {
			m.Layers[1].MediaType = "application/vnd.cncf.helm.chart.content.v1.tar+gzip"
		})},
		{name: "encrypted", want: "encrypted", edit: change(func(_ *ocispec.Image, m *ocispec.Manifest) {
			m.Layers[1].MediaType = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted"
		})},
		{name: "too many layers", want: "5 layers, 4", lim: Limits{Layers: 4}, edit: func(*testing.T, *memImage) {}},
		{name: "large manifest", want: "manifest", lim: Limits{Manifest: 100}, edit: func(*testing.T, *memImage) {}},
		{name: "large config", want: "config", lim: Limits{Config: 100}, edit: func(*testing.T, *memImage) {}},
		{name: "another config", want: "the manifest names", edit: func(_ *testing.T, m *memImage) { m.config = append(m.config, ' ') }},
		{name: "another manifest", want: "digest is", edit: func(_ *testing.T, m *memImage) { m.manifest = append(m.manifest, ' ') }},
		{name: "no digest", want: "digest", edit: func(_ *testing.T, m *memImage) { m.top = "latest" }},
		{name: "as many values as there may be", edit: change(func(c *ocispec.Image, _ *ocispec.Manifest) { c.History = make([]ocispec.History, 40_000) })},
		{name: "too many values in the config", want: "values, 100000 are allowed", edit: change(func(c *ocispec.Image, _ *ocispec.Manifest) { c.History = make([]ocispec.History, 100_000) })},
		{name: "too many values in the manifest", want: "values, 100000 are allowed", edit: change(func(_ *ocispec.Image, m *ocispec.Manifest) {
			m.Annotations = map[string]string{"{[,\"": strings.Repeat(`,[{\\"`, 100_000)} // not these
			m.Layers = make([]ocispec.Descriptor, 30_000)
		})},
		{name: "no JSON", want: "manifest", edit: func(_ *testing.T, m *memImage) {
			m.manifest = []byte("<html>")
			m.desc.Digest = digest.FromBytes(m.manifest)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := webImage(t)
			test.edit(t, m)
			p, err := makePlan(m, test.lim.orDefault(testCapacity))
			if test.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				checkPlan(t, p)
				return
			}
			var fe *FormatError
			if !errors.As(err, &fe) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want a *FormatError with %q", err, test.want)
			}
		})
	}
}

// checkPlan holds chain IDs against their definition.
func checkPlan(t *testing.T, p *plan) {
	t.Helper()
	var parent digest.Digest
	for i, l := range p.layers {
		want := l.diffID
		if i > 0 {
			want = digest.FromString(parent.String() + " " + l.diffID.String())
		}
		if l.chain != want || l.parent != parent {
			t.Fatalf("layer %d is %s over %q, want %s over %q", i, l.chain, l.parent, want, parent)
		}
		parent = l.chain
	}
}

func FuzzMakePlan(f *testing.F) {
	m := webImage(f)
	f.Add(m.manifest, m.config)
	m = makeImage(f)
	f.Add(m.manifest, m.config)
	f.Add([]byte("{}"), []byte("{}"))
	f.Fuzz(func(t *testing.T, manifest, config []byte) {
		// The config's digest is put right, or nothing would get past it.
		var man ocispec.Manifest
		if json.Unmarshal(manifest, &man) == nil {
			man.Config.Digest = digest.FromBytes(config)
			if b, err := json.Marshal(man); err == nil {
				manifest = b
			}
		}
		src := &memImage{manifest: manifest, config: config, desc: ocispec.Descriptor{Digest: digest.FromBytes(manifest)}}
		p, err := makePlan(src, Limits{Layers: 50}.orDefault(testCapacity))
		if err == nil {
			checkPlan(t, p)
			return
		}
		var fe *FormatError
		if !errors.As(err, &fe) {
			t.Fatalf("error is a %T: %v", err, err)
		}
	})
}
