package diskfs

import (
	"cmp"
	"slices"
	"sort"
)

// A placer maps the stream to the disk: stream cluster k is the k-th cluster from base
// on that is in no gap. It depends on nothing but what was there before,
// so a stream block has its disk address before the stream's length is known.
type placer struct {
	base int64 // first cluster
	gaps []gap // ascending, apart
}

// A gap is clusters that are not for the stream: of backups, or in use.
type gap struct {
	clusterRange
	before int64 // clusters in the gaps before it
}

type clusterRange struct{ first, n int64 }

// newPlacer makes a placer that leaves out ranges of clusters.
func newPlacer(base int64, reserved []clusterRange) placer {
	p := placer{base: base}
	slices.SortFunc(reserved, func(a, b clusterRange) int { return cmp.Compare(a.first, b.first) })
	for _, r := range reserved {
		end := r.first + r.n
		r.first = max(r.first, base)
		var before int64
		if i := len(p.gaps) - 1; i >= 0 {
			last := &p.gaps[i]
			if r.first <= last.first+last.n {
				last.n = max(last.n, end-last.first)
				continue
			}
			before = last.before + last.n
		}
		if r.n = end - r.first; r.n > 0 {
			p.gaps = append(p.gaps, gap{r, before})
		}
	}
	return p
}

// reservedClusters lists the clusters of the backup superblocks and group descriptors.
func (f *FS) reservedClusters() []clusterRange {
	var list []clusterRange
	n := (1 + f.descBlocks() + clusterBlocks - 1) / clusterBlocks
	for g := range len(f.groups) {
		if g > 0 && hasBackup(g) {
			list = append(list, clusterRange{int64(g) * blocksPerGroup / clusterBlocks, n})
		}
	}
	return list
}

// usedClusters lists the clusters in which anything is in use, for an Apply to a file system that a kernel has written to.
func (f *FS) usedClusters() ([]clusterRange, error) {
	list := f.reservedClusters()
	fixed := func(at, n int64) {
		list = append(list, clusterRange{at / clusterBlocks, (at+n-1)/clusterBlocks - at/clusterBlocks + 1})
	}
	fixed(0, 1+f.descBlocks())
	for n := range f.groups {
		g := &f.groups[n]
		fixed(g.blockBitmap, 1)
		fixed(g.inodeBitmap, 1)
		fixed(g.inodeTable, tableBlocks)
		if g.flags&groupBlockUninit != 0 {
			continue
		}
		b, err := f.bitmap(g.blockBitmap, g.bbCsum, blocksPerGroup/8, "block", n)
		if err != nil {
			return nil, err
		}
		for i := range int64(blocksPerGroup / clusterBlocks) {
			if b.data[2*i]|b.data[2*i+1] == 0 { // 16 blocks
				continue
			}
			c := int64(n)*blocksPerGroup/clusterBlocks + i
			if last := &list[len(list)-1]; last.first+last.n == c {
				last.n++
			} else {
				list = append(list, clusterRange{c, 1})
			}
		}
		f.cool()
	}
	return list, nil
}

// Used lists what of the disk the file system has anything in, ascending, in clusters of 64 KiB. What is elsewhere means nothing.
func (f *FS) Used() ([]Range, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	list, err := f.usedClusters()
	if err != nil {
		return nil, err
	}
	const size = clusterBlocks * BlockSize
	var used []Range
	for _, g := range newPlacer(0, list).gaps {
		used = append(used, Range{g.first * size, min(g.n*size, f.Capacity()-g.first*size)})
	}
	return used, nil
}

func (f *FS) descBlocks() int64 { return int64(len(f.groups)+descsPerBlock-1) / descsPerBlock }

// hasBackup says whether group g starts with a backup superblock (sparse_super).
func hasBackup(g int) bool {
	if g <= 1 {
		return true
	}
	for _, base := range [...]int{3, 5, 7} {
		n := base
		for n < g {
			n *= base
		}
		if n == g {
			return true
		}
	}
	return false
}

// gapsTo returns how many gaps begin before the k-th cluster for the stream.
func (p *placer) gapsTo(k int64) int {
	return sort.Search(len(p.gaps), func(i int) bool { return p.gaps[i].first-p.gaps[i].before > p.base+k })
}

// cluster returns the disk cluster of stream cluster k.
func (p *placer) cluster(k int64) int64 {
	c := p.base + k
	if i := p.gapsTo(k); i > 0 {
		c += p.gaps[i-1].before + p.gaps[i-1].n
	}
	return c
}

// room returns how many of the first clusters of a disk are for the stream.
func (p *placer) room(clusters int64) int64 {
	left := max(0, clusters-p.base)
	for _, g := range p.gaps {
		left -= max(0, min(g.first+g.n, clusters)-min(g.first, clusters))
	}
	return left
}

// block returns the disk block of stream block b.
func (p *placer) block(b int64) int64 {
	return p.cluster(b/clusterBlocks)*clusterBlocks + b%clusterBlocks
}

// streamBlock is the inverse of block; ok is false for blocks that are not for the stream.
func (p *placer) streamBlock(block int64) (b int64, ok bool) {
	c := block / clusterBlocks
	if c < p.base {
		return 0, false
	}
	k := c - p.base
	if i := sort.Search(len(p.gaps), func(i int) bool { return p.gaps[i].first > c }); i > 0 {
		g := p.gaps[i-1]
		if c < g.first+g.n {
			return 0, false
		}
		k -= g.before + g.n
	}
	return k*clusterBlocks + block%clusterBlocks, true
}

// runs appends to out the disk runs of n stream blocks from b, as file blocks from at.
func (p *placer) runs(out []run, at, b, n int64) []run {
	for n > 0 {
		disk := p.block(b)
		span := n
		if i := p.gapsTo(b / clusterBlocks); i < len(p.gaps) {
			span = min(span, p.gaps[i].first*clusterBlocks-disk)
		}
		out = append(out, run{at: at, where: disk, n: span})
		at, b, n = at+span, b+span, n-span
	}
	return out
}
