package layerstore

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"

	"vic/vmdk"
)

// A commit makes a layer visible whose files wait in tmp, complete and durable.
type commit struct {
	layer *Layer
	err   error
	done  chan struct{} // closed when the layer is visible, or err says why not
}

// A committer commits layers in the order in which they are enqueued, parents
// before children. Those that wait while others are committed go together, and
// share the two folder syncs that a commit costs.
type committer struct {
	mu    sync.Mutex
	queue []*commit
	busy  bool // somebody runs the queue
}

func (q *committer) enqueue(l *Layer) *commit {
	c := &commit{layer: l, done: make(chan struct{})}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.queue = append(q.queue, c)
	return c
}

// run returns when c is done. The first to come does the work of all that are
// in the queue by then.
func (q *committer) run(d Dir, c *commit) error {
	q.mu.Lock()
	for !q.busy && len(q.queue) > 0 {
		q.busy = true
		batch := q.queue
		q.queue = nil
		q.mu.Unlock()
		d.publish(batch)
		q.mu.Lock()
		q.busy = false
	}
	q.mu.Unlock()
	<-c.done
	return c.err
}

// publish moves the files of layers from tmp to where they belong: disks first,
// then, when these are durable, the records, whose names are the commit.
func (d Dir) publish(batch []*commit) {
	defer func() {
		for _, c := range batch {
			close(c.done)
		}
	}()
	each := func(step func(*Layer) error) {
		for _, c := range batch {
			if c.err == nil {
				c.err = step(c.layer)
			}
		}
	}
	each(func(l *Layer) error {
		if l.Recipe != nil {
			if err := os.Rename(d.tmpRecipe(l.Chain), d.recipe(l.Chain)); err != nil {
				return err
			}
		}
		if l.Empty() {
			return nil
		}
		if err := os.Rename(d.tmpExtent(l.Chain), d.extent(l.Chain)); err != nil {
			return err
		}
		return os.Rename(d.tmpDisk(l.Chain), d.disk(l.Chain))
	})
	err := syncDir(d.disks())
	each(func(l *Layer) error {
		if err != nil {
			return err
		}
		if l.Parent != "" {
			if there, err := exists(d.layer(l.Parent)); err != nil {
				return err
			} else if !there {
				return fmt.Errorf("commit: layer %s below is not there", l.Parent)
			}
		}
		return os.Rename(d.tmpLayer(l.Chain), d.layer(l.Chain))
	})
	err = syncDir(d.layers())
	each(func(*Layer) error { return err })
}

// makeDurable syncs the files of a layer in tmp, and writes those that are not
// there yet: its descriptor, and last its record. desc is nil if it is empty.
func (d Dir) makeDurable(l *Layer, desc *vmdk.Descriptor) error {
	if l.Recipe != nil {
		if err := sealFile(d.tmpRecipe(l.Chain)); err != nil {
			return err
		}
	}
	if l.Empty() {
		if err := removeAll(d.tmpExtent(l.Chain)); err != nil {
			return err
		}
		return writeSynced(d.tmpLayer(l.Chain), l.marshal(), 0o600)
	}
	if err := sealFile(d.tmpExtent(l.Chain)); err != nil {
		return err
	}
	text, err := desc.Marshal()
	if err != nil {
		return err
	}
	if err := writeSynced(d.tmpDisk(l.Chain), text, diskMode); err != nil {
		return err
	}
	return writeSynced(d.tmpLayer(l.Chain), l.marshal(), 0o600)
}

// sealFile is seal for a file by its name.
func sealFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(seal(f), f.Close())
}

// serves tells whether a layer is in the store for an image that has those above: with a disk
// of its own, or in the flattened disk of one of these.
func (d Dir) serves(chain digest.Digest, above []planLayer) bool {
	if d.isComplete(chain) {
		return true
	}
	l, err := d.readLayer(chain)
	return err == nil && l.In != "" &&
		slices.ContainsFunc(above, func(p planLayer) bool { return p.chain == l.In }) && d.isComplete(l.In)
}

// isComplete tells whether a layer is in the store, so far as can be told without
// reading disks. What is damaged, or made over another parent than is there now,
// counts as missing: a pull then puts a new one in its place.
func (d Dir) isComplete(chain digest.Digest) bool {
	l, err := d.readLayer(chain)
	if err != nil {
		return false
	}
	if l.Parent != "" {
		if there, err := exists(d.layer(l.Parent)); !there || err != nil {
			return false
		}
	}
	if l.Recipe != nil {
		fi, err := os.Stat(d.recipe(chain))
		if err != nil || fi.Size() != l.Recipe.Skeleton+l.Recipe.Sources {
			return false
		}
	}
	if l.Empty() {
		return true
	}
	if l.In != "" {
		return false
	}
	desc, err := d.readDescriptor(d.disk(chain))
	if err != nil {
		return false
	}
	path, err := d.extentInUse(chain, desc)
	if err != nil {
		return false
	}
	size, _ := l.extentRecord(desc)
	if fi, err := os.Stat(path); err != nil || fi.Size() != size {
		return false
	}
	if isFlat(desc) {
		return desc.ParentCID == vmdk.NoParent
	}
	below, err := d.parentDisk(chain, desc)
	if err != nil {
		return false
	}
	parent, err := d.readDescriptor(d.disk(below))
	return err == nil && parent.CID == desc.ParentCID
}
