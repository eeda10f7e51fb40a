//go:build linux

package vsphere

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"path"

	"vic/layerstore"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// start begins to send a disk that c names. It reports false if another like it is on its way already.
func (s *Store) start(ctx context.Context, from *layerstore.Store, d *disk, c *claim) bool {
	key := sendKey{d.chain, d.below()}
	s.mu.Lock()
	defer s.mu.Unlock()
	if other := s.coming[key]; other != nil && other.users > 0 {
		return false
	}
	s.coming[key] = d
	d.claim = c
	c.holders++
	ctx, d.cancel = context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		if d.err = s.send(ctx, from, d); d.err != nil && !errors.As(d.err, new(*FullError)) {
			d.err = fmt.Errorf("disk %s: %w", d.name, d.err)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.coming[key] == d {
			delete(s.coming, key)
		}
		if d.err == nil {
			s.disks[d.chain] = append(s.disks[d.chain], d.name)
		}
		close(d.done)
	}()
	return true
}

// send makes a disk, and then its record.
func (s *Store) send(ctx context.Context, from *layerstore.Store, d *disk) error {
	switch {
	case d.alone:
		return s.sendFlat(ctx, from, d)
	case d.desc == nil:
		return s.sendBlocks(ctx, from, d)
	}
	return s.sendFiles(ctx, from, d)
}

// sendFiles sends a disk's files: extent, descriptor, and when its parent is there, the record.
func (s *Store) sendFiles(ctx context.Context, from *layerstore.Store, d *disk) error {
	size, sum, err := s.sendExtent(ctx, from, d)
	if err == nil {
		err = d.parent.wait(ctx)
	}
	if err != nil {
		if !errors.Is(err, ErrUnavailable) { // else a Sweep finds them
			s.removePart(ctx, d)
		}
		return err
	}
	rec := diskRecord{Chain: d.chain, Parent: d.below(), CID: fmt.Sprintf("%08x", d.desc.CID), Size: size, Sum: &sum}
	return s.putJSON(ctx, path.Join(disksFolder, d.name+".json"), rec)
}

// removePart removes the files of a disk that will not get its record.
func (s *Store) removePart(ctx context.Context, d *disk) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), partingTime)
	defer cancel()
	for _, suffix := range []string{"-delta.vmdk", ".vmdk"} {
		if err := s.d.RemoveAll(ctx, path.Join(disksFolder, d.name+suffix)); err != nil {
			s.log.Warn("remove what was sent of a disk", "disk", d.name, "error", err)
			return
		}
	}
}

// sendExtent sends the extent and the descriptor, when it is its turn. It returns the extent's size and CRC-32C.
func (s *Store) sendExtent(ctx context.Context, from *layerstore.Store, d *disk) (size int64, sum uint32, err error) {
	select {
	case s.sending <- struct{}{}:
	case <-ctx.Done():
		return 0, 0, ctx.Err()
	}
	defer func() { <-s.sending }()
	chain, err := from.OpenDisk(d.chain)
	if err != nil {
		return 0, 0, err
	}
	defer chain.Close() // read only
	extent, err := s.extent(chain)
	if err != nil {
		return 0, 0, err
	}
	text, err := d.desc.Marshal()
	if err != nil {
		return 0, 0, err
	}
	d.total.Store(extent.Size())
	file := path.Join(disksFolder, d.name)
	var crc hash.Hash32
	open := func() (io.ReadCloser, error) {
		crc = crc32.New(castagnoli)
		return io.NopCloser(io.TeeReader(io.NewSectionReader(extent, 0, extent.Size()), crc)), nil
	}
	if err := s.d.Put(ctx, file+"-delta.vmdk", extent.Size(), open, d.sent.Store); err != nil {
		return 0, 0, err
	}
	return extent.Size(), crc.Sum32(), s.put(ctx, file+".vmdk", text)
}

// extent is the extent file of the top disk of a chain, in the store's encoding.
func (s *Store) extent(d *layerstore.Disk) (*io.SectionReader, error) {
	if s.encoding == Hosted {
		return d.Extent()
	}
	c, err := d.COWD(1)
	if err != nil {
		return nil, err
	}
	return io.NewSectionReader(c, 0, c.Size()), nil
}
