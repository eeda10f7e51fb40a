package build

import (
	"bytes"
	"io"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/distribution/reference"

	"vic/fetch/archive"
	"vic/layerstore"
)

var ids = regexp.MustCompile(`\b[0-9a-f]{12}\b`)

func mustName(t testing.TB, text string) reference.Named {
	t.Helper()
	name, err := reference.ParseNormalizedNamed(text)
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// A step is taken from the cache as long as nothing that it depends on has changed.
func TestCache(t *testing.T) {
	const dockerfile = "FROM scratch\nENV a=1\nCOPY f d /x/\nWORKDIR /w\nLABEL b=2\n"
	touched := files("f=1", "d/g=2")
	for i := range touched {
		touched[i].ModTime = time.Unix(2e9, 0)
		touched[i].Uid = 5
	}
	changed := files("f=1", "d/g=3")
	executable := files("f=1", "d/g=2")
	executable[0].Mode = 0o755
	h := newHost(t)
	first := h.mustBuild(t, Options{}, dockerfile, files("f=1", "d/g=2")...)
	for _, tt := range []struct {
		name string
		o    Options
		hits int
		run  func(Options) (*layerstore.Image, error)
	}{
		{"the same", Options{}, 4, func(o Options) (*layerstore.Image, error) {
			return h.build(t, o, dockerfile, files("f=1", "d/g=2")...)
		}},
		{"other times and owners", Options{}, 4, func(o Options) (*layerstore.Image, error) { return h.build(t, o, dockerfile, touched...) }},
		{"other content", Options{}, 1, func(o Options) (*layerstore.Image, error) { return h.build(t, o, dockerfile, changed...) }},
		{"another mode", Options{}, 1, func(o Options) (*layerstore.Image, error) { return h.build(t, o, dockerfile, executable...) }},
		{"another instruction", Options{}, 3, func(o Options) (*layerstore.Image, error) {
			return h.build(t, o, strings.Replace(dockerfile, "b=2", "b=3", 1), files("f=1", "d/g=2")...)
		}},
		{"no cache", Options{NoCache: true}, 0, func(o Options) (*layerstore.Image, error) {
			return h.build(t, o, dockerfile, files("f=1", "d/g=2")...)
		}},
		{"from an image that is not there", Options{CacheFrom: []string{"nope"}}, 0, func(o Options) (*layerstore.Image, error) {
			return h.build(t, o, dockerfile, files("f=1", "d/g=2")...)
		}},
	} {
		img, err := tt.run(tt.o)
		if err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		if n := strings.Count(h.said.String(), " ---> Using cache\n"); n != tt.hits || (tt.hits == 4) != (img.ID == first.ID) {
			t.Errorf("%s: %d steps from the cache, want %d; image %s, the first was %s\n%s", tt.name, n, tt.hits, img.ID, first.ID, h.said.String())
		}
	}
	// What is removed is not in the cache any more, and its parents go with it.
	images, err := h.store.Images()
	if err != nil {
		t.Fatal(err)
	}
	for len(images) > 0 {
		for _, img := range images {
			h.store.Remove(img.ID.String(), layerstore.RemoveOptions{}) // those with children are refused
		}
		if images, err = h.store.Images(); err != nil {
			t.Fatal(err)
		}
	}
	h.mustBuild(t, Options{}, dockerfile, files("f=1", "d/g=2")...)
	if strings.Contains(h.said.String(), "Using cache") {
		t.Errorf("a step was taken from images that are gone:\n%s", h.said.String())
	}
}

// Images of before are found by a store that is opened anew, and by --cache-from in another one.
func TestCacheFrom(t *testing.T) {
	const dockerfile = "FROM scratch\nENV a=1\nCOPY f /x\nLABEL b=2\n"
	h := newHost(t)
	first := h.mustBuild(t, Options{}, dockerfile, files("f=1")...)
	h.tag(t, first, "app")
	again, err := layerstore.Open(h.store.Dir(), layerstore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	h2 := newHost(t)
	h2.store = again
	if img := h2.mustBuild(t, Options{CacheFrom: []string{"app"}}, dockerfile, files("f=1")...); img.ID != first.ID {
		t.Errorf("opened anew, the image is %s, want %s:\n%s", img.ID, first.ID, h2.said.String())
	}

	other := newHost(t)
	var saved bytes.Buffer
	saving, err := h.store.Save([]string{"app"}, layerstore.SaveOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer saving.Close()
	if err := saving.Write(t.Context(), &saved); err != nil {
		t.Fatal(err)
	}
	a, err := archive.Read(t.Context(), io.Reader(&saved), other.store.TempFile)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	src, err := a.Entries()[0].Resolve(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.store.Pull(t.Context(), src, mustName(t, "app"), layerstore.PullOptions{}); err != nil {
		t.Fatal(err)
	}
	if img := other.mustBuild(t, Options{CacheFrom: []string{"app"}}, dockerfile, files("f=1")...); img.ID != first.ID {
		t.Errorf("from a loaded image it is %s, want %s:\n%s", img.ID, first.ID, other.said.String())
	}
	img := other.mustBuild(t, Options{CacheFrom: []string{"app"}}, strings.Replace(dockerfile, "b=2", "b=3", 1), files("f=1")...)
	if n := strings.Count(other.said.String(), "Using cache"); n != 2 || img.Config.Config.Labels["b"] != "3" || img.Chain() != first.Chain() {
		t.Errorf("%d steps from a loaded image, labels %v, chain %s\n%s", n, img.Config.Config.Labels, img.Chain(), other.said.String())
	}
	if _, err := other.build(t, Options{CacheFrom: []string{"app"}}, dockerfile, files("f=2")...); err != nil || strings.Count(other.said.String(), "Using cache") != 1 {
		t.Errorf("other content: %v\n%s", err, other.said.String())
	}
}
