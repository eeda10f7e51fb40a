package fetch

import (
	"context"
	"fmt"
	"io"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// An Image is what a reference was resolved to. Its methods may be called
// concurrently. The slices that they return must not be changed.
type Image struct {
	session *session
	ref     reference.Named
	digest  digest.Digest
	indexed bool
	docs    Documents
}

// Digest is what the reference resolved to: that of an index if it was one,
// else that of the manifest. It is what repository digests show.
func (i *Image) Digest() digest.Digest { return i.digest }

// Index is the digest of the index that the manifest was chosen from, or "" if
// the reference named a manifest.
func (i *Image) Index() digest.Digest {
	if !i.indexed {
		return ""
	}
	return i.digest
}

// Manifest returns the bytes of the image's manifest as the registry has them,
// verified, and their descriptor.
func (i *Image) Manifest() ([]byte, ocispec.Descriptor) { return i.docs.Manifest, i.docs.Descriptor }

// Config returns the bytes of the image configuration, verified. Their digest
// is the image's ID.
func (i *Image) Config() []byte { return i.docs.Config }

// Layers lists the layers, lowest first. There are as many as the
// configuration has diff IDs.
func (i *Image) Layers() []ocispec.Descriptor { return i.docs.Layers }

// Platform is what the configuration says the image is for. It may differ from
// the wanted one if the reference did not name an index.
func (i *Image) Platform() ocispec.Platform { return i.docs.Platform }

// Reference is what was resolved, with a tag or a digest.
func (i *Image) Reference() reference.Named { return i.ref }

// Blob opens a blob of the image's repository, one of Layers as a rule. The
// bytes are those of the registry, compressed or not. If they turn out to be
// too few, too many or wrong, the Read that would have returned io.EOF returns
// an error with class ErrVerification; nothing that was read before may be
// trusted until io.EOF.
//
// Broken connections are resumed inside Read, until ctx ends or the attempts
// are used up. The caller closes the reader; closing early ends the download.
// Read and Close must not be called at the same time: end ctx to stop a Read.
func (i *Image) Blob(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	r, err := i.session.blob(ctx, d, i.session.client.blobPolicy())
	if err != nil {
		return nil, fmt.Errorf("fetch blob %s: %w", d.Digest, err)
	}
	return r, nil
}
