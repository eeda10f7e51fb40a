package mount

import (
	"context"
	"io"
	"iter"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"vic/layerstore"
	"vic/vmdk"
)

// A Source is a store that can be shown. Its methods are as those of layerstore.Store; a store of another kind has no more of an image than its
// ID, its names and its layers' chain IDs, and of a layer its chain ID.
type Source interface {
	Capacity() int64
	Names() (map[digest.Digest][]reference.Named, error)
	ImageIDs() ([]digest.Digest, error)
	Image(ref string) (*layerstore.Image, error)
	ImageByID(id digest.Digest) (*layerstore.Image, error)
	Chains() ([]digest.Digest, error)
	Layer(chain digest.Digest) (*layerstore.Layer, error)
	Skeleton(l *layerstore.Layer) (io.ReadCloser, error)
	Watch(ctx context.Context, changed func()) error
	// Disk opens the disk that shows a layer and all below it, as layerstore.Store.OpenDisk does.
	Disk(chain digest.Digest) (Disk, error)
}

// A Disk is an open chain of disks. Its methods are as those of vmdk.Disk.
type Disk interface {
	io.ReaderAt
	io.Closer
	Capacity() int64
	Plain(off, limit int64) (file io.ReaderAt, pos, n int64, err error)
	Runs(off int64) iter.Seq2[vmdk.Run, error]
}

// A localSource is a store of this machine.
type localSource struct{ *layerstore.Store }

func (s localSource) Disk(chain digest.Digest) (Disk, error) {
	d, err := s.OpenDisk(chain)
	if err != nil {
		return nil, err // d is not nil then, as an interface
	}
	return d, nil
}
