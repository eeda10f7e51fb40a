package vmdk

import (
	"fmt"
	"io"
	"sort"
)

// A Link is one disk of a chain.
type Link struct {
	// Descriptor describes the disk. nil: the only extent file has it embedded.
	Descriptor *Descriptor
	// Extents are the files of the descriptor's extent lines, in their order,
	// without the lines of type ZERO, which have none. Links of other disks may
	// share them.
	Extents []*Extent
}

// A Disk is a chain of disks seen as one block device.
type Disk struct {
	links    []link // top first
	capacity int64
	werr     error // sticky: a write that failed
}

// link is one disk of the chain: its parts in order, without gaps.
type link struct {
	parts []part
}

// part is what an extent line describes.
type part struct {
	start, end int64   // bytes of the disk
	extent     *Extent // nil: zeros
	base       int64   // added to an offset in the part to get one in the extent
	writable   bool
	alloc      *allocator // of a part of the top disk that was written; nil before
}

// OpenDisk puts a chain together from its disks, the top first and the one
// without a parent last. It returns a *FormatError if a disk's extents are not
// what its descriptor says, if a disk is not the child of the next, going by
// the CIDs, or if their capacities differ.
func OpenDisk(links []Link) (*Disk, error) {
	if len(links) == 0 {
		return nil, formatErrorf(-1, "chain", "has no disk")
	}
	d := &Disk{links: make([]link, len(links))}
	var child *Descriptor
	for i, l := range links {
		desc := l.Descriptor
		if desc == nil {
			if len(l.Extents) != 1 || l.Extents[0].descriptor == nil {
				return nil, fmt.Errorf("open disk %d of chain: %w", i, formatErrorf(-1, "descriptor", "none is given, none is embedded"))
			}
			desc = l.Extents[0].descriptor
		}
		if child != nil && child.ParentCID != desc.CID {
			return nil, fmt.Errorf("open disk %d of chain: %w", i,
				formatErrorf(-1, "parentCID", "the child was made over CID %08x, this is %08x", child.ParentCID, desc.CID))
		}
		if last := i == len(links)-1; (desc.ParentCID == NoParent) != last {
			return nil, fmt.Errorf("open disk %d of chain: %w", i,
				formatErrorf(-1, "parentCID", "%08x in disk %d of %d", desc.ParentCID, i+1, len(links)))
		}
		parts, err := openParts(desc, l.Extents)
		if err != nil {
			return nil, fmt.Errorf("open disk %d of chain: %w", i, err)
		}
		d.links[i].parts = parts
		capacity := parts[len(parts)-1].end
		if i == 0 {
			d.capacity = capacity
		} else if capacity != d.capacity {
			return nil, fmt.Errorf("open disk %d of chain: %w", i,
				formatErrorf(-1, "capacity", "%d bytes, of the child %d", capacity, d.capacity))
		}
		child = desc
	}
	return d, nil
}

// openParts matches a descriptor's extent lines with the files given for them.
func openParts(desc *Descriptor, extents []*Extent) ([]part, error) {
	var parts []part
	var start int64
	for _, x := range desc.Extents {
		if x.Sectors <= 0 || x.Sectors > (1<<62-start)/SectorSize {
			return nil, formatErrorf(-1, "extent", "%q has %d sectors", x.File, x.Sectors)
		}
		n := x.Sectors * SectorSize
		p := part{start: start, end: start + n, writable: x.Access == "RW"}
		start += n
		if x.Access == "NOACCESS" {
			return nil, formatErrorf(-1, "extent", "%q has NOACCESS", x.File)
		}
		if x.Type == "ZERO" {
			parts = append(parts, p)
			continue
		}
		if len(extents) == 0 {
			return nil, formatErrorf(-1, "extent", "no file for %q", x.File)
		}
		e := extents[0]
		extents = extents[1:]
		p.extent = e
		switch {
		case !e.isOf(x.Type):
			return nil, formatErrorf(-1, "extent", "the file of %q is not of type %s", x.File, x.Type)
		case !e.flat:
			if e.Capacity() != n {
				return nil, formatErrorf(-1, "capacity", "%d bytes in the header of %q, %d in the descriptor", e.Capacity(), x.File, n)
			}
		default:
			if x.Offset < 0 || x.Offset > e.size/SectorSize || n > e.size-x.Offset*SectorSize {
				return nil, formatErrorf(-1, "extent", "%d bytes from sector %d of %q, which has %d", n, x.Offset, x.File, e.size)
			}
			p.base = x.Offset * SectorSize
		}
		parts = append(parts, p)
	}
	if len(parts) == 0 {
		return nil, formatErrorf(-1, "extent", "the disk has none")
	}
	if len(extents) != 0 {
		return nil, formatErrorf(-1, "extent", "%d files more than extent lines", len(extents))
	}
	return parts, nil
}

// Capacity returns the size of the disk in bytes.
func (d *Disk) Capacity() int64 { return d.capacity }

// Depth returns the number of disks in the chain.
func (d *Disk) Depth() int { return len(d.links) }

// ReadAt reads len(p) bytes at disk byte off. Grains absent in a disk are read
// from its parent, or are zeros if there is none. At the end of the disk it
// returns io.EOF, as io.ReaderAt asks. It may run concurrently with other
// ReadAts, not with WriteAt. A damaged grain table gives a *FormatError.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read disk: negative offset %d", off)
	}
	if off >= d.capacity {
		return 0, io.EOF
	}
	want := len(p)
	p = p[:min(int64(want), d.capacity-off)]
	var few fewLinks
	c := d.cursor(&few)
	n, err := c.read(p, off, 0)
	if err == nil && n < want {
		err = io.EOF
	}
	return n, err
}

// A cursor resolves ascending offsets of a disk. It remembers how far each
// disk of the chain is known to hold nothing, so that a pass over the disk
// looks at each grain table entry once, however deep the chain.
type cursor struct {
	d      *Disk
	absent []int64 // by link: from the last offset looked at up to this one, nothing is there
}

// fewLinks is enough room for the cursor of a chain of usual depth. A caller
// has it on its stack.
type fewLinks [32]int64

func (d *Disk) cursor(few *fewLinks) cursor {
	if len(d.links) > len(few) {
		return cursor{d, make([]int64, len(d.links))}
	}
	return cursor{d, few[:]}
}

// run is a piece of the disk that one link holds in one state; see
// Extent.lookup. If no link holds it, its state is absent.
type run struct {
	off    int64 // of the disk
	length int64
	state  state
	link   int
	extent *Extent
	in     int64 // offset in the extent
	pos    int64 // as of Extent.lookup
}

// next returns the run that begins at off and has at most n bytes, looking at
// no link above from.
func (c *cursor) next(off, n int64, from int) (run, error) {
	for i := from; i < len(c.d.links); i++ {
		if known := c.absent[i] - off; known > 0 {
			n = min(n, known)
			continue
		}
		r, err := c.d.links[i].lookup(off, n)
		if err != nil {
			return run{}, fmt.Errorf("disk %d of chain: %w", i, err)
		}
		n = r.length
		if r.state != absent {
			r.off, r.link = off, i
			return r, nil
		}
		c.absent[i] = off + n
	}
	return run{off: off, length: n, state: absent, link: len(c.d.links)}, nil
}

func (l *link) lookup(off, n int64) (run, error) {
	i := 0
	if len(l.parts) > 1 {
		i = sort.Search(len(l.parts), func(i int) bool { return l.parts[i].end > off })
	}
	p := &l.parts[i]
	r := run{length: min(n, p.end-off), state: zeroed, extent: p.extent, in: p.base + off - p.start}
	if p.extent == nil {
		return r, nil
	}
	var err error
	r.state, r.pos, r.length, err = p.extent.lookup(r.in, r.length)
	return r, err
}

// read fills p from disk byte off on with what the links from from on show.
func (c *cursor) read(p []byte, off int64, from int) (int, error) {
	for n := 0; n < len(p); {
		r, err := c.next(off+int64(n), int64(len(p)-n), from)
		if err != nil {
			return n, fmt.Errorf("read disk at byte %d: %w", off+int64(n), err)
		}
		q := p[n : n+int(r.length)]
		switch r.state {
		case stored:
			err = r.extent.readStored(q, r.pos)
		case compressed:
			err = r.extent.readCompressed(q, r.in, r.pos)
		default:
			clear(q)
		}
		if err != nil {
			return n, fmt.Errorf("read disk at byte %d, disk %d of chain: %w", off+int64(n), r.link, err)
		}
		n += len(q)
	}
	return len(p), nil
}
