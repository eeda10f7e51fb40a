package layerstore

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

// untar returns the files of a tar, and fails if a blob is not what its name says.
func untar(t *testing.T, b []byte) map[string][]byte {
	t.Helper()
	files := make(map[string][]byte)
	for r := tar.NewReader(bytes.NewReader(b)); ; {
		h, err := r.Next()
		if err == io.EOF {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if _, twice := files[h.Name]; twice {
			t.Errorf("%s is there twice", h.Name)
		}
		files[h.Name] = data
		if hex, ok := strings.CutPrefix(h.Name, "blobs/sha256/"); ok && hex != "" && digest.FromBytes(data).Encoded() != hex {
			t.Errorf("%s: content is not that of its name", h.Name)
		}
	}
}

func TestSave(t *testing.T) {
	s := openStore(t, Options{})
	base := memLayer{tar: makeTar(t, file("base", "b"))}
	one := pullImage(t, s, makeImage(t, base, memLayer{tar: make([]byte, 1024)}, memLayer{tar: makeTar(t, file("one", "1"))}), "repo:one")
	two := pullImage(t, s, makeImage(t, base, memLayer{tar: makeTar(t, file("two", "2"))}), "repo:two")
	if err := s.Tag("repo:two", mustName(t, "other:latest")); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		refs []string
		tags [][]string // of each image
		size int        // files in the tar, without the blobs that images share
	}{
		{[]string{"repo:one"}, [][]string{{"repo:one"}}, 2 + 3 + 2 + 3},
		{[]string{one.ID.Encoded()[:12]}, [][]string{nil}, 2 + 3 + 2 + 3},
		{[]string{"other", "repo:two"}, [][]string{{"other:latest", "repo:two"}}, 2 + 3 + 2 + 2},
		{[]string{"repo:one", two.ID.String(), "repo:one"}, [][]string{{"repo:one"}, nil}, 2 + 3 + 4 + 4},
	} {
		sv, err := s.Save(tt.refs, SaveOptions{})
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if err := sv.Write(t.Context(), &b); err != nil {
			t.Fatal(err)
		}
		sv.Close()
		files := untar(t, b.Bytes())
		if len(files) != tt.size {
			t.Errorf("save %q: %d files, want %d", tt.refs, len(files), tt.size)
		}
		var list []archiveEntry
		if err := json.Unmarshal(files["manifest.json"], &list); err != nil {
			t.Fatal(err)
		}
		var tags [][]string
		for _, a := range list {
			tags = append(tags, a.RepoTags)
		}
		if !slices.EqualFunc(tags, tt.tags, slices.Equal) {
			t.Errorf("save %q: tags %q, want %q", tt.refs, tags, tt.tags)
		}
	}
	// A repository stands for all its tags.
	sv, err := s.Save([]string{"repo"}, SaveOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(sv.images) != 2 {
		t.Errorf("a repository of 2 images is saved as %d", len(sv.images))
	}
	// What is being saved is not removed.
	if _, err := s.Remove(one.ID.String(), RemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	if err := sv.Write(t.Context(), io.Discard); err != nil {
		t.Errorf("an image removed while it is saved: %v", err)
	}
	sv.Close()
	if _, err := s.Save([]string{"repo:one"}, SaveOptions{}); !errors.Is(err, ErrNotFound) {
		t.Errorf("save of no image: %v", err)
	}
	// A damaged layer is an error, however late.
	extent := s.dir.extent(two.Chain())
	b, err := os.ReadFile(extent)
	if err != nil {
		t.Fatal(err)
	}
	i := bytes.Index(b, []byte("2\x00\x00"))
	b[i] = '3'
	os.Remove(extent)
	if err := os.WriteFile(extent, b, diskMode); err != nil {
		t.Fatal(err)
	}
	if sv, err = s.Save([]string{"repo:two"}, SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	defer sv.Close()
	if err := sv.Write(t.Context(), io.Discard); err == nil {
		t.Error("a damaged layer was saved")
	}
}
