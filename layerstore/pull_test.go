package layerstore

import (
	"testing"
)

func TestPull(t *testing.T) {
	s := openStore(t, Options{})
	src := webImage(t)
	img := pullImage(t, s, src, "example.com/web:1")
	t.Log(img.ID, img.RepoTags(), img.RepoDigests(), img.Size())
	fs, err := s.FS(img)
	if err != nil {
		t.Fatal(err)
	}
	defer fs.Close()
}
