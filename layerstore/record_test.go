package layerstore

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// FuzzRecords reads every kind of JSON file that the store has from arbitrary
// bytes: what is not a valid record is a *FormatError.
func FuzzRecords(f *testing.F) {
	// Seeds are the files of a store, and of a container in it.
	s := openStore(f, Options{})
	img := pullImage(f, s, webImage(f), "web")
	if _, err := s.CreateContainerDisk("c", img.ID); err != nil {
		f.Fatal(err)
	}
	seeds := []string{s.dir.version(), s.dir.pin("c"), s.dir.layer(img.Layers[0].Chain), s.dir.layer(img.Layers[1].Chain), s.dir.layer(img.Layers[2].Chain)}
	for _, name := range []string{imageFile, configFile, manifestFile} {
		seeds = append(seeds, filepath.Join(s.dir.image(img.ID), name))
	}
	for _, path := range seeds {
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	d := Dir(f.TempDir())
	for _, sub := range []string{"layers", "containers/c", "images"} {
		if err := os.MkdirAll(d.in(sub), 0o700); err != nil {
			f.Fatal(err)
		}
	}
	chain := img.Layers[2].Chain
	if err := os.CopyFS(d.image(img.ID), os.DirFS(s.dir.image(img.ID))); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, test := range []struct {
			path string
			read func() error
		}{
			{d.version(), func() error { _, err := d.readVersion(); return err }},
			{d.layer(chain), func() error { _, err := d.readLayer(chain); return err }},
			{d.pin("c"), func() error { _, err := d.readPin("c"); return err }},
			{d.image(img.ID) + "/" + imageFile, func() error { _, err := d.readImage(img.ID); return err }},
		} {
			if err := os.WriteFile(test.path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			var fe *FormatError
			if err := test.read(); err != nil && !errors.As(err, &fe) {
				t.Fatalf("%s: %v", test.path, err)
			}
		}
	})
}
