//go:build linux

package vsphere

import (
	"context"
	"fmt"
	"maps"
	"strings"

	"github.com/opencontainers/go-digest"

	"vic/layerstore"
)

// Tidy forgets the images that the local store does not have, or has no more, and that no container was made from, which containers
// tells; nil is none. An image that was removed while a container has it stays thus until that container is removed and Tidy is called
// again. Containers is asked last, so it must know of a container before its image can be removed from the local store.
func (s *Store) Tidy(ctx context.Context, local *layerstore.Store, containers func(context.Context) ([]digest.Digest, error)) error {
	list, err := s.d.List(ctx, s.own("images"))
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
	if containers != nil {
		roots, err := containers(ctx)
		if err != nil {
			return fmt.Errorf("find out which images containers need: %w", err)
		}
		ids = append(ids, roots...)
	}
	for _, id := range ids {
		keep[id]++
	}
	for _, e := range list {
		hexDigits, ok := strings.CutSuffix(e.Name, ".json")
		id := digest.NewDigestFromEncoded(digest.SHA256, hexDigits)
		if !ok || id.Validate() != nil || keep[id] > 0 {
			continue
		}
		if err := s.Forget(ctx, id); err != nil {
			return err
		}
	}
	return nil
}
