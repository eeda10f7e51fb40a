package layerstore

import (
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"vic/bench/oracle"
	"vic/diskfs"
)

// A datastore that is full refuses a pull and is as full as before.
func TestDatastoreFull(t *testing.T) {
	oracle.Root(t)
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", dir).CombinedOutput(); err != nil {
		oracle.Missing(t, fmt.Errorf("mount tmpfs: %w: %s", err, out))
	}
	t.Cleanup(func() { command(t, "umount", dir) })
	s, err := Open(filepath.Join(dir, "store"), Options{Capacity: testCapacity})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	small := memLayer{tar: makeTar(t, file("small", "x"))}
	pullImage(t, s, makeImage(t, small), "small")
	before := snapshot(t, s)
	for name, layers := range map[string][]memLayer{
		"one too large":   {{tar: makeTar(t, file("large", string(randomBytes(1, 10_000_000))))}},
		"many in the sum": {small, {tar: makeTar(t, file("a", string(randomBytes(2, 4_000_000))))}, {tar: makeTar(t, file("b", string(randomBytes(3, 4_000_000))))}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := s.Pull(t.Context(), makeImage(t, layers...), mustName(t, "large"), PullOptions{})
			if !errors.Is(err, syscall.ENOSPC) {
				t.Errorf("error %v, want ENOSPC", err)
			}
			emptyTmp(t, s)
			checkClean(t, s)
			if _, err := s.Sweep(t.Context()); err != nil {
				t.Fatal(err)
			}
			if after := snapshot(t, s); !maps.Equal(before, after) {
				t.Errorf("store has changed\nbefore %v\n after %v", before, after)
			}
		})
	}
	img := pullImage(t, s, makeImage(t, memLayer{tar: makeTar(t, file("fits", string(randomBytes(4, 3_000_000))))}), "fits")
	rawDisk(t, s, img)
}

// A disk that is full refuses a layer, whatever the datastore has left.
func TestDiskFull(t *testing.T) {
	s := openStoreIn(t, t.TempDir(), Options{Capacity: 32 << 20})
	pullImage(t, s, makeImage(t, memLayer{tar: makeTar(t, file("fits", string(randomBytes(1, 5_000_000))))}), "fits")
	_, err := s.Pull(t.Context(), makeImage(t,
		memLayer{tar: makeTar(t, file("half", string(randomBytes(2, 9_000_000))))},
		memLayer{tar: makeTar(t, file("rest", string(randomBytes(3, 24_000_000))))},
	), mustName(t, "large"), PullOptions{})
	if !errors.Is(err, diskfs.ErrNoSpace) {
		t.Errorf("error %v, want diskfs.ErrNoSpace", err)
	}
	emptyTmp(t, s)
	checkClean(t, s)
}
