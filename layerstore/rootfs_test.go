package layerstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"vic/bench/oracle"
	"vic/diskfs"
)

// TestDiff: what two layers are known to share makes no difference to how they differ, and one
// made over another differs from it by its own changes.
func TestDiff(t *testing.T) {
	s := openStore(t, Options{})
	base := memLayer{tar: makeTar(t, folder("d"), file("d/same", strings.Repeat("same", 50_000)), file("d/other", strings.Repeat("one!", 50_000)))}
	// The same sizes and times, in disks that place them at the same addresses.
	one := pullImage(t, s, makeImage(t, base, memLayer{tar: makeTar(t, file("d/other", strings.Repeat("two!", 50_000)), file("d/new", "1"))}), "one")
	two := pullImage(t, s, makeImage(t, base, memLayer{tar: makeTar(t, file("d/other", strings.Repeat("2222", 50_000)), file("d/.wh.same", ""))}), "two")
	web := pullImage(t, s, webImage(t), "web")
	chains := []digest.Digest{"", one.Layers[0].Chain, one.Chain(), two.Chain(), web.Layers[2].Chain, web.Chain()}
	list := func(c diskfs.Change, b *strings.Builder) error {
		fmt.Fprintln(b, c.Kind, c.Path, c.What)
		return nil
	}
	for _, old := range chains {
		for _, new := range chains {
			var got, want strings.Builder
			if err := s.Diff(t.Context(), old, new, func(c diskfs.Change) error { return list(c, &got) }); err != nil {
				t.Fatal(err)
			}
			a, err := s.RootFS(t.Context(), old)
			if err != nil {
				t.Fatal(err)
			}
			defer a.Close()
			b, err := s.RootFS(t.Context(), new)
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			if err := diskfs.Diff(a.FS, b.FS, diskfs.DiffOptions{}, func(c diskfs.Change) error { return list(c, &want) }); err != nil {
				t.Fatal(err)
			}
			if got.String() != want.String() || (got.Len() == 0) != (old == new) {
				t.Errorf("%.12s to %.12s:\n%s\nread in full:\n%s", old, new, &got, &want)
			}
			if old == one.Layers[0].Chain && new == one.Chain() && got.String() != "C /d []\nA /d/new []\nC /d/other [content]\n" {
				t.Errorf("of a layer:\n%s", &got)
			}
		}
	}
	if _, err := s.Flatten(t.Context(), "web", nil); err != nil {
		t.Fatal(err)
	}
	nothing := func(diskfs.Change) error { return nil }
	if err := s.Diff(t.Context(), one.Chain(), web.Chain(), nothing); err != nil {
		t.Error(err)
	}
	if err := s.Diff(t.Context(), one.Chain(), web.Layers[2].Chain, nothing); err == nil || !strings.Contains(err.Error(), "was flattened into") {
		t.Errorf("of a flattened layer: %v", err)
	}
	if _, err := s.Chain("sha256:" + chains[1].Encoded()[:9]); err != nil {
		t.Error(err)
	}
	for ref, want := range map[string]error{"nope": ErrNotFound, strings.Repeat("0", 64): ErrNotFound, "one": nil, one.ID.String(): nil, one.Chain().String(): nil} {
		if chain, err := s.Chain(ref); !errors.Is(err, want) || err == nil && chain != one.Chain() {
			t.Errorf("%s: %s, %v", ref, chain, err)
		}
	}
}

// TestExport: umoci unpacks of an image what GNU tar extracts of its export.
func TestExport(t *testing.T) {
	oracle.Need(t, "tar")
	s := openStore(t, Options{})
	src := webImage(t)
	img := pullImage(t, s, src, "web")
	root, err := s.RootFS(t.Context(), img.Chain())
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	var b bytes.Buffer
	if err := root.WriteTar(&b); err != nil {
		t.Fatal(err)
	}
	tar, dir := filepath.Join(t.TempDir(), "root.tar"), t.TempDir()
	if err := os.WriteFile(tar, b.Bytes(), 0o666); err != nil {
		t.Fatal(err)
	}
	command(t, "tar", "-C", dir, "--numeric-owner", "-xpf", tar)
	if diff := command(t, "diff", "-r", "--no-dereference", filepath.Join(umociUnpack(t, src)), dir); diff != "" {
		t.Error(diff)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.RootFS(ctx, img.Chain()); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
