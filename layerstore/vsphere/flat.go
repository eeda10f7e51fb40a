//go:build linux

package vsphere

import (
	"context"
	"io"
	"path"

	"vic/layerstore"
	"vic/vmdk"
)

// sendFlat imports what a whole chain shows as one disk.
func (s *Store) sendFlat(ctx context.Context, from *layerstore.Store, d *disk) error {
	select {
	case s.sending <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-s.sending }()
	chain, err := from.OpenDisk(d.chain)
	if err != nil {
		return err
	}
	defer chain.Close() // read only
	bound, err := chain.StreamBound()
	if err != nil {
		return err
	}
	d.total.Store(bound)
	file := d.name + ".vmdk"
	err = s.d.importDisk(ctx, s.place, imported{
		name: path.Join(disksFolder, file), capacity: chain.Capacity(), bound: bound, progress: d.sent.Store,
		write: func(w io.Writer) error { return chain.WriteStream(w, file, vmdk.CIDFor(d.name)) },
	})
	if err != nil {
		return err
	}
	d.total.Store(d.sent.Load())
	return s.recordMade(ctx, d)
}

// recordMade writes the record of a disk that the server made.
func (s *Store) recordMade(ctx context.Context, d *disk) error {
	rec := diskRecord{Chain: d.chain, Parent: d.below()}
	var err error
	if rec.CID, rec.Extent, rec.Size, err = s.describe(ctx, d.name); err != nil {
		return err
	}
	return s.putJSON(ctx, path.Join(disksFolder, d.name+".json"), rec)
}
