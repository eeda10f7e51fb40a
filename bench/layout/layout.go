// Package layout keeps images as files on this machine, in the form of the OCI image
// layout specification, and serves them as a registry on loopback does. Whatever is to
// be measured becomes such a folder first: then every engine gets the same bytes, as
// often as it likes, from a registry that costs next to nothing.
//
//	oci-layout            {"imageLayoutVersion": "1.0.0"}
//	index.json            what images there are
//	blobs/sha256/<hex>    manifests, configs and layers, each named by its digest
package layout

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// indexLimit is the greatest length in bytes of an index.json, and of a manifest.
const indexLimit = 4 << 20

// A Dir is the folder of an OCI image layout.
type Dir string

// Create makes the folder of a layout without images.
func Create(path string) (Dir, error) {
	d := Dir(path)
	if err := os.MkdirAll(filepath.Join(path, ocispec.ImageBlobsDir, "sha256"), 0o755); err != nil {
		return "", err
	}
	return d, d.writeJSON(ocispec.ImageLayoutFile, ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
}

func (d Dir) writeJSON(name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(string(d), name), b, 0o644)
}

// Blob returns the path of a blob. The digest must be valid.
func (d Dir) Blob(dg digest.Digest) string {
	return filepath.Join(string(d), ocispec.ImageBlobsDir, dg.Algorithm().String(), dg.Encoded())
}

// Add adds a blob, which write writes, and describes it. It may be called concurrently.
func (d Dir) Add(mediaType string, write func(io.Writer) error) (ocispec.Descriptor, error) {
	f, err := os.CreateTemp(string(d), "blob-")
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer os.Remove(f.Name()) // in vain if it has been renamed
	h := sha256.New()
	err = write(io.MultiWriter(f, h))
	size, seekErr := f.Seek(0, io.SeekCurrent)
	if err := errors.Join(err, seekErr, f.Close()); err != nil {
		return ocispec.Descriptor{}, err
	}
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.NewDigest(digest.SHA256, h), Size: size}
	return desc, os.Rename(f.Name(), d.Blob(desc.Digest))
}

// AddImage makes an image of layers that were added, the lowest first, and its config. It takes the place of the image
// of that name, which may be "".
func (d Dir) AddImage(name string, config []byte, layers []ocispec.Descriptor) error {
	cfg, err := d.Add(ocispec.MediaTypeImageConfig, writer(config))
	if err != nil {
		return err
	}
	manifest, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: cfg, Layers: layers,
	})
	if err != nil {
		return err
	}
	desc, err := d.Add(ocispec.MediaTypeImageManifest, writer(manifest))
	if err != nil {
		return err
	}
	if name != "" {
		desc.Annotations = map[string]string{ocispec.AnnotationRefName: name}
	}
	index, err := d.index()
	if errors.Is(err, fs.ErrNotExist) {
		index = ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	} else if err != nil {
		return err
	}
	index.Manifests = slices.DeleteFunc(index.Manifests, func(m ocispec.Descriptor) bool { return m.Annotations[ocispec.AnnotationRefName] == name })
	index.Manifests = append(index.Manifests, desc)
	return d.writeJSON(ocispec.ImageIndexFile, index)
}

// index reads index.json.
func (d Dir) index() (index ocispec.Index, err error) {
	b, err := readBounded(filepath.Join(string(d), ocispec.ImageIndexFile))
	if err != nil {
		return index, err
	}
	if err := json.Unmarshal(b, &index); err != nil {
		return index, fmt.Errorf("%s: index.json: %w", d, err)
	}
	return index, nil
}

func writer(b []byte) func(io.Writer) error {
	return func(w io.Writer) error {
		_, err := w.Write(b)
		return err
	}
}

// Find returns the descriptor of an image, or of an index of images for several platforms:
// the one whose org.opencontainers.image.ref.name is name. "" stands for the only one.
func (d Dir) Find(name string) (ocispec.Descriptor, error) {
	index, err := d.index()
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("open OCI layout: %w", err)
	}
	var found []ocispec.Descriptor
	var names []string
	for _, m := range index.Manifests {
		ref := m.Annotations[ocispec.AnnotationRefName]
		if name == "" || ref == name {
			found = append(found, m)
		}
		names = append(names, fmt.Sprintf("%q", ref))
	}
	if len(found) != 1 {
		return ocispec.Descriptor{}, fmt.Errorf("OCI layout %s: %d images are called %q; there are %s", d, len(found), name, strings.Join(names, ", "))
	}
	if err := found[0].Digest.Validate(); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("open OCI layout %s: digest %q: %w", d, found[0].Digest, err)
	}
	return found[0], nil
}

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, indexLimit+1))
	if err == nil && len(b) > indexLimit {
		err = fmt.Errorf("%s is longer than %d bytes", path, indexLimit)
	}
	return b, err
}
