package layerstore

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"vic/bench/oracle"
)

// fsckDistant has e2fsck judge the disk of a volume that is elsewhere.
func fsckDistant(t *testing.T, d *distantDisks, disk string) {
	t.Helper()
	oracle.Need(t, "e2fsck")
	raw := filepath.Join(t.TempDir(), "raw")
	if err := os.WriteFile(raw, d.disks[disk], 0o600); err != nil {
		t.Fatal(err)
	}
	command(t, "e2fsck", "-fn", raw)
}

// textIn is the contents of a file in a volume, or why there is none.
func textIn(t *testing.T, s *Store, volume, name string) string {
	t.Helper()
	f, err := s.VolumeFS(t.Context(), volume)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	b, err := fs.ReadFile(f, name)
	if errors.Is(err, fs.ErrNotExist) {
		return "absent"
	}
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// A copy into a volume that is elsewhere and fails at any write has happened wholly or not at all, and nobody sees it half done.
func TestDistantWrite(t *testing.T) {
	shelf := newShelf()
	s, disks := openDistant(t, shelf)
	v, _, err := s.CreateVolume(VolumeOptions{Name: "one", Options: map[string]string{"size": "64m"}})
	if err != nil {
		t.Fatal(err)
	}
	layer := func(text string) []byte {
		return makeTar(t, folder("dir"), file("dir/a", text), file("b", text))
	}
	broken := errors.New("the device is gone")
	writes, failAt := 0, -1
	disks.wrote = func([]byte) (int, error) {
		if writes++; writes == failAt {
			return 0, broken
		}
		return 0, nil
	}
	if err := s.ApplyToVolume(t.Context(), "one", bytes.NewReader(layer("first"))); err != nil {
		t.Fatal(err)
	}
	fsckDistant(t, disks, v.Disk)
	if a, b := textIn(t, s, "one", "dir/a"), textIn(t, s, "one", "b"); a != "first" || b != "first" {
		t.Fatalf("wrote %q and %q", a, b)
	}
	all := writes
	other, seen := openDistant(t, shelf)
	unsettled, first, before := 0, 0, "first"
	for i := range all {
		text := string(rune('a'+i%26)) + " again"
		writes, failAt = 0, i+1
		if err := s.ApplyToVolume(t.Context(), "one", bytes.NewReader(layer(text))); !errors.Is(err, broken) {
			t.Fatalf("write %d: %v", i, err)
		}
		_, err := seen.Unsettled(v.Disk)
		if decided := errors.As(err, new(*VolumeBusyError)); decided {
			if unsettled++; first == 0 {
				first = i + 1
			}
			if _, err := other.VolumeDisk("one"); !errors.As(err, new(*VolumeBusyError)) {
				t.Errorf("write %d: another host may use it: %v", i, err)
			}
			writes, failAt = 0, 1 // and the next try fails as well
			if _, err := s.VolumeDisk("one"); !errors.Is(err, broken) {
				t.Errorf("write %d: it was used: %v", i, err)
			}
			before = text
		}
		failAt = -1
		if i%2 == 0 {
			if err := s.SettleVolumes(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if a, b := textIn(t, s, "one", "dir/a"), textIn(t, s, "one", "b"); a != before || b != before {
			t.Errorf("write %d: %q and %q, want %q", i, a, b, before)
		}
		if got := textIn(t, other, "one", "b"); got != before {
			t.Errorf("write %d: another host sees %q", i, got)
		}
		fsckDistant(t, disks, v.Disk)
	}
	if unsettled == 0 || unsettled == all {
		t.Errorf("%d of %d failures were of something decided", unsettled, all)
	}

	// What keeps others away was removed by somebody, before anything was changed in place: then the copy is given up.
	writes, failAt = 0, first
	if err := s.ApplyToVolume(t.Context(), "one", bytes.NewReader(layer("given up"))); !errors.Is(err, ErrUnsettled) {
		t.Fatal(err)
	}
	failAt = -1
	delete(shelf.writer, v.Disk)
	seen.wrote = disks.wrote
	if err := other.ApplyToVolume(t.Context(), "one", bytes.NewReader(layer("other"))); err != nil {
		t.Fatal(err)
	}
	if got := textIn(t, s, "one", "b"); got != "other" {
		t.Errorf("after it was given up: %q", got)
	}
}
