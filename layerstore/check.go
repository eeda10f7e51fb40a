package layerstore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"

	"github.com/opencontainers/go-digest"

	"vic/vmdk"
)

// CheckOptions are how thorough Check is.
type CheckOptions struct {
	// Deep reads every byte of every disk and compares it with the checksum in
	// the layer's record, reads the whole directory tree of every image, and rebuilds
	// every layer's tar from its disk, which must have the layer's diff ID.
	// Without it all metadata is read: records, descriptors, grain tables.
	Deep bool
	// Progress is told, by the goroutine that called Check, how far it has come. nil is
	// silent.
	Progress func(CheckProgress)
}

// A CheckProgress is how far a Check has come. Bytes are counted if it is deep.
type CheckProgress struct {
	Layers, TotalLayers int
	Bytes, TotalBytes   int64
}

// Check verifies the store and tells report, from the calling goroutine, what is
// wrong: the base disk, each layer's record and disk, that each layer's parent is
// there, each image, that its layers are there, each name and its image, each
// container's disk, each volume. Pulls and removals may go on meanwhile. The error says that
// it could not do its work; it is nil however many findings there are.
func (s *Store) Check(ctx context.Context, o CheckOptions, report func(Finding)) error {
	if err := s.newChecker(o, report).run(ctx); err != nil {
		return fmt.Errorf("check store: %w", err)
	}
	return nil
}

type checker struct {
	s *Store
	d Dir
	o CheckOptions
	*census
	tell     func(Finding)
	only     map[digest.Digest]bool   // if not nil, the layers that are read in full
	records  map[digest.Digest]*Layer // readable ones
	bad      map[digest.Digest]bool   // layers about which there are findings
	baseBad  bool
	progress CheckProgress
}

func (s *Store) newChecker(o CheckOptions, report func(Finding)) *checker {
	return &checker{s: s, d: s.dir, o: o, tell: report, records: make(map[digest.Digest]*Layer), bad: make(map[digest.Digest]bool)}
}

func (c *checker) run(ctx context.Context) error {
	chains, lease, err := c.leaseAll()
	if err != nil {
		return err
	}
	defer lease.release()
	if c.census, err = c.d.censusOf(); err != nil {
		return err
	}
	for _, step := range []func(context.Context) error{
		c.checkImages, c.checkBase,
		func(ctx context.Context) error { return c.checkLayers(ctx, chains) },
		c.checkDisks, c.checkNames, c.checkContainers, c.checkVolumes, c.checkClaims, c.checkTmp,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// leaseAll keeps sweeps from taking away what is being looked at.
func (c *checker) leaseAll() ([]digest.Digest, *lease, error) {
	lock, err := c.d.lockShared()
	if err != nil {
		return nil, nil, err
	}
	defer lock.unlock()
	chains, err := c.d.chains()
	if err != nil {
		return nil, nil, err
	}
	l, err := c.d.lease(chains)
	return chains, l, err
}

func (c *checker) checkBase(ctx context.Context) error {
	path := c.d.disk("")
	desc, err := c.d.readDescriptor(path)
	if err != nil {
		c.base(path, "%v", err)
		return nil
	}
	if desc.ParentCID != vmdk.NoParent || desc.Capacity() != c.s.info.Capacity {
		c.base(path, "has a parent, or %d bytes instead of %d", desc.Capacity(), c.s.info.Capacity)
	}
	return c.checkExtent(ctx, "", desc, c.s.info.BaseSum, c.base)
}

// A damageReport reports damage to one thing.
type damageReport func(path, format string, args ...any)

func (c *checker) reportLayer(chain digest.Digest) damageReport {
	return func(path, format string, args ...any) { c.layer(chain, path, format, args...) }
}

func (c *checker) checkLayers(ctx context.Context, chains []digest.Digest) error {
	for _, chain := range chains {
		l, err := c.d.readLayer(chain)
		if err != nil {
			c.layer(chain, c.d.layer(chain), "%v", err)
			continue
		}
		c.records[chain] = l
	}
	c.plan(chains)
	for _, chain := range chains {
		if err := ctx.Err(); err != nil {
			return err
		}
		if l := c.records[chain]; l != nil {
			if err := errors.Join(c.checkLayer(ctx, l), c.checkStrays(chain)); err != nil {
				return err
			}
		}
		c.progress.Layers++
		c.advance(0)
	}
	if !c.o.Deep {
		return nil
	}
	for _, chain := range chains {
		if !c.isTainted(chain) { // what a damaged disk shows is no news
			if err := c.rebuild(ctx, c.records[chain]); err != nil {
				return err
			}
		}
	}
	for _, id := range slices.Sorted(maps.Keys(c.images)) {
		img := c.images[id]
		if c.isTainted(img.Chain()) || !slices.ContainsFunc(img.Layers, func(l ImageLayer) bool { return c.deep(l.Chain) }) {
			continue
		}
		if err := c.walk(ctx, img); err != nil {
			return err
		}
	}
	return nil
}

// isTainted tells whether there are findings about a layer, one below, or the flattened one
// that has its data.
func (c *checker) isTainted(chain digest.Digest) bool {
	if c.baseBad {
		return true
	}
	for chain != "" {
		l := c.records[chain]
		if l == nil || c.bad[chain] || c.bad[l.In] {
			return true
		}
		chain = l.Parent
	}
	return false
}

// checkLayer checks a layer's record against its parent's and its disk against
// both.
func (c *checker) checkLayer(ctx context.Context, l *Layer) error {
	path, damaged := c.d.layer(l.Chain), c.reportLayer(l.Chain)
	below, index := digest.Digest(""), 0
	if l.Parent != "" {
		p := c.records[l.Parent]
		if p == nil {
			p, _ = c.d.readLayer(l.Parent) // a pull may have brought both while the folder was read
		}
		if p == nil {
			c.lost(l, l.Parent, "layer %s below is missing or damaged", l.Parent)
			return nil
		}
		below, index = p.Disk, p.Index
	}
	if err := c.checkRecipe(ctx, l); err != nil {
		return err
	}
	if l.Empty() {
		if l.Disk != below || l.Index != index {
			damaged(path, "empty, but its disk %q is not that of the layer below", l.Disk)
		}
		return nil
	}
	if l.In != "" {
		c.checkAbsorbed(l)
		return nil
	}
	if l.Index != index+1 && c.s.info.Depth != 0 {
		damaged(path, "index %d over one of %d", l.Index, index)
	}
	path = c.d.disk(l.Chain)
	desc, err := c.d.readDescriptor(path)
	if err != nil {
		damaged(path, "%v", err)
		return nil
	}
	switch parent, err := c.d.parentDisk(l.Chain, desc); {
	case isFlat(desc):
		if desc.ParentCID != vmdk.NoParent {
			damaged(path, "flattened, but has a parent")
		}
	case err != nil:
		damaged(path, "%v", err)
	case !c.isBelow(l, parent):
		damaged(path, "its parent is the disk of %q, which is no layer below", parent)
	default:
		pdesc, err := c.d.readDescriptor(c.d.disk(parent))
		if err == nil && !c.checkParentCID(parent, pdesc, desc) {
			damaged(path, "made over CID %08x; the disk below has CID %08x", desc.ParentCID, pdesc.CID)
		}
		if err == nil && pdesc.Capacity() != desc.Capacity() {
			damaged(path, "made over %d bytes; the disk below has %d", desc.Capacity(), pdesc.Capacity())
		}
	}
	size, sum := l.extentRecord(desc)
	if extent, err := c.d.extentInUse(l.Chain, desc); err == nil {
		if fi, err := os.Stat(extent); err == nil && fi.Size() != size {
			damaged(extent, "%d bytes, %d in the record", fi.Size(), size)
			return nil
		}
	}
	return c.checkExtent(ctx, l.Chain, desc, sum, damaged)
}

// checkStrays reports files of a layer that are of no use, unless somebody is at it.
func (c *checker) checkStrays(chain digest.Digest) error {
	strays, err := c.d.strays(chain)
	if len(strays) == 0 || err != nil {
		return err
	}
	lock, err := c.d.tryLockChain(chain)
	if lock == nil || err != nil {
		return err
	}
	defer lock.unlock()
	strays, err = c.d.strays(chain)
	for _, path := range strays {
		c.report(Finding{About: AboutFile, ID: chain.String(), Path: path, Problem: "its layer does not use it", Advice: "vic gc", Harmless: true})
	}
	return err
}

// checkAbsorbed checks a layer whose data is in the flattened disk of another above.
func (c *checker) checkAbsorbed(l *Layer) {
	if c.isAbsorbed(l) {
		return
	}
	c.lost(l, l.Chain, "its data is said to be in layer %s, which is no flattened one above", l.In)
}

// lost reports a layer of which another one, that it cannot be without, is gone; what is to be
// mended is the layer about. If nothing needs l, that is what a crash leaves of a removal.
func (c *checker) lost(l *Layer, about digest.Digest, format string, args ...any) {
	path := c.d.layer(l.Chain)
	if len(c.users[l.Chain]) == 0 && len(c.pinsOf(l.Chain)) == 0 {
		c.report(Finding{About: AboutLayer, ID: l.Chain.String(), Path: path, Problem: fmt.Sprintf(format, args...), Advice: "vic gc", Harmless: true})
		return
	}
	c.layer(about, path, format, args...)
}

// isLost tells whether a layer is one of those that lost reports, or above one.
func (c *checker) isLost(l *Layer) bool {
	for ; l != nil; l = c.records[l.Parent] {
		if l.In != "" && !c.isAbsorbed(l) {
			return true
		}
		if l.Parent == "" {
			return false
		}
	}
	return true
}

// isAbsorbed tells whether the layer that has l's data is a flattened one above it.
func (c *checker) isAbsorbed(l *Layer) bool {
	in := c.records[l.In]
	above := in
	for above != nil && above.Parent != l.Chain {
		above = c.records[above.Parent]
	}
	return above != nil && in.Flat != nil
}

// checkParentCID tells whether a disk was made over the one that is below it. If not, and it
// is that one whose CID is wrong, it reports that.
func (c *checker) checkParentCID(parent digest.Digest, below, above *vmdk.Descriptor) bool {
	if below.CID == above.ParentCID {
		return true
	}
	if above.ParentCID != c.s.info.cidOf(parent) {
		return false
	}
	report := c.base
	if parent != "" {
		report = c.reportLayer(parent)
	}
	report(c.d.disk(parent), "its CID is %08x, a disk was made over %08x", below.CID, above.ParentCID)
	return true
}

// isBelow tells whether a disk is the base disk or that of a layer below l.
func (c *checker) isBelow(l *Layer, disk digest.Digest) bool {
	for disk != "" {
		if l = c.records[l.Parent]; l == nil {
			return false
		}
		if l.Disk == disk {
			break
		}
	}
	return true
}

// checkRecipe checks the file that a layer's tar is rebuilt by.
func (c *checker) checkRecipe(ctx context.Context, l *Layer) error {
	if l.Recipe == nil {
		return nil
	}
	path, damaged := c.d.recipe(l.Chain), c.reportLayer(l.Chain)
	f, err := os.Open(path)
	if err != nil {
		damaged(path, "%v", err)
		return nil
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if want := l.Recipe.Skeleton + l.Recipe.Sources; fi.Size() != want {
		damaged(path, "%d bytes, %d in the record", fi.Size(), want)
		return nil
	}
	if c.deep(l.Chain) {
		return c.compareSum(ctx, f, fi.Size(), l.Recipe.Sum, damaged)
	}
	return nil
}

// checkExtent checks an extent file by itself.
func (c *checker) checkExtent(ctx context.Context, disk digest.Digest, desc *vmdk.Descriptor, sum uint32, damaged damageReport) error {
	path, err := c.d.extentInUse(disk, desc)
	if err != nil {
		damaged(c.d.disk(disk), "%v", err)
		return nil
	}
	e, f, err := c.d.openExtent(disk, desc)
	if err != nil {
		damaged(path, "%v", err)
		return nil
	}
	defer f.Close()
	if err := e.Check(); err != nil {
		damaged(path, "%v", err)
	}
	if !c.deep(disk) && disk != "" || !c.o.Deep {
		return nil
	}
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	return c.compareSum(ctx, f, fi.Size(), sum, damaged)
}
