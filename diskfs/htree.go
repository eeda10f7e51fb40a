package diskfs

import (
	"fmt"
	"math/bits"
	"slices"
	"strings"
)

// The index of a large directory (htree): block 0 is the root, then index nodes if
// one level is not enough, then leaves. Layout as struct dx_root and dx_node:
//
//	root  0  "." rec_len 12, ".." rec_len 4084          node  0  empty entry, rec_len 4096
//	     24  {0 u32, version u8, 8 u8, levels u8, 0 u8}        8  {limit, count u16, block u32}
//	     32  {limit, count u16, block u32}                   16  {hash, block u32} …
//	     40  {hash, block u32} …                           4088  {0 u32, checksum u32}
//	   4088  {0 u32, checksum u32}
const (
	hashHalfMD4 = 1

	dxRootOff   = 32
	dxNodeOff   = 8
	dxRootLimit = (BlockSize - dxRootOff - 8) / 8
	dxNodeLimit = (BlockSize - dxNodeOff - 8) / 8

	// leafFill is how full, in bytes, a new leaf is packed: three quarters, so that the
	// kernel can add names without splitting every leaf.
	leafFill = dirTail * 3 / 4
)

// dirHash is ext4's half-MD4 name hash over signed bytes (kernel fs/ext4/hash.c).
func dirHash(seed [4]uint32, name string) (hash, minor uint32) {
	buf := [4]uint32{0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476}
	if seed != [4]uint32{} {
		buf = seed
	}
	for rest := name; len(rest) > 0; rest = rest[min(32, len(rest)):] {
		var in [8]uint32
		hashInput(&in, rest)
		halfMD4(&buf, &in)
	}
	hash = buf[1] &^ 1
	if hash == 0xFFFFFFFE {
		hash = 0xFFFFFFFC
	}
	return hash, buf[2]
}

func hashInput(in *[8]uint32, s string) {
	pad := uint32(len(s)) | uint32(len(s))<<8
	pad |= pad << 16
	v, k := pad, 0
	for i := 0; i < min(len(s), 32); i++ {
		v = uint32(int32(int8(s[i]))) + v<<8
		if i%4 == 3 {
			in[k] = v
			v, k = pad, k+1
		}
	}
	for ; k < 8; k++ {
		in[k] = v
		v = pad
	}
}

func halfMD4(buf *[4]uint32, in *[8]uint32) {
	const k2, k3 = 0x5A827999, 0x6ED9EBA1
	f := func(x, y, z uint32) uint32 { return z ^ x&(y^z) }
	g := func(x, y, z uint32) uint32 { return x&y + (x^y)&z }
	h := func(x, y, z uint32) uint32 { return x ^ y ^ z }
	a, b, c, d := buf[0], buf[1], buf[2], buf[3]
	round := func(fn func(x, y, z uint32) uint32, k uint32, order [8]int, shift [4]int) {
		for i := 0; i < 8; i += 4 {
			a = bits.RotateLeft32(a+fn(b, c, d)+in[order[i]]+k, shift[0])
			d = bits.RotateLeft32(d+fn(a, b, c)+in[order[i+1]]+k, shift[1])
			c = bits.RotateLeft32(c+fn(d, a, b)+in[order[i+2]]+k, shift[2])
			b = bits.RotateLeft32(b+fn(c, d, a)+in[order[i+3]]+k, shift[3])
		}
	}
	round(f, 0, [8]int{0, 1, 2, 3, 4, 5, 6, 7}, [4]int{3, 7, 11, 19})
	round(g, k2, [8]int{1, 3, 5, 7, 0, 2, 4, 6}, [4]int{3, 5, 9, 13})
	round(h, k3, [8]int{3, 7, 2, 6, 1, 5, 0, 4}, [4]int{3, 9, 11, 15})
	buf[0] += a
	buf[1] += b
	buf[2] += c
	buf[3] += d
}

// hashed is one name in the order of an index.
type hashed struct {
	hash, minor uint32
	ent         int32 // in dir.ents
}

// layoutIndexed sorts the names by hash and cuts them into leaves.
func (d *dir) layoutIndexed(seed [4]uint32) error {
	order := make([]hashed, 0, d.live())
	for i, e := range d.ents {
		if e.ino != 0 {
			h, m := dirHash(seed, e.name)
			order = append(order, hashed{h, m, int32(i)})
		}
	}
	slices.SortFunc(order, func(x, y hashed) int {
		switch {
		case x.hash != y.hash:
			return cmpU32(x.hash, y.hash)
		case x.minor != y.minor:
			return cmpU32(x.minor, y.minor)
		}
		return strings.Compare(d.ents[x.ent].name, d.ents[y.ent].name)
	})
	l := &dirLayout{order: order}
	used := leafFill + 1
	for i, h := range order {
		n := entryLen(d.ents[h.ent].name)
		if used+n > leafFill {
			l.starts = append(l.starts, i)
			used = 0
		}
		used += n
	}
	if leaves := len(l.starts); leaves > dxRootLimit {
		l.nodes = (leaves + dxNodeLimit - 1) / dxNodeLimit
		if l.nodes > dxRootLimit {
			return badInode(d.ino, "%d names are more than a directory can index", len(order))
		}
	}
	l.indexed = true
	l.blocks = 1 + l.nodes + len(l.starts)
	d.layout = l
	return nil
}

func cmpU32(x, y uint32) int {
	if x < y {
		return -1
	}
	return 1
}

// renderIndexed gives the directory's blocks in order to emit.
func (d *dir) renderIndexed(seed uint32, emit func(p []byte) error) error {
	l := d.layout
	p := make([]byte, BlockSize)
	putEntry(p[0:], d.ino, 12, ".", fileTypeDir)
	putEntry(p[12:], d.parent, BlockSize-12, "..", fileTypeDir)
	p[28], p[29] = hashHalfMD4, 8
	firstLeaf := 1 + l.nodes
	if l.nodes == 0 {
		d.putIndex(p, dxRootOff, dxRootLimit, 0, len(l.starts), 1, firstLeaf, seed)
	} else {
		p[30] = 1
		d.putIndex(p, dxRootOff, dxRootLimit, 0, l.nodes, dxNodeLimit, 1, seed)
	}
	if err := emit(p); err != nil {
		return err
	}
	for n := range l.nodes {
		clear(p)
		le.PutUint16(p[4:], BlockSize)
		first := n * dxNodeLimit
		d.putIndex(p, dxNodeOff, dxNodeLimit, first, min(dxNodeLimit, len(l.starts)-first), 1, firstLeaf+first, seed)
		if err := emit(p); err != nil {
			return err
		}
	}
	for i, from := range l.starts {
		to := len(l.order)
		if i+1 < len(l.starts) {
			to = l.starts[i+1]
		}
		clear(p)
		w := leafWriter{p: p}
		for _, h := range l.order[from:to] {
			w.add(d.ents[h.ent])
		}
		w.finish(seed)
		if err := emit(p); err != nil {
			return err
		}
	}
	return nil
}

// putIndex writes {limit, count} and count entries at off. Entry i is block
// block+i and covers the leaves from first+i*step on.
func (d *dir) putIndex(p []byte, off, limit, first, count, step, block int, seed uint32) {
	le.PutUint16(p[off:], uint16(limit))
	le.PutUint16(p[off+2:], uint16(count))
	le.PutUint32(p[off+4:], uint32(block))
	for i := 1; i < count; i++ {
		at := d.layout.starts[first+i*step]
		h := d.layout.order[at].hash
		if d.layout.order[at-1].hash == h {
			h |= 1 // the same hash goes on from the leaf before
		}
		le.PutUint32(p[off+8*i:], h)
		le.PutUint32(p[off+8*i+4:], uint32(block+i))
	}
	le.PutUint32(p[BlockSize-4:], dxChecksum(seed, p, off, count, limit))
}

// checkIndexBlock verifies an index block met while reading a directory. It says
// whether p is one: the root, or a node, which looks like one empty entry.
func checkIndexBlock(ino uint32, p []byte, root bool, seed uint32) (bool, error) {
	off, max := dxNodeOff, dxNodeLimit
	if root {
		off, max = dxRootOff, dxRootLimit
	} else if le.Uint32(p) != 0 || le.Uint16(p[4:]) != BlockSize {
		return false, nil
	}
	limit, count := int(le.Uint16(p[off:])), int(le.Uint16(p[off+2:]))
	if limit > max || count > limit {
		return true, badInode(ino, "index of %d entries, limit %d", count, limit)
	}
	if sum := le.Uint32(p[off+8*limit+4:]); sum != dxChecksum(seed, p, off, count, limit) {
		return true, &FormatError{Off: -1, Field: fmt.Sprintf("directory %d", ino), Msg: "checksum mismatch in its index"}
	}
	return true, nil
}
