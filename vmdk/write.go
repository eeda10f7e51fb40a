package vmdk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

var errReadOnly = errors.New("vmdk: extent is read-only")

// WriteAt writes p at disk byte off into the top disk. A grain that the top
// does not have yet is appended to its extent file; what p leaves of it comes
// from the parent. It returns an error if that extent file cannot be written:
// it is no io.WriterAt, its line says RDONLY, it is compressed, of version 3,
// COWD, or of type ZERO.
//
// Nothing else may use the disk's top extents meanwhile. The first error of a
// file is returned by every later WriteAt. A new grain is written before the
// tables that name it, and the redundant table before the other; nothing is
// synced, so a crash may leave any of these writes undone. The CID stays: a
// disk that has children must not be written, and a caller who does so all the
// same must give it a new one.
func (d *Disk) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off > d.capacity || int64(len(p)) > d.capacity-off {
		return 0, fmt.Errorf("write disk: %d bytes at %d, but it has %d", len(p), off, d.capacity)
	}
	if d.werr != nil {
		return 0, d.werr
	}
	parts := d.links[0].parts
	n := 0
	for i := range parts {
		part := &parts[i]
		if n == len(p) || off+int64(n) >= part.end {
			continue
		}
		q := p[n:min(int64(len(p)), part.end-off)]
		done, err := d.writePart(part, q, off+int64(n))
		n += done
		if err != nil {
			return n, fmt.Errorf("write disk at byte %d: %w", off+int64(n), err)
		}
	}
	return n, nil
}

// writePart writes p at disk byte off, all of it in one part of the top disk.
func (d *Disk) writePart(part *part, p []byte, off int64) (int, error) {
	if part.alloc == nil {
		a, err := newAllocator(d, part)
		if err != nil {
			return 0, err
		}
		part.alloc = a
	}
	a, e := part.alloc, part.extent
	n := 0
	for n < len(p) {
		in := off + int64(n) + a.shift
		most := int64(len(p) - n)
		if !e.flat {
			most = min(most, roundUp(in+1, e.grain*tableEntries)-in) // to the end of one grain table
		}
		st, pos, length, err := e.lookup(in, most)
		if err != nil {
			return n, err
		}
		q := p[n : n+int(length)]
		if st == stored {
			err = a.write(q, pos)
		} else {
			err = a.allocate(q, in, st)
		}
		if err != nil {
			d.werr = err
			return n, err
		}
		n += len(q)
	}
	return n, nil
}

// An allocator writes an extent file for WriteAt.
type allocator struct {
	d     *Disk
	e     *Extent
	w     io.WriterAt
	shift int64    // from a byte of the disk to that of the extent
	end   int64    // where the file ends, or its last grain, if that is cut short
	rgd   []uint32 // redundant grain directory; nil if there is none
}

// newAllocator reads all tables of a part's extent file: nothing is added to
// one that is damaged.
func newAllocator(d *Disk, part *part) (*allocator, error) {
	e := part.extent
	if !part.writable || e == nil || e.cowd != nil || !e.flat && (e.isCompressed() || e.h.version == 3) {
		return nil, errReadOnly
	}
	w, ok := e.r.(io.WriterAt)
	if !ok {
		return nil, errReadOnly
	}
	a := &allocator{d: d, e: e, w: w, shift: part.base - part.start, end: e.size}
	if e.flat {
		return a, nil
	}
	if e.h.flags&flagRedundant != 0 {
		var err error
		if a.rgd, err = e.readDirectory(e.h.rgdOffset, "redundant grain directory"); err != nil {
			return nil, err
		}
	}
	for i := range e.gd {
		if a.rgd != nil && (a.rgd[i] == 0) != (e.gd[i] == 0) {
			return nil, formatErrorf(int64(e.h.rgdOffset)*SectorSize+4*int64(i), "redundant grain directory",
				"entry %d is %d, of the grain directory %d", i, a.rgd[i], e.gd[i])
		}
		t, err := e.table(int64(i))
		if err != nil {
			return nil, err
		}
		for _, v := range *t {
			if st, pos := e.classify(v, 0); st == stored {
				a.end = max(a.end, pos+e.grain)
			}
		}
	}
	return a, nil
}

func (a *allocator) write(p []byte, pos int64) error {
	if _, err := a.w.WriteAt(p, pos); err != nil {
		return fmt.Errorf("write extent file at byte %d: %w", pos, err)
	}
	a.e.size = max(a.e.size, pos+int64(len(p)))
	a.end = max(a.end, a.e.size)
	return nil
}

// allocate appends the grains of which p, at byte in of the extent, is a part.
// All belong to one grain table and were in state st.
func (a *allocator) allocate(p []byte, in int64, st state) error {
	e := a.e
	first, end := in/e.grain, roundUp(in+int64(len(p)), e.grain)/e.grain
	pos := roundUp(a.end, e.grain)
	if pos+(end-first)*e.grain+2*tableSize > maxSectors*SectorSize {
		return errors.New("vmdk: extent file would grow past the format's 2 TiB")
	}
	lba := uint32(pos / SectorSize)
	if head := in - first*e.grain; head > 0 {
		n := min(int64(len(p)), e.grain-head)
		if err := a.writeGrain(p[:n], in, st, pos); err != nil {
			return err
		}
		p, in, pos = p[n:], in+n, pos+e.grain
	}
	if n := int64(len(p)) / e.grain * e.grain; n > 0 {
		if err := a.write(p[:n], pos); err != nil {
			return err
		}
		p, in, pos = p[n:], in+n, pos+n
	}
	if len(p) > 0 {
		if err := a.writeGrain(p, in, st, pos); err != nil {
			return err
		}
	}
	return a.link(first, end-first, lba)
}

// writeGrain writes p, at byte in of the extent, and around it what the rest of
// that grain read as until now, as one grain at file byte pos.
func (a *allocator) writeGrain(p []byte, in int64, st state, pos int64) error {
	e := a.e
	b := make([]byte, e.grain)
	start := in / e.grain * e.grain
	head := in - start
	tail := head + int64(copy(b[head:], p))
	if st == absent {
		var few fewLinks
		c := a.d.cursor(&few)
		if _, err := c.read(b[:head], start-a.shift, 1); err != nil {
			return err
		}
		if n := min(e.grain, e.Capacity()-start); tail < n {
			if _, err := c.read(b[tail:n], start+tail-a.shift, 1); err != nil {
				return err
			}
		}
	}
	return a.write(b, pos)
}

// link makes n table entries, from that of grain first on, name the grains at
// sector lba and after.
func (a *allocator) link(first, n int64, lba uint32) error {
	e := a.e
	i, at := first/tableEntries, first%tableEntries
	t, err := e.table(i)
	if err != nil {
		return err
	}
	entry := func(j int64) uint32 { return lba + uint32(j)*uint32(e.h.grainSize) }
	var b [tableSize]byte
	for j, v := range *t {
		binary.LittleEndian.PutUint32(b[4*j:], v)
	}
	for j := range n {
		binary.LittleEndian.PutUint32(b[4*(at+j):], entry(j))
	}
	if e.gd[i] == 0 {
		if err := a.addTable(i, b[:]); err != nil {
			return err
		}
	} else {
		if a.rgd != nil {
			if err := a.write(b[4*at:4*(at+n)], int64(a.rgd[i])*SectorSize+4*at); err != nil {
				return err
			}
		}
		if err := a.write(b[4*at:4*(at+n)], int64(e.gd[i])*SectorSize+4*at); err != nil {
			return err
		}
	}
	if t == e.none {
		t = tableOf(tableEntries)
	}
	for j := range n {
		(*t)[at+j] = entry(j)
	}
	e.keep(i, t)
	return nil
}

// addTable appends grain table i and names it in the directory, for each of
// which there are two if rgd is not nil.
func (a *allocator) addTable(i int64, table []byte) error {
	e := a.e
	add := func(dir uint64) (uint32, error) {
		pos := roundUp(a.end, SectorSize)
		if err := a.write(table, pos); err != nil {
			return 0, err
		}
		lba := uint32(pos / SectorSize)
		entry := binary.LittleEndian.AppendUint32(nil, lba)
		return lba, a.write(entry, int64(dir)*SectorSize+4*i)
	}
	if a.rgd != nil {
		lba, err := add(e.h.rgdOffset)
		if err != nil {
			return err
		}
		a.rgd[i] = lba
	}
	lba, err := add(e.h.gdOffset)
	if err != nil {
		return err
	}
	e.gd[i] = lba
	return nil
}
