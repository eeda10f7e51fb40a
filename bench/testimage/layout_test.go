package testimage

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"vic/bench/oracle"
)

// TestKeepLayout lets skopeo verify every digest of what is made.
func TestKeepLayout(t *testing.T) {
	oracle.Need(t, "skopeo")
	written := Layer{CreatedBy: "COPY a /", Write: func(w *tar.Writer) error { return files(w, "a", "of a\n") }}
	var b bytes.Buffer
	if err := written.writeTo(&b); err != nil {
		t.Fatal(err)
	}
	finished := Layer{CreatedBy: "COPY b /", File: filepath.Join(t.TempDir(), "b.tar")}
	if err := os.WriteFile(finished.File, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	parent := t.TempDir()
	dir := filepath.Join(parent, "image")
	made := 0
	layers := func() ([]Layer, error) { made++; return []Layer{written, finished}, nil }
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := KeepLayout(ctx, dir, layers); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if left, err := os.ReadDir(parent); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	for range 2 {
		if err := KeepLayout(t.Context(), dir, layers); err != nil {
			t.Fatal(err)
		}
	}
	if made != 2 {
		t.Errorf("the layers were made %d times", made)
	}
	out, err := exec.Command("skopeo", "--insecure-policy", "copy", "oci:"+dir, "dir:"+filepath.Join(t.TempDir(), "copy")).CombinedOutput()
	if err != nil {
		t.Errorf("skopeo copy: %v\n%s", err, out)
	}
}
