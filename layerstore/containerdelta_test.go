package layerstore

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"vic/diskfs"
)

// createOther makes a container "other" of the same image.
func (w *written) createOther() {
	w.t.Helper()
	images, err := w.ContainerImages()
	if err != nil || len(images) != 1 {
		w.t.Fatalf("images of containers %v, %v", images, err)
	}
	if _, err := w.CreateContainerDisk("other", images[0]); err != nil {
		w.t.Fatal(err)
	}
}

// TestReplaceContainerDelta gives one container the disk of another of the same image, by extent files of both kinds.
func TestReplaceContainerDelta(t *testing.T) {
	for name, extent := range map[string]func(*Disk) (io.ReaderAt, int64, error){
		"hosted": func(d *Disk) (io.ReaderAt, int64, error) {
			e, err := d.Extent()
			return e, e.Size(), err
		},
		"COWD": func(d *Disk) (io.ReaderAt, int64, error) {
			c, err := d.COWD(1)
			return c, c.Size(), err
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := writtenContainer(t)
			if err := w.apply(makeTar(t, file("new", "what a guest wrote"))); err != nil {
				t.Fatal(err)
			}
			w.createOther()
			disk, err := w.OpenContainerDisk("c")
			if err != nil {
				t.Fatal(err)
			}
			defer disk.Close()
			r, size, err := extent(disk)
			if err != nil {
				t.Fatal(err)
			}
			f, err := os.Create(filepath.Join(t.TempDir(), "delta"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := io.Copy(f, io.NewSectionReader(r, 0, size)); err != nil {
				t.Fatal(err)
			}
			for range 2 { // the second replaces what is not empty
				if err := w.ReplaceContainerDelta(t.Context(), "other", f); err != nil {
					t.Fatal(err)
				}
			}
			v, err := w.ContainerFS(t.Context(), "other")
			if err != nil {
				t.Fatal(err)
			}
			defer v.Close()
			if got, err := fs.ReadFile(v, "new"); err != nil || string(got) != "what a guest wrote" {
				t.Errorf("got %q, %v", got, err)
			}
			if _, err := f.WriteAt(bytes.Repeat([]byte{0xff}, 512), 0); err != nil {
				t.Fatal(err)
			}
			if err := w.ReplaceContainerDelta(t.Context(), "other", f); err == nil {
				t.Error("a file that is no extent file was taken")
			}
			if got, err := fs.ReadFile(v, "new"); err != nil || string(got) != "what a guest wrote" {
				t.Errorf("after a failure: %q, %v", got, err)
			}
			if err := w.ReplaceContainerDelta(t.Context(), "none", f); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("no such container: %v", err)
			}
			checkClean(t, w.Store)
		})
	}
}

// A device is a disk in memory that counts what is written to it.
type device struct {
	data  []byte
	wrote int64
}

func (d *device) ReadAt(p []byte, off int64) (int, error) { return copy(p, d.data[off:]), nil }

func (d *device) WriteAt(p []byte, off int64) (int, error) {
	d.wrote += int64(len(p))
	return copy(d.data[off:], p), nil
}

// TestContainerBlocks gives a container the disk of another of the same image by its blocks, and takes back what is written to it. What the
// file system does not use is rubbish.
func TestContainerBlocks(t *testing.T) {
	w := writtenContainer(t)
	if err := w.apply(makeTar(t, file("new", "what a guest wrote"))); err != nil {
		t.Fatal(err)
	}
	w.createOther()
	raw, err := os.ReadFile(w.fsck())
	if err != nil {
		t.Fatal(err)
	}
	dev := &device{data: raw}
	f, err := diskfs.Open(bytes.NewReader(raw), int64(len(raw)))
	if err != nil {
		t.Fatal(err)
	}
	used, err := f.Used()
	if err != nil {
		t.Fatal(err)
	}
	var end int64
	for _, r := range append(used, diskfs.Range{Off: int64(len(raw))}) {
		for i := end; i < r.Off; i++ {
			raw[i] = 0xa5
		}
		end = r.Off + r.Len
	}
	read := func(name string) string {
		t.Helper()
		v, err := w.ContainerFS(t.Context(), "other")
		if err != nil {
			t.Fatal(err)
		}
		defer v.Close()
		b, err := fs.ReadFile(v, name)
		if err != nil {
			return err.Error()
		}
		return string(b)
	}
	for range 2 { // the second replaces what is not empty
		if err := w.ReplaceContainerBlocks(t.Context(), "other", dev); err != nil {
			t.Fatal(err)
		}
	}
	if got := read("new"); got != "what a guest wrote" {
		t.Errorf("read %q", got)
	}
	fi, err := os.Stat(filepath.Join(w.dir.container("other"), containerExtent))
	if err != nil {
		t.Fatal(err)
	}
	if size := fi.Sys().(*syscall.Stat_t).Blocks * 512; size > 8<<20 {
		t.Errorf("the delta has %d bytes", size)
	}
	if err := w.ApplyToContainer(t.Context(), "other", bytes.NewReader(makeTar(t, file("back", "from here")))); err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		dev.wrote = 0
		if err := w.WriteContainerBlocks(t.Context(), "other", dev); err != nil {
			t.Fatal(err)
		}
		if dev.wrote > 4<<20 || (dev.wrote == 0) != (i == 1) {
			t.Errorf("round %d writes %d bytes", i, dev.wrote)
		}
	}
	back := filepath.Join(t.TempDir(), "back")
	if err := os.WriteFile(back, dev.data, 0o600); err != nil {
		t.Fatal(err)
	}
	command(t, "e2fsck", "-fn", back)
	for name, want := range map[string]string{"new": "what a guest wrote", "back": "from here"} {
		if got := command(t, "debugfs", "-R", "cat /"+name, back); !strings.Contains(got, want) {
			t.Errorf("debugfs shows %q in %s", got, name)
		}
	}

	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.ReplaceContainerBlocks(ended, "other", dev); !errors.Is(err, context.Canceled) {
		t.Errorf("ended: %v", err)
	}
	if err := w.ReplaceContainerBlocks(t.Context(), "other", &device{data: make([]byte, len(raw))}); err == nil {
		t.Error("a disk of zeros was taken")
	}
	if got := read("back"); got != "from here" {
		t.Errorf("after failures: %q", got)
	}
	checkClean(t, w.Store)
}
