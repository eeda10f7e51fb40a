//go:build linux

package vsphere

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"vic/layerstore"
	"vic/vmdk"
)

// uploads is how many files are sent at the same time.
const uploads = 4

// A Progress tells of one disk on its way to the datastore.
type Progress struct {
	Chain       digest.Digest // of the layer; "" is the empty file system under all
	Sent, Total int64         // bytes of its extent
}

// A disk is one of an image's chain.
type disk struct {
	chain  digest.Digest
	name   string
	parent string
	desc   *vmdk.Descriptor // what the descriptor is, or was if it is there
	there  bool
	done   chan struct{} // closed when its record is there, or never will be
	ok     bool          // set before done is closed
}

// Published are the disks of an image on a datastore.
type Published struct {
	// Disks are the names of the disks, top first, without the base disk.
	Disks []string
	// Sent is how many bytes of extents were sent.
	Sent int64
}

// Publish brings the disks of an image to the datastore that are not there, several at once, and notes that this
// VCH has the image. What was sent of a layer stays if the rest fails, and is not sent again. Progress, which may be nil, is called from one goroutine at
// a time.
func (s *Store) Publish(ctx context.Context, from *layerstore.Store, img *layerstore.Image, progress func(Progress)) (*Published, error) {
	select {
	case s.publishing <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-s.publishing }()
	p, err := s.publish(ctx, from, img, progress)
	if err != nil {
		return nil, fmt.Errorf("bring image %s to %s: %w", img.ID.Encoded()[:12], s.d.Path("."), err)
	}
	return p, nil
}

func (s *Store) publish(ctx context.Context, from *layerstore.Store, img *layerstore.Image, progress func(Progress)) (_ *Published, err error) {
	top, err := from.OpenDisk(img.Chain())
	if err != nil {
		return nil, err
	}
	defer top.Close() // read only
	chains := top.Chains()
	disks := make([]*disk, len(chains))
	for i, c := range chains {
		disks[i] = &disk{chain: c, done: make(chan struct{})}
	}
	if err := s.look(ctx); err != nil { // others bring disks as well
		return nil, err
	}
	pull := s.own("pulls", newName(img.Chain())+".json")
	defer func() { // names nothing that is needed from there on
		if gone := s.d.Remove(context.WithoutCancel(ctx), pull); !errors.Is(gone, fs.ErrNotExist) {
			err = errors.Join(err, gone)
		}
	}()
	for try := 1; ; try++ {
		gone, err := s.choose(ctx, disks, pull)
		if err != nil {
			return nil, err
		}
		if gone == "" {
			break
		}
		if try == maxChoices {
			return nil, fmt.Errorf("disk %s was removed while it was wanted, the last of %d times", gone, try)
		}
		s.forget(gone)
	}
	var mu sync.Mutex
	p := &Published{}
	g, sending := errgroup.WithContext(ctx)
	g.SetLimit(uploads)
	for i, d := range slices.Backward(disks) { // parents first, so that none waits for one that waits for its turn
		var below *disk
		if i+1 < len(disks) {
			below = disks[i+1]
		}
		if d.there {
			d.ok = true
			close(d.done)
			continue
		}
		g.Go(func() error {
			defer close(d.done)
			n, err := s.send(sending, from, d, below, func(pr Progress) {
				if progress != nil {
					mu.Lock()
					defer mu.Unlock()
					progress(pr)
				}
			})
			mu.Lock()
			p.Sent += n
			mu.Unlock()
			d.ok = err == nil
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for _, d := range disks {
		p.Disks = append(p.Disks, d.name)
	}
	return p, s.putJSON(ctx, s.own("images", img.ID.Encoded()+".json"), imageRecord{img.ID, p.Disks})
}

// maxChoices bounds how often disks are removed by others between being found and being wanted.
const maxChoices = 8

// choose finds for each disk the one that is on the datastore, or names a new one, and says in the file pull that they are
// wanted. It returns the name of one that was removed meanwhile, if any was.
func (s *Store) choose(ctx context.Context, disks []*disk, pull string) (gone string, err error) {
	parent, below := baseName, s.base
	var names []string
	for _, d := range slices.Backward(disks) {
		cid := vmdk.CIDFor("vsphere " + d.chain.String())
		d.parent = parent
		if d.name, err = s.find(ctx, d.chain, parent, cid); err != nil {
			return "", err
		}
		if d.there = d.name != ""; !d.there {
			d.name = newName(d.chain)
		}
		d.desc = s.child(below, d.name+"-delta.vmdk", parent+".vmdk", cid)
		parent, below = d.name, d.desc
		names = append(names, d.name)
	}
	if err := s.putJSON(ctx, pull, names); err != nil {
		return "", err
	}
	for _, d := range disks {
		if !d.there {
			continue
		}
		if _, err := s.record(ctx, d.name); errors.Is(err, fs.ErrNotExist) {
			return d.name, nil
		} else if err != nil {
			return "", err
		}
	}
	return "", nil
}

// child describes a delta.
func (s *Store) child(parent *vmdk.Descriptor, extent, hint string, cid uint32) *vmdk.Descriptor {
	if s.encoding == Hosted {
		return parent.Child(extent, hint, cid)
	}
	return parent.COWDChild(extent, hint, cid)
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

// find returns the name of a disk of a layer over a parent, "" if there is none.
func (s *Store) find(ctx context.Context, chain digest.Digest, parent string, cid uint32) (string, error) {
	s.mu.Lock()
	candidates := slices.Clone(s.disks[chain])
	s.mu.Unlock()
	for _, name := range candidates {
		rec, err := s.record(ctx, name)
		if errors.Is(err, fs.ErrNotExist) {
			s.forget(name)
			continue
		}
		if err != nil {
			return "", err
		}
		if rec.Chain == chain && rec.Parent == parent && rec.CID == fmt.Sprintf("%08x", cid) {
			return name, nil
		}
	}
	return "", nil
}

// send sends a disk's files: extent, descriptor, and when its parent is there, the record.
func (s *Store) send(ctx context.Context, from *layerstore.Store, d, below *disk, progress func(Progress)) (int64, error) {
	chain, err := from.OpenDisk(d.chain)
	if err != nil {
		return 0, err
	}
	defer chain.Close() // read only
	extent, err := s.extent(chain)
	if err != nil {
		return 0, err
	}
	text, err := d.desc.Marshal()
	if err != nil {
		return 0, err
	}
	file := path.Join(disksFolder, d.name)
	open := func() (io.ReadCloser, error) { return io.NopCloser(io.NewSectionReader(extent, 0, extent.Size())), nil }
	if err := s.d.Put(ctx, file+"-delta.vmdk", extent.Size(), open, func(n int64) { progress(Progress{d.chain, n, extent.Size()}) }); err != nil {
		return 0, err
	}
	if err := s.put(ctx, file+".vmdk", text); err != nil {
		return extent.Size(), err
	}
	if below != nil {
		select {
		case <-below.done:
		case <-ctx.Done():
			return extent.Size(), ctx.Err()
		}
		if !below.ok {
			return extent.Size(), fmt.Errorf("disk %s is not there", below.name)
		}
	}
	rec := diskRecord{Chain: d.chain, Parent: d.parent, CID: fmt.Sprintf("%08x", d.desc.CID), Size: extent.Size()}
	if err := s.putJSON(ctx, file+".json", rec); err != nil {
		return extent.Size(), err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.disks[d.chain] = append(s.disks[d.chain], d.name)
	return extent.Size(), nil
}
