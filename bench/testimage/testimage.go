// Package testimage makes real container images where no public registry can be
// reached, for the demonstration, the end-to-end tests and the benchmarks: a Debian
// root file system by debootstrap, a small one of busybox, and layers on top that do
// what Dockerfiles do. They are pushed to Debian's docker-registry on loopback.
package testimage

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Epoch is the time of everything made here, so that images are the same every time.
var Epoch = time.Date(2024, 2, 29, 12, 34, 56, 789_000_000, time.UTC)

// A Layer is one step of an image: what a Dockerfile line left behind.
type Layer struct {
	CreatedBy string                    // shown by docker history
	File      string                    // a finished tar on this machine, or
	Write     func(w *tar.Writer) error // what writes one
}

// Build stacks the layers and sets what the image runs.
func Build(cfg v1.Config, layers ...Layer) (v1.Image, error) {
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	img = mutate.ConfigMediaType(img, types.OCIConfigJSON)
	var adds []mutate.Addendum
	for _, l := range layers {
		layer, err := l.open()
		if err != nil {
			return nil, fmt.Errorf("layer %q: %w", l.CreatedBy, err)
		}
		adds = append(adds, mutate.Addendum{Layer: layer, MediaType: types.OCILayer,
			History: v1.History{CreatedBy: l.CreatedBy, Created: v1.Time{Time: Epoch}}})
	}
	img, err := mutate.Append(img, adds...)
	if err != nil {
		return nil, err
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.Config, file.OS, file.Architecture, file.Created = cfg, "linux", "amd64", v1.Time{Time: Epoch}
	return mutate.ConfigFile(img, file)
}

func (l Layer) open() (v1.Layer, error) {
	opts := []tarball.LayerOption{tarball.WithMediaType(types.OCILayer), tarball.WithCompressionLevel(6)}
	if l.File != "" {
		return tarball.LayerFromFile(l.File, opts...)
	}
	var buf bytes.Buffer
	if err := l.writeTo(&buf); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil }, opts...)
}

// Add writes one entry; zero fields get what a plain file or directory has.
func Add(w *tar.Writer, h tar.Header, data string) error {
	if h.Typeflag == 0 {
		h.Typeflag = tar.TypeReg
		if strings.HasSuffix(h.Name, "/") {
			h.Typeflag = tar.TypeDir
		}
	}
	if h.Mode == 0 {
		h.Mode = 0644
		if h.Typeflag == tar.TypeDir {
			h.Mode = 0755
		}
	}
	if h.ModTime.IsZero() {
		h.ModTime = Epoch
	}
	h.Size, h.Format = int64(len(data)), tar.FormatPAX
	if err := w.WriteHeader(&h); err != nil {
		return err
	}
	_, err := io.WriteString(w, data)
	return err
}

// Busybox returns a layer with Debian's static busybox and the directories and files
// that programs expect of a root.
func Busybox() (Layer, error) {
	bin, err := exec.LookPath("busybox")
	if err != nil {
		return Layer{}, fmt.Errorf("busybox-static is not installed: %w", err)
	}
	out, err := exec.Command(bin, "--list").Output()
	if err != nil {
		return Layer{}, fmt.Errorf("list busybox's applets: %w", err)
	}
	return Layer{CreatedBy: "busybox --install /bin", Write: func(w *tar.Writer) error {
		return writeBusybox(w, bin, strings.Fields(string(out)))
	}}, nil
}

func writeBusybox(w *tar.Writer, bin string, applets []string) error {
	for _, d := range []string{"bin/", "dev/", "etc/", "proc/", "root/", "sys/", "usr/", "var/", "home/", "home/app/"} {
		if err := Add(w, tar.Header{Name: d}, ""); err != nil {
			return err
		}
	}
	if err := Add(w, tar.Header{Name: "tmp/", Mode: 01777}, ""); err != nil {
		return err
	}
	data, err := os.ReadFile(bin)
	if err != nil {
		return err
	}
	if err := Add(w, tar.Header{Name: "bin/busybox", Mode: 0755}, string(data)); err != nil {
		return err
	}
	for _, a := range applets {
		if a == "busybox" {
			continue
		}
		if err := Add(w, tar.Header{Name: "bin/" + a, Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0777}, ""); err != nil {
			return err
		}
	}
	return files(w,
		"etc/passwd", "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:app:/home/app:/bin/sh\n",
		"etc/group", "root:x:0:\napp:x:1000:\nextra:x:1001:app\n")
}

// run runs a program and shows what it says if it fails.
func run(ctx context.Context, name string, args ...string) error {
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w\n%s", name, err, said.Bytes())
	}
	return nil
}
