package layerstore

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vic/diskfs"
)

// containerText is the contents of a file of a container, or why there is none.
func containerText(t *testing.T, s *Store, id, name string) string {
	t.Helper()
	f, err := s.ContainerFS(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := fs.ReadFile(f, name)
	if errors.Is(err, fs.ErrNotExist) {
		return "absent"
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// fsck has e2fsck judge a container's disk.
func fsck(t *testing.T, s *Store, id string) {
	t.Helper()
	needTool(t, "qemu-img")
	needTool(t, "e2fsck")
	raw := filepath.Join(t.TempDir(), "raw")
	command(t, "qemu-img", "convert", "-O", "raw", filepath.Join(s.dir.container(id), containerDisk), raw)
	command(t, "e2fsck", "-fn", raw)
}

func TestApplyToContainer(t *testing.T) {
	s := openStore(t, Options{Capacity: 256 << 20})
	img := pullImage(t, s, webImage(t), "web")
	if _, err := s.CreateContainerDisk("c", img.ID); err != nil {
		t.Fatal(err)
	}
	big := string(randomBytes(1, 3<<20))
	for i := range 5 {
		layer := makeTar(t, folder("in"), file(fmt.Sprintf("in/%d", i), big[i:]), file("in/last", fmt.Sprint(i)), hardlink(fmt.Sprintf("in/link%d", i), "in/last"))
		if err := s.ApplyToContainer(t.Context(), "c", bytes.NewReader(layer)); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{"in/0": big, "in/4": big[4:], "in/last": "4", "in/link0": "0", "in/link4": "4"} {
		if got := containerText(t, s, "c", name); got != want {
			t.Errorf("%s: %d bytes, want %d", name, len(got), len(want))
		}
	}
	fsck(t, s, "c")

	// What does not fit leaves everything as it was.
	err := s.ApplyToContainer(t.Context(), "c", bytes.NewReader(makeTar(t, file("in/last", "lost"), file("huge", strings.Repeat(big, 80)))))
	if !errors.Is(err, diskfs.ErrNoSpace) {
		t.Errorf("too much: %v", err)
	}
	if err := s.ApplyToContainer(t.Context(), "c", strings.NewReader("no tar at all, and longer than nothing"+strings.Repeat(".", 600))); err == nil {
		t.Error("no tar was taken")
	}
	if got := containerText(t, s, "c", "in/last") + containerText(t, s, "c", "huge"); got != "4absent" {
		t.Errorf("after errors: %q", got)
	}
	if err := s.ApplyToContainer(t.Context(), "c", bytes.NewReader(makeTar(t))); err != nil {
		t.Errorf("nothing: %v", err)
	}
	if err := s.ApplyToContainer(t.Context(), "nope", bytes.NewReader(makeTar(t))); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no container: %v", err)
	}
	fsck(t, s, "c")
}

// TestApplyCutShort stops an ApplyToContainer at each of its steps.
func TestApplyCutShort(t *testing.T) {
	s := openStore(t, Options{Capacity: 256 << 20})
	img := pullImage(t, s, webImage(t), "web")
	if _, err := s.CreateContainerDisk("c", img.ID); err != nil {
		t.Fatal(err)
	}
	p, err := s.dir.readPin("c")
	if err != nil {
		t.Fatal(err)
	}
	decide := func(text string) {
		t.Helper()
		disk, err := s.dir.openContainerDisk(p, os.O_RDWR)
		if err != nil {
			t.Fatal(err)
		}
		defer disk.Close()
		stream, err := s.TempFile()
		if err != nil {
			t.Fatal(err)
		}
		defer stream.Close()
		out := bufio.NewWriter(stream)
		cs, err := diskfs.ReadTar(bytes.NewReader(makeTar(t, file("new", text), folder("d"), symlink("d/l", text))), out, nil, diskfs.Limits{})
		if err == nil {
			err = s.dir.decide(t.Context(), "c", disk, cs, stream, out)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	redo := filepath.Join(s.dir.container("c"), redoFile)
	decide("lost")
	if got := containerText(t, s, "c", "new"); got != "absent" {
		t.Errorf("before it is decided: %q", got)
	}
	if err := os.Remove(redo); err != nil { // never got its name
		t.Fatal(err)
	}
	fsck(t, s, "c")

	decide("kept")
	b, err := os.ReadFile(redo)
	if err != nil {
		t.Fatal(err)
	}
	disk, err := s.dir.openContainerDisk(p, os.O_RDWR)
	if err != nil {
		t.Fatal(err)
	}
	n, stop := 0, errors.New("power cut")
	err = eachRedo(bytes.NewReader(b), func(off int64, p []byte) error {
		if n++; n > 1 {
			return stop
		}
		_, err := disk.WriteAt(p, off)
		return err
	})
	if err != stop {
		t.Fatalf("%d ranges, %v: too few to stop between", n, err)
	}
	if err := disk.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second finds nothing to do
		if err := s.SettleContainer("c"); err != nil {
			t.Fatal(err)
		}
	}
	if got := containerText(t, s, "c", "new"); got != "kept" {
		t.Errorf("settled: %q", got)
	}
	fsck(t, s, "c")

	b[len(b)/2] ^= 1
	if err := os.WriteFile(redo, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.SettleContainer("c"); err == nil || !strings.Contains(err.Error(), "checksum") {
		t.Errorf("a damaged file: %v", err)
	}
}

func FuzzRedo(f *testing.F) {
	f.Add([]byte(redoMagic + strings.Repeat("\xff", 12)))
	f.Add([]byte(redoMagic + strings.Repeat("\x00", 40)))
	f.Fuzz(func(t *testing.T, data []byte) {
		total := 0
		_ = eachRedo(io.LimitReader(bytes.NewReader(data), 1<<20), func(off int64, p []byte) error { // it ends
			total += len(p)
			return nil
		})
		if total > len(data) {
			t.Errorf("%d bytes of %d", total, len(data))
		}
	})
}
