package layerstore

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

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
			images, err := w.ContainerImages()
			if err != nil || len(images) != 1 {
				t.Fatalf("images of containers %v, %v", images, err)
			}
			for _, id := range images {
				if _, err := w.CreateContainerDisk("other", id); err != nil {
					t.Fatal(err)
				}
			}
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
