package archive

import (
	"context"
	"encoding/json"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"vic/fetch"
)

// nameAnnotation is where containerd, docker and buildx put an image's name in full. The
// specification's own annotation holds a tag alone, or what its writer pleased.
const nameAnnotation = "io.containerd.image.name"

// attestationType marks what is no image but a statement about one.
const attestationType = "vnd.docker.reference.type"

// readLayout lists the images of an OCI image layout. The error is fs.ErrNotExist if the archive
// is none.
func (a *Archive) readLayout() error {
	b, err := readFile(a.fsys, ocispec.ImageLayoutFile, maxIndex)
	if err != nil {
		return err
	}
	var layout ocispec.ImageLayout
	if err := json.Unmarshal(b, &layout); err != nil {
		return formatErrorf(ocispec.ImageLayoutFile, "%v", err)
	}
	if major, _, _ := strings.Cut(layout.Version, "."); major != "1" {
		return formatErrorf(ocispec.ImageLayoutFile, "version %.20q, this program knows 1", layout.Version)
	}
	if b, err = readFile(a.fsys, ocispec.ImageIndexFile, maxIndex); err != nil {
		return missing(ocispec.ImageIndexFile, err)
	}
	var index ocispec.Index
	if err := json.Unmarshal(b, &index); err != nil {
		return formatErrorf(ocispec.ImageIndexFile, "%v", err)
	}
	if n := len(index.Manifests); n > maxEntries {
		return formatErrorf(ocispec.ImageIndexFile, "%d images, %d are allowed", n, maxEntries)
	}
	a.entries = layoutEntries(&index, a.layoutImage)
	return nil
}

// layoutEntries makes an entry of what an index lists under one name, for one platform or several,
// and of each image without a name. One manifest under several names is one entry.
func layoutEntries(index *ocispec.Index, image func([]ocispec.Descriptor, *ocispec.Platform) (*Image, error)) []*Entry {
	type group struct {
		label string
		tops  []ocispec.Descriptor
	}
	var groups []*group
	byKey := make(map[string]*group)
	for _, d := range index.Manifests {
		if d.Annotations[attestationType] != "" {
			continue
		}
		label := d.Annotations[nameAnnotation]
		if label == "" {
			label = d.Annotations[ocispec.AnnotationRefName]
		}
		key := "name " + label
		if label == "" && d.Platform == nil {
			key = "digest " + d.Digest.String()
		}
		g := byKey[key]
		if g == nil {
			g = &group{label: label}
			byKey[key] = g
			groups = append(groups, g)
		}
		g.tops = append(g.tops, d)
	}
	var entries []*Entry
	byTops := make(map[string]*Entry)
	for _, g := range groups {
		var key strings.Builder
		for _, d := range g.tops {
			key.WriteString(d.Digest.String() + " ")
		}
		e := byTops[key.String()]
		if e == nil {
			e = &Entry{resolve: func(_ context.Context, p *ocispec.Platform) (*Image, error) { return image(g.tops, p) }}
			byTops[key.String()] = e
			entries = append(entries, e)
		}
		e.layoutName(g.label)
	}
	return entries
}

// layoutName takes over a layout's annotation. Whatever stands there is no error: it may be meant
// for others.
func (e *Entry) layoutName(label string) {
	if label == "" || strings.ContainsAny(label, "/:@") && e.name(label) == nil || slices.Contains(e.labels, label) {
		return
	}
	e.labels = append(e.labels, label)
}

// layoutImage reads an image of a layout.
func (a *Archive) layoutImage(tops []ocispec.Descriptor, platform *ocispec.Platform) (*Image, error) {
	docs, err := fetch.ReadDocuments(tops, platform, func(d ocispec.Descriptor) ([]byte, error) {
		name, err := blobPath(d.Digest)
		if err != nil {
			return nil, err
		}
		b, err := readFile(a.fsys, name, d.Size)
		return b, missing(name, err)
	})
	if err != nil {
		return nil, err
	}
	img := &Image{fsys: a.fsys, digest: docs.Descriptor.Digest, docs: docs, path: blobPath}
	if len(tops) == 1 {
		img.digest = tops[0].Digest
	}
	return img, nil
}

// blobPath is where a layout has a blob.
func blobPath(d digest.Digest) (string, error) {
	if err := d.Validate(); err != nil {
		return "", formatErrorf("", "digest %.80q: %v", d, err)
	}
	return path.Join("blobs", d.Algorithm().String(), d.Encoded()), nil
}
