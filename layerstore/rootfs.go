package layerstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/opencontainers/go-digest"

	"vic/diskfs"
)

// Chain returns the chain ID of what ref refers to: of the top layer of an image, as Image
// understands it, or of a layer, by its chain ID or the beginning of that. The error is
// ErrNotFound, ErrAmbiguous, or what Image says of a damaged image.
func (s *Store) Chain(ref string) (digest.Digest, error) {
	img, err := s.Image(ref)
	if err == nil {
		return img.Chain(), nil
	}
	if !errors.Is(err, ErrNotFound) {
		return "", err
	}
	chains, listErr := s.dir.chains()
	if listErr != nil {
		return "", listErr
	}
	var found digest.Digest
	for _, c := range chains {
		if !isIDPrefix(c, ref) {
			continue
		}
		if found != "" {
			return "", fmt.Errorf("layer %q: more than one layer has a chain ID that begins so: %w", ref, ErrAmbiguous)
		}
		found = c
	}
	if found == "" {
		return "", fmt.Errorf("image or layer %q: %w", ref, ErrNotFound)
	}
	return found, nil
}

// RootFS opens the file system that a layer and all below it make; "" is the empty one. What
// reads it fails when ctx has ended. The caller closes it.
func (s *Store) RootFS(ctx context.Context, chain digest.Digest) (*FS, error) {
	disk, err := s.OpenDisk(chain)
	if err != nil {
		return nil, err
	}
	f, err := diskfs.Open(contextReaderAt{ctx, disk}, disk.Capacity())
	if err != nil {
		disk.Close() // read only
		return nil, fmt.Errorf("open file system of layer %s: %w", chain, err)
	}
	return &FS{f, disk}, nil
}

// A contextReaderAt fails when its context has ended.
type contextReaderAt struct {
	ctx context.Context
	r   io.ReaderAt
}

func (r contextReaderAt) ReadAt(p []byte, off int64) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.r.ReadAt(p, off)
}

// Diff tells fn how the file system of one layer differs from that of another, whether they
// belong together or not; "" is the empty one. See diskfs.Diff.
func (s *Store) Diff(ctx context.Context, old, new digest.Digest, fn func(diskfs.Change) error) error {
	shared, err := s.sharedData(old, new)
	if err != nil {
		return err
	}
	a, err := s.RootFS(ctx, old)
	if err != nil {
		return err
	}
	defer a.Close() // read only
	b, err := s.RootFS(ctx, new)
	if err != nil {
		return err
	}
	defer b.Close() // read only
	return diskfs.Diff(a.FS, b.FS, diskfs.DiffOptions{Shared: shared}, fn)
}

// sharedData returns up to where on the disk the data is that two layers have from those
// that both stand on: no layer above places its own there.
func (s *Store) sharedData(a, b digest.Digest) (int64, error) {
	old, err := s.Lineage(a)
	if err != nil {
		return 0, err
	}
	new, err := s.Lineage(b)
	if err != nil {
		return 0, err
	}
	var end int64
	for i := 0; i < min(len(old), len(new)) && old[i].Chain == new[i].Chain; i++ {
		end = old[i].High * diskfs.ClusterSize
	}
	return end, nil
}

// Lineage returns a layer and those below it, bottom first.
func (s *Store) Lineage(chain digest.Digest) ([]*Layer, error) {
	var layers []*Layer
	for chain != "" {
		l, err := s.Layer(chain)
		if err != nil {
			return nil, err
		}
		layers = append(layers, l)
		chain = l.Parent
	}
	slices.Reverse(layers)
	return layers, nil
}
