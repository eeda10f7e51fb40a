package diskfs

import (
	"bytes"
	"fmt"
	"io"
	"slices"

	"github.com/klauspost/compress/s2"
)

// cacheBlocks bounds the clean metadata blocks kept between layers (64 MiB).
const cacheBlocks = 16384

// hotBlocks bounds the metadata blocks that an Apply keeps as they are (32 MiB). A layer may
// change many more, above all inode tables, and comes back to few of them.
const hotBlocks = 8192

// A block is one metadata block in memory.
type block struct {
	data  *[BlockSize]byte // apart, so that it takes no more room than it needs
	dirty bool             // differs from the disk below
}

func newBlock(dirty bool) *block { return &block{new([BlockSize]byte), dirty} }

// load returns the metadata block at address n, reading it if it is not cached. The
// caller holds f.mu. Contents may be changed only after touch.
func (f *FS) load(n int64) (*block, error) {
	if b := f.cached(n); b != nil {
		return b, nil
	}
	if n < 0 || n >= f.sb.blocksCount {
		return nil, &FormatError{Off: -1, Field: fmt.Sprintf("block %d", n), Msg: "outside the file system"}
	}
	if !f.applying && len(f.blocks) >= f.maxBlocks {
		f.blocks = make(map[int64]*block)
	}
	b := newBlock(false)
	if err := readFull(f.disk, b.data[:], n*BlockSize); err != nil {
		return nil, fmt.Errorf("read block %d: %w", n, err)
	}
	f.blocks[n] = b
	return b, nil
}

// cached returns the block at address n if it is in memory, hot or cold.
func (f *FS) cached(n int64) *block {
	if b := f.blocks[n]; b != nil {
		return b
	}
	packed, ok := f.cold[n]
	if !ok {
		return nil
	}
	b := newBlock(true)
	if _, err := s2.Decode(b.data[:], packed); err != nil {
		panic("diskfs: block packed in memory: " + err.Error())
	}
	delete(f.cold, n)
	f.blocks[n] = b
	return b
}

// drop forgets the block at address n.
func (f *FS) drop(n int64) {
	delete(f.blocks, n)
	delete(f.cold, n)
}

// cool packs the blocks that an Apply has changed, once they are many, and forgets those that
// it has only read. The caller holds on to no block.
func (f *FS) cool() {
	if len(f.blocks) < f.hot {
		return
	}
	var buf []byte
	for n, b := range f.blocks {
		if b.dirty {
			buf = s2.Encode(buf[:cap(buf)], b.data[:])
			f.cold[n] = bytes.Clone(buf)
		}
	}
	f.blocks = make(map[int64]*block)
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
	f.drop(n)
	b := newBlock(true)
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
	for n := range f.cold {
		list = append(list, n/clusterBlocks)
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// readCluster fills p, one cluster, with the disk below overlaid by what is cached, which is
// not dirty any more.
func (f *FS) readCluster(cluster int64, p []byte) error {
	if err := readFull(f.disk, p, cluster*ClusterSize); err != nil {
		return fmt.Errorf("read cluster %d: %w", cluster, err)
	}
	for i := range int64(clusterBlocks) {
		if b := f.cached(cluster*clusterBlocks + i); b != nil {
			copy(p[i*BlockSize:], b.data[:])
			b.dirty = false
		}
	}
	return nil
}

// clean forgets what was dirty, after it has been written, and keeps the cache small.
func (f *FS) clean() {
	clear(f.cold)
	if len(f.blocks) > f.maxBlocks {
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
