package testimage

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"vic/bench/layout"
)

// KeepLayout makes the folder an OCI layout with an image of layers, unless it is one already. It streams: an image
// may be larger than memory.
func KeepLayout(ctx context.Context, dir string, layers func() ([]Layer, error)) error {
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), filepath.Base(dir)+"-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp) // in vain if it has been renamed
	list, err := layers()
	if err != nil {
		return err
	}
	if err := writeLayout(ctx, tmp, list); err != nil {
		return err
	}
	return os.Rename(tmp, dir)
}

func writeLayout(ctx context.Context, dir string, layers []Layer) error {
	d, err := layout.Create(dir)
	if err != nil {
		return err
	}
	cfg := ocispec.Image{Created: &Epoch, Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}, RootFS: ocispec.RootFS{Type: "layers"}}
	var blobs []ocispec.Descriptor
	for _, l := range layers {
		added, err := addLayer(ctx, d, l, 6)
		if err != nil {
			return err
		}
		blobs = append(blobs, added.blob)
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, added.diffID)
		cfg.History = append(cfg.History, ocispec.History{CreatedBy: l.CreatedBy, Created: &Epoch})
	}
	config, err := json.Marshal(cfg)
	if err != nil {
		return err
	}
	return d.AddImage("", config, blobs)
}

// addedLayer is a layer in a layout.
type addedLayer struct {
	blob      ocispec.Descriptor
	diffID    digest.Digest
	createdBy string
}

// addLayer adds a layer to a layout, compressed at a level of gzip's.
func addLayer(ctx context.Context, d layout.Dir, l Layer, level int) (addedLayer, error) {
	hash := digest.SHA256.Digester()
	blob, err := d.Add(ocispec.MediaTypeImageLayerGzip, func(w io.Writer) error {
		z, err := gzip.NewWriterLevel(w, level)
		if err != nil {
			return err
		}
		err = l.writeTo(io.MultiWriter(&untilDone{ctx, z}, hash.Hash()))
		return errors.Join(err, z.Close())
	})
	if err != nil {
		return addedLayer{}, fmt.Errorf("layer %q: %w", l.CreatedBy, err)
	}
	return addedLayer{blob, hash.Digest(), l.CreatedBy}, nil
}

// untilDone fails when its context has ended.
type untilDone struct {
	ctx context.Context
	w   io.Writer
}

func (u *untilDone) Write(p []byte) (int, error) {
	if err := u.ctx.Err(); err != nil {
		return 0, err
	}
	return u.w.Write(p)
}

// writeTo writes the layer's tar.
func (l Layer) writeTo(out io.Writer) error {
	if l.File != "" {
		f, err := os.Open(l.File)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(out, f)
		return err
	}
	w := tar.NewWriter(out)
	if err := l.Write(w); err != nil {
		return err
	}
	return w.Close()
}
