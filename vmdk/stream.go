package vmdk

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"slices"

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

// WriteStream writes what the chain shows as a stream-optimized disk, the form in which
// disks are sent and OVF packages have them. Grains that are all zeros are left out. name is
// what the file is called, for the descriptor in it. Nothing is written twice, so w may be
// a pipe; after an error what it got is not a disk. Equal disks give equal bytes.
func (d *Disk) WriteStream(w io.Writer, name string, cid uint32) error {
	h, err := newHeader(d.capacity)
	if err != nil {
		return err
	}
	h.version, h.flags, h.compression = 3, flagNewline|flagCompressed|flagMarkers, 1
	desc := NewDescriptor(name, d.capacity, cid)
	desc.CreateType = "streamOptimized"
	text, err := embedded(desc)
	if err != nil {
		return err
	}
	h.descriptorOffset, h.descriptorSize = 1, uint64(len(text)/SectorSize)
	h.gdOffset, h.overHead = gdAtEnd, h.grainSize
	s := streamWriter{w: w, h: h, gd: make([]uint32, h.numTables()), table: make(grainTable, tableEntries)}
	if s.z, err = zlib.NewWriterLevel(&s.buf, streamLevel); err != nil {
		return err
	}
	if err := s.put(append(h.marshal(), text...), int64(h.overHead)*SectorSize); err != nil {
		return err
	}
	if err := d.CopyTo(&s, DefaultGrainSize); err != nil {
		return err
	}
	return s.finish()
}

// A streamWriter writes a stream-optimized file. Its WriteAt takes whole grains, ascending.
type streamWriter struct {
	w     io.Writer
	h     header
	z     *zlib.Writer
	buf   bytes.Buffer // a grain's marker and data
	pos   int64        // in the file, bytes
	gd    []uint32
	index int64 // of table
	table grainTable
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

func (s *streamWriter) WriteAt(p []byte, off int64) (int, error) {
	for n := 0; n < len(p); n += DefaultGrainSize {
		if err := s.grain(p[n:min(n+DefaultGrainSize, len(p))], (off+int64(n))/DefaultGrainSize); err != nil {
			return n, err
		}
	}
	return len(p), nil
}

// grain writes grain g behind its marker. The last one of the disk may be short.
func (s *streamWriter) grain(p []byte, g int64) error {
	if g/tableEntries != s.index {
		if err := s.endTable(); err != nil {
			return err
		}
		s.index = g / tableEntries
	}
	s.table[g%tableEntries] = uint32(s.pos / SectorSize)
	s.buf.Reset()
	s.buf.Write(make([]byte, grainMarker))
	s.z.Reset(&s.buf)
	if _, err := s.z.Write(p); err != nil {
		return err
	}
	if err := s.z.Close(); err != nil {
		return err
	}
	b := s.buf.Bytes()
	binary.LittleEndian.PutUint64(b, uint64(g)*s.h.grainSize)
	binary.LittleEndian.PutUint32(b[8:], uint32(len(b)-grainMarker))
	return s.put(b, SectorSize)
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
