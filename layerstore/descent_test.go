package layerstore

import (
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

// family pulls images of which each is made of the one before, and names the last one.
func family(t *testing.T, s *Store, n int) []*Image {
	t.Helper()
	var images []*Image
	var layers []memLayer
	var parent digest.Digest
	for i := range n {
		layers = append(layers, memLayer{tar: makeTar(t, file("f"+string(rune('a'+i)), "data"))})
		img, err := s.Pull(t.Context(), makeImage(t, layers...), nil, PullOptions{Descent: Descent{Parent: parent, Step: digest.FromString("step")}})
		if err != nil {
			t.Fatal(err)
		}
		parent = img.ID
		images = append(images, img)
	}
	if err := s.Tag(parent.String(), mustName(t, "last")); err != nil {
		t.Fatal(err)
	}
	return images
}

// An image goes with the last that was made of it, unless somebody needs it.
func TestRemoveFamily(t *testing.T) {
	for _, tt := range []struct {
		name  string
		setup func(*testing.T, *Store, []*Image) RemoveOptions
		ref   string // "" is the name
		left  int    // images
		err   string
	}{
		{name: "all", left: 0},
		{name: "parents are kept", left: 2, setup: func(*testing.T, *Store, []*Image) RemoveOptions { return RemoveOptions{KeepParents: true} }},
		{name: "one has a name", left: 2, setup: func(t *testing.T, s *Store, imgs []*Image) RemoveOptions {
			if err := s.Tag(imgs[1].ID.String(), mustName(t, "middle")); err != nil {
				t.Fatal(err)
			}
			return RemoveOptions{}
		}},
		{name: "one has another child", left: 2, setup: func(t *testing.T, s *Store, imgs []*Image) RemoveOptions {
			if _, err := s.Pull(t.Context(), makeImage(t, memLayer{tar: makeTar(t, file("x", "y"))}), nil, PullOptions{Descent: Descent{Parent: imgs[0].ID}}); err != nil {
				t.Fatal(err)
			}
			return RemoveOptions{}
		}},
		{name: "one has a container", left: 2, setup: func(t *testing.T, s *Store, imgs []*Image) RemoveOptions {
			if _, err := s.CreateContainerDisk("1111111111111111", imgs[1].ID); err != nil {
				t.Fatal(err)
			}
			return RemoveOptions{}
		}},
		{name: "one is being built upon", left: 2, setup: func(_ *testing.T, _ *Store, imgs []*Image) RemoveOptions {
			return RemoveOptions{Building: func(id digest.Digest) bool { return id == imgs[1].ID }}
		}},
		{name: "a parent, by force", ref: "PARENT", left: 3, err: "(cannot be forced) - image has dependent child images", setup: func(*testing.T, *Store, []*Image) RemoveOptions { return RemoveOptions{Force: true} }},
		{name: "the last is being built upon", ref: "LAST", left: 3, err: "image is being used by a build", setup: func(*testing.T, *Store, []*Image) RemoveOptions {
			return RemoveOptions{Force: true, Building: func(digest.Digest) bool { return true }}
		}},
		{name: "a parent's name", ref: "middle", left: 3, setup: func(t *testing.T, s *Store, imgs []*Image) RemoveOptions {
			if err := s.Tag(imgs[1].ID.String(), mustName(t, "middle")); err != nil {
				t.Fatal(err)
			}
			return RemoveOptions{}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := openStore(t, Options{})
			imgs := family(t, s, 3)
			var o RemoveOptions
			if tt.setup != nil {
				o = tt.setup(t, s, imgs)
			}
			ref := strings.NewReplacer("PARENT", imgs[1].ID.String(), "LAST", imgs[2].ID.String()).Replace(tt.ref)
			if ref == "" {
				ref = "last"
			}
			_, err := s.Remove(ref, o)
			if tt.err == "" && err != nil || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
				t.Errorf("got error %v, want %q", err, tt.err)
			}
			if left, err := s.ImageIDs(); err != nil || len(left) != tt.left {
				t.Errorf("%d images are left, want %d (%v)", len(left), tt.left, err)
			}
			checkClean(t, s)
		})
	}
}

// Records without a descent are those of before; a parent that is not there is none; one that cannot be is damage.
func TestDescentRecords(t *testing.T) {
	s := openStore(t, Options{})
	img := family(t, s, 1)[0]
	path := s.dir.image(img.ID) + "/" + imageFile
	for _, tt := range []struct {
		parent any
		ok     bool
	}{{nil, true}, {digest.FromString("gone").String(), true}, {"sha256:short", false}, {7, false}} {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var r map[string]any
		if err := json.Unmarshal(b, &r); err != nil {
			t.Fatal(err)
		}
		delete(r, "step")
		if r["parent"] = tt.parent; tt.parent == nil {
			delete(r, "parent")
		}
		if b, err = json.Marshal(r); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err = s.Image(img.ID.String())
		if _, damaged := errors.AsType[*FormatError](err); damaged == tt.ok {
			t.Errorf("parent %v: %v", tt.parent, err)
		}
		if !tt.ok {
			continue
		}
		if images, err := s.Images(); err != nil || !slices.ContainsFunc(images, func(i *Image) bool { return i.ID == img.ID && i.Descent.Step == "" }) {
			t.Errorf("parent %v: %v, %v", tt.parent, images, err)
		}
	}
	if _, err := s.Remove("last", RemoveOptions{}); err != nil { // damaged as it is
		t.Error(err)
	}
}
