package vsphere

import (
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"vic/bench/vcsim"
	"vic/layerstore"
)

// A volume's disk has an empty file system, is made once, by one import a capacity and a copy each, and goes with all of its files.
func TestVolumes(t *testing.T) {
	s, ctx := newSite(t, vcsim.Options{}), t.Context()
	d := s.datastore(s.connect(s.endpoint()), "volumes")
	ls, err := layerstore.Open(t.TempDir(), layerstore.Options{Capacity: capacity})
	if err != nil {
		t.Fatal(err)
	}
	defer ls.Close()
	v := NewVolumes(map[string]*Datastore{"default": d}, Place{}, ls.EmptyVolume)
	if _, err := v.Name("x", map[string]string{"VolumeStore": "none"}); err == nil || !strings.Contains(err.Error(), "there are default") {
		t.Errorf("a label that is not there: %v", err)
	}
	if _, err := NewVolumes(nil, Place{}, nil).Name("x", nil); err == nil || !strings.Contains(err.Error(), "no volume store") {
		t.Errorf("without volume stores: %v", err)
	}
	const size = 128 << 20
	var disks []string
	for range 2 {
		disk, err := v.Name("data", nil)
		if err != nil {
			t.Fatal(err)
		}
		disks = append(disks, disk)
		for i := range 2 {
			path, made, err := v.Make(ctx, disk, size)
			if err != nil || path != v.Path(disk) || made != (i == 0) {
				t.Fatalf("made %q, %v, %v", path, made, err)
			}
		}
		_, name, _ := strings.Cut(disk, "/")
		raw := filepath.Join(t.TempDir(), "raw")
		if out, err := exec.Command(oracle(t, "qemu-img"), "convert", "-f", "vmdk", "-O", "raw", filepath.Join(s.folder(d), d.root, name+".vmdk"), raw).CombinedOutput(); err != nil {
			t.Fatalf("qemu-img: %v: %s", err, out)
		}
		if out, err := exec.Command(oracle(t, "e2fsck"), "-fn", raw).CombinedOutput(); err != nil {
			t.Errorf("e2fsck: %v: %s", err, out)
		}
	}
	if got := s.files(d, emptyFolder); len(got) != 3 {
		t.Errorf("empty file systems: %v", got)
	}
	if n, err := v.Stored(disks[0]); err != nil || n == 0 {
		t.Errorf("stored %d, %v", n, err)
	}
	for range 2 { // what is gone is no error
		if err := v.Remove(disks[0]); err != nil {
			t.Error(err)
		}
	}
	if got := s.files(d, "."); len(got) != 4 { // the other's three, and the empty ones'
		t.Errorf("left: %v", got)
	}
	for _, bad := range []string{"", "default", "default/", "default/../x", "other/x-1", "default/.x"} {
		if _, _, err := v.Make(ctx, bad, size); err == nil || errors.Is(err, ErrUnavailable) {
			t.Errorf("disk %q: %v", bad, err)
		}
	}
}

// A copy that fails leaves nothing that counts as a disk.
func TestVolumesFail(t *testing.T) {
	s, ctx := newSite(t, vcsim.Options{}), t.Context()
	d := s.datastore(s.connect(s.endpoint()), "volumes")
	ls, err := layerstore.Open(t.TempDir(), layerstore.Options{Capacity: capacity})
	if err != nil {
		t.Fatal(err)
	}
	defer ls.Close()
	v := NewVolumes(map[string]*Datastore{"default": d}, Place{}, ls.EmptyVolume)
	disk, err := v.Name("data", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, done := range []bool{false, true} {
		s.FailTask(vcsim.TaskFault{Task: "VirtualDiskManager.copyVirtualDisk", Done: done})
		if _, _, err := v.Make(ctx, disk, 64<<20); err == nil {
			t.Error("made by a task that failed")
		}
	}
	if _, _, err := v.Make(ctx, disk, 64<<20); err != nil {
		t.Error(err)
	}
}
