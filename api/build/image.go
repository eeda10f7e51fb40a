package build

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/containerd/platforms"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"vic/fetch/archive"
	"vic/layerstore"
)

// emptyTar is the digest of a tar without entries, which becomes no layer.
var emptyTar = digest.FromBytes(make([]byte, 1024))

var errEmptyLayer = errors.New("the layer is empty")

// document is what the image so far says of itself, less its configuration.
func (s *stage) document() ocispec.Image {
	if s.image == nil {
		platform := platforms.Normalize(ocispec.Platform{OS: "linux", Architecture: platforms.DefaultSpec().Architecture})
		if p := s.b.Platform; p != nil {
			platform = *p
		}
		return ocispec.Image{Platform: platform, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{}}}
	}
	doc := *s.image.Config
	doc.History = append([]ocispec.History(nil), doc.History...)
	doc.RootFS.DiffIDs = append([]digest.Digest{}, doc.RootFS.DiffIDs...)
	return doc
}

// descriptors are an image's layers as its manifest has them.
func descriptors(img *layerstore.Image) ([]ocispec.Descriptor, error) {
	if img == nil {
		return nil, nil
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(img.RawManifest, &m); err != nil {
		return nil, fmt.Errorf("manifest of image %s: %w", img.ID, err)
	}
	return m.Layers, nil
}

// commit makes the step's image: the one so far, with a layer more that write writes the tar of, unless it is nil or
// writes an empty one, and with the stage's configuration.
func (s *stage) commit(createdBy []string, write func(io.Writer) error) error {
	below, err := descriptors(s.image)
	if err != nil {
		return err
	}
	now := time.Now().UTC()
	doc := s.document()
	doc.Created, doc.Author = &now, s.author
	doc.History = append(doc.History, ocispec.History{Created: &now, CreatedBy: strings.Join(createdBy, " "), Author: s.author})
	img, err := s.commitLayer(doc, below, createdBy, write)
	if errors.Is(err, errEmptyLayer) {
		doc.History[len(doc.History)-1].EmptyLayer = true
		img, err = s.pull(s.ctx, doc, below, createdBy)
	}
	if err != nil {
		return err
	}
	s.b.cache.add(img)
	s.take(img)
	return nil
}

// commitLayer is commit with a layer that is not empty.
func (s *stage) commitLayer(doc ocispec.Image, below []ocispec.Descriptor, createdBy []string, write func(io.Writer) error) (img *layerstore.Image, err error) {
	if write == nil {
		return nil, errEmptyLayer
	}
	err = readPipe(write, func(r io.Reader) error {
		a, err := archive.FromTar(s.ctx, r, s.b.Store.TempFile, below, func(diffID digest.Digest) ([]byte, error) {
			if diffID == emptyTar {
				return nil, errEmptyLayer
			}
			doc.RootFS.DiffIDs = append(doc.RootFS.DiffIDs, diffID)
			return s.marshal(doc)
		})
		if err != nil {
			return err
		}
		defer a.Close()
		src, err := a.Entries()[0].Resolve(s.ctx, nil)
		if err != nil {
			return err
		}
		img, err = s.store(s.ctx, src, createdBy)
		return err
	})
	return img, err
}

// pull makes an image of layers that are all in the store.
func (s *stage) pull(ctx context.Context, doc ocispec.Image, layers []ocispec.Descriptor, createdBy []string) (*layerstore.Image, error) {
	config, err := s.marshal(doc)
	if err != nil {
		return nil, err
	}
	src, err := archive.FromLayers(layers, config)
	if err != nil {
		return nil, err
	}
	return s.store(ctx, src, createdBy)
}

// marshal is the image's configuration file.
func (s *stage) marshal(doc ocispec.Image) ([]byte, error) {
	return json.Marshal(dockerspec.DockerOCIImage{Image: doc, Config: s.config})
}

// store brings the image into the store, and holds it.
func (s *stage) store(ctx context.Context, src layerstore.Source, createdBy []string) (*layerstore.Image, error) {
	s.b.hold(digest.FromBytes(src.Config()))
	return s.b.Store.Pull(ctx, src, nil, layerstore.PullOptions{
		Descent: layerstore.Descent{Parent: s.imageID(), Step: stepOf(s.config, createdBy)},
	})
}
