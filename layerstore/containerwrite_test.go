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

	"vic/bench/oracle"
	"vic/diskfs"
)

// A written is a disk that layers are applied to: a container's or a volume's.
type written struct {
	*Store
	t      *testing.T
	folder string
	apply  func(layer []byte) error
	settle func() error
	view   func() (*FS, error)
	open   func() (*guestDisk, error)
}

func writtenContainer(t *testing.T) *written {
	t.Helper()
	s := openStore(t, Options{Capacity: 256 << 20})
	img := pullImage(t, s, webImage(t), "web")
	if _, err := s.CreateContainerDisk("c", img.ID); err != nil {
		t.Fatal(err)
	}
	return &written{s, t, s.dir.container("c"),
		func(layer []byte) error { return s.ApplyToContainer(t.Context(), "c", bytes.NewReader(layer)) },
		func() error { return s.SettleContainer("c") },
		func() (*FS, error) { return s.ContainerFS(t.Context(), "c") },
		func() (*guestDisk, error) { return s.dir.writableContainer("c") }}
}

func writtenVolume(t *testing.T) *written {
	t.Helper()
	s := openStore(t, Options{Capacity: 256 << 20})
	makeVolume(t, s, VolumeOptions{Name: "vol", Options: map[string]string{"size": "256m"}})
	return &written{s, t, s.dir.volume("vol"),
		func(layer []byte) error { return s.ApplyToVolume(t.Context(), "vol", bytes.NewReader(layer)) },
		func() error { _, err := s.VolumeDisk("vol"); return err },
		func() (*FS, error) { return s.VolumeFS(t.Context(), "vol") },
		func() (*guestDisk, error) { return s.dir.writableVolume("vol") }}
}

// text is the contents of a file, or why there is none.
func (w *written) text(name string) string {
	w.t.Helper()
	f, err := w.view()
	if err != nil {
		w.t.Fatal(err)
	}
	defer f.Close()
	b, err := fs.ReadFile(f, name)
	if errors.Is(err, fs.ErrNotExist) {
		return "absent"
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return string(b)
}

// fsck has e2fsck judge the disk, and returns the path of its bytes.
func (w *written) fsck() string {
	w.t.Helper()
	oracle.Need(w.t, "qemu-img")
	oracle.Need(w.t, "e2fsck")
	raw := filepath.Join(w.t.TempDir(), "raw")
	command(w.t, "qemu-img", "convert", "-O", "raw", filepath.Join(w.folder, containerDisk), raw)
	command(w.t, "e2fsck", "-fn", raw)
	return raw
}

// decide stops where the layer is decided, and nothing of it done.
func (w *written) decide(layer []byte) {
	w.t.Helper()
	g, err := w.open()
	if err != nil {
		w.t.Fatal(err)
	}
	defer g.close()
	stream, err := w.TempFile()
	if err != nil {
		w.t.Fatal(err)
	}
	defer stream.Close()
	out := bufio.NewWriter(stream)
	cs, err := diskfs.ReadTar(bytes.NewReader(layer), out, nil, diskfs.Limits{})
	if err == nil {
		err = g.decide(w.t.Context(), cs, stream, out)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

func TestApplyToContainer(t *testing.T) { testApply(t, writtenContainer(t)) }

func TestApplyToVolume(t *testing.T) { testApply(t, writtenVolume(t)) }

func testApply(t *testing.T, w *written) {
	big := string(randomBytes(1, 3<<20))
	for i := range 5 {
		layer := makeTar(t, folder("in"), file(fmt.Sprintf("in/%d", i), big[i:]), file("in/last", fmt.Sprint(i)), hardlink(fmt.Sprintf("in/link%d", i), "in/last"))
		if err := w.apply(layer); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{"in/0": big, "in/4": big[4:], "in/last": "4", "in/link0": "0", "in/link4": "4"} {
		if got := w.text(name); got != want {
			t.Errorf("%s: %d bytes, want %d", name, len(got), len(want))
		}
	}
	raw := w.fsck()
	oracle.Need(t, "debugfs")
	if got := command(t, "debugfs", "-R", "cat in/link4", raw); !strings.HasSuffix(got, "4") {
		t.Errorf("debugfs reads %q", got)
	}

	// What does not fit leaves everything as it was.
	err := w.apply(makeTar(t, file("in/last", "lost"), file("huge", strings.Repeat(big, 80))))
	if !errors.Is(err, diskfs.ErrNoSpace) {
		t.Errorf("too much: %v", err)
	}
	if err := w.apply([]byte("no tar at all, and longer than nothing" + strings.Repeat(".", 600))); err == nil {
		t.Error("no tar was taken")
	}
	if got := w.text("in/last") + w.text("huge"); got != "4absent" {
		t.Errorf("after errors: %q", got)
	}
	if err := w.apply(makeTar(t)); err != nil {
		t.Errorf("nothing: %v", err)
	}
	if err := w.ApplyToContainer(t.Context(), "nope", bytes.NewReader(makeTar(t, folder("x")))); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no container: %v", err)
	}
	if err := w.ApplyToVolume(t.Context(), "nope", bytes.NewReader(makeTar(t, folder("x")))); !errors.Is(err, ErrNotFound) {
		t.Errorf("no volume: %v", err)
	}
	if _, err := w.VolumeFS(t.Context(), "nope"); !errors.Is(err, ErrNotFound) {
		t.Errorf("no volume: %v", err)
	}
	w.fsck()
	checkClean(t, w.Store)
}

// TestApplyCutShort stops an ApplyToContainer, and an ApplyToVolume, at each of their steps.
func TestApplyCutShort(t *testing.T) {
	t.Run("container", func(t *testing.T) { testCutShort(t, writtenContainer(t), false) })
	t.Run("volume", func(t *testing.T) { testCutShort(t, writtenVolume(t), true) })
}

func testCutShort(t *testing.T, w *written, told bool) {
	layer := func(text string) []byte {
		return makeTar(t, file("new", text), folder("d"), symlink("d/l", text))
	}
	// check has Check find what is pending, if it looks for that.
	check := func(pending bool) {
		t.Helper()
		found := 0
		if err := w.Check(t.Context(), CheckOptions{Deep: true}, func(f Finding) {
			if found++; !f.Harmless || f.ID != "vol" || !strings.Contains(f.Problem, "copy into it was interrupted") {
				t.Errorf("finding %+v", f)
			}
		}); err != nil || found == 1 != (pending && told) {
			t.Errorf("%d findings, %v", found, err)
		}
	}
	redo := filepath.Join(w.folder, redoFile)
	w.decide(layer("lost"))
	check(true)
	if err := os.Remove(redo); err != nil { // never got its name
		t.Fatal(err)
	}
	if got := w.text("new"); got != "absent" {
		t.Errorf("before it is decided: %q", got)
	}
	w.fsck()

	w.decide(layer("kept"))
	b := readFile(t, redo)
	g, err := w.open()
	if err != nil {
		t.Fatal(err)
	}
	n, stop := 0, errors.New("power cut")
	err = eachRedo(bytes.NewReader(b), func(off int64, p []byte) error {
		if n++; n > 1 {
			return stop
		}
		_, err := g.WriteAt(p, off)
		return err
	})
	if err != stop {
		t.Fatalf("%d ranges, %v: too few to stop between", n, err)
	}
	if err := g.close(); err != nil {
		t.Fatal(err)
	}
	check(true)
	for range 2 { // the second finds nothing to do
		if err := w.settle(); err != nil {
			t.Fatal(err)
		}
	}
	check(false)
	if got := w.text("new"); got != "kept" {
		t.Errorf("settled: %q", got)
	}
	w.fsck()

	// Who only wants to read settles it first, and so does who writes more.
	w.decide(layer("read"))
	if got := w.text("new"); got != "read" {
		t.Errorf("read: %q", got)
	}
	w.decide(layer("more"))
	if err := w.apply(makeTar(t, file("other", "x"))); err != nil {
		t.Fatal(err)
	}
	if got := w.text("new") + w.text("other"); got != "morex" {
		t.Errorf("written on: %q", got)
	}
	w.fsck()

	b[len(b)/2] ^= 1
	if err := os.WriteFile(redo, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := w.settle(); err == nil || !strings.Contains(err.Error(), "checksum") {
		t.Errorf("a damaged file: %v", err)
	}
	if err := w.Check(t.Context(), CheckOptions{}, func(f Finding) {
		if n = 0; f.Harmless || !strings.Contains(f.Problem, "checksum") {
			t.Errorf("finding %+v", f)
		}
	}); err != nil || n != 0 {
		t.Errorf("a damaged file was not found: %v", err)
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
