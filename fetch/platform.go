package fetch

import (
	"fmt"
	"slices"

	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// attestationType is the annotation by which BuildKit marks manifests in an
// index that are no images but statements about them.
const attestationType = "vnd.docker.reference.type"

// chooseManifest finds the manifest in an index that suits the platform best:
// the same architecture, or one that it can run (arm v6 on v7, 386 on amd64).
// Entries which say no platform come last, in the index's order.
func chooseManifest(index *ocispec.Index, want ocispec.Platform) (ocispec.Descriptor, error) {
	match := platforms.Only(want)
	var fit []ocispec.Descriptor
	for _, d := range index.Manifests {
		if d.MediaType != ocispec.MediaTypeImageManifest && d.MediaType != dockerManifest {
			continue
		}
		if d.Annotations[attestationType] != "" || d.ArtifactType != "" && d.Platform == nil {
			continue
		}
		if d.Platform != nil && d.Platform.OS == "" && d.Platform.Architecture == "" {
			d.Platform = nil
		}
		if d.Platform == nil || match.Match(*d.Platform) {
			fit = append(fit, d)
		}
	}
	if len(fit) == 0 {
		return ocispec.Descriptor{}, &classError{
			class: ErrNoPlatform,
			msg:   fmt.Sprintf("no matching manifest for %s in the manifest list entries", platforms.FormatAll(want)),
		}
	}
	slices.SortStableFunc(fit, func(a, b ocispec.Descriptor) int {
		switch {
		case a.Platform == nil && b.Platform == nil:
			return 0
		case a.Platform == nil:
			return 1
		case b.Platform == nil:
			return -1
		case match.Less(*a.Platform, *b.Platform):
			return -1
		case match.Less(*b.Platform, *a.Platform):
			return 1
		}
		return 0
	})
	if err := checkDescriptor(fit[0]); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("manifest in index: %w", err)
	}
	return fit[0], nil
}
