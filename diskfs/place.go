package diskfs

import "slices"

// A placer maps the stream to the disk: stream cluster k is the k-th cluster from base
// on that holds no reserved block. It depends on nothing but where the parent ended,
// so a stream block has its disk address before the stream's length is known.
type placer struct {
	base     int64 // first cluster
	reserved []clusterRange
}

type clusterRange struct{ first, n int64 }

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

// High returns the first cluster behind all that are in use, for an Apply to a file system that a kernel
// has written to. Whoever writes the Delta then must write its clusters whole: there may be something on
// the disk where nothing is in use.
func (f *FS) High() (int64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	reserved := f.reservedClusters()
	for n := len(f.groups) - 1; n >= 0; n-- {
		g := &f.groups[n]
		if g.flags&groupBlockUninit != 0 {
			continue // its backups at most
		}
		b, err := f.bitmap(g.blockBitmap, g.bbCsum, blocksPerGroup/8, "block", n)
		if err != nil {
			return 0, err
		}
		used := slices.Clone(b.data[:])
		first := int64(n) * blocksPerGroup
		for _, r := range reserved {
			if at := r.first*clusterBlocks - first; at >= 0 && at < blocksPerGroup {
				clearBits(used, int(at), int(min(at+r.n*clusterBlocks, blocksPerGroup)))
			}
		}
		for i := min(blocksPerGroup, f.sb.blocksCount-first) - 1; i >= 0; i-- {
			if used[i/8]>>(i%8)&1 != 0 {
				return (first+i)/clusterBlocks + 1, nil
			}
		}
		f.cool()
	}
	return 0, nil
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

// cluster returns the disk cluster of stream cluster k.
func (p *placer) cluster(k int64) int64 {
	c := p.base + k
	for _, r := range p.reserved {
		if r.first+r.n > p.base && r.first <= c {
			c += r.first + r.n - max(r.first, p.base)
		}
	}
	return c
}

// block returns the disk block of stream block b.
func (p *placer) block(b int64) int64 {
	return p.cluster(b/clusterBlocks)*clusterBlocks + b%clusterBlocks
}

// streamBlock is the inverse of block; ok is false for blocks below the stream's.
func (p *placer) streamBlock(block int64) (b int64, ok bool) {
	c := block / clusterBlocks
	if c < p.base {
		return 0, false
	}
	k := c - p.base
	for _, r := range p.reserved {
		if r.first+r.n > p.base && r.first <= c {
			k -= r.first + r.n - max(r.first, p.base)
		}
	}
	return k*clusterBlocks + block%clusterBlocks, true
}

// runs appends to out the disk runs of n stream blocks from b, as file blocks from at.
func (p *placer) runs(out []run, at, b, n int64) []run {
	for n > 0 {
		disk := p.block(b)
		span := n
		for _, r := range p.reserved {
			if first := r.first * clusterBlocks; first > disk {
				span = min(span, first-disk)
				break
			}
		}
		out = append(out, run{at: at, where: disk, n: span})
		at, b, n = at+span, b+span, n-span
	}
	return out
}
