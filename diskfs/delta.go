package diskfs

import (
	"cmp"
	"fmt"
	"io"
	"slices"
)

// A Delta is what one layer changes on the disk. It is to be written in this order:
// the changeset's data stream as it stands, WriteMeta behind it, then the clusters of
// Fixed; and Map says where the stream belongs. It is valid until the FS's Rebase.
type Delta struct {
	// Map places the stream, in clusters, ascending. Clusters it leaves out hold nothing.
	Map []Run
	// Dead are byte ranges of the stream that nothing refers to, ascending. They must read
	// as zeros where their cluster is mapped.
	Dead []Range
	// High is the first cluster of the disk that this layer and those below left unused:
	// the next Apply's ApplyOptions.High.
	High int64

	a *apply
}

// A Run says that stream clusters [Stream, Stream+N) are disk clusters [Disk, Disk+N).
type Run struct{ Stream, Disk, N int64 }

// A Range is Len bytes from Off on.
type Range struct{ Off, Len int64 }

// finish writes what follows from the changes: directories, bitmaps, checksums, superblock.
func (a *apply) finish() (*Delta, error) {
	if err := a.putDirs(); err != nil {
		return nil, err
	}
	total := a.cs.blocks + a.length
	if err := a.fits(total); err != nil {
		return nil, err
	}
	d := &Delta{a: a, High: a.place.base}
	if total > 0 {
		d.High = a.place.cluster((total-1)/clusterBlocks) + 1
	}
	a.dead = mergeRuns(a.dead)
	for _, r := range a.dead {
		d.Dead = append(d.Dead, Range{r.where * BlockSize, r.n * BlockSize})
	}
	if err := a.placeLive(d, total); err != nil {
		return nil, err
	}
	for at := range a.xattred {
		p := a.cached(at).data[:]
		le.PutUint32(p[16:], xattrChecksum(a.seed, at, p))
		a.cool()
	}
	a.finishInodes()
	if err := a.finishGroups(); err != nil {
		return nil, err
	}
	b, err := a.touch(0)
	if err != nil {
		return nil, err
	}
	copy(b.data[superOffset:], a.sb.marshal())
	return d, nil
}

// mergeRuns sorts stream runs and joins neighbours.
func mergeRuns(runs []run) []run {
	slices.SortFunc(runs, func(x, y run) int { return cmp.Compare(x.where, y.where) })
	out := runs[:0]
	for _, r := range runs {
		if k := len(out) - 1; k >= 0 && out[k].where+out[k].n >= r.where {
			out[k].n = max(out[k].n, r.where+r.n-out[k].where)
			continue
		}
		out = append(out, r)
	}
	return out
}

// putDirs gives every changed directory new blocks, in the order of their inodes.
func (a *apply) putDirs() error {
	var changed []*dir
	for _, d := range a.dirs {
		if d.changed {
			changed = append(changed, d)
		}
	}
	slices.SortFunc(changed, func(x, y *dir) int { return cmp.Compare(x.ino, y.ino) })
	for _, d := range changed {
		in, err := a.changeInode(d.ino)
		if err != nil {
			return err
		}
		err = a.extents(d.ino, in,
			func(r run, _ bool) error { return a.freeBlocks(r.where, r.n) },
			a.freeMeta)
		if err != nil {
			return err
		}
		if err := d.lay(a.sb.hashSeed); err != nil {
			return err
		}
		n := int64(d.layout.blocks)
		first := a.cs.blocks + a.length
		a.meta = append(a.meta, metaItem{dir: d})
		a.length += n
		in.setFlags(in.flags() &^ inodeIndexed)
		if d.layout.indexed {
			in.setFlags(in.flags() | inodeIndexed)
		}
		in.setSize(n * BlockSize)
		links := 2 + d.subdirs()
		if links >= maxLinks {
			links = 1 // dir_nlink: too many to count
		}
		in.setLinks(uint16(links))
		if err := a.setContents(d.ino, in, a.place.runs(nil, 0, first, n)); err != nil {
			return err
		}
		d.changed = false
		a.cool()
	}
	return nil
}

// placeLive marks the live blocks of the stream used and fills Map.
func (a *apply) placeLive(d *Delta, total int64) error {
	var disk []run
	live := func(from, to int64) {
		if from >= to {
			return
		}
		disk = a.place.runs(disk, 0, from, to-from)
		for k, end := from/clusterBlocks, (to+clusterBlocks-1)/clusterBlocks; k < end; k++ {
			c := a.place.cluster(k)
			if i := len(d.Map) - 1; i >= 0 {
				m := &d.Map[i]
				if m.Stream+m.N > k {
					continue // the cluster of the run before
				}
				if m.Stream+m.N == k && m.Disk+m.N == c {
					m.N++
					continue
				}
			}
			d.Map = append(d.Map, Run{k, c, 1})
		}
	}
	from := int64(0)
	for _, r := range a.dead {
		live(from, r.where)
		from = r.where + r.n
	}
	live(from, total)
	for _, r := range disk {
		if err := a.markBlocks(r.where, r.n, true); err != nil {
			return err
		}
	}
	return nil
}

// WriteMeta writes the metadata blocks that follow the data in the stream.
func (d *Delta) WriteMeta(w io.Writer) error {
	a := d.a
	for _, m := range a.meta {
		if m.dir == nil {
			p := zeroBlock[:]
			if b := a.cached(m.block); b != nil { // nil: given up again
				p, b.dirty = b.data[:], false
			}
			if _, err := w.Write(p); err != nil {
				return fmt.Errorf("write metadata: %w", err)
			}
			a.cool()
			continue
		}
		in, err := a.inode(m.dir.ino)
		if err != nil {
			return err
		}
		err = m.dir.render(a.inodeSeed(m.dir.ino, in.generation()), func(p []byte) error {
			_, err := w.Write(p)
			return err
		})
		if err != nil {
			return fmt.Errorf("write directory %d: %w", m.dir.ino, err)
		}
	}
	return nil
}

// Places tells whether a block of the disk is in a cluster that is for the stream.
func (d *Delta) Places(block int64) bool {
	_, ok := d.a.place.streamBlock(block)
	return ok
}

// Fixed gives every cluster that changes where it stands, whole and in ascending order,
// to fn, which must not keep p.
func (d *Delta) Fixed(fn func(cluster int64, p []byte) error) error {
	a := d.a
	p := make([]byte, ClusterSize)
	for _, c := range a.dirtyClusters() {
		if d.Places(c * clusterBlocks) {
			continue
		}
		if err := a.readCluster(c, p); err != nil {
			return err
		}
		if err := fn(c, p); err != nil {
			return err
		}
		a.cool()
	}
	return nil
}
