package layerstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
)

// Swept is what a sweep removed.
type Swept struct {
	Layers []digest.Digest // chain IDs, children before their parents
	Bytes  int64           // that these, and other files of no use, occupied on the datastore
}

// Sweep removes every layer that no image, no container and no pull, of this
// process or another, needs, and what crashes and Flatten may have left in the disks folder.
// Pulls go on meanwhile. If it cannot find out what is needed, because an image
// or a container's pin is damaged, it removes nothing and returns why.
func (s *Store) Sweep(ctx context.Context) (Swept, error) {
	lock, err := s.dir.lockExclusive()
	if err != nil {
		return Swept{}, err
	}
	doomed, err := s.dir.doom(ctx, s.dir.chains)
	if err == nil {
		var orphans []doomedLayer
		orphans, err = s.dir.orphans(ctx)
		doomed = append(doomed, orphans...)
	}
	lock.unlock()
	swept, removeErr := s.dir.bury(doomed)
	if err = errors.Join(err, removeErr); err == nil {
		var n int64
		n, err = s.dir.sweepStrays(ctx)
		swept.Bytes += n
	}
	return swept, err
}

// sweepStrays removes the strays of all layers that nobody is at.
func (d Dir) sweepStrays(ctx context.Context) (int64, error) {
	chains, err := d.chains()
	if err != nil {
		return 0, err
	}
	var total int64
	for _, chain := range chains {
		if err := ctx.Err(); err != nil {
			return total, err
		}
		lock, err := d.tryLockChain(chain)
		if err != nil {
			return total, err
		}
		if lock == nil {
			continue
		}
		n, err := d.removeStrays(chain)
		lock.unlock()
		if err != nil {
			return total, err
		}
		total += n
	}
	return total, nil
}

// A doomedLayer is a layer without a record, whose files are to go. Its lock is
// held until they are gone.
type doomedLayer struct {
	chain digest.Digest
	lock  *fileLock
}

// doom takes the records of those candidates that nothing needs out of the
// layers folder, children first, each in one rename to tmp: from then on the
// layer is not there, and what is left of it is known to cleanLayer. The caller
// holds the store's lock exclusively, and buries the doomed also if there is an
// error.
func (d Dir) doom(ctx context.Context, candidates func() ([]digest.Digest, error)) ([]doomedLayer, error) {
	needed, err := d.needed()
	if err != nil {
		return nil, fmt.Errorf("find out which layers are needed: %w", err)
	}
	chains, err := candidates()
	if err != nil {
		return nil, err
	}
	chains = slices.DeleteFunc(chains, func(c digest.Digest) bool { return needed[c] })
	d.childrenFirst(chains)
	var doomed []doomedLayer
	for _, chain := range chains {
		if err := ctx.Err(); err != nil {
			return doomed, err
		}
		lock, err := d.tryLockChain(chain)
		if err != nil {
			return doomed, err
		}
		if lock == nil {
			continue // being made by a process whose lease is damaged, or read as such
		}
		if err := os.Rename(d.layer(chain), d.tmpLayer(chain)); err != nil {
			lock.unlock()
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			return doomed, fmt.Errorf("remove layer %s: %w", chain, err)
		}
		doomed = append(doomed, doomedLayer{chain, lock})
	}
	if len(doomed) == 0 {
		return nil, nil
	}
	return doomed, syncDir(d.layers())
}

// childrenFirst sorts chain IDs so that a crash between two of them leaves no
// layer without its parent.
func (d Dir) childrenFirst(chains []digest.Digest) {
	parents := make(map[digest.Digest]digest.Digest, len(chains))
	for _, c := range chains {
		if l, err := d.readLayer(c); err == nil {
			parents[c] = l.Parent
		}
	}
	height := make(map[digest.Digest]int, len(chains))
	for _, c := range chains {
		for p, ok := parents[c]; ok; p, ok = parents[p] {
			height[c]++
		}
	}
	slices.SortStableFunc(chains, func(a, b digest.Digest) int { return cmp.Compare(height[b], height[a]) })
}

// orphans locks the layers that have files in the disks folder and no record: a
// power cut may leave such, if the datastore made the renames durable in another
// order than they were done in.
func (d Dir) orphans(ctx context.Context) ([]doomedLayer, error) {
	names, err := listDir(d.disks())
	if err != nil {
		return nil, err
	}
	var orphans []doomedLayer
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return orphans, err
		}
		chain, ok := parseDiskName(name)
		if !ok {
			continue
		}
		if there, err := exists(d.layer(chain)); there || err != nil {
			if err != nil {
				return orphans, err
			}
			continue
		}
		lock, err := d.tryLockChain(chain)
		if err != nil {
			return orphans, err
		}
		if lock == nil {
			continue // on its way in or out, or the other file of this layer
		}
		orphans = append(orphans, doomedLayer{chain, lock})
	}
	return orphans, nil
}

// parseDiskName returns the chain ID that a file of the disks folder is of.
func parseDiskName(name string) (digest.Digest, bool) {
	for _, suffix := range []string{extentSuffix, flatSuffix, recipeSuffix, ".vmdk"} {
		if hex, ok := strings.CutSuffix(name, suffix); ok {
			return parseHex(hex)
		}
	}
	return "", false
}

// bury removes the files of doomed layers and gives their locks back, and removes
// folders that discard returned.
func (d Dir) bury(doomed []doomedLayer, trash ...string) (Swept, error) {
	var swept Swept
	var errs []error
	for _, dir := range trash {
		errs = append(errs, os.RemoveAll(dir))
	}
	for _, l := range doomed {
		n := d.storedLayer(l.chain)
		there, err := exists(d.layer(l.chain))
		if err == nil && !there {
			err = removeAll(append(d.layerFiles(l.chain), d.tmpLayer(l.chain))...)
		}
		l.lock.unlock()
		if err != nil {
			errs = append(errs, fmt.Errorf("remove layer %s: %w", l.chain, err))
			continue
		}
		swept.Layers = append(swept.Layers, l.chain)
		swept.Bytes += n
	}
	return swept, errors.Join(errs...)
}

// needed returns the chain IDs that images, containers and leases hold. The
// caller holds the store's lock exclusively.
func (d Dir) needed() (map[digest.Digest]bool, error) {
	needed := make(map[digest.Digest]bool)
	ids, err := d.imageIDs()
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		img, err := d.readImage(id)
		if err != nil {
			return nil, err
		}
		for _, l := range img.Layers {
			needed[l.Chain] = true
		}
	}
	pins, err := d.pins()
	if err != nil {
		return nil, err
	}
	for _, p := range pins {
		for _, c := range p.Layers {
			needed[c] = true
		}
	}
	return needed, d.leased(needed)
}

// cleanTmp removes what processes that died have left in tmp. Layers are known
// by their locks, leases by theirs, all else is only ever there while the
// store's lock is held: the caller has it exclusively.
func (d Dir) cleanTmp() error {
	names, err := listDir(d.tmp())
	if err != nil {
		return err
	}
	for _, name := range names {
		path := d.in("tmp", name)
		if chain, ok := parseTmpName(name); ok {
			if err := d.cleanDeadLayer(chain); err != nil {
				return err
			}
			continue
		}
		if strings.HasPrefix(name, leasePrefix) {
			if locked, err := isLocked(path); err != nil {
				return err
			} else if locked {
				continue
			}
		}
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	return nil
}

// parseTmpName returns the chain ID that a file of tmp is of.
func parseTmpName(name string) (digest.Digest, bool) {
	if hex, ok := strings.CutSuffix(name, ".json"); ok {
		return parseHex(hex)
	}
	return parseDiskName(name)
}

func (d Dir) cleanDeadLayer(chain digest.Digest) error {
	lock, err := d.tryLockChain(chain)
	if lock == nil || err != nil {
		return err
	}
	defer lock.unlock()
	return d.cleanLayer(chain)
}

// cleanLayer removes what is unfinished of a layer whose lock the caller holds.
// A record in tmp says that files of it may be in the disks folder, unless there
// is a record in the layers folder as well.
func (d Dir) cleanLayer(chain digest.Digest) error {
	begun, err := exists(d.tmpLayer(chain))
	if err != nil {
		return err
	}
	there, err := exists(d.layer(chain))
	if err != nil {
		return err
	}
	if begun && !there {
		if err := removeAll(d.layerFiles(chain)...); err != nil {
			return err
		}
	}
	return removeAll(d.tmpExtent(chain), d.tmpFlat(chain), d.tmpDisk(chain), d.tmpRecipe(chain), d.tmpLayer(chain))
}
