package fetch

import (
	"context"
	"encoding/json"
	"fmt"
	"io"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// config fetches an image configuration.
func (s *session) config(ctx context.Context, d ocispec.Descriptor) (b []byte, err error) {
	if d.Size > maxDocument {
		return nil, verificationError("image configuration %s has %d bytes, more than %d", d.Digest, d.Size, maxDocument)
	}
	r, err := s.blob(ctx, d, s.client.smallPolicy())
	if err != nil {
		return nil, err
	}
	defer func() {
		if cerr := r.Close(); err == nil && cerr != nil {
			err = cerr
		}
	}()
	return io.ReadAll(r)
}

// parseConfig checks what the manifest and the configuration must agree upon,
// and returns the platform.
func parseConfig(b []byte, layers int) (ocispec.Platform, error) {
	var c ocispec.Image
	if n := values(b); n > maxValues {
		return ocispec.Platform{}, verificationError("image configuration has %d values, more than %d", n, maxValues)
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return ocispec.Platform{}, fmt.Errorf("parse image configuration: %w", err)
	}
	if c.RootFS.Type != "layers" {
		return ocispec.Platform{}, verificationError("invalid rootfs in image configuration")
	}
	if len(c.RootFS.DiffIDs) != layers {
		return ocispec.Platform{}, verificationError("layers from manifest don't match image configuration")
	}
	for _, id := range c.RootFS.DiffIDs {
		if err := id.Validate(); err != nil {
			return ocispec.Platform{}, verificationError("diff ID %q: %v", printable(id.String(), maxUnparsed), err)
		}
	}
	if c.OS != "" && c.OS != "linux" {
		return ocispec.Platform{}, &classError{
			class: ErrNoPlatform,
			msg:   fmt.Sprintf("cannot download image with operating system %q when requesting %q", c.OS, "linux"),
		}
	}
	return c.Platform, nil
}
