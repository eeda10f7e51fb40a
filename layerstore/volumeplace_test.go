package layerstore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vic/vmdk"
)

// distantDisks are VolumeDisks that note what is asked of them.
type distantDisks struct {
	made    int
	removed []string
	fail    error // of Remove
}

func (d *distantDisks) Options() []string { return []string{"volumestore"} }

func (d *distantDisks) Name(volume string, options map[string]string) (string, error) {
	for key, value := range options {
		if strings.EqualFold(key, "volumestore") && value != "fast" {
			return "", fmt.Errorf("no volume store named %q", value)
		}
	}
	d.made++
	return fmt.Sprintf("fast/%s-%d", volume, d.made), nil
}

func (d *distantDisks) Path(disk string) string           { return "[ds] " + disk + ".vmdk" }
func (d *distantDisks) Stored(disk string) (int64, error) { return 12345, nil }

func (d *distantDisks) Remove(disk string) error {
	if d.fail == nil {
		d.removed = append(d.removed, disk)
	}
	return d.fail
}

// A volume whose disk is elsewhere is a record, and goes only with its disk.
func TestDistantVolumes(t *testing.T) {
	disks := &distantDisks{}
	s := openStore(t, Options{VolumeDisks: disks})
	v, made, err := s.CreateVolume(VolumeOptions{Name: "one", Options: map[string]string{"VolumeStore": "fast", "size": "1g"}})
	if err != nil || !made || !strings.HasPrefix(v.Disk, "fast/one-") || v.Capacity != 1<<30 {
		t.Fatalf("made %+v, %v, %v", v, made, err)
	}
	if again, made, err := s.CreateVolume(VolumeOptions{Name: "one", Options: map[string]string{"VolumeStore": "fast"}}); err != nil || made || again.Disk != v.Disk {
		t.Errorf("again: %+v, %v, %v", again, made, err)
	}
	for _, tt := range []struct {
		options map[string]string
		want    string
	}{
		{map[string]string{"VolumeStore": "slow"}, `no volume store named "slow"`},
		{map[string]string{"type": "nfs"}, "takes size (or Capacity), volumestore"},
	} {
		if _, _, err := s.CreateVolume(VolumeOptions{Name: "two", Options: tt.options}); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("options %v: %v, want %q", tt.options, err, tt.want)
		}
	}
	if got, want := s.VolumePath(v), "[ds] "+v.Disk+".vmdk"; got != want {
		t.Errorf("path %q, want %q", got, want)
	}
	if n, err := s.VolumeStored("one"); err != nil || n != 12345 {
		t.Errorf("stored %d, %v", n, err)
	}
	var distant *DistantVolumeError
	for what, try := range map[string]func() error{
		"VolumeDisk":    func() error { _, err := s.VolumeDisk("one"); return err },
		"VolumeFS":      func() error { _, err := s.VolumeFS(t.Context(), "one"); return err },
		"VolumeState":   func() error { _, err := s.VolumeState("one"); return err },
		"GrowVolume":    func() error { _, err := s.GrowVolume("one", 2<<30); return err },
		"ApplyToVolume": func() error { return s.ApplyToVolume(t.Context(), "one", strings.NewReader("")) },
	} {
		if err := try(); !errors.As(err, &distant) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := s.Check(t.Context(), CheckOptions{Deep: true}, func(f Finding) { t.Errorf("finding: %+v", f) }); err != nil {
		t.Error(err)
	}

	disks.fail = errors.New("the datastore is away")
	if err := s.RemoveVolume("one"); err == nil || !strings.Contains(err.Error(), "the datastore is away") {
		t.Errorf("remove without the datastore: %v", err)
	}
	if got, err := s.Volume("one"); err != nil || got.Disk != v.Disk {
		t.Errorf("after that: %+v, %v", got, err)
	}
	disks.fail = nil
	if err := s.RemoveVolume("one"); err != nil || len(disks.removed) != 1 || disks.removed[0] != v.Disk {
		t.Errorf("removed %v, %v", disks.removed, err)
	}
	if _, err := s.Volume("one"); !errors.Is(err, ErrNotFound) {
		t.Errorf("after that: %v", err)
	}
}

// The disk that volumes elsewhere begin as has a file system that e2fsck likes.
func TestEmptyVolume(t *testing.T) {
	needTool(t, "qemu-img")
	needTool(t, "e2fsck")
	s := openStore(t, Options{})
	d, err := s.EmptyVolume(256 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if left, err := listDir(s.dir.tmp()); err != nil || len(left) != 0 {
		t.Errorf("left in tmp: %v, %v", left, err)
	}
	stream := filepath.Join(t.TempDir(), "empty.vmdk")
	f, err := os.Create(stream)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(d.WriteStream(f, "empty.vmdk", vmdk.CIDFor("empty")), f.Close()); err != nil {
		t.Fatal(err)
	}
	raw := stream + ".raw"
	command(t, "qemu-img", "convert", "-f", "vmdk", "-O", "raw", stream, raw)
	command(t, "e2fsck", "-fn", raw)
}
