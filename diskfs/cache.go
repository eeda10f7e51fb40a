package diskfs

import (
	"fmt"
	"io"
	"slices"
)

// cacheBlocks bounds the clean metadata blocks kept between layers (64 MiB).
const cacheBlocks = 16384

// A block is one metadata block in memory.
type block struct {
	data  [BlockSize]byte
	dirty bool // differs from the disk below
}

// load returns the metadata block at address n, reading it if it is not cached. The
// caller holds f.mu. Contents may be changed only after touch.
func (f *FS) load(n int64) (*block, error) {
	if b := f.blocks[n]; b != nil {
		return b, nil
	}
	if n < 0 || n >= f.sb.blocksCount {
		return nil, &FormatError{Off: -1, Field: fmt.Sprintf("block %d", n), Msg: "outside the file system"}
	}
	if !f.applying && len(f.blocks) >= cacheBlocks {
		f.blocks = make(map[int64]*block)
	}
	b := new(block)
	if err := readFull(f.disk, b.data[:], n*BlockSize); err != nil {
		return nil, fmt.Errorf("read block %d: %w", n, err)
	}
	f.blocks[n] = b
	return b, nil
}

// touch returns the block at address n for changing.
func (f *FS) touch(n int64) (*block, error) {
	b, err := f.load(n)
	if err != nil {
		return nil, err
	}
	b.dirty = true
	return b, nil
}

// fresh returns a zeroed block at address n, to be written whatever the disk holds.
func (f *FS) fresh(n int64) *block {
	b := &block{dirty: true}
	f.blocks[n] = b
	return b
}

// dirtyClusters lists the clusters that hold a dirty block, ascending.
func (f *FS) dirtyClusters() []int64 {
	var list []int64
	for n, b := range f.blocks {
		if b.dirty {
			list = append(list, n/clusterBlocks)
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// readCluster fills p, one cluster, with the disk below overlaid by what is cached.
func (f *FS) readCluster(cluster int64, p []byte) error {
	if err := readFull(f.disk, p, cluster*ClusterSize); err != nil {
		return fmt.Errorf("read cluster %d: %w", cluster, err)
	}
	for i := range int64(clusterBlocks) {
		if b := f.blocks[cluster*clusterBlocks+i]; b != nil {
			copy(p[i*BlockSize:], b.data[:])
		}
	}
	return nil
}

// clean forgets what was dirty, after it has been written, and keeps the cache small.
func (f *FS) clean() {
	if len(f.blocks) > cacheBlocks {
		f.blocks = make(map[int64]*block)
		return
	}
	for _, b := range f.blocks {
		b.dirty = false
	}
}

// readFull reads len(p) bytes at off; a disk that ends early is an error.
func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}
