//go:build linux

package vsphere

import (
	"context"
	"maps"

	"github.com/opencontainers/go-digest"

	"vic/layerstore"
)

// Published are the images that were published since the Store was opened and not forgotten, less those that the local store may not
// have yet.
func (s *Store) Published() []digest.Digest {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ids []digest.Digest
	for id := range s.images {
		if s.committing[id] == 0 {
			ids = append(ids, id)
		}
	}
	return ids
}

// Tidy forgets the images that the local store does not have, or has no more. An image that was removed from it stays as long as a
// container there was made from it.
func (s *Store) Tidy(ctx context.Context, local *layerstore.Store) error {
	own, err := s.ownImages(ctx)
	if err != nil {
		return err
	}
	s.mu.Lock()
	keep := maps.Clone(s.committing) // before the local store is asked: which has those that are committed by then
	s.mu.Unlock()
	ids, err := local.ImageIDs()
	if err != nil {
		return err
	}
	roots, err := local.ContainerImages() // after the images: a container is there before its image can go
	if err != nil {
		return err
	}
	ids = append(ids, roots...)
	for _, id := range ids {
		keep[id]++
	}
	for _, id := range own {
		if keep[id] > 0 {
			continue
		}
		if err := s.Forget(ctx, id); err != nil {
			return err
		}
	}
	return nil
}
