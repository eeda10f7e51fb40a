//go:build linux

package vsphere

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"vic/layerstore"
)

// An Image is one image of the store, whichever VCHs have it.
type Image struct {
	ID    digest.Digest
	Names []string // full references that VCHs have noted, ascending
	VCHs  []string // that have it, ascending; Seeds may be among them
	Disks []string // names, top first: of one of the VCHs, for others may have disks of their own of the same layers
}

// Chains are the chain IDs of the topmost layers in the image's disks, bottom first.
func (img *Image) Chains() []digest.Digest {
	var chains []digest.Digest
	for _, name := range slices.Backward(img.Disks) {
		if chain, err := chainOf(name); err == nil && chain != "" { // "" is of the empty file system
			chains = append(chains, chain)
		}
	}
	return chains
}

// Images are all images of the store, by ID. Those whose record is cut off are left out: a Check tells of them.
func (s *Store) Images(ctx context.Context) ([]*Image, error) {
	all, err := s.allImages(ctx)
	if err == nil {
		err = s.nameImages(ctx, all)
	}
	if err != nil {
		return nil, err
	}
	var images []*Image
	for _, x := range all {
		if x.ID.Validate() != nil || len(x.Disks) == 0 {
			continue
		}
		i := slices.IndexFunc(images, func(img *Image) bool { return img.ID == x.ID })
		if i < 0 {
			i = len(images)
			images = append(images, &Image{ID: x.ID, Disks: x.Disks})
		}
		images[i].VCHs = append(images[i].VCHs, x.vch)
		images[i].Names = append(images[i].Names, x.names...)
	}
	for _, img := range images {
		slices.Sort(img.VCHs)
		slices.Sort(img.Names)
		img.Names = slices.Compact(img.Names)
	}
	slices.SortFunc(images, func(a, b *Image) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return images, nil
}

// Image returns the image that ref refers to: a name that a VCH has noted, as docker reads it, or the beginning of an ID. The error is
// layerstore.ErrNotFound or ErrAmbiguous: VCHs may have pulled a name at different times.
func (s *Store) Image(ctx context.Context, ref string) (*Image, error) {
	images, err := s.Images(ctx)
	if err != nil {
		return nil, err
	}
	return FindImage(images, ref)
}

// FindImage is Image among those that were listed before.
func FindImage(images []*Image, ref string) (*Image, error) {
	var found []*Image
	if named, err := reference.ParseDockerRef(ref); err == nil {
		found = slices.DeleteFunc(slices.Clone(images), func(img *Image) bool { return !slices.Contains(img.Names, named.String()) })
	}
	if len(found) == 0 {
		begin := strings.TrimPrefix(ref, digest.SHA256.String()+":")
		found = slices.DeleteFunc(slices.Clone(images), func(img *Image) bool { return begin == "" || !strings.HasPrefix(img.ID.Encoded(), begin) })
	}
	switch len(found) {
	case 0:
		return nil, fmt.Errorf("image %q: %w", ref, layerstore.ErrNotFound)
	case 1:
		return found[0], nil
	}
	var texts []string
	for _, img := range found {
		texts = append(texts, fmt.Sprintf("%s of %s", img.ID.Encoded()[:12], strings.Join(img.VCHs, ", ")))
	}
	return nil, fmt.Errorf("image %q is %s: name one by its ID: %w", ref, strings.Join(texts, "; "), layerstore.ErrAmbiguous)
}

// FindDisk returns the name of a disk that is complete, by the beginning of its name or of its layer's chain ID. The error is
// layerstore.ErrNotFound or ErrAmbiguous.
func (s *Store) FindDisk(ctx context.Context, ref string) (string, error) {
	disks, err := s.Disks(ctx)
	if err != nil {
		return "", err
	}
	begin := strings.TrimPrefix(ref, digest.SHA256.String()+":")
	var found []string
	layers := 0
	for _, chain := range slices.Sorted(maps.Keys(disks)) {
		names := slices.DeleteFunc(disks[chain], func(name string) bool { return begin == "" || !strings.HasPrefix(name, begin) })
		if len(names) > 0 {
			found = append(found, names[0]) // others show the same
			layers++
		}
	}
	switch layers {
	case 0:
		return "", fmt.Errorf("image or layer %q: %w", ref, layerstore.ErrNotFound)
	case 1:
		return found[0], nil
	}
	return "", fmt.Errorf("layer %q: %d layers have a chain ID that begins so: %w", ref, layers, layerstore.ErrAmbiguous)
}

// Disks are the names of the disks that are complete, ascending, by the chain ID of the topmost layer in them.
func (s *Store) Disks(ctx context.Context) (map[digest.Digest][]string, error) {
	if err := s.look(ctx); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	disks := map[digest.Digest][]string{}
	for chain, names := range s.disks {
		disks[chain] = slices.Sorted(slices.Values(names))
	}
	return disks, nil
}
