package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"vic/bench/layout"
	"vic/fetch"
)

// An image is what is pulled: one of an OCI layout, served on loopback.
type image struct {
	dir    layout.Dir
	server *layout.Server
	src    *fetch.Image
	layers []imageLayer
}

type imageLayer struct {
	blob   ocispec.Descriptor
	diffID digest.Digest
}

// serve serves the image of a layout that has that name. The caller closes it.
func serve(ctx context.Context, dir layout.Dir, name string) (_ *image, err error) {
	server, err := dir.Serve(name)
	if err != nil {
		return nil, err
	}
	img := &image{dir: dir, server: server}
	defer func() {
		if err != nil {
			err = errors.Join(err, img.close())
		}
	}()
	ref, err := reference.ParseDockerRef(server.Ref)
	if err != nil {
		return nil, err
	}
	if img.src, err = new(fetch.Client).Resolve(ctx, ref, fetch.ResolveOptions{}); err != nil {
		return nil, err
	}
	var config ocispec.Image
	if err := json.Unmarshal(img.src.Config(), &config); err != nil {
		return nil, fmt.Errorf("image config: %w", err)
	}
	blobs := img.src.Layers()
	if len(blobs) != len(config.RootFS.DiffIDs) {
		return nil, fmt.Errorf("%d layers, but the config has %d diff IDs", len(blobs), len(config.RootFS.DiffIDs))
	}
	for i, b := range blobs {
		img.layers = append(img.layers, imageLayer{b, config.RootFS.DiffIDs[i]})
	}
	return img, nil
}

func (i *image) close() error { return i.server.Close() }

// fetch reads a blob from the server and returns its length.
func (i *image) fetch(ctx context.Context, l imageLayer) (int64, error) {
	r, err := i.src.Blob(ctx, l.blob)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	buf := make([]byte, chunkSize)
	return io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{r}, buf)
}

// Fetch brings an image into an OCI layout in an empty or missing folder.
func Fetch(ctx context.Context, src *fetch.Image, dir string) error {
	d, err := layout.Create(dir)
	if err != nil {
		return err
	}
	blobs := make([]ocispec.Descriptor, len(src.Layers()))
	for i, l := range src.Layers() {
		added, err := d.Add(ociType(l.MediaType), func(w io.Writer) error {
			r, err := src.Blob(ctx, l)
			if err != nil {
				return err
			}
			defer r.Close()
			_, err = io.Copy(w, r)
			return err
		})
		if err != nil {
			return fmt.Errorf("fetch layer %d: %w", i, err)
		}
		blobs[i] = added
	}
	return d.AddImage("", src.Config(), blobs)
}

// ociType returns OCI's media type for a layer that Docker's manifest formats name otherwise.
func ociType(mediaType string) string {
	switch mediaType {
	case "application/vnd.docker.image.rootfs.diff.tar.gzip":
		return ocispec.MediaTypeImageLayerGzip
	case "application/vnd.docker.image.rootfs.diff.tar.zstd":
		return ocispec.MediaTypeImageLayerZstd
	case "application/vnd.docker.image.rootfs.diff.tar":
		return ocispec.MediaTypeImageLayer
	}
	return mediaType
}
