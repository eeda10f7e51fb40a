package vmdk

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// maxProblems is how many problems one Check lists before it only counts.
const maxProblems = 64

// Check looks for everything in a chain that some reader could trip over: what
// OpenDisk refuses, and what Extent.Check finds in each extent file. It returns
// nil or an error that joins a *FormatError for each problem.
func Check(links []Link) error {
	_, err := OpenDisk(links)
	errs := []error{err}
	seen := make(map[*Extent]bool)
	for i, l := range links {
		for j, e := range l.Extents {
			if seen[e] {
				continue
			}
			seen[e] = true
			if err := e.Check(); err != nil {
				errs = append(errs, fmt.Errorf("check extent %d of disk %d of chain: %w", j, i, err))
			}
		}
	}
	return errors.Join(errs...)
}

// Check reads all tables of an extent file and looks for entries that point
// outside the file or past the disk, for metadata or grains that overlap, for a
// redundant directory or table that differs from the other, and for a last
// grain that is cut short. It decompresses compressed grains. It returns nil or
// an error that joins a *FormatError for each problem; of very many it only
// counts the last. It must not run at the same time as Disk.WriteAt.
func (e *Extent) Check() error {
	if e.flat {
		return nil
	}
	c := checker{e: e}
	if e.size > maxSectors*SectorSize {
		c.problem(-1, "extent file", "%d bytes, the format ends at 2 TiB", e.size)
	}
	if c.metadata() {
		if err := c.tables(); err != nil {
			return err
		}
		c.overlaps()
		c.freeSector()
	}
	if c.more > 0 {
		c.errs = append(c.errs, formatErrorf(-1, "extent file", "has %d problems more", c.more))
	}
	return errors.Join(c.errs...)
}

type checker struct {
	e      *Extent
	rgd    []uint32
	spans  []span
	grains int64 // seen so far
	errs   []error
	more   int // problems not in errs
}

// A span is a piece of the extent file, in sectors.
type span struct {
	start, end int64
	kind       spanKind
	index      int64 // of a table or grain
}

type spanKind string

const (
	spanHeader     spanKind = "header"
	spanFooter     spanKind = "footer"
	spanDescriptor spanKind = "embedded descriptor"
	spanGD         spanKind = "grain directory"
	spanRGD        spanKind = "redundant grain directory"
	spanGT         spanKind = "grain table"
	spanRGT        spanKind = "redundant grain table"
	spanGrain      spanKind = "grain"
)

func (c *checker) problem(off int64, field, format string, args ...any) {
	if len(c.errs) == maxProblems {
		c.more++
		return
	}
	c.errs = append(c.errs, formatErrorf(off, field, format, args...))
}

// failed adds err to the problems if it is one of the format; any other error
// it returns.
func (c *checker) failed(err error) error {
	if _, ok := errors.AsType[*FormatError](err); !ok {
		return err
	}
	if len(c.errs) == maxProblems {
		c.more++
	} else {
		c.errs = append(c.errs, err)
	}
	return nil
}

// metadata collects and compares the places of everything but the grains. It
// reports whether the grain tables are worth reading: tables that overlap could
// name the same grains a million times.
func (c *checker) metadata() bool {
	e, h := c.e, &c.e.h
	c.spans = append(c.spans, span{0, e.headerSectors(), spanHeader, 0})
	if e.headerOff != 0 {
		c.spans = append(c.spans, span{e.headerOff/SectorSize - 1, e.headerOff/SectorSize + 2, spanFooter, 0})
	}
	if h.descriptorOffset != 0 {
		at := int64(h.descriptorOffset)
		c.spans = append(c.spans, span{at, at + int64(h.descriptorSize), spanDescriptor, 0})
	}
	c.directory(h.gdOffset, e.gd, spanGD, spanGT)
	if h.flags&flagRedundant != 0 {
		var err error
		if c.rgd, err = e.readDirectory(h.rgdOffset, string(spanRGD)); err != nil {
			c.errs = append(c.errs, err)
		} else {
			c.directory(h.rgdOffset, c.rgd, spanRGD, spanRGT)
		}
	}
	before := len(c.errs)
	c.overlaps()
	return len(c.errs) == before
}

func (c *checker) directory(lba uint64, gd []uint32, dir, table spanKind) {
	at := int64(lba)
	c.spans = append(c.spans, span{at, at + directorySectors(int64(len(gd))), dir, 0})
	for i, v := range gd {
		if v != 0 {
			c.spans = append(c.spans, span{int64(v), int64(v) + c.e.h.tableSize()/SectorSize, table, int64(i)})
		}
	}
}

// overlaps sorts the spans and reports those that share a sector.
func (c *checker) overlaps() {
	slices.SortFunc(c.spans, func(a, b span) int {
		return cmp.Or(cmp.Compare(a.start, b.start), cmp.Compare(a.end, b.end))
	})
	var last span
	for _, s := range c.spans {
		if s.start < last.end {
			c.problem(s.start*SectorSize, string(s.kind), "%d overlaps %s %d", s.index, last.kind, last.index)
		}
		if s.end > last.end {
			last = s
		}
	}
}

// freeSector looks at where ESXi would put the next grain of a COWD extent.
// QEMU, when it adds one, leaves that as it was.
func (c *checker) freeSector() {
	if c.e.cowd == nil {
		return
	}
	free := int64(c.e.cowd.freeSector)
	for _, s := range c.spans {
		if s.end > free {
			c.problem(0x1c, "freeSector", "%d, but sectors up to %d are taken by %s %d", free, s.end, s.kind, s.index)
			return
		}
	}
}

// tables checks each grain table and collects the places of the grains.
func (c *checker) tables() error {
	e := c.e
	var a, b [tableSize]byte
	for i, lba := range e.gd {
		if c.rgd != nil && (lba == 0) != (c.rgd[i] == 0) {
			c.problem(int64(e.h.rgdOffset)*SectorSize+4*int64(i), string(spanRGD), "entry %d is %d, of the grain directory %d", i, c.rgd[i], lba)
			continue
		}
		if lba == 0 {
			continue
		}
		if c.rgd != nil {
			if err := readFull(e.r, a[:], int64(lba)*SectorSize); err != nil {
				return fmt.Errorf("read grain table %d: %w", i, err)
			}
			if err := readFull(e.r, b[:], int64(c.rgd[i])*SectorSize); err != nil {
				return fmt.Errorf("read redundant grain table %d: %w", i, err)
			}
			if !bytes.Equal(a[:], b[:]) {
				j := 0
				for a[j] == b[j] {
					j++
				}
				j &^= 3
				c.problem(int64(c.rgd[i])*SectorSize+int64(j), string(spanRGT), "%d: entry %d is %d, of the grain table %d",
					i, j/4, binary.LittleEndian.Uint32(b[j:]), binary.LittleEndian.Uint32(a[j:]))
			}
		}
		t, err := e.readTable(lba)
		if err == nil {
			err = c.entries(int64(i), t)
		}
		if err != nil {
			if err := c.failed(err); err != nil {
				return fmt.Errorf("check grain table %d: %w", i, err)
			}
		}
		if c.grains > e.size/SectorSize {
			c.problem(-1, string(spanGrain), "more of them than the file has sectors")
			return nil
		}
	}
	return nil
}

// entries checks the grains of table i.
func (c *checker) entries(i int64, t *grainTable) error {
	e := c.e
	for j, v := range *t {
		g := i<<e.shift + int64(j)
		st, pos := e.classify(v, 0)
		if g*e.grain >= e.Capacity() && v != 0 {
			c.problem(int64(e.gd[i])*SectorSize+4*int64(j), "grain table entry", "grain %d is past the end of the disk", g)
			continue
		}
		s := span{int64(v), int64(v) + int64(e.h.grainSize), spanGrain, g}
		switch st {
		case stored:
			if pos+e.grain > e.size {
				c.problem(pos, string(spanGrain), "%d is cut short by the end of the file at byte %d", g, e.size)
			}
		case compressed:
			n, err := e.readMarker(g, pos)
			if err == nil {
				_, err = e.inflate(g, pos)
			}
			if err != nil {
				if err := c.failed(err); err != nil {
					return err
				}
				continue
			}
			s.end = s.start + roundUp(grainMarker+n, SectorSize)/SectorSize
		default:
			continue
		}
		c.grains++
		if n := len(c.spans); n > 0 && st == stored && c.spans[n-1].kind == spanGrain && c.spans[n-1].end == s.start {
			c.spans[n-1].end = s.end
			continue
		}
		c.spans = append(c.spans, s)
	}
	return nil
}
