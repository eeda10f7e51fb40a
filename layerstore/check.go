package layerstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"

	"vic/diskfs"
	"vic/vmdk"
)

// A Finding is something that Check does not like.
type Finding struct {
	Path    string // the file or folder
	Problem string // what is wrong with it
	Advice  string // what to do about it
	// Harmless is set for what only takes up space: what crashes leave.
	Harmless bool
}

// CheckOptions are how thorough Check is.
type CheckOptions struct {
	// Deep reads every byte of every disk and compares it with the checksum in
	// the layer's record, reads the whole directory tree of every image, and rebuilds
	// every layer's tar from its disk, which must have the layer's diff ID.
	// Without it all metadata is read: records, descriptors, grain tables.
	Deep bool
}

// Check verifies the store and tells report, from the calling goroutine, what is
// wrong: the base disk, each layer's record and disk, that each layer's parent is
// there, each image, that its layers are there, each name and its image, each
// container's disk. Pulls and removals may go on meanwhile. The error says that
// it could not do its work; it is nil however many findings there are.
func (s *Store) Check(ctx context.Context, o CheckOptions, report func(Finding)) error {
	c := checker{
		s: s, d: s.dir, o: o, report: report,
		records: make(map[digest.Digest]*Layer),
		images:  make(map[digest.Digest]*Image),
		users:   make(map[digest.Digest]string),
	}
	if err := c.run(ctx); err != nil {
		return fmt.Errorf("check store: %w", err)
	}
	return nil
}

type checker struct {
	s       *Store
	d       Dir
	o       CheckOptions
	report  func(Finding)
	found   int                      // findings that are not harmless
	records map[digest.Digest]*Layer // readable ones
	images  map[digest.Digest]*Image // readable ones
	users   map[digest.Digest]string // an image of each layer, to name in advice
}

func (c *checker) run(ctx context.Context) error {
	chains, lease, err := c.leaseAll()
	if err != nil {
		return err
	}
	defer lease.release()
	for _, step := range []func(context.Context) error{
		c.checkImages, c.checkBase,
		func(ctx context.Context) error { return c.checkLayers(ctx, chains) },
		c.checkDisks, c.checkNames, c.checkContainers, c.checkTmp,
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

func (c *checker) find(path, advice, format string, args ...any) {
	c.found++
	c.report(Finding{Path: path, Problem: fmt.Sprintf(format, args...), Advice: advice})
}

// again is what to do about a damaged layer. Nothing has to be removed that a
// container needs: the pull puts the same bytes in place.
func (c *checker) again(chain digest.Digest) string {
	user := c.users[chain]
	if user == "" {
		return "nothing needs it: vic gc"
	}
	return fmt.Sprintf("remove %s and pull %s again", c.d.layer(chain), user)
}

func (c *checker) checkImages(ctx context.Context) error {
	names, err := c.d.allNames(func(error) {}) // checkNames reports them
	if err != nil {
		return err
	}
	ids, err := c.d.imageIDs()
	if err != nil {
		return err
	}
	for _, id := range ids {
		if err := ctx.Err(); err != nil {
			return err
		}
		img, err := c.d.readImage(id)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		user := id.String()
		if refs := names[id]; len(refs) > 0 {
			user = refs[0].String()
		}
		if err != nil {
			c.find(c.d.image(id), fmt.Sprintf("pull %s again", user), "%v", err)
			continue
		}
		c.images[id] = img
		for _, l := range img.Layers {
			c.users[l.Chain] = user
		}
	}
	for id, img := range c.images {
		for _, l := range img.Layers {
			there, err := exists(c.d.layer(l.Chain))
			if err != nil {
				return err
			}
			if still, err := exists(c.d.image(id)); !there && still && err == nil {
				c.find(c.d.image(id), fmt.Sprintf("pull %s again", c.users[l.Chain]), "layer %s is missing", l.Chain)
			}
		}
	}
	return nil
}

func (c *checker) checkBase(ctx context.Context) error {
	const advice = "restore it from a backup, or make a new store"
	path := c.d.disk("")
	desc, err := c.d.readDescriptor(path)
	if err != nil {
		c.find(path, advice, "%v", err)
		return nil
	}
	if desc.ParentCID != vmdk.NoParent || desc.Capacity() != c.s.info.Capacity {
		c.find(path, advice, "has a parent, or %d bytes instead of %d", desc.Capacity(), c.s.info.Capacity)
	}
	return c.checkExtent(ctx, "", desc, c.s.info.BaseSum, advice)
}

func (c *checker) checkLayers(ctx context.Context, chains []digest.Digest) error {
	for _, chain := range chains {
		l, err := c.d.readLayer(chain)
		if err != nil {
			c.find(c.d.layer(chain), c.again(chain), "%v", err)
			continue
		}
		c.records[chain] = l
	}
	for _, chain := range chains {
		if err := ctx.Err(); err != nil {
			return err
		}
		if l := c.records[chain]; l != nil {
			if err := errors.Join(c.checkLayer(ctx, l), c.checkStrays(chain)); err != nil {
				return err
			}
		}
	}
	if !c.o.Deep || c.found > 0 {
		return nil // what a damaged disk shows is no news
	}
	for _, chain := range chains {
		if err := c.rebuild(ctx, c.records[chain]); err != nil {
			return err
		}
	}
	for _, img := range c.images {
		if err := c.walk(ctx, img); err != nil {
			return err
		}
	}
	return nil
}

// checkLayer checks a layer's record against its parent's and its disk against
// both.
func (c *checker) checkLayer(ctx context.Context, l *Layer) error {
	path := c.d.layer(l.Chain)
	below, index := digest.Digest(""), 0
	if l.Parent != "" {
		p := c.records[l.Parent]
		if p == nil {
			p, _ = c.d.readLayer(l.Parent) // a pull may have brought both while the folder was read
		}
		if p == nil {
			c.findLost(l, c.again(l.Parent), fmt.Sprintf("layer %s below is missing or damaged", l.Parent))
			return nil
		}
		below, index = p.Disk, p.Index
	}
	if err := c.checkRecipe(ctx, l); err != nil {
		return err
	}
	if l.Empty() {
		if l.Disk != below || l.Index != index {
			c.find(path, c.again(l.Chain), "empty, but its disk %q is not that of the layer below", l.Disk)
		}
		return nil
	}
	if l.In != "" {
		c.checkAbsorbed(l)
		return nil
	}
	if l.Index != index+1 && c.s.info.Depth != 0 {
		c.find(path, c.again(l.Chain), "index %d over one of %d", l.Index, index)
	}
	path = c.d.disk(l.Chain)
	desc, err := c.d.readDescriptor(path)
	if err != nil {
		c.find(path, c.again(l.Chain), "%v", err)
		return nil
	}
	switch parent, err := c.d.parentDisk(l.Chain, desc); {
	case isFlat(desc):
		if desc.ParentCID != vmdk.NoParent {
			c.find(path, c.again(l.Chain), "flattened, but has a parent")
		}
	case err != nil:
		c.find(path, c.again(l.Chain), "%v", err)
	case !c.isBelow(l, parent):
		c.find(path, c.again(l.Chain), "its parent is the disk of %q, which is no layer below", parent)
	default:
		pdesc, err := c.d.readDescriptor(c.d.disk(parent))
		if err == nil && (pdesc.CID != desc.ParentCID || pdesc.Capacity() != desc.Capacity()) {
			c.find(path, c.again(l.Chain), "made over CID %08x and %d bytes; the disk below has CID %08x and %d bytes",
				desc.ParentCID, desc.Capacity(), pdesc.CID, pdesc.Capacity())
		}
	}
	size, sum := l.extentRecord(desc)
	if extent, err := c.d.extentInUse(l.Chain, desc); err == nil {
		if fi, err := os.Stat(extent); err == nil && fi.Size() != size {
			c.find(extent, c.again(l.Chain), "%d bytes, %d in the record", fi.Size(), size)
			return nil
		}
	}
	return c.checkExtent(ctx, l.Chain, desc, sum, c.again(l.Chain))
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
		c.report(Finding{Path: path, Problem: "its layer does not use it", Advice: "vic gc", Harmless: true})
	}
	return err
}

// checkAbsorbed checks a layer whose data is in the flattened disk of another above.
func (c *checker) checkAbsorbed(l *Layer) {
	if c.isAbsorbed(l) {
		return
	}
	c.findLost(l, c.again(l.Chain), fmt.Sprintf("its data is said to be in layer %s, which is no flattened one above", l.In))
}

// findLost reports a layer of which another one, that it cannot be without, is gone. If
// nothing needs it, that is what a crash leaves of a removal.
func (c *checker) findLost(l *Layer, advice, problem string) {
	path := c.d.layer(l.Chain)
	if c.users[l.Chain] == "" {
		c.report(Finding{Path: path, Problem: problem, Advice: "vic gc", Harmless: true})
		return
	}
	c.find(path, advice, "%s", problem)
}

// isLost tells whether a layer is one of those that findLost reports, or above one.
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
	path := c.d.recipe(l.Chain)
	f, err := os.Open(path)
	if err != nil {
		c.find(path, c.again(l.Chain), "%v", err)
		return nil
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if want := l.Recipe.Skeleton + l.Recipe.Sources; fi.Size() != want {
		c.find(path, c.again(l.Chain), "%d bytes, %d in the record", fi.Size(), want)
		return nil
	}
	if c.o.Deep {
		return c.compareSum(ctx, f, path, fi.Size(), l.Recipe.Sum, c.again(l.Chain))
	}
	return nil
}

// rebuild makes a layer's tar again from its disk: that it has the diff ID says that
// nothing of the layer was lost.
func (c *checker) rebuild(ctx context.Context, l *Layer) error {
	if l == nil || l.Recipe == nil {
		return nil
	}
	if c.isLost(l) {
		return nil // and reported
	}
	if err := c.d.writeTar(ctx, l, io.Discard); err != nil && ctx.Err() == nil {
		if there, _ := exists(c.d.layer(l.Chain)); there {
			c.find(c.d.recipe(l.Chain), c.again(l.Chain), "the layer's tar cannot be rebuilt: %v", err)
		}
	}
	return ctx.Err()
}

// checkExtent checks an extent file by itself.
func (c *checker) checkExtent(ctx context.Context, disk digest.Digest, desc *vmdk.Descriptor, sum uint32, advice string) error {
	path, err := c.d.extentInUse(disk, desc)
	if err != nil {
		c.find(c.d.disk(disk), advice, "%v", err)
		return nil
	}
	e, f, err := c.d.openExtent(disk, desc)
	if err != nil {
		c.find(path, advice, "%v", err)
		return nil
	}
	defer f.Close()
	if err := e.Check(); err != nil {
		c.find(path, advice, "%v", err)
	}
	if !c.o.Deep {
		return nil
	}
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	return c.compareSum(ctx, f, path, fi.Size(), sum, advice)
}

// compareSum reads a file and compares its checksum with that of the record.
func (c *checker) compareSum(ctx context.Context, f *os.File, path string, size int64, sum uint32, advice string) error {
	got, err := checksum(ctx, f, size)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		c.find(path, advice, "%v", err)
	} else if got != sum {
		c.find(path, advice, "checksum is %08x, %08x in the record", got, sum)
	}
	return nil
}

// walk reads the directory tree of an image.
func (c *checker) walk(ctx context.Context, img *Image) error {
	f, err := c.s.FS(img)
	if err != nil {
		return c.walkFailed(ctx, img, err)
	}
	defer f.Close()
	err = fs.WalkDir(f, ".", func(name string, e fs.DirEntry, err error) error {
		if err == nil {
			_, err = e.Info()
		}
		if err == nil {
			_, err = f.Xattrs(name)
		}
		if err == nil {
			err = ctx.Err()
		}
		return err
	})
	return c.walkFailed(ctx, img, err)
}

func (c *checker) walkFailed(ctx context.Context, img *Image, err error) error {
	if err == nil || ctx.Err() != nil {
		return ctx.Err()
	}
	path, pathErr := c.s.DiskPath(img)
	if pathErr != nil {
		path = c.d.image(img.ID)
	}
	var fe *diskfs.FormatError
	if there, _ := exists(c.d.image(img.ID)); there || errors.As(err, &fe) {
		c.find(path, "its disks are as they were written: report this as a bug", "file system: %v", err)
	}
	return nil
}

// checkDisks looks for files without a record.
func (c *checker) checkDisks(ctx context.Context) error {
	names, err := listDir(c.d.disks())
	if err != nil {
		return err
	}
	for _, name := range names {
		path := filepath.Join(c.d.disks(), name)
		if name == baseName+".vmdk" || name == baseName+extentSuffix {
			continue
		}
		chain, ok := parseDiskName(name)
		if !ok {
			c.find(path, "find out where it comes from, and move it elsewhere", "is no disk of a layer")
			continue
		}
		if err := c.checkOrphan(path, chain); err != nil {
			return err
		}
	}
	return nil
}

// checkOrphan reports a disk file without a record, unless somebody is at it.
func (c *checker) checkOrphan(path string, chain digest.Digest) error {
	if there, err := exists(c.d.layer(chain)); there || err != nil {
		return err
	}
	lock, err := c.d.tryLockChain(chain)
	if lock == nil || err != nil {
		return err
	}
	defer lock.unlock()
	if there, err := exists(c.d.layer(chain)); there || err != nil {
		return err
	}
	if there, err := exists(path); !there || err != nil {
		return err
	}
	c.report(Finding{Path: path, Problem: "its layer has no record", Advice: "vic gc", Harmless: true})
	return nil
}

func (c *checker) checkNames(ctx context.Context) error {
	files, err := listDir(c.d.names())
	if err != nil {
		return err
	}
	for _, file := range files {
		path := filepath.Join(c.d.names(), file)
		r, ref, err := c.d.readName(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			c.find(path, "remove it and pull the image again", "%v", err)
			continue
		}
		there, err := exists(c.d.image(r.Image))
		if err != nil {
			return err
		}
		if still, _ := exists(path); !there && still {
			c.find(path, fmt.Sprintf("pull %s again, or remove the file", ref), "image %s is not there", r.Image)
		}
	}
	return nil
}

func (c *checker) checkContainers(ctx context.Context) error {
	ids, err := listDir(c.d.containers())
	if err != nil {
		return err
	}
	for _, id := range ids {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := c.checkContainer(id); err != nil {
			return err
		}
	}
	return nil
}

// checkContainer checks what does not change while a container runs: what its
// disk stands on. Nobody makes or removes a container meanwhile.
func (c *checker) checkContainer(id string) error {
	lock, err := c.d.lockExclusive()
	if err != nil {
		return err
	}
	defer lock.unlock()
	p, err := c.d.readPin(id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it has no disk yet
	}
	remove := fmt.Sprintf("remove container %s", id)
	if err != nil {
		c.find(c.d.pin(id), remove+"; until then no layer can be removed", "%v", err)
		return nil
	}
	advice := fmt.Sprintf("pull image %s again; if that does not help, %s", p.Image, remove)
	for _, chain := range p.Layers {
		if there, err := exists(c.d.layer(chain)); err != nil {
			return err
		} else if !there {
			c.find(c.d.pin(id), advice, "layer %s is missing", chain)
		}
	}
	path := filepath.Join(c.d.container(id), containerDisk)
	desc, err := c.d.readDescriptor(path)
	if errors.Is(err, fs.ErrNotExist) {
		c.report(Finding{Path: c.d.container(id), Problem: "has no disk: making it was interrupted", Advice: remove, Harmless: true})
		return nil
	}
	if err != nil {
		c.find(path, remove, "%v", err)
		return nil
	}
	if want := "../../disks/" + diskName(p.Disk) + ".vmdk"; desc.ParentFileNameHint != want {
		c.find(path, advice, "its parent is %q, not %q", desc.ParentFileNameHint, want)
		return nil
	}
	parent, err := c.d.readDescriptor(c.d.disk(p.Disk))
	if err == nil && parent.CID != desc.ParentCID {
		c.find(path, advice, "made over CID %08x; the disk below has %08x", desc.ParentCID, parent.CID)
	}
	return nil
}

// checkTmp looks for what Open would remove.
func (c *checker) checkTmp(ctx context.Context) error {
	lock, err := c.d.lockExclusive()
	if err != nil {
		return err
	}
	defer lock.unlock()
	names, err := listDir(c.d.tmp())
	if err != nil {
		return err
	}
	for _, name := range names {
		path := filepath.Join(c.d.tmp(), name)
		live := false
		if chain, ok := parseTmpName(name); ok {
			l, err := c.d.tryLockChain(chain)
			if err != nil {
				return err
			}
			if live = l == nil; !live {
				l.unlock()
			}
		} else if strings.HasPrefix(name, leasePrefix) {
			if live, err = isLocked(path); err != nil {
				return err
			}
		} else if strings.HasPrefix(name, trashPrefix) {
			live = true // somebody may be at it
		}
		if !live {
			c.report(Finding{Path: path, Problem: "left by a process that died", Advice: "any vic command removes it", Harmless: true})
		}
	}
	return nil
}
