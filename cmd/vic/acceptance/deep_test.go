package acceptance

import (
	"archive/tar"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"vic/bench/testimage"
)

// deepLayers returns busybox and n-1 layers on it, each with a file of its own and one that
// all of them change.
func deepLayers(t *testing.T, n int) []testimage.Layer {
	t.Helper()
	base, err := testimage.Busybox()
	if err != nil {
		t.Fatal(err)
	}
	layers := []testimage.Layer{base}
	for i := 1; i < n; i++ {
		layers = append(layers, testimage.Layer{Write: func(w *tar.Writer) error {
			for _, name := range []string{fmt.Sprintf("layer-%03d", i), "last"} {
				if err := testimage.Add(w, tar.Header{Name: name, Mode: 0o644}, fmt.Sprint(i)); err != nil {
					return err
				}
			}
			return nil
		}})
	}
	return layers
}

// TestDeepImage runs an image of as many layers as docker allows, whose chain must stay
// within the bound, and flattens it under a running container.
func TestDeepImage(t *testing.T) {
	need(t, "qemu-img", "busybox")
	r := registry(t)
	img, err := testimage.Build(v1.Config{Cmd: []string{"sh"}}, deepLayers(t, 127)...)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := r.Push(t.Context(), "deep:127", img)
	if err != nil {
		t.Fatal(err)
	}
	h := serve(t, filepath.Join(t.TempDir(), "store"))
	h.docker("pull", "-q", ref)
	disk := func() string { return strings.TrimSpace(command(t, vic, "disk", "--store", h.store, ref)) }
	if n := len(chain(t, disk())); n > 29 {
		t.Errorf("the image's chain has %d disks, want 29 at most", n)
	}
	look := []string{"sh", "-c", "cat /last; ls / | grep -c ^layer-; cat /mine 2>/dev/null"}
	h.docker("run", "-d", "--name", "deep", ref, "sh", "-c", "echo mine >/mine; sync; sleep 1000000")
	if out := h.docker(append([]string{"exec", "deep"}, look...)...); !strings.HasPrefix(out, "126126\n") {
		t.Errorf("the guest sees %q", out)
	}

	var flat struct{ Was, Written, Freed int64 }
	if err := json.Unmarshal([]byte(command(t, vic, "flatten", "--json", "--store", h.store, ref)), &flat); err != nil {
		t.Fatal(err)
	}
	t.Logf("flattened: %+v", flat)
	if n := len(chain(t, disk())); n != 1 {
		t.Errorf("the flattened image's chain has %d disks", n)
	}
	checkDisks(t, disk())
	if out := h.docker(append([]string{"exec", "deep"}, look...)...); out != "126126\nmine\n" {
		t.Errorf("the running guest sees %q", out)
	}
	h.docker("restart", "-t", "0", "deep")
	if out := h.docker(append([]string{"exec", "deep"}, look...)...); out != "126126\nmine\n" {
		t.Errorf("the restarted guest sees %q", out)
	}
	if out := h.docker("run", "--rm", ref, "cat", "/last"); out != "126" {
		t.Errorf("a new guest sees %q", out)
	}
	h.docker("rm", "-f", "deep")
	if out := command(t, vic, "check", "--deep", "--store", h.store); out != "the store is sound\n" {
		t.Errorf("check: %s", out)
	}
}
