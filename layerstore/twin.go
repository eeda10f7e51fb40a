package layerstore

import "context"

// A layer may be in flight twice, over two parents: in one image, or in two that are pulled at once.
// The second flight waits for the first, its twin, and then makes the layer of what that brought,
// as of any other layer of the store: the blob is fetched once. If the first fails, the second
// fetches. A twin is one that began before, as is the flight below, so flights do not wait for each
// other in a circle; and while one waits for its twin it has no lock and no slot that the twin, here
// or in another process, could be waiting for.

// twin returns a flight that the flight of a missing layer is to wait for, nil if there is none.
// The caller holds s.mu.
func (s *Store) twin(l planLayer) *flight {
	if _, empty := emptyDiffIDs[l.diffID]; empty || l.donor != nil {
		return nil
	}
	for _, f := range s.flights {
		if f.layer.diffID == l.diffID && f.twin == nil {
			return f
		}
	}
	return nil
}

// awaitTwin waits until there is nothing to be waited for. The caller has no lock.
func (f *flight) awaitTwin(ctx context.Context) error {
	t := f.twin
	if t == nil {
		return nil
	}
	f.giveTicket()
	f.setStage(StageWaiting)
	return t.await(ctx, func() bool { return t.landed || t.failed || t.gone })
}

// landedTwin returns the layer that the twin brought, and a lease of it; nil if it brought none.
func (f *flight) landedTwin() (*Layer, *lease) {
	if f.twin == nil {
		return nil, nil
	}
	d := f.s.dir
	l, err := d.readLayer(f.twin.layer.chain)
	if err != nil || l.Recipe == nil {
		return nil, nil
	}
	lease, err := d.lease(l.chains())
	if err != nil {
		return nil, nil // the layer can be fetched
	}
	if again, err := d.readLayer(l.Chain); err != nil || again.In != l.In || !d.isComplete(l.Chain) {
		lease.release()
		return nil, nil
	}
	return l, lease
}
