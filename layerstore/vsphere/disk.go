package vsphere

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/opencontainers/go-digest"

	"vic/vmdk"
)

// uploads is how many extents are sent at the same time.
const uploads = 4

// A disk is one of an image's chain: it is on the datastore, or on its way for all publications of this process
// that want it. When the last of these has let go of it before it is there, it is given up.
type disk struct {
	chain  digest.Digest
	name   string
	parent *disk            // nil for the base disk
	desc   *vmdk.Descriptor // what the descriptor is, or was if it is there; nil of a disk that the server makes
	alone  bool             // it has no parent, not even the base disk
	layers int              // how many disks of the local chain it has the content of, if the server makes it

	claim  *claim             // names it
	cancel context.CancelFunc // of sending it
	done   chan struct{}      // closed when its record is there, or never will be
	err    error              // set before done is closed

	sent, total atomic.Int64 // bytes of the extent; total is 0 for one that was there

	users int // guarded by Store.mu
}

// below is the name of a disk's parent, "" if it has none.
func (d *disk) below() string {
	switch {
	case d.alone:
		return ""
	case d.parent == nil:
		return baseName
	}
	return d.parent.name
}

// wait waits until a disk is there. The base disk, nil, is.
func (d *disk) wait(ctx context.Context) error {
	if d == nil {
		return nil
	}
	select {
	case <-d.done:
	case <-ctx.Done():
		return ctx.Err()
	}
	if d.err != nil {
		return fmt.Errorf("the one below is not there: %w", d.err)
	}
	return nil
}

// A claim is a file in the pulls folder, which names disks that are wanted. It goes when nobody holds it.
type claim struct {
	file    string
	holders int // guarded by Store.mu
}

// claim names disks as wanted, for the caller and those disks that it is to protect.
func (s *Store) claim(ctx context.Context, names []string) (*claim, error) {
	c := &claim{file: s.own("pulls", newName("")+".json"), holders: 1}
	return c, s.putJSON(ctx, c.file, names)
}

// drop lets go of a claim.
func (s *Store) drop(ctx context.Context, c *claim) error {
	s.mu.Lock()
	c.holders--
	last := c.holders == 0
	s.mu.Unlock()
	if !last {
		return nil
	}
	return s.d.RemoveAll(ctx, c.file)
}

// A sendKey is what disks on their way are told apart by.
type sendKey struct {
	chain  digest.Digest
	parent string
}

// join returns a disk that is on its way, which the caller leaves, or nil.
func (s *Store) join(key sendKey) *disk {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.coming[key]
	if d == nil || d.users == 0 {
		return nil
	}
	d.users++
	return d
}

// joinAny returns a disk of a layer that is on its way, which the caller leaves, or nil.
func (s *Store) joinAny(chain digest.Digest) *disk {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, d := range s.coming {
		if key.chain == chain && d.users > 0 {
			d.users++
			return d
		}
	}
	return nil
}

// joinAgain joins a disk that somebody uses, which the caller leaves. It is false if nobody does any more.
func (s *Store) joinAgain(d *disk) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d.users == 0 {
		return false
	}
	d.users++
	return true
}

// leave lets go of a disk.
func (s *Store) leave(ctx context.Context, d *disk) error {
	s.mu.Lock()
	d.users--
	last := d.users == 0
	s.mu.Unlock()
	if !last || d.claim == nil {
		return nil
	}
	d.cancel()
	<-d.done
	return s.drop(ctx, d.claim)
}

// child describes a delta.
func (s *Store) child(parent *vmdk.Descriptor, extent, hint string, cid uint32) *vmdk.Descriptor {
	if s.encoding == Hosted {
		return parent.Child(extent, hint, cid)
	}
	return parent.COWDChild(extent, hint, cid)
}
