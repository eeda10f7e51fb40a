package layerstore

import (
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"

	"vic/bench/oracle"

	"github.com/opencontainers/go-digest"
)

// deleted writes what Remove returns as docker prints it; images and layers are
// "image" and "layer".
func deleted(img *Image, list []Deleted) []string {
	var lines []string
	for _, d := range list {
		switch {
		case d.Untagged != "":
			lines = append(lines, "untagged "+d.Untagged)
		case d.Deleted == img.ID:
			lines = append(lines, "image")
		default:
			lines = append(lines, "layer")
		}
	}
	return lines
}

func TestRemove(t *testing.T) {
	const (
		ctr1 = "1111111111111111"
		ctr2 = "2222222222222222"
	)
	type step struct {
		ref     string
		force   bool
		want    []string
		wantErr string // in the error; "" is none
	}
	byDigest := "web@sha256:DIGEST"
	for _, test := range []struct {
		name       string
		names      []string // tags; the first is pulled
		containers []string
		running    string
		steps      []step
	}{
		{name: "by its only tag", names: []string{"web:1"}, steps: []step{
			{ref: "web:1", want: []string{"untagged web:1", "untagged " + byDigest, "image", "layer", "layer"}},
			{ref: "web:1", wantErr: "no such image"},
		}},
		{name: "by one of two tags", names: []string{"web:1", "web:2"}, steps: []step{
			{ref: "web:2", want: []string{"untagged web:2"}},
			{ref: "web:1", want: []string{"untagged web:1", "untagged " + byDigest, "image", "layer", "layer"}},
		}},
		{name: "by the tag with the digest, another repository stays", names: []string{"web:1", "other/web:1"}, steps: []step{
			{ref: "web:1", want: []string{"untagged web:1", "untagged " + byDigest}},
			{ref: "other/web:1", want: []string{"untagged other/web:1", "image", "layer", "layer"}},
		}},
		{name: "by digest, the tag stays", names: []string{"web:1"}, steps: []step{
			{ref: byDigest, want: []string{"untagged " + byDigest}},
			{ref: "web:1", want: []string{"untagged web:1", "image", "layer", "layer"}},
		}},
		{name: "by ID", names: []string{"web:1"}, steps: []step{
			{ref: "ID", want: []string{"untagged web:1", "untagged " + byDigest, "image", "layer", "layer"}},
		}},
		{name: "by short ID", names: []string{"web:1"}, steps: []step{
			{ref: "SHORT", want: []string{"untagged web:1", "untagged " + byDigest, "image", "layer", "layer"}},
		}},
		{name: "by ID with two tags", names: []string{"web:1", "web:2"}, steps: []step{
			{ref: "ID", wantErr: "conflict: unable to delete SHORT (must be forced) - image is referenced in multiple repositories"},
			{ref: "ID", force: true, want: []string{"untagged web:1", "untagged web:2", "untagged " + byDigest, "image", "layer", "layer"}},
		}},
		{name: "used by a stopped container", names: []string{"web:1"}, containers: []string{ctr1}, steps: []step{
			{ref: "web:1", wantErr: `conflict: unable to remove repository reference "web:1" (must force) - container 111111111111 is using its referenced image SHORT`},
			{ref: "ID", wantErr: "conflict: unable to delete SHORT (must be forced) - image is being used by stopped container 111111111111"},
			{ref: "ID", force: true, want: []string{"untagged web:1", "untagged " + byDigest, "image"}}, // and no layer
		}},
		{name: "used by a running container", names: []string{"web:1"}, containers: []string{ctr1, ctr2}, running: ctr2, steps: []step{
			{ref: "ID", wantErr: "conflict: unable to delete SHORT (cannot be forced) - image is being used by running container 222222222222"},
			{ref: "ID", force: true, wantErr: "cannot be forced"},
			{ref: "web:1", force: true, want: []string{"untagged web:1", "untagged " + byDigest}}, // the image stays
		}},
		{name: "one of two tags while used", names: []string{"web:1", "web:2"}, containers: []string{ctr1}, steps: []step{
			{ref: "web:1", want: []string{"untagged web:1"}},
			{ref: "web:2", wantErr: "(must force)"},
			{ref: "web:2", force: true, want: []string{"untagged web:2", "untagged " + byDigest, "image"}},
		}},
		{name: "not there", names: []string{"web:1"}, steps: []step{
			{ref: "web:2", wantErr: `image "web:2": no such image`},
			{ref: "0123456789ab", wantErr: "no such image"},
			{ref: "", wantErr: "no such image"},
			{ref: "UPPER CASE", wantErr: "no such image"},
			{ref: "../../version", wantErr: "no such image"},
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := openStore(t, Options{})
			src := makeImage(t, memLayer{tar: makeTar(t, file("a", "a"))}, memLayer{tar: makeTar(t, file("b", "b"))})
			img := pullImage(t, s, src, test.names[0])
			for _, name := range test.names[1:] {
				if err := s.Tag(test.names[0], mustName(t, name)); err != nil {
					t.Fatal(err)
				}
			}
			for _, id := range test.containers {
				if _, err := s.CreateContainerDisk(id, img.ID); err != nil {
					t.Fatal(err)
				}
			}
			fill := strings.NewReplacer("DIGEST", src.desc.Digest.Encoded(), "ID", img.ID.String(), "SHORT", img.ID.Encoded()[:12])
			for _, step := range test.steps {
				list, err := s.Remove(fill.Replace(step.ref), RemoveOptions{Force: step.force, Running: func(id string) bool { return id == test.running }})
				var want []string
				for _, w := range step.want {
					want = append(want, fill.Replace(w))
				}
				if got := deleted(img, list); !slices.Equal(got, want) {
					t.Errorf("remove %s: %q, want %q", step.ref, got, want)
				}
				if wantErr := fill.Replace(step.wantErr); (err == nil) != (wantErr == "") || err != nil && !strings.Contains(err.Error(), wantErr) {
					t.Errorf("remove %s: error %v, want %q", step.ref, err, wantErr)
				}
				var inUse *InUseError
				if err != nil && !errors.As(err, &inUse) && !errors.Is(err, ErrNotFound) {
					t.Errorf("remove %s: error is a %T", step.ref, err)
				}
				checkClean(t, s)
			}
			for _, id := range test.containers {
				if err := s.RemoveContainer(id); err != nil {
					t.Fatal(err)
				}
			}
			left, err := s.Images()
			if err != nil {
				t.Fatal(err)
			}
			if chains, err := s.dir.chains(); err != nil || (len(left) == 0) != (len(chains) == 0) {
				t.Errorf("%d images and %d layers are left, %v", len(left), len(chains), err)
			}
			checkClean(t, s)
			emptyTmp(t, s)
		})
	}
}

// What is removed is free again, and what other images have is not removed.
func TestRemoveFreesSpace(t *testing.T) {
	s := openStore(t, Options{})
	base := memLayer{tar: makeTar(t, file("base", string(randomBytes(1, 1_000_000))))}
	used := func() (n int64) {
		layers, err := s.Layers()
		if err != nil {
			t.Fatal(err)
		}
		files, err := listDir(s.dir.disks())
		if err != nil {
			t.Fatal(err)
		}
		if len(files) != 2+3*len(layers) {
			t.Errorf("%d files of %d layers and the base disk", len(files), len(layers))
		}
		for _, l := range layers {
			n += l.Stored
			if len(l.Images) == 0 {
				t.Errorf("layer %s is of no image", l.Chain)
			}
		}
		return n
	}
	pullImage(t, s, makeImage(t, base), "base")
	alone := used()
	pullImage(t, s, makeImage(t, base, memLayer{tar: makeTar(t, file("app", string(randomBytes(2, 2_000_000))))}), "app")
	if n := used(); n < alone+2_000_000 {
		t.Errorf("two images take %d bytes, one %d", n, alone)
	}
	if _, err := s.Remove("app", RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	if n := used(); n != alone {
		t.Errorf("%d bytes after the removal, %d before the pull", n, alone)
	}
	if _, err := s.Remove("base", RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	if n := used(); n != 0 {
		t.Errorf("%d bytes after the last removal", n)
	}
	checkClean(t, s)
}

// An image whose record is damaged can be removed, and keeps others from losing
// layers until then.
func TestRemoveDamaged(t *testing.T) {
	s := openStore(t, Options{})
	img := pullImage(t, s, webImage(t), "web")
	other := pullImage(t, s, makeImage(t, memLayer{tar: makeTar(t, file("x", "x"))}), "other")
	if err := os.WriteFile(s.dir.image(img.ID)+"/"+imageFile, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	var fe *FormatError
	if _, err := s.Image("web"); !errors.As(err, &fe) {
		t.Errorf("damaged image: %v", err)
	}
	list, err := s.Remove("other", RemoveOptions{})
	if !errors.As(err, &fe) {
		t.Errorf("remove beside a damaged image: %v", err)
	}
	if got := deleted(other, list); len(got) != 3 || got[2] != "image" {
		t.Errorf("removed %q", got)
	}
	if swept, err := s.Sweep(t.Context()); !errors.As(err, &fe) || len(swept.Layers) != 0 {
		t.Errorf("sweep beside a damaged image: %v, %v", swept.Layers, err)
	}
	if _, err := s.Remove("web", RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	if chains, err := s.dir.chains(); err != nil || len(chains) != 0 {
		t.Errorf("%d layers left, %v", len(chains), err)
	}
	checkClean(t, s)
}

func TestContainerDisk(t *testing.T) {
	oracle.Need(t, "qemu-img")
	s := openStore(t, Options{})
	img := pullImage(t, s, webImage(t), "web")
	path, err := s.CreateContainerDisk("web-1", img.ID)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.CreateContainerDisk("web-1", img.ID); !errors.Is(err, fs.ErrExist) {
		t.Errorf("second disk: %v", err)
	}
	top, err := s.DiskPath(img)
	if err != nil {
		t.Fatal(err)
	}
	command(t, "qemu-img", "compare", "-f", "vmdk", "-F", "vmdk", path, top)
	oracle.Need(t, "qemu-io")
	command(t, "qemu-io", "-f", "vmdk", "-c", "write -P 0x5a 100M 1M", path)
	command(t, "qemu-io", "-f", "vmdk", "-c", "read -P 0x5a 100M 1M", path)
	checkClean(t, s) // no disk below was touched, and qemu's new CID is nobody's parent

	for _, id := range []string{"", ".", "..", "a/b", "../x", strings.Repeat("a", 200)} {
		if _, err := s.CreateContainerDisk(id, img.ID); err == nil {
			t.Errorf("container %q has a disk", id)
		}
		if err := s.RemoveContainer(id); err == nil {
			t.Errorf("container %q was removed", id)
		}
	}
	if _, err := s.CreateContainerDisk("x", digest.FromString("x")); !errors.Is(err, ErrNotFound) {
		t.Errorf("disk over no image: %v", err)
	}
	for range 2 {
		for _, id := range []string{"web-1", "x"} {
			if err := s.RemoveContainer(id); err != nil {
				t.Error(err)
			}
		}
	}
	if left, err := listDir(s.dir.containers()); err != nil || len(left) != 0 {
		t.Errorf("containers left: %q, %v", left, err)
	}
	checkClean(t, s)
	emptyTmp(t, s)
}
