package archive

import (
	"context"
	"fmt"
	"hash"
	"io"
	"io/fs"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"vic/fetch"
)

// An Image is one image of an archive, for one platform. What it returns must not be changed.
type Image struct {
	fsys   fs.FS
	digest digest.Digest
	docs   fetch.Documents
	path   func(digest.Digest) (string, error) // of a blob
}

// Digest is that of the manifest, or of the index that led to it.
func (i *Image) Digest() digest.Digest { return i.digest }

// Manifest returns the image's manifest and its descriptor.
func (i *Image) Manifest() ([]byte, ocispec.Descriptor) { return i.docs.Manifest, i.docs.Descriptor }

// Config returns the image configuration, whose digest is the image's ID.
func (i *Image) Config() []byte { return i.docs.Config }

// Platform is what the configuration says the image is for.
func (i *Image) Platform() ocispec.Platform { return i.docs.Platform }

// Blob opens a layer. If it turns out to be another than the descriptor says, the Read that would
// have returned io.EOF returns a *FormatError. The caller closes the reader.
func (i *Image) Blob(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	name, err := i.path(d.Digest)
	if err != nil {
		return nil, err
	}
	f, err := i.fsys.Open(name)
	if err != nil {
		return nil, missing(name, err)
	}
	info, err := f.Stat()
	if err == nil && info.Size() != d.Size {
		err = formatErrorf(name, "has %d bytes, its descriptor says %d", info.Size(), d.Size)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &blobReader{ctx: ctx, f: f, name: name, want: d.Digest, hash: d.Digest.Algorithm().Hash()}, nil
}

// A blobReader verifies a blob while it is read.
type blobReader struct {
	ctx  context.Context
	f    fs.File
	name string
	want digest.Digest
	hash hash.Hash
	err  error
}

func (r *blobReader) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	if r.err = context.Cause(r.ctx); r.err != nil {
		return 0, r.err
	}
	n, err := r.f.Read(p)
	r.hash.Write(p[:n])
	if err == io.EOF {
		if got := digest.NewDigest(r.want.Algorithm(), r.hash); got != r.want {
			err = formatErrorf(r.name, "digest is %s, not %s", got, r.want)
		}
	} else if err != nil {
		err = fmt.Errorf("read %s: %w", r.name, err)
	}
	r.err = err
	return n, err
}

func (r *blobReader) Close() error { return r.f.Close() }
