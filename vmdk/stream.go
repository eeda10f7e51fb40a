package vmdk

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync"

	"github.com/klauspost/compress/zlib"
)

// Types of markers, which say what follows them.
const (
	markerTable     = 1
	markerDirectory = 2
	markerFooter    = 3
)

// streamLevel is how hard grains are compressed: within 3 % of what qemu-img comes to, in a
// third of the time.
const streamLevel = 5

// maxDeflaters bounds how many grains are compressed at the same time: one
// goroutine feeds them all, and cannot feed more.
const maxDeflaters = 16

// WriteStream writes what the chain shows as a stream-optimized disk, the form in which
// disks are sent and OVF packages have them. Grains that are all zeros are left out. name is
// what the file is called, for the descriptor in it. Nothing is written twice, so w may be
// a pipe; after an error what it got is not a disk. Equal disks give equal bytes. All
// processors compress, and are done when it returns.
func (d *Disk) WriteStream(w io.Writer, name string, cid uint32) error {
	h, text, err := d.streamHeader(name, cid)
	if err != nil {
		return err
	}
	s := streamWriter{w: w, h: h, gd: make([]uint32, h.numTables()), table: make(grainTable, tableEntries)}
	if err := s.put(append(h.marshal(), text...), int64(h.overHead)*SectorSize); err != nil {
		return err
	}
	if err := s.compress(func() error { return d.CopyTo(&s, DefaultGrainSize) }); err != nil {
		return err
	}
	return s.finish()
}

// StreamBound returns a size in bytes that WriteStream does not exceed: what it writes if no
// grain compresses.
func (d *Disk) StreamBound() (int64, error) {
	h, err := newHeader(d.capacity)
	if err != nil {
		return 0, err
	}
	var grains, tables int64
	next := int64(0) // the first grain that is not counted yet
	for r, err := range d.Runs(0) {
		if err != nil {
			return 0, err
		}
		first, end := max(next, r.Off/DefaultGrainSize), roundUp(r.Off+r.Len, DefaultGrainSize)/DefaultGrainSize
		if first >= end {
			continue
		}
		tables += (end-1)/tableEntries - first/tableEntries + 1
		if next > 0 && (next-1)/tableEntries == first/tableEntries {
			tables--
		}
		grains += end - first
		next = end
	}
	// A grain that does not compress is stored as it is, in three pieces at most, of 5 bytes
	// more each, with 6 around them.
	grain := roundUp(grainMarker+DefaultGrainSize+3*5+6, SectorSize)
	dir := directorySectors(h.numTables())
	const ends = 1 + 2 + 1 // marker of the directory, the footer with its own, the end
	return DefaultGrainSize + grains*grain + (tables*(1+tableSectors)+dir+ends)*SectorSize, nil
}

// streamHeader returns the header and the embedded descriptor.
func (d *Disk) streamHeader(name string, cid uint32) (header, []byte, error) {
	h, err := newHeader(d.capacity)
	if err != nil {
		return header{}, nil, err
	}
	desc := NewDescriptor(name, d.capacity, cid)
	desc.CreateType = "streamOptimized"
	text, err := embedded(desc)
	if err != nil {
		return header{}, nil, err
	}
	h.version, h.flags, h.compression = 3, flagNewline|flagCompressed|flagMarkers, 1
	h.descriptorOffset, h.descriptorSize = 1, uint64(len(text)/SectorSize)
	h.gdOffset, h.overHead = gdAtEnd, h.grainSize
	return h, text, nil
}

// A streamWriter writes a stream-optimized file. Its WriteAt takes whole grains, ascending,
// has them compressed by whoever is free, and writes them in order.
type streamWriter struct {
	w     io.Writer
	h     header
	pos   int64 // in the file, bytes
	gd    []uint32
	index int64 // of table
	table grainTable

	grains       []deflatedGrain // a ring
	given, taken int             // how many grains were compressed, or are about to be, and how many of them written
	deflate      chan *deflatedGrain
}

// A deflatedGrain is a grain on its way through compression.
type deflatedGrain struct {
	grain int64
	data  []byte
	buf   bytes.Buffer // its marker and data
	done  chan error
}

// compress runs feed, which calls WriteAt, and returns when all that it wrote is compressed
// and written.
func (s *streamWriter) compress(feed func() error) error {
	n := min(runtime.GOMAXPROCS(0), maxDeflaters)
	s.grains = make([]deflatedGrain, 2*n)
	s.deflate = make(chan *deflatedGrain, len(s.grains))
	for i := range s.grains {
		s.grains[i].done = make(chan error, 1)
	}
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			z, err := zlib.NewWriterLevel(nil, streamLevel)
			for g := range s.deflate {
				if err == nil {
					err = g.compress(z)
				}
				g.done <- err
			}
		})
	}
	defer wg.Wait()
	defer close(s.deflate)
	if err := feed(); err != nil {
		return err
	}
	for s.taken < s.given {
		if err := s.take(); err != nil {
			return err
		}
	}
	return nil
}

// compress makes what stands in the file of a grain.
func (g *deflatedGrain) compress(z *zlib.Writer) error {
	g.buf.Reset()
	g.buf.Write(make([]byte, grainMarker))
	z.Reset(&g.buf)
	if _, err := z.Write(g.data); err != nil {
		return err
	}
	if err := z.Close(); err != nil {
		return err
	}
	b := g.buf.Bytes()
	binary.LittleEndian.PutUint64(b, uint64(g.grain)*(DefaultGrainSize/SectorSize))
	binary.LittleEndian.PutUint32(b[8:], uint32(len(b)-grainMarker))
	return nil
}

func (s *streamWriter) WriteAt(p []byte, off int64) (int, error) {
	for n := 0; n < len(p); n += DefaultGrainSize {
		if s.given-s.taken == len(s.grains) {
			if err := s.take(); err != nil {
				return n, err
			}
		}
		g := &s.grains[s.given%len(s.grains)]
		g.grain = (off + int64(n)) / DefaultGrainSize
		g.data = append(g.data[:0], p[n:min(n+DefaultGrainSize, len(p))]...)
		s.given++
		s.deflate <- g
	}
	return len(p), nil
}

// take writes the grain that was given first.
func (s *streamWriter) take() error {
	g := &s.grains[s.taken%len(s.grains)]
	s.taken++
	if err := <-g.done; err != nil {
		return err
	}
	if g.grain/tableEntries != s.index {
		if err := s.endTable(); err != nil {
			return err
		}
		s.index = g.grain / tableEntries
	}
	s.table[g.grain%tableEntries] = uint32(s.pos / SectorSize)
	return s.put(g.buf.Bytes(), SectorSize)
}

// put writes p and zeros up to a multiple of align.
func (s *streamWriter) put(p []byte, align int64) error {
	end := roundUp(s.pos+int64(len(p)), align)
	if end > maxSectors*SectorSize {
		return fmt.Errorf("write stream: a VMDK ends before %d bytes", int64(maxSectors)*SectorSize)
	}
	p = append(p, make([]byte, end-s.pos-int64(len(p)))...)
	s.pos = end
	if _, err := s.w.Write(p); err != nil {
		return fmt.Errorf("write stream: %w", err)
	}
	return nil
}

// marker announces metadata of a number of sectors.
func (s *streamWriter) marker(sectors int64, typ uint32) error {
	b := binary.LittleEndian.AppendUint64(nil, uint64(sectors))
	b = binary.LittleEndian.AppendUint32(b, 0)
	return s.put(binary.LittleEndian.AppendUint32(b, typ), SectorSize)
}

// entries writes a grain table or directory behind its marker, and returns its sector.
func (s *streamWriter) entries(list []uint32, typ uint32) (uint32, error) {
	if err := s.marker(directorySectors(int64(len(list))), typ); err != nil {
		return 0, err
	}
	lba := uint32(s.pos / SectorSize)
	b := make([]byte, 0, 4*len(list))
	for _, v := range list {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	return lba, s.put(b, SectorSize)
}

// endTable writes the table of the grains that came last, unless there are none.
func (s *streamWriter) endTable() (err error) {
	if slices.Equal(s.table, *noGrains) {
		return nil
	}
	s.gd[s.index], err = s.entries(s.table, markerTable)
	clear(s.table)
	return err
}

func (s *streamWriter) finish() error {
	if err := s.endTable(); err != nil {
		return err
	}
	lba, err := s.entries(s.gd, markerDirectory)
	if err != nil {
		return err
	}
	if err := s.marker(1, markerFooter); err != nil {
		return err
	}
	footer := s.h
	footer.gdOffset = uint64(lba)
	return s.put(append(footer.marshal(), make([]byte, SectorSize)...), SectorSize) // and the end marker
}
