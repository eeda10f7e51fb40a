package vmdk

import (
	"encoding/binary"
	"fmt"
	"io"
	"sort"
)

// A COWD is a vmfsSparse extent file, ESXi's redo log, that is not written
// anywhere: what the disks on top of a chain have and those below do not. Its
// length and its tables follow from the grain tables of the chain, its grains
// are read from the chain's files when they are read from it. So it can be sent,
// in parts, and again if need be, without being stored first: an
// io.SectionReader over it is the body of a request, of known length. Equal
// disks give equal bytes. Many goroutines may read it at the same time, while
// nothing writes the chain.
type COWD struct {
	d      *Disk
	head   []byte    // header and grain directory
	runs   []cowdRun // ascending in all respects
	tables []uint32  // which of the grain directory's there are, ascending
	grains int64     // sector of the first grain
	end    int64     // sector after the last one
}

// A cowdRun is grains that follow each other on the disk, and in the file.
type cowdRun struct {
	disk, file, sectors uint32
}

// cowdPad is the zeros behind the last grain: VMware's technical note on the
// format wants freeSector inside the file.
const cowdPad = 1

// COWD returns the extent file that has what the top disks of the chain have: of
// one layer, if top is 1; of the whole chain, over nothing or an empty disk, if it
// is Depth(). Zeroed grains, which COWD has no entry for, are written out where
// something is stored below, and are not there where nothing is. A disk of 2 TiB
// or more gives a *FormatError.
func (d *Disk) COWD(top int) (*COWD, error) {
	h, err := newCOWDHeader(d.capacity)
	if err != nil {
		return nil, err
	}
	c := &COWD{d: d}
	var sectors int64
	for s, err := range d.delta(top) {
		if err != nil {
			return nil, fmt.Errorf("map COWD extent: %w", err)
		}
		first, n := s.off/SectorSize, s.length/SectorSize
		c.runs = append(c.runs, cowdRun{disk: uint32(first), file: uint32(sectors), sectors: uint32(n)})
		sectors += n
		for t := first / cowdTableEntries; t <= (first+n-1)/cowdTableEntries; t++ {
			if k := len(c.tables); k == 0 || c.tables[k-1] != uint32(t) {
				c.tables = append(c.tables, uint32(t))
			}
		}
	}
	gd := make([]byte, directorySectors(int64(h.numGDEntries))*SectorSize)
	lba := cowdHeaderSectors + int64(len(gd))/SectorSize
	c.grains = lba + int64(len(c.tables))*cowdTableSectors
	c.end = c.grains + sectors
	if c.end+cowdPad >= maxSectors {
		return nil, formatErrorf(-1, "extent file", "%d bytes; a vmfsSparse (COWD) extent file has less than 2 TiB", c.end*SectorSize)
	}
	for i, t := range c.tables {
		binary.LittleEndian.PutUint32(gd[4*t:], uint32(lba+int64(i)*cowdTableSectors))
	}
	for i := range c.runs {
		c.runs[i].file += uint32(c.grains)
	}
	h.freeSector = uint32(c.end)
	c.head = append(h.marshal(), gd...)
	return c, nil
}

// Size returns the length of the file in bytes.
func (c *COWD) Size() int64 { return (c.end + cowdPad) * SectorSize }

// ReadAt reads len(p) bytes at byte off of the file. At its end it returns
// io.EOF, as io.ReaderAt asks.
func (c *COWD) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read COWD extent: negative offset %d", off)
	}
	n := 0
	for n < len(p) && off < c.Size() {
		var m int
		var err error
		switch q := p[n:min(int64(len(p)), int64(n)+c.Size()-off)]; {
		case off < int64(len(c.head)):
			m = copy(q, c.head[off:])
		case off < c.grains*SectorSize:
			m = c.readTable(q, off-int64(len(c.head)))
		case off < c.end*SectorSize:
			m, err = c.readGrains(q, off)
		default:
			clear(q)
			m = len(q)
		}
		n, off = n+m, off+int64(m)
		if err != nil {
			return n, fmt.Errorf("read COWD extent: %w", err)
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// WriteTo writes the whole file, in large pieces.
func (c *COWD) WriteTo(w io.Writer) (int64, error) {
	buf := make([]byte, min(blockBuffer, c.Size()))
	for off := int64(0); off < c.Size(); {
		n, err := c.ReadAt(buf[:min(int64(len(buf)), c.Size()-off)], off)
		if err != nil {
			return off, err
		}
		m, err := w.Write(buf[:n])
		off += int64(m)
		if err != nil {
			return off, fmt.Errorf("write COWD extent: %w", err)
		}
	}
	return c.Size(), nil
}

// readTable fills p with the grain tables from byte off of the first one on, to
// the end of the table it begins in.
func (c *COWD) readTable(p []byte, off int64) int {
	var table [cowdTableSize]byte
	first := int64(c.tables[off/cowdTableSize]) * cowdTableEntries // sector of the disk
	// The run that has it, or the next.
	i := sort.Search(len(c.runs), func(i int) bool {
		return int64(c.runs[i].disk)+int64(c.runs[i].sectors) > first
	})
	for ; i < len(c.runs) && int64(c.runs[i].disk) < first+cowdTableEntries; i++ {
		r := c.runs[i]
		from := max(first, int64(r.disk))
		lba := r.file + uint32(from-int64(r.disk))
		for s := from; s < min(first+cowdTableEntries, int64(r.disk)+int64(r.sectors)); s++ {
			binary.LittleEndian.PutUint32(table[4*(s-first):], lba)
			lba++
		}
	}
	return copy(p, table[off%cowdTableSize:])
}

// readGrains fills p from byte off of the file on, to the end of the run that it
// begins in.
func (c *COWD) readGrains(p []byte, off int64) (int, error) {
	lba := uint32(off / SectorSize)
	i := sort.Search(len(c.runs), func(i int) bool { return c.runs[i].file+c.runs[i].sectors > lba })
	r := c.runs[i]
	in := off - int64(r.file)*SectorSize
	p = p[:min(int64(len(p)), int64(r.sectors)*SectorSize-in)]
	var few fewLinks
	chain := c.d.cursor(&few)
	return chain.read(p, int64(r.disk)*SectorSize+in, 0)
}
