package layerstore

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestEscapeName(t *testing.T) {
	long := "registry.example.com:5000/" + strings.Repeat("component/", 22) + "last:" + strings.Repeat("t", 128)
	for _, test := range []struct{ name, want string }{
		{"docker.io/library/debian:12", "docker.io%2Flibrary%2Fdebian%3A12"},
		{"h:5000/a_b-c@sha256:00", "h%3A5000%2Fa_b-c%40sha256%3A00"},
		{"..", "%2E."},
		{"a%2Fb", "a%252Fb"},
		{"ü\x00/", "%C3%BC%00%2F"},
		{"", ""},
	} {
		if got := escapeName(test.name); got != test.want {
			t.Errorf("escape %q: %q, want %q", test.name, got, test.want)
		}
	}
	seen := make(map[string]bool)
	for _, name := range []string{long, long + "x", long[:len(long)-1], strings.Repeat("/", 67), strings.Repeat("/", 66)} {
		got := escapeName(name)
		if len(got) > plainName+1 || seen[got] || strings.Contains(got, "/") {
			t.Errorf("escape %q: %q", name, got)
		}
		seen[got] = true
	}
}

// Names of any length that a reference can have.
func TestLongNames(t *testing.T) {
	s := openStore(t, Options{})
	src := webImage(t)
	repo := "registry.example.com:5000/" + strings.Repeat("component/", 20) + strings.Repeat("x", 50)
	long := repo + ":" + strings.Repeat("t", 127)
	img := pullImage(t, s, src, long+"1")
	if err := s.Tag(img.ID.String(), mustName(t, long+"2")); err != nil {
		t.Fatal(err)
	}
	img, err := s.Image(repo + "@" + src.desc.Digest.String())
	if err != nil {
		t.Fatal(err)
	}
	if got, want := img.RepoTags(), []string{long + "1", long + "2"}; !slices.Equal(got, want) {
		t.Errorf("tags %q, want %q", got, want)
	}
	checkClean(t, s)
	if _, err := s.Remove(long+"1", RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Image(long + "1"); !errors.Is(err, ErrNotFound) {
		t.Errorf("removed name: %v", err)
	}
	checkClean(t, s)
}

func TestImage(t *testing.T) {
	s := openStore(t, Options{})
	src := webImage(t)
	src.top = digest.FromString("an index")
	img := pullImage(t, s, src, "web")
	hex := img.ID.Encoded()
	for _, ref := range []string{
		"web", "web:latest", "docker.io/library/web:latest", "index.docker.io/library/web", "library/web",
		"web@" + src.top.String(), "web:other@" + src.top.String(),
		img.ID.String(), hex, hex[:12], hex[:1], "sha256:" + hex[:7],
		src.top.String(), src.desc.Digest.String(),
	} {
		got, err := s.Image(ref)
		if err != nil || got.ID != img.ID {
			t.Errorf("image %q: %v", ref, err)
		}
	}
	for _, ref := range []string{
		"", "web:1", "example.com/web", "web@" + src.desc.Digest.String(), "sha256:", ":", "sha256:" + digest.FromString("x").Encoded(),
		hex + "0", "sha512:" + hex[:7], "Web", "../images/" + hex, "web\x00",
	} {
		if got, err := s.Image(ref); !errors.Is(err, ErrNotFound) {
			t.Errorf("image %q: %v, %v", ref, got, err)
		}
	}

	// Two images whose IDs begin with the same digit, and a name that is a digit.
	var digit string
	ids := map[byte]bool{hex[0]: true}
	for i := 0; digit == ""; i++ {
		other := pullImage(t, s, webImage(t).change(t, func(cfg *ocispec.Image, _ *ocispec.Manifest) { cfg.Author = string(rune('a' + i)) }), "other")
		if c := other.ID.Encoded()[0]; ids[c] {
			digit = string(c)
		} else {
			ids[c] = true
		}
	}
	if _, err := s.Image(digit); !errors.Is(err, ErrAmbiguous) {
		t.Errorf("image %q: %v", digit, err)
	}
	if err := s.Tag("web", mustName(t, digit)); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Image(digit); err != nil || got.ID != img.ID {
		t.Errorf("image by a name that begins IDs: %v", err)
	}

	list, err := s.Images()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.IsSortedFunc(list, func(a, b *Image) int { return strings.Compare(string(a.ID), string(b.ID)) }) {
		t.Error("images are not sorted")
	}
	h := img.History()
	if len(h) != 5 || h[0].ID != img.ID || h[0].CreatedBy != "step 4" || h[4].CreatedBy != "step 0" || h[4].ID != "" || h[3].Size != 0 || h[4].Size < 300_000 {
		t.Errorf("history %+v", h)
	}
	checkClean(t, s)
}

func TestTag(t *testing.T) {
	s := openStore(t, Options{})
	img := pullImage(t, s, webImage(t), "web")
	other := pullImage(t, s, makeImage(t), "other")
	for _, test := range []struct {
		src, dst string
		want     string // in the error; "" is none
	}{
		{"web", "mine", ""},
		{"web", "mine:1", ""},
		{img.ID.Encoded()[:12], "example.com/mine:1", ""},
		{"other", "mine:1", ""}, // takes the name away
		{"none", "mine:2", "no such image"},
		{"web", "mine@" + img.ID.String(), "digest reference"},
		{"web", "sha256:1", "sha256"},
	} {
		err := s.Tag(test.src, mustName(t, test.dst))
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("tag %s %s: %v, want %q", test.src, test.dst, err, test.want)
		}
	}
	for _, test := range []struct {
		id   digest.Digest
		want []string
	}{
		{img.ID, []string{"mine:latest", "web:latest", "example.com/mine:1"}},
		{other.ID, []string{"mine:1", "other:latest"}},
	} {
		got, err := s.Image(test.id.String())
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got.RepoTags(), test.want) {
			t.Errorf("tags %q, want %q", got.RepoTags(), test.want)
		}
	}
	checkClean(t, s)
}

// A tag that moves on leaves the image that it named, without a tag.
func TestPullMovesTag(t *testing.T) {
	s := openStore(t, Options{})
	old := pullImage(t, s, webImage(t), "web")
	pullImage(t, s, makeImage(t, memLayer{tar: makeTar(t, file("x", "x"))}), "web")
	got, err := s.Image(old.ID.String())
	if err != nil {
		t.Fatal(err)
	}
	if len(got.RepoTags()) != 0 || len(got.RepoDigests()) != 1 {
		t.Errorf("names of the old image: %q", got.Names)
	}
	if _, err := s.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	rawDisk(t, s, got)
	checkClean(t, s)
}

func FuzzReadName(f *testing.F) {
	f.Add("docker.io/library/web:latest", []byte(`{"name":"docker.io/library/web:latest","image":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}`))
	f.Add("x", []byte(`{"name":"x","image":"sha256:00"}`))
	d := Dir(f.TempDir())
	if err := os.Mkdir(d.names(), 0o700); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, name string, content []byte) {
		file := escapeName(name)
		if strings.Contains(file, "/") || len(file) > 255 {
			t.Fatalf("%q escapes to %q", name, file)
		}
		if file == "" {
			return
		}
		if err := os.WriteFile(d.name(name), content, 0o600); err != nil {
			t.Fatal(err)
		}
		defer os.Remove(d.name(name))
		r, ref, err := d.readName(file)
		if err != nil {
			var fe *FormatError
			if !errors.As(err, &fe) {
				t.Fatal(err)
			}
			return
		}
		if ref.String() != name || r.Name != name {
			t.Fatalf("file of %q names %q", name, ref)
		}
	})
}
