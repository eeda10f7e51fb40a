package diskfs

import (
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"slices"
)

// The journal, in the file of inode 8, as the kernel's fs/jbd2 writes it. Everything is
// big-endian. Its first block is its superblock:
//
//	0x00  12  header: magic C0 3B 39 98, type 4, sequence
//	0x0c   4  block size
//	0x10   4  blocks of the journal
//	0x14   4  first block of the log
//	0x18   4  sequence of the first transaction
//	0x1c   4  block in which it begins; 0: the journal is empty
//	0x28   4  incompatible features
//	0x30  16  UUID, from which all checksums go out
//
// A transaction is blocks of a header each, of the same sequence: descriptors (type 1),
// which say where on the disk the blocks behind them belong, revocations (5) of blocks that
// transactions before must not write any more, and at its end a commit (2). One without a
// commit does not count.
const (
	journalMagic      = 0xC03B3998
	journalDescriptor = 1
	journalCommit     = 2
	journalSuper2     = 4
	journalRevoke     = 5
	journalHeader     = 12

	journalRevokes  = 0x1 // incompatible features
	journal64bit    = 0x2
	journalAsync    = 0x4
	journalCsum2    = 0x8
	journalCsum3    = 0x10
	journalKnown    = journalRevokes | journal64bit | journalAsync | journalCsum2 | journalCsum3
	journalCsumSize = 4 // behind descriptors and revocations

	tagEscaped  = 0x1 // the block begins with the magic, which was zeroed
	tagSameUUID = 0x2 // no UUID follows
	tagLast     = 0x8
)

// Replay returns the disk as it is once the kernel has replayed the journal of the file system
// on it: the disk itself if that was unmounted, else a *Replayed, on which blocks that the journal has
// are read from there. Nothing is written. A journal that is damaged gives a *FormatError.
func Replay(disk io.ReaderAt, capacity int64) (io.ReaderAt, error) {
	f, err := Open(disk, capacity)
	if err != nil {
		return nil, err
	}
	if !f.Unclean() {
		return disk, nil
	}
	if f.sb.compat&compatHasJournal == 0 {
		return nil, &FormatError{Off: superOffset, Field: "superblock", Msg: "the journal is to be replayed, and there is none"}
	}
	in, err := f.inode(journalInode)
	if err != nil {
		return nil, err
	}
	file, err := f.newFileReader(journalInode, in)
	if err != nil {
		return nil, err
	}
	j := &journal{file: file, limit: f.sb.blocksCount, r: &Replayed{disk: disk, blocks: make(map[int64][]byte)}}
	if err := j.open(); err != nil {
		return nil, err
	}
	if j.start != 0 {
		if err := j.replay(); err != nil {
			return nil, err
		}
	}
	return j.r, j.markClean(capacity)
}

// A journal is a journal being read.
type journal struct {
	file  *fileReader
	limit int64 // blocks of the file system
	r     *Replayed

	blocks, first, start int64 // of the journal, see above
	sequence             uint32
	features             uint32
	seed                 uint32
	end                  uint32           // sequence of the first transaction that does not count
	revoked              map[int64]uint32 // blocks, by the last transaction that revoked them
}

func (j *journal) bad(block int64, format string, args ...any) error {
	return &FormatError{Off: block * BlockSize, Field: "journal", Msg: fmt.Sprintf(format, args...)}
}

// block reads a block of the journal.
func (j *journal) block(n int64) ([]byte, error) {
	p := make([]byte, BlockSize)
	if err := readFull(j.file, p, n*BlockSize); err != nil {
		return nil, fmt.Errorf("read journal block %d: %w", n, err)
	}
	return p, nil
}

func (j *journal) open() error {
	p, err := j.block(0)
	if err != nil {
		return err
	}
	be := binary.BigEndian
	j.blocks, j.first, j.start = int64(be.Uint32(p[0x10:])), int64(be.Uint32(p[0x14:])), int64(be.Uint32(p[0x1c:]))
	j.sequence, j.features = be.Uint32(p[0x18:]), be.Uint32(p[0x28:])
	j.seed = crc32c(^uint32(0), p[0x30:0x40])
	switch {
	case be.Uint32(p) != journalMagic || be.Uint32(p[4:]) != journalSuper2:
		return j.bad(0, "no superblock of version 2")
	case be.Uint32(p[0x0c:]) != BlockSize:
		return j.bad(0, "block size %d, want %d", be.Uint32(p[0x0c:]), BlockSize)
	case j.features&^journalKnown != 0:
		return j.bad(0, "incompatible features %#x are not supported", j.features&^journalKnown)
	case j.first < 1 || j.first >= j.blocks || j.blocks*BlockSize > j.file.size || j.start != 0 && (j.start < j.first || j.start >= j.blocks):
		return j.bad(0, "%d blocks, the log from %d, begun at %d", j.blocks, j.first, j.start)
	case j.checksummed():
		sum := be.Uint32(p[0xfc:])
		clear(p[0xfc:0x100])
		if got := crc32c(^uint32(0), p[:1024]); got != sum {
			return j.bad(0, "checksum %#08x, want %#08x", got, sum)
		}
	}
	return nil
}

func (j *journal) checksummed() bool { return j.features&(journalCsum2|journalCsum3) != 0 }

// next is the block behind a block of the log, which is a ring.
func (j *journal) next(n int64) int64 {
	if n++; n >= j.blocks {
		return j.first
	}
	return n
}

// replay goes over the log three times, as the kernel does: where does it end, what is revoked, what
// is written.
func (j *journal) replay() error {
	j.revoked = make(map[int64]uint32)
	for _, pass := range []func(*journal, int64, uint32, []byte) error{nil, (*journal).revoke, (*journal).write} {
		if err := j.walk(pass); err != nil {
			return err
		}
	}
	return nil
}

// walk calls pass with every block of a header of the transactions that count; without pass
// it finds out which these are.
func (j *journal) walk(pass func(j *journal, at int64, seq uint32, p []byte) error) error {
	at, seq := j.start, j.sequence
	for used := int64(0); used < j.blocks; used++ {
		if pass != nil && seq == j.end {
			return nil
		}
		p, err := j.block(at)
		if err != nil {
			return err
		}
		if binary.BigEndian.Uint32(p) != journalMagic || binary.BigEndian.Uint32(p[8:]) != seq {
			break
		}
		whole := true
		if pass != nil {
			if err := pass(j, at, seq, p); err != nil {
				return err
			}
		}
		switch binary.BigEndian.Uint32(p[4:]) {
		case journalDescriptor:
			if whole = j.sound(p); whole {
				tags, err := j.tags(at, p)
				if err != nil {
					return err
				}
				for range tags {
					at = j.next(at)
				}
				used += int64(len(tags))
			}
		case journalRevoke:
			whole = j.sound(p)
		case journalCommit:
			if whole = j.commitSound(p); whole {
				seq++
			}
		default:
			whole = false
		}
		if !whole {
			break // of a transaction that was being written
		}
		at = j.next(at)
	}
	j.end = seq
	return nil
}

// sound checks the checksum at the end of a descriptor or a revocation.
func (j *journal) sound(p []byte) bool {
	if !j.checksummed() {
		return true
	}
	q := append([]byte(nil), p...)
	clear(q[BlockSize-journalCsumSize:])
	return crc32c(j.seed, q) == binary.BigEndian.Uint32(p[BlockSize-journalCsumSize:])
}

// commitSound checks that of a commit, which is in its header.
func (j *journal) commitSound(p []byte) bool {
	if !j.checksummed() {
		return true
	}
	q := append([]byte(nil), p...)
	clear(q[0x10:0x14])
	return crc32c(j.seed, q) == binary.BigEndian.Uint32(p[0x10:])
}

// A tag says where a block belongs.
type tag struct {
	block    int64
	escaped  bool
	checksum uint32
}

// tags reads a descriptor.
func (j *journal) tags(at int64, p []byte) ([]tag, error) {
	be := binary.BigEndian
	size, end := 8, BlockSize
	switch {
	case j.features&journalCsum3 != 0:
		size = 16
	default:
		if j.features&journal64bit != 0 {
			size += 4
		}
		if j.features&journalCsum2 != 0 {
			size += 2
		}
	}
	if j.checksummed() {
		end -= journalCsumSize
	}
	var list []tag
	for off := journalHeader; off+size <= end; {
		t, flags := tag{block: int64(be.Uint32(p[off:]))}, uint32(0)
		if j.features&journalCsum3 != 0 {
			flags, t.checksum = be.Uint32(p[off+4:]), be.Uint32(p[off+12:])
		} else {
			t.checksum, flags = uint32(be.Uint16(p[off+4:])), uint32(be.Uint16(p[off+6:]))
		}
		if j.features&journal64bit != 0 {
			t.block |= int64(be.Uint32(p[off+8:])) << 32
		}
		if t.block < 0 || t.block >= j.limit {
			return nil, j.bad(at, "names block %d, the file system has %d", t.block, j.limit)
		}
		t.escaped = flags&tagEscaped != 0
		list = append(list, t)
		if off += size; flags&tagSameUUID == 0 {
			off += 16
		}
		if flags&tagLast != 0 {
			break
		}
	}
	return list, nil
}

func (j *journal) revoke(at int64, seq uint32, p []byte) error {
	if binary.BigEndian.Uint32(p[4:]) != journalRevoke {
		return nil
	}
	size := 4
	if j.features&journal64bit != 0 {
		size = 8
	}
	n, end := int(binary.BigEndian.Uint32(p[journalHeader:])), BlockSize
	if j.checksummed() {
		end -= journalCsumSize
	}
	if n < journalHeader+4 || n > end {
		return j.bad(at, "revocations of %d bytes", n)
	}
	for off := journalHeader + 4; off+size <= n; off += size {
		block := int64(binary.BigEndian.Uint32(p[off:]))
		if size == 8 {
			block = int64(binary.BigEndian.Uint64(p[off:]))
		}
		j.revoked[block] = seq
	}
	return nil
}

// write takes the blocks behind a descriptor.
func (j *journal) write(at int64, seq uint32, p []byte) error {
	if binary.BigEndian.Uint32(p[4:]) != journalDescriptor {
		return nil
	}
	tags, err := j.tags(at, p)
	if err != nil {
		return err
	}
	for _, t := range tags {
		at = j.next(at)
		if last, ok := j.revoked[t.block]; ok && int32(last-seq) >= 0 {
			continue
		}
		data, err := j.block(at)
		if err != nil {
			return err
		}
		if j.checksummed() {
			var n [4]byte
			binary.BigEndian.PutUint32(n[:], seq)
			sum := crc32c(crc32c(j.seed, n[:]), data)
			if j.features&journalCsum3 == 0 {
				sum &= 0xffff
			}
			if sum != t.checksum {
				return j.bad(at, "block for %d has checksum %#08x, want %#08x", t.block, sum, t.checksum)
			}
		}
		if t.escaped {
			binary.BigEndian.PutUint32(data, journalMagic)
		}
		j.r.blocks[t.block] = data
	}
	return nil
}

// markClean makes the superblocks say that there is nothing to be replayed, and that there is as much free as the groups
// have, by which the kernel goes: it does not keep the superblock's counts.
func (j *journal) markClean(capacity int64) error {
	if j.start != 0 {
		p, err := j.block(0)
		if err != nil {
			return err
		}
		be := binary.BigEndian
		be.PutUint32(p[0x18:], j.end+1)
		be.PutUint32(p[0x1c:], 0)
		if j.checksummed() {
			clear(p[0xfc:0x100])
			be.PutUint32(p[0xfc:], crc32c(^uint32(0), p[:1024]))
		}
		if len(j.file.runs) == 0 || j.file.runs[0].at != 0 {
			return j.bad(0, "begins with a hole")
		}
		j.r.blocks[j.file.runs[0].where] = p
	}
	f, err := Open(j.r, capacity)
	if err != nil {
		return err
	}
	p := make([]byte, BlockSize)
	if err := readFull(j.r, p, 0); err != nil {
		return err
	}
	sb := &f.sb
	sb.incompat &^= incompatRecover
	sb.freeBlocks, sb.freeInodes = 0, 0
	for i := range f.groups {
		sb.freeBlocks += int64(f.groups[i].freeBlocks)
		sb.freeInodes += f.groups[i].freeInodes
	}
	if sb.roCompat&roMetadataCsum == 0 {
		le.PutUint32(p[superOffset+0x60:], sb.incompat)
	} else {
		copy(p[superOffset:], sb.marshal())
	}
	j.r.blocks[0] = p
	return nil
}

// A Replayed is a disk with the blocks of a journal over it: at most as many as the journal
// has, which is 64 MiB at the most on disks of ours.
type Replayed struct {
	disk   io.ReaderAt
	blocks map[int64][]byte
}

// ReadAt implements io.ReaderAt.
func (r *Replayed) ReadAt(p []byte, off int64) (int, error) {
	n, err := r.disk.ReadAt(p, off)
	for at := off - off%BlockSize; at < off+int64(n); at += BlockSize {
		b := r.blocks[at/BlockSize]
		if b == nil {
			continue
		}
		if at < off {
			copy(p[:n], b[off-at:])
		} else {
			copy(p[at-off:n], b)
		}
	}
	return n, err
}

// Each gives every block that is to be written to the disk to make it what is read here, in
// ascending order.
func (r *Replayed) Each(fn func(block int64, p []byte) error) error {
	for _, n := range slices.Sorted(maps.Keys(r.blocks)) {
		if err := fn(n, r.blocks[n]); err != nil {
			return err
		}
	}
	return nil
}
