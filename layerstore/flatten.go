package layerstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"vic/vmdk"
)

// A Flat is what a layer's record says of the extent file that Flatten made.
type Flat struct {
	// ExtentSize is its length in bytes.
	ExtentSize int64 `json:"extentSize"`
	// Sum is its CRC-32C.
	Sum uint32 `json:"crc32c"`
}

// Flattened is what Flatten did.
type Flattened struct {
	Image   *Image
	Was     int             // disks in the image's chain before; it is one disk now
	Written int64           // bytes of the new disk, 0 if the chain was one disk already
	Merged  []digest.Digest // chain IDs of layers whose own disks were removed, top first
	Freed   int64           // bytes that these, and the image's old top disk, took
}

// Flatten makes the chain of disks of an image one disk, which takes the place of its top
// one: whatever stands on that, images and containers, running or not, stays as it is. The
// layers below keep their records and their recipes, and their tars are rebuilt from the new
// disk, so that the image can be saved and checked as before; those of their disks that
// nothing else stands on are removed. A pull of another image that has such a layer makes
// its disk again, without the network.
//
// Progress, unless it is nil, is told how many of how many bytes are written. After an error
// or a crash the image is as it was, or flattened; what else it leaves, Sweep removes.
func (s *Store) Flatten(ctx context.Context, ref string, progress func(done, total int64)) (*Flattened, error) {
	img, err := s.Image(ref)
	if err != nil {
		return nil, err
	}
	f := &flattening{s: s, d: s.dir, done: &Flattened{Image: img}, progress: progress}
	if err := f.run(ctx); err != nil {
		return nil, fmt.Errorf("flatten %s: %w", ref, err)
	}
	return f.done, nil
}

type flattening struct {
	s        *Store
	d        Dir
	top      *Layer // whose disk is the image's top disk
	done     *Flattened
	progress func(done, total int64)
}

func (f *flattening) run(ctx context.Context) error {
	if err := f.replaceTop(ctx); err != nil || f.top == nil {
		return err
	}
	return f.absorb(ctx)
}

// replaceTop makes the new disk under a lease of the image's layers, which absorb must not meet.
// An image without files leaves top nil.
func (f *flattening) replaceTop(ctx context.Context) error {
	lease, err := f.d.lease(f.done.Image.chains())
	if err != nil {
		return err
	}
	defer lease.release()
	top, err := f.s.stack(f.done.Image.Chain())
	if err != nil {
		return err
	}
	if top.disk == "" {
		f.done.Was = 1
		return nil
	}
	lock, err := f.d.lockChain(ctx, top.disk)
	if err != nil {
		return err
	}
	defer lock.unlock()
	return errors.Join(f.merge(ctx, top.disk), f.d.cleanLayer(top.disk))
}

// merge makes the new disk, if there is none yet, and puts it in place of the layer's own. The
// caller has the layer's lock, and cleans up.
func (f *flattening) merge(ctx context.Context, chain digest.Digest) (err error) {
	if f.top, err = f.d.readLayer(chain); err != nil {
		return err
	}
	disk, err := f.d.openDisk(chain)
	if err != nil {
		return err
	}
	defer disk.Close()
	if f.done.Was = len(disk.links); f.done.Was == 1 {
		return nil
	}
	flat, err := f.write(ctx, disk)
	if err != nil {
		return err
	}
	// The files, then what is known of them, then the descriptor, which decides.
	lock, err := f.d.lockShared()
	if err != nil {
		return err
	}
	defer lock.unlock()
	if err := os.Rename(f.d.tmpFlat(chain), f.d.flat(chain)); err != nil {
		return err
	}
	if err := syncDir(f.d.disks()); err != nil {
		return err
	}
	f.top.Flat = flat
	if err := f.d.replaceFile(f.d.layer(chain), f.top.marshal()); err != nil {
		return err
	}
	desc := vmdk.NewDescriptor(diskName(chain)+flatSuffix, disk.Capacity(), disk.descriptor().CID)
	text, err := desc.Marshal()
	if err != nil {
		return err
	}
	if err := writeSynced(f.d.tmpDisk(chain), text, diskMode); err != nil {
		return err
	}
	if err := os.Rename(f.d.tmpDisk(chain), f.d.disk(chain)); err != nil {
		return err
	}
	if err := syncDir(f.d.disks()); err != nil {
		return err
	}
	f.done.Written = flat.ExtentSize
	f.done.Freed += storedSize(f.d.extent(chain))
	return removeAll(f.d.extent(chain))
}

// write makes the extent file, in tmp.
func (f *flattening) write(ctx context.Context, disk *Disk) (*Flat, error) {
	file, err := createExtentFile(f.d.tmpFlat(f.top.Chain), false)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	w, err := vmdk.NewLayerWriter(file, disk.Capacity())
	if err != nil {
		return nil, err
	}
	var total int64
	for r, err := range disk.Runs(0) {
		if err != nil {
			return nil, err
		}
		total += r.Len
	}
	err = disk.merge(w, len(disk.links), func() error {
		if f.progress != nil {
			f.progress(w.Size(), total)
		}
		return ctx.Err()
	})
	if err != nil {
		return nil, err
	}
	if err := w.Finish(); err != nil {
		return nil, err
	}
	fi, err := file.Stat()
	if err != nil {
		return nil, err
	}
	sum, err := file.checksum(fi.Size())
	if err != nil {
		return nil, err
	}
	return &Flat{ExtentSize: fi.Size(), Sum: sum}, seal(file.File)
}

// absorb removes the disks below the flattened one that nothing else needs.
func (f *flattening) absorb(ctx context.Context) error {
	lock, err := f.d.lockExclusive()
	if err != nil {
		return err
	}
	absorbed, err := f.mark(ctx)
	lock.unlock()
	for _, l := range absorbed {
		f.done.Merged = append(f.done.Merged, l.chain)
		n, strayErr := f.d.removeStrays(l.chain)
		f.done.Freed += n
		err = errors.Join(err, strayErr)
		l.lock.unlock()
	}
	return err
}

// mark notes in the records of layers below the flattened one, whose disks nothing else
// needs, where their data is from now on. The caller holds the store's lock exclusively.
func (f *flattening) mark(ctx context.Context) ([]doomedLayer, error) {
	others, err := f.others()
	if err != nil {
		return nil, err
	}
	var marked []doomedLayer
	for chain := f.top.Parent; chain != ""; {
		if err := ctx.Err(); err != nil {
			return marked, err
		}
		l, err := f.d.readLayer(chain)
		if errors.Is(err, fs.ErrNotExist) {
			return marked, nil // the image was removed meanwhile
		}
		if err != nil {
			return marked, err
		}
		below := l.Parent
		if !l.Empty() && l.In == "" && l.Recipe != nil && !others.need[chain] && others.children[chain] == 0 {
			lock, err := f.d.tryLockChain(chain)
			if err != nil {
				return marked, err
			}
			if lock != nil {
				others.children[others.parent[chain]]--
				l.In, l.Flat = f.top.Chain, nil
				if err := f.d.replaceFile(f.d.layer(chain), l.marshal()); err != nil {
					lock.unlock()
					return marked, err
				}
				marked = append(marked, doomedLayer{chain, lock})
			}
		}
		chain = below
	}
	return marked, nil
}

// A standing is what stands on what.
type standing struct {
	need     map[digest.Digest]bool          // layers that are wanted with a disk of their own
	parent   map[digest.Digest]digest.Digest // of each disk
	children map[digest.Digest]int           // of each disk: disks and containers right above
}

// others finds out which layers' disks must stay: those of images that do not have the
// flattened layer, of leases, and what disks of containers and of other layers stand on.
func (f *flattening) others() (*standing, error) {
	st := &standing{
		need: make(map[digest.Digest]bool), parent: make(map[digest.Digest]digest.Digest), children: make(map[digest.Digest]int),
	}
	if err := f.d.leased(st.need); err != nil {
		return nil, err
	}
	ids, err := f.d.imageIDs()
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		img, err := f.d.readImage(id)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(img.chains(), f.top.Chain) {
			for _, chain := range img.chains() {
				st.need[chain] = true
			}
		}
	}
	chains, err := f.d.chains()
	if err != nil {
		return nil, err
	}
	for _, chain := range chains {
		l, err := f.d.readLayer(chain)
		if err != nil {
			return nil, err
		}
		if l.Empty() || l.In != "" {
			continue
		}
		desc, err := f.d.readDescriptor(f.d.disk(chain))
		if err != nil {
			return nil, err
		}
		if desc.ParentCID == vmdk.NoParent {
			continue
		}
		below, err := f.d.parentDisk(chain, desc)
		if err != nil {
			return nil, err
		}
		st.parent[chain] = below
		st.children[below]++
	}
	pins, err := f.d.pins()
	if err != nil {
		return nil, err
	}
	for _, p := range pins {
		st.children[p.Disk]++
	}
	return st, nil
}

// strays returns the files of a layer in the disks folder that are of no use: what a
// flattening or a pull that was cut short left, or made superfluous. None are said to be of
// a layer that is damaged. The caller has the layer's lock.
func (d Dir) strays(chain digest.Digest) ([]string, error) {
	l, err := d.readLayer(chain)
	if err != nil {
		return nil, nil
	}
	if l.In != "" {
		// A layer above that is being made again stands on this one's disk before their
		// records say so.
		if desc, err := d.readDescriptor(d.disk(l.In)); err != nil || !isFlat(desc) {
			return nil, nil
		}
	}
	used := map[string]bool{d.recipe(chain): l.Recipe != nil}
	if !l.Empty() && l.In == "" {
		desc, err := d.readDescriptor(d.disk(chain))
		if err != nil {
			return nil, nil
		}
		extent, err := d.extentInUse(chain, desc)
		if err != nil {
			return nil, nil
		}
		used[d.disk(chain)], used[extent] = true, true
	}
	var strays []string
	for _, path := range d.layerFiles(chain) {
		there, err := exists(path)
		if err != nil {
			return nil, err
		}
		if there && !used[path] {
			strays = append(strays, path)
		}
	}
	return strays, nil
}

// removeStrays removes a layer's strays and returns the bytes that they took.
func (d Dir) removeStrays(chain digest.Digest) (int64, error) {
	strays, err := d.strays(chain)
	if err != nil {
		return 0, err
	}
	var n int64
	for _, path := range strays {
		n += storedSize(path)
	}
	return n, removeAll(strays...)
}

// extentRecord returns the length and the checksum that the extent file in use should have.
func (l *Layer) extentRecord(desc *vmdk.Descriptor) (size int64, sum uint32) {
	if isFlat(desc) && l.Flat != nil {
		return l.Flat.ExtentSize, l.Flat.Sum
	}
	return l.ExtentSize, l.Sum
}

// isFlat tells whether a disk is one that Flatten made: it has all that is below it.
func isFlat(desc *vmdk.Descriptor) bool {
	return len(desc.Extents) == 1 && strings.HasSuffix(desc.Extents[0].File, flatSuffix)
}
