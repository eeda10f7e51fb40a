package layerstore

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"vic/bench/oracle"

	"github.com/opencontainers/go-digest"
)

func flatten(t *testing.T, s *Store, ref string) *Flattened {
	t.Helper()
	f, err := s.Flatten(t.Context(), ref, nil)
	if err != nil {
		t.Fatal(err)
	}
	checkClean(t, s) // deep: rebuilds the tars of all layers
	emptyTmp(t, s)
	if swept, err := s.Sweep(t.Context()); err != nil || len(swept.Layers) != 0 || swept.Bytes != 0 {
		t.Errorf("a sweep after flattening removes %v, %d bytes, %v", swept.Layers, swept.Bytes, err)
	}
	return f
}

// depthOf returns the number of disks in an image's chain, as qemu-img counts them.
func depthOf(t *testing.T, s *Store, img *Image) int {
	t.Helper()
	oracle.Need(t, "qemu-img")
	path, err := s.DiskPath(img)
	if err != nil {
		t.Fatal(err)
	}
	return len(backingChain(t, path))
}

// disksOf returns which of an image's layers have a disk of their own, bottom first.
func disksOf(t *testing.T, s *Store, img *Image) string {
	t.Helper()
	var b []byte
	for _, l := range img.Layers {
		there, err := exists(s.dir.disk(l.Chain))
		if err != nil {
			t.Fatal(err)
		}
		b = append(b, map[bool]byte{true: 'd', false: '-'}[there])
	}
	return string(b)
}

func TestFlatten(t *testing.T) {
	s := openStore(t, Options{Depth: 8})
	layers := deepLayers(t, 12)
	layers[7] = memLayer{tar: make([]byte, 1024)} // empty
	src := makeImage(t, layers...)
	img := pullImage(t, s, src, "web")
	before := snapshot(t, s)
	disk, err := s.CreateContainerDisk("c1", img.ID)
	if err != nil {
		t.Fatal(err)
	}
	was := rawContainer(t, disk)

	f := flatten(t, s, "web")
	if f.Was < 5 || f.Written == 0 || f.Freed == 0 || len(f.Merged) != 10 {
		t.Errorf("flattening says %+v", f)
	}
	if n := depthOf(t, s, img); n != 1 {
		t.Errorf("the chain has %d disks, want 1", n)
	}
	if got, want := disksOf(t, s, img), "-----------d"; got != want {
		t.Errorf("layers with disks: %s, want %s", got, want)
	}
	sameTrees(t, s, img, src)
	if n := len(backingChain(t, disk)); n != 2 {
		t.Errorf("the container's chain has %d disks, want 2", n)
	}
	command(t, "qemu-img", "compare", was, disk)

	t.Run("again", func(t *testing.T) {
		if f := flatten(t, s, "web"); f.Was != 1 || f.Written != 0 || len(f.Merged) != 0 {
			t.Errorf("a second time it says %+v", f)
		}
		src := makeImage(t, layers...)
		pullImage(t, s, src, "web")
		if n := src.total(); n != 0 {
			t.Errorf("%d blobs fetched of an image that is there", n)
		}
	})
	t.Run("above", func(t *testing.T) {
		// Enough layers on the flattened one that they would be merged with what is in it.
		src := makeImage(t, append(slices.Clone(layers), deepLayers(t, 21)[12:]...)...)
		img := pullImage(t, s, src, "above")
		if n := src.total(); n != 9 {
			t.Errorf("%d blobs fetched, want 9", n)
		}
		if n := depthOf(t, s, img); n > 7 {
			t.Errorf("the chain has %d disks, the bound is 8 with the container's", n)
		}
		sameTrees(t, s, img, src)
		checkClean(t, s)
	})
	t.Run("below", func(t *testing.T) {
		// Layers in the flattened disk are made again of it, and are what they were.
		src := makeImage(t, append(slices.Clone(layers[:9]), memLayer{tar: makeTar(t, file("other", "x"))})...)
		other := pullImage(t, s, src, "other")
		if n := src.total(); n != 1 {
			t.Errorf("%d blobs fetched, want the one that no other image has", n)
		}
		if got, want := disksOf(t, s, img), "ddddddd-d--d"; got != want {
			t.Errorf("layers with disks: %s, want %s", got, want)
		}
		sameTrees(t, s, other, src)
		checkClean(t, s)
		after := snapshot(t, s)
		for _, l := range img.Layers[:9] {
			for _, path := range s.dir.layerFiles(l.Chain) {
				name, _ := filepath.Rel(s.Dir(), path)
				if after[name] != before[name] {
					t.Errorf("%s is not what it was before flattening", name)
				}
			}
		}
		if f := flatten(t, s, "web"); len(f.Merged) != 0 {
			t.Errorf("disks of another image were merged: %v", f.Merged)
		}
		if f := flatten(t, s, "other"); len(f.Merged) != 0 {
			t.Errorf("disks of a container's image were merged: %v", f.Merged)
		}
		sameTrees(t, s, other, src)
	})
	t.Run("remove", func(t *testing.T) {
		for _, ref := range []string{"above", "other", "web"} {
			if _, err := s.Remove(ref, RemoveOptions{Force: true}); err != nil {
				t.Fatal(err)
			}
			checkClean(t, s)
		}
		command(t, "qemu-img", "compare", was, disk)
		if err := s.RemoveContainer("c1"); err != nil {
			t.Fatal(err)
		}
		if names, err := listDir(s.dir.disks()); err != nil || len(names) != 2 {
			t.Errorf("files left: %q, %v", names, err)
		}
	})
}

// What other images and containers stand on stays.
func TestFlattenShared(t *testing.T) {
	layers := deepLayers(t, 6)
	for _, test := range []struct {
		name string
		with func(s *Store)
		want string
	}{
		{"alone", func(*Store) {}, "-----d"},
		{"image of the first two", func(s *Store) { pullImage(t, s, makeImage(t, layers[:2]...), "two") }, "dd---d"},
		{"branch at the third", func(s *Store) {
			pullImage(t, s, makeImage(t, append(slices.Clone(layers[:3]), memLayer{tar: makeTar(t, file("b", "x"))})...), "branch")
		}, "ddd--d"},
		{"image above", func(s *Store) {
			pullImage(t, s, makeImage(t, append(slices.Clone(layers), memLayer{tar: makeTar(t, file("b", "x"))})...), "above")
		}, "-----d"},
		{"container of the fourth", func(s *Store) {
			img := pullImage(t, s, makeImage(t, layers[:4]...), "four")
			if _, err := s.CreateContainerDisk("c", img.ID); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Remove("four", RemoveOptions{Force: true}); err != nil {
				t.Fatal(err)
			}
		}, "dddd-d"},
		{"lease of the third", func(s *Store) {
			l, err := s.dir.lease([]digest.Digest{makePlanLayers(t, s, layers)[2].chain})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(l.release)
		}, "ddd--d"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := openStore(t, Options{})
			src := makeImage(t, layers...)
			img := pullImage(t, s, src, "web")
			test.with(s)
			if _, err := s.Flatten(t.Context(), "web", nil); err != nil {
				t.Fatal(err)
			}
			if got := disksOf(t, s, img); got != test.want {
				t.Errorf("layers with disks: %s, want %s", got, test.want)
			}
			checkClean(t, s)
			sameTrees(t, s, img, src)
		})
	}
}

func makePlanLayers(t *testing.T, s *Store, layers []memLayer) []planLayer {
	t.Helper()
	p, err := makePlan(makeImage(t, layers...), s.lim)
	if err != nil {
		t.Fatal(err)
	}
	return p.layers
}

func TestFlattenRefused(t *testing.T) {
	s := openStore(t, Options{})
	img := pullImage(t, s, makeImage(t, deepLayers(t, 4)...), "web")
	before := snapshot(t, s)
	if _, err := s.Flatten(t.Context(), "nope", nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("an image that is not there: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := s.Flatten(ctx, "web", func(done, total int64) {
		if done > total {
			t.Errorf("%d of %d bytes written", done, total)
		}
		cancel()
	}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	after := snapshot(t, s)
	for name := range after {
		if after[name] != before[name] {
			t.Errorf("%s changed, although flattening was cancelled", name)
		}
	}
	none := pullImage(t, s, makeImage(t, memLayer{tar: make([]byte, 1024)}), "none")
	if f, err := s.Flatten(t.Context(), none.ID.String(), nil); err != nil || f.Was != 1 || f.Written != 0 {
		t.Errorf("an image without files: %+v, %v", f, err)
	}
	if err := os.Truncate(s.dir.extent(img.Layers[1].Chain), 100_000); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Flatten(t.Context(), "web", nil); err == nil {
		t.Error("a damaged image was flattened")
	}
	emptyTmp(t, s)
}

// TestKilledFlattening does with a flattening what TestKilledAtEachStep does with a pull.
func TestKilledFlattening(t *testing.T) {
	kills := 0
	for n := 1; ; n++ {
		dir := filepath.Join(t.TempDir(), "store")
		s := openStoreIn(t, dir, Options{})
		img := pullImage(t, s, webImage(t), "web")
		path, err := s.CreateContainerDisk("c1", img.ID)
		if err != nil {
			t.Fatal(err)
		}
		raw := rawContainer(t, path)
		out, err := child(t, "flatten", dir, n).CombinedOutput()
		done := !killed(t, err, out)
		s = openStoreIn(t, dir, Options{})
		err = s.Check(t.Context(), CheckOptions{Deep: true}, func(f Finding) {
			if !f.Harmless {
				t.Errorf("killed after %d changes: %s: %s", n, f.Path, f.Problem)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		command(t, "qemu-img", "compare", raw, path)
		if done {
			break
		}
		kills++
		if _, err := s.Flatten(t.Context(), "web", nil); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		checkClean(t, s)
		command(t, "qemu-img", "compare", raw, path)
		if got := disksOf(t, s, img); got != "----d" {
			t.Errorf("layers with disks: %s", got)
		}
		if err := s.RemoveContainer("c1"); err != nil {
			t.Fatal(err)
		}
		recovered(t, dir)
		if t.Failed() {
			t.Fatalf("killed after %d changes", n)
		}
	}
	if kills < 15 {
		t.Errorf("only %d kills", kills)
	}
	t.Logf("%d kills", kills)
}

// rawContainer returns what a container's disk shows, as a raw file.
func rawContainer(t *testing.T, disk string) string {
	t.Helper()
	oracle.Need(t, "qemu-img")
	raw := filepath.Join(t.TempDir(), "container.raw")
	command(t, "qemu-img", "convert", "-f", "vmdk", "-O", "raw", disk, raw)
	return raw
}

// backingChain returns the files of a chain as qemu-img finds them, top first.
func backingChain(t *testing.T, disk string) []string {
	t.Helper()
	var chain []struct {
		Filename string `json:"filename"`
	}
	out := command(t, "qemu-img", "info", "-f", "vmdk", "--backing-chain", "--output=json", disk)
	if err := json.Unmarshal([]byte(out), &chain); err != nil {
		t.Fatal(err)
	}
	var files []string
	for _, c := range chain {
		files = append(files, c.Filename)
	}
	return files
}
