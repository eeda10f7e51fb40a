package vmdk

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"
)

// cachedTables bounds the decoded grain tables that one Extent keeps: 2 MiB,
// which cover 32 GiB of 64 KiB grains. Of the tables of COWD, eight times as
// long, it keeps an eighth as many.
const cachedTables = 1024

// A grainTable is one decoded grain table: file sectors.
type grainTable []uint32

// An Extent is an open extent file. Its grain tables are read when they are
// first needed and kept, up to a bound, so one Extent should serve every Disk
// whose chain has it. The file must not be changed by others meanwhile. It may
// be used by many goroutines at the same time, unless one of them writes it
// through Disk.WriteAt. It needs no closing; the file belongs to the caller.
type Extent struct {
	r    io.ReaderAt
	size int64
	flat bool // no header, no grains: the file is the data

	h          header
	cowd       *cowdHeader // what h does not have of a vmfsSparse (COWD) extent; else nil
	headerOff  int64       // where h came from: 0, or the footer
	grain      int64       // bytes
	shift      uint        // a grain table has 1<<shift entries
	none       *grainTable
	descriptor *Descriptor
	gd         []uint32
	tables     []atomic.Pointer[grainTable] // as gd; nil: not read yet
	inflated   atomic.Pointer[inflatedGrain]

	mu     sync.Mutex
	cached []int32 // indexes of tables that count against cachedTables, as a ring
	oldest int     // in cached, once that is full
}

// noGrains and noCOWDGrains are the tables of every directory entry whose
// grains are all absent.
var (
	noGrains     = tableOf(tableEntries)
	noCOWDGrains = tableOf(cowdTableEntries)
)

func tableOf(entries int) *grainTable {
	t := make(grainTable, entries)
	return &t
}

// OpenExtent opens a sparse extent file of size bytes, hosted or COWD, which
// its magic tells. It checks the header, the embedded descriptor, if there is
// one, and the grain directory; a grain table is checked when it is first
// needed. Damage gives a *FormatError. A hosted one can be written, by
// Disk.WriteAt, if r is an io.WriterAt too.
func OpenExtent(r io.ReaderAt, size int64) (*Extent, error) {
	e := &Extent{r: r, size: size}
	if size < headerSize {
		return nil, formatErrorf(0, "header", "the file has only %d bytes", size)
	}
	b := make([]byte, headerSize)
	if err := readFull(r, b, 0); err != nil {
		return nil, fmt.Errorf("read extent header: %w", err)
	}
	if binary.LittleEndian.Uint32(b) == magicCOWD {
		if err := e.readCOWDHeader(); err != nil {
			return nil, err
		}
	} else if err := e.readHostedHeader(b); err != nil {
		return nil, err
	}
	if n := int64(e.h.overHead) * SectorSize; n > size {
		return nil, formatErrorf(0x40, "overhead", "%d bytes in a file of %d", n, size)
	}
	e.grain = int64(e.h.grainSize) * SectorSize
	if err := e.readDescriptor(); err != nil {
		return nil, err
	}
	var err error
	if e.gd, err = e.readDirectory(e.h.gdOffset, "grain directory"); err != nil {
		return nil, err
	}
	e.tables = make([]atomic.Pointer[grainTable], len(e.gd))
	return e, nil
}

// readHostedHeader decodes the first sector, and the footer if that counts.
func (e *Extent) readHostedHeader(b []byte) (err error) {
	if e.h, err = parseHeader(b, 0); err != nil {
		return err
	}
	e.shift, e.none = uint(bits.TrailingZeros(tableEntries)), noGrains
	if e.h.gdOffset == gdAtEnd {
		return e.readFooter()
	}
	return nil
}

// OpenFlat opens a flat extent file, one that is a part of the disk as it
// stands, of size bytes.
func OpenFlat(r io.ReaderAt, size int64) *Extent {
	return &Extent{r: r, size: size, flat: true}
}

// Capacity returns how many bytes of a disk the extent file describes. For a
// flat one that is its size.
func (e *Extent) Capacity() int64 {
	if e.flat {
		return e.size
	}
	return int64(e.h.capacity) * SectorSize
}

// IsCOWD reports whether the extent file is a vmfsSparse one.
func (e *Extent) IsCOWD() bool { return e.cowd != nil }

// isOf reports whether the file is one that an extent line of this type names.
// It is strict: QEMU takes the first words of whatever a VMFSSPARSE line names
// for COWD's.
func (e *Extent) isOf(typ string) bool {
	switch {
	case e.flat:
		return slices.Contains(flatTypes, typ)
	case e.cowd != nil:
		return typ == "VMFSSPARSE"
	}
	return typ == "SPARSE"
}

// Descriptor returns the descriptor embedded in the extent file, or nil.
func (e *Extent) Descriptor() *Descriptor { return e.descriptor }

// readDescriptor reads the embedded descriptor. Files of a disk in several
// parts have room for one and zeros in it.
func (e *Extent) readDescriptor() error {
	off, n := int64(e.h.descriptorOffset)*SectorSize, int64(e.h.descriptorSize)*SectorSize
	if off == 0 || n == 0 {
		return nil
	}
	if off+n > e.size {
		return formatErrorf(0x1c, "embedded descriptor", "bytes %d to %d of a file of %d", off, off+n, e.size)
	}
	b := make([]byte, n)
	if err := readFull(e.r, b, off); err != nil {
		return fmt.Errorf("read embedded descriptor: %w", err)
	}
	if b[0] == 0 {
		return nil
	}
	d, err := ParseDescriptor(b)
	if err != nil {
		return fmt.Errorf("read embedded descriptor: %w", err)
	}
	e.descriptor = d
	return nil
}

// readDirectory reads the grain directory at a sector and checks that the
// tables it names are inside the file.
func (e *Extent) readDirectory(lba uint64, field string) ([]uint32, error) {
	off, n := int64(lba)*SectorSize, e.h.numTables()*4
	if off+n > e.size {
		return nil, formatErrorf(off, field, "%d bytes in a file of %d", n, e.size)
	}
	b := make([]byte, n)
	if err := readFull(e.r, b, off); err != nil {
		return nil, fmt.Errorf("read %s: %w", field, err)
	}
	gd := make([]uint32, e.h.numTables())
	for i := range gd {
		gd[i] = binary.LittleEndian.Uint32(b[4*i:])
		if at := int64(gd[i]) * SectorSize; at != 0 && at+e.h.tableSize() > e.size {
			return nil, formatErrorf(off+4*int64(i), field, "entry %d: a grain table at byte %d of a file of %d", i, at, e.size)
		}
	}
	return gd, nil
}

// table returns grain table i, which the caller must not change; e.none if
// there is none.
func (e *Extent) table(i int64) (*grainTable, error) {
	if e.gd[i] == 0 {
		return e.none, nil
	}
	if t := e.tables[i].Load(); t != nil {
		return t, nil
	}
	t, err := e.readTable(e.gd[i])
	if err != nil {
		return nil, fmt.Errorf("read grain table %d: %w", i, err)
	}
	if slices.Equal(*t, *e.none) {
		e.tables[i].Store(e.none)
		return e.none, nil
	}
	e.keep(i, t)
	return t, nil
}

// keep caches a table and drops the one that was cached longest ago.
func (e *Extent) keep(i int64, t *grainTable) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if old := e.tables[i].Swap(t); old != nil && old != e.none {
		return // somebody else was faster; it is in the ring
	}
	if limit := cachedTables * tableEntries >> e.shift; len(e.cached) < limit {
		e.cached = append(e.cached, int32(i))
		return
	}
	e.tables[e.cached[e.oldest]].Store(nil)
	e.cached[e.oldest] = int32(i)
	e.oldest = (e.oldest + 1) % len(e.cached)
}

// readTable reads and checks the grain table at a sector.
func (e *Extent) readTable(lba uint32) (*grainTable, error) {
	b := make([]byte, e.h.tableSize())
	off := int64(lba) * SectorSize
	if err := readFull(e.r, b, off); err != nil {
		return nil, err
	}
	t := make(grainTable, e.h.numGTEsPerGT)
	for i := range t {
		v := binary.LittleEndian.Uint32(b[4*i:])
		t[i] = v
		switch {
		case v == 0 || v == zeroGrain && e.h.flags&flagZeroGrain != 0:
		case uint64(v) < e.h.overHead:
			return nil, formatErrorf(off+4*int64(i), "grain table entry", "a grain at sector %d, among the metadata", v)
		case int64(v)*SectorSize >= e.size:
			return nil, formatErrorf(off+4*int64(i), "grain table entry", "a grain at byte %d of a file of %d", int64(v)*SectorSize, e.size)
		}
	}
	return &t, nil
}

// state says where a run of bytes is.
type state int

const (
	absent     state = iota // not here: in the parent
	zeroed                  // here, as zeros
	stored                  // here, as it is
	compressed              // here, in a compressed grain
)

// lookup finds the run of bytes that begins at byte off of the extent, is at
// most n long, and lies in one state; for stored also in one piece from pos in
// the file on. For compressed, which is one grain at a time, pos is the sector
// of its marker.
func (e *Extent) lookup(off, n int64) (st state, pos, length int64, err error) {
	if e.flat {
		return stored, off, n, nil
	}
	first := off / e.grain
	in := off - first*e.grain
	mask := int64(1)<<e.shift - 1
	var want uint64 // the entry that continues the run
	var t *grainTable
	g := first
	for ; g*e.grain < off+n; g++ {
		if e.gd[g>>e.shift] == 0 {
			if g > first && st != absent {
				break
			}
			g |= mask
			continue
		}
		if g == first || g&mask == 0 {
			if t, err = e.table(g >> e.shift); err != nil {
				return 0, 0, 0, err
			}
		}
		v := (*t)[g&mask]
		if g == first {
			st, pos = e.classify(v, in)
			want = uint64(v)
		} else if st == compressed || uint64(v) != want {
			break
		}
		if st == stored {
			want += e.h.grainSize
		}
	}
	return st, pos, min(g*e.grain-off, n), nil
}

// classify interprets a grain table entry; in is an offset in the grain.
func (e *Extent) classify(v uint32, in int64) (st state, pos int64) {
	switch {
	case v == 0:
		return absent, 0
	case v == zeroGrain && e.h.flags&flagZeroGrain != 0:
		return zeroed, 0
	case e.isCompressed():
		return compressed, int64(v)
	default:
		return stored, int64(v)*SectorSize + in
	}
}

func (e *Extent) isCompressed() bool { return e.h.flags&flagCompressed != 0 }

// readStored reads file bytes from pos on. A last grain that is cut short reads
// as zeros past the end of the file, as in QEMU.
func (e *Extent) readStored(p []byte, pos int64) error {
	if left := e.size - pos; int64(len(p)) > left {
		left = max(left, 0)
		clear(p[left:])
		p = p[:left]
	}
	return readFull(e.r, p, pos)
}

// readFooter takes the header's copy from the end of a file whose tables come
// after the grains.
func (e *Extent) readFooter() error {
	const tail = 3 * SectorSize
	if e.size < headerSize+tail || e.size%SectorSize != 0 {
		return formatErrorf(0, "footer", "the file has %d bytes", e.size)
	}
	off := e.size - tail
	b := make([]byte, tail)
	if err := readFull(e.r, b, off); err != nil {
		return fmt.Errorf("read extent footer: %w", err)
	}
	marker := make([]byte, SectorSize)
	marker[0], marker[12] = 1, 3 // one sector, of type footer
	if !bytes.Equal(b[:SectorSize], marker) {
		return formatErrorf(off, "footer marker", "is not there")
	}
	if !bytes.Equal(b[2*SectorSize:], make([]byte, SectorSize)) {
		return formatErrorf(off+2*SectorSize, "end marker", "is not zeros")
	}
	h, err := parseHeader(b[SectorSize:2*SectorSize], off+SectorSize)
	if err != nil {
		return err
	}
	at := h
	at.gdOffset, at.rgdOffset = e.h.gdOffset, e.h.rgdOffset
	if at != e.h || h.gdOffset == gdAtEnd {
		return formatErrorf(off+SectorSize, "footer", "differs from the header in more than the grain directory's place")
	}
	e.h, e.headerOff = h, off+SectorSize
	return nil
}
