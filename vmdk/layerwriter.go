package vmdk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// bufferSize is how much LayerWriter gathers for one write, and the alignment
// of the file offsets at which its writes end. From 256 KiB to 4 MiB the speed
// is the same; the smallest stays in the processor's cache and is kindest to
// memory when many layers are written at once.
const bufferSize = 256 << 10

// streamStart is the file offset of a layer's stream: the first whole grain
// after the header.
const streamStart = DefaultGrainSize

// A LayerWriter makes a read-only extent file from data whose place on the disk
// is decided only after it was written. Write appends to a stream; Map says
// later which disk grains the stream's grains are. Stream grain i is stream
// bytes [i, i+1) * DefaultGrainSize. Grains that are never mapped stay in the
// file, out of reach; Zero gives their storage back.
//
// Writes to the file are large and end on aligned offsets. The first error of
// the file is returned by every later call. No two methods may run at the same
// time. The caller owns the file: it syncs and closes it after Finish, and
// deletes it if there was an error.
type LayerWriter struct {
	f       File
	h       header
	buf     []byte       // end of the stream, not yet in the file
	written int64        // file offset at which buf begins
	tables  []grainTable // nil: nothing mapped there
	touched int64        // tables that are not nil
	used    []uint64     // bit per stream grain: mapped
	err     error        // sticky
}

// NewLayerWriter empties f and returns a writer for a disk of capacity bytes,
// which must be a multiple of SectorSize.
func NewLayerWriter(f File, capacity int64) (*LayerWriter, error) {
	h, err := newHeader(capacity)
	if err != nil {
		return nil, err
	}
	if err := f.Truncate(0); err != nil {
		return nil, fmt.Errorf("empty extent file: %w", err)
	}
	return &LayerWriter{
		f:       f,
		h:       h,
		written: streamStart,
		tables:  make([]grainTable, h.numTables()),
	}, nil
}

// Size returns the length of the stream in bytes.
func (w *LayerWriter) Size() int64 { return w.written + int64(len(w.buf)) - streamStart }

// Write appends p to the stream.
func (w *LayerWriter) Write(p []byte) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	total := len(p)
	for len(p) > 0 {
		room := bufferSize - int(w.written%bufferSize)
		if len(w.buf) == 0 && len(p) >= room {
			n := room + (len(p)-room)/bufferSize*bufferSize
			if err := w.store(p[:n]); err != nil {
				return total - len(p), err
			}
			p = p[n:]
			continue
		}
		if w.buf == nil {
			w.buf = make([]byte, 0, bufferSize)
		}
		n := min(room-len(w.buf), len(p))
		w.buf = append(w.buf, p[:n]...)
		p = p[n:]
		if len(w.buf) == room {
			if err := w.flush(); err != nil {
				return total - len(p), err
			}
		}
	}
	return total, nil
}

// ReadAt reads stream bytes back, wherever they are by now. It returns io.EOF
// at the end of the stream, as io.ReaderAt asks.
func (w *LayerWriter) ReadAt(p []byte, off int64) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	if off < 0 {
		return 0, fmt.Errorf("read layer stream: negative offset %d", off)
	}
	want := len(p)
	if size := w.Size(); off >= size {
		return 0, io.EOF
	} else if int64(len(p)) > size-off {
		p = p[:size-off]
	}
	pos := streamStart + off
	n := 0
	if pos < w.written {
		n = int(min(int64(len(p)), w.written-pos))
		if err := readFull(w.f, p[:n], pos); err != nil {
			return 0, fmt.Errorf("read layer stream at %d: %w", off, err)
		}
		pos += int64(n)
	}
	if n < len(p) {
		n += copy(p[n:], w.buf[pos-w.written:])
	}
	if n < want {
		return n, io.EOF
	}
	return n, nil
}

// Zero makes n stream bytes from off on read as zeros. If the file can punch
// holes, their storage is freed.
func (w *LayerWriter) Zero(off, n int64) error {
	if w.err != nil {
		return w.err
	}
	if off < 0 || n < 0 || off > w.Size() || n > w.Size()-off {
		return fmt.Errorf("zero layer stream: %d bytes at %d, but it has %d", n, off, w.Size())
	}
	pos, end := streamStart+off, streamStart+off+n
	if end > w.written {
		clear(w.buf[max(pos, w.written)-w.written : end-w.written])
		end = w.written
	}
	if pos >= end {
		return nil
	}
	if p, ok := w.f.(interface{ PunchHole(off, n int64) error }); ok {
		err := p.PunchHole(pos, end-pos)
		if !errors.Is(err, errors.ErrUnsupported) {
			if err != nil {
				w.err = fmt.Errorf("punch hole in layer stream at %d: %w", off, err)
			}
			return w.err
		}
	}
	zeros := make([]byte, min(bufferSize, end-pos))
	for pos < end {
		m := min(int64(len(zeros)), end-pos)
		if _, err := w.f.WriteAt(zeros[:m], pos); err != nil {
			w.err = fmt.Errorf("zero layer stream at %d: %w", pos-streamStart, err)
			return w.err
		}
		pos += m
	}
	return nil
}

// Map makes stream grains [stream, stream+n) the content of disk grains
// [disk, disk+n). Each stream grain and each disk grain can be mapped once. If
// it returns an error, nothing was mapped.
func (w *LayerWriter) Map(stream, disk, n int64) error {
	if w.err != nil {
		return w.err
	}
	const grain = DefaultGrainSize
	have := roundUp(w.Size(), grain) / grain
	grains := roundUp(int64(w.h.capacity)*SectorSize, grain) / grain
	if stream < 0 || n <= 0 || stream > have || n > have-stream {
		return fmt.Errorf("map %d grains from stream grain %d: the stream has %d", n, stream, have)
	}
	if disk < 0 || disk > grains || n > grains-disk {
		return fmt.Errorf("map %d grains to disk grain %d: the disk has %d", n, disk, grains)
	}
	for i := range n {
		if s := stream + i; s>>6 < int64(len(w.used)) && w.used[s>>6]>>(s&63)&1 != 0 {
			return fmt.Errorf("map stream grain %d: it is mapped already", s)
		}
		if d := disk + i; w.tables[d/tableEntries] != nil && w.tables[d/tableEntries][d%tableEntries] != 0 {
			return fmt.Errorf("map disk grain %d: it is mapped already", d)
		}
	}
	for int64(len(w.used)) < (stream+n+63)/64 {
		w.used = append(w.used, 0)
	}
	for i := range n {
		s, d := stream+i, disk+i
		w.used[s>>6] |= 1 << (s & 63)
		t := w.tables[d/tableEntries]
		if t == nil {
			t = make(grainTable, tableEntries)
			w.tables[d/tableEntries] = t
			w.touched++
		}
		t[d%tableEntries] = uint32((streamStart + s*grain) / SectorSize)
	}
	return nil
}

// Mapped tells whether a disk grain has been mapped.
func (w *LayerWriter) Mapped(disk int64) bool {
	t := w.tables[disk/tableEntries]
	return t != nil && t[disk%tableEntries] != 0
}

// WriteGrain appends p, one whole grain, to the stream, which it first pads to
// a grain with zeros, and maps it to the disk grain.
func (w *LayerWriter) WriteGrain(disk int64, p []byte) error {
	if len(p) != DefaultGrainSize {
		return fmt.Errorf("write disk grain %d: %d bytes, want %d", disk, len(p), DefaultGrainSize)
	}
	if err := w.pad(); err != nil {
		return err
	}
	stream := w.Size() / DefaultGrainSize
	if _, err := w.Write(p); err != nil {
		return err
	}
	return w.Map(stream, disk, 1)
}

// Finish pads the stream to a grain, writes the tables and directories of the
// mapped grains and then the header. The file is a valid extent from then on,
// and the writer is spent.
func (w *LayerWriter) Finish() error {
	if err := w.pad(); err != nil {
		return err
	}
	dir := directorySectors(int64(len(w.tables)))
	rgd := (w.written + int64(len(w.buf))) / SectorSize
	gd := rgd + dir + w.touched*tableSectors
	w.h.rgdOffset, w.h.gdOffset = uint64(rgd), uint64(gd)
	w.h.overHead = streamStart / SectorSize
	end := (gd + dir + w.touched*tableSectors) * SectorSize
	if end > maxSectors*SectorSize {
		w.err = fmt.Errorf("finish layer: extent file of %d bytes, past the format's 2 TiB", end)
		return w.err
	}
	for _, at := range []int64{rgd, gd} {
		if err := w.writeDirectory(at + dir); err != nil {
			return err
		}
	}
	if err := w.flush(); err != nil {
		return err
	}
	if _, err := w.f.WriteAt(w.h.marshal(), 0); err != nil {
		w.err = fmt.Errorf("write layer header: %w", err)
		return w.err
	}
	w.err = errors.New("vmdk: layer is finished")
	return nil
}

// writeDirectory appends a grain directory and the tables it names; the first
// table comes at sector lba.
func (w *LayerWriter) writeDirectory(lba int64) error {
	le := binary.LittleEndian
	b := make([]byte, directorySectors(int64(len(w.tables)))*SectorSize)
	for i, t := range w.tables {
		if t != nil {
			le.PutUint32(b[4*i:], uint32(lba))
			lba += tableSectors
		}
	}
	if _, err := w.Write(b); err != nil {
		return err
	}
	b = make([]byte, tableSize)
	for _, t := range w.tables {
		if t == nil {
			continue
		}
		for i, lba := range t {
			le.PutUint32(b[4*i:], lba)
		}
		if _, err := w.Write(b); err != nil {
			return err
		}
	}
	return nil
}

// pad appends zeros up to the next grain.
func (w *LayerWriter) pad() error {
	if w.err != nil {
		return w.err
	}
	n := roundUp(w.Size(), DefaultGrainSize) - w.Size()
	if n == 0 {
		return nil
	}
	_, err := w.Write(make([]byte, n))
	return err
}

func (w *LayerWriter) flush() error {
	if len(w.buf) == 0 {
		return nil
	}
	err := w.store(w.buf)
	w.buf = w.buf[:0]
	return err
}

// store writes p where the file ends.
func (w *LayerWriter) store(p []byte) error {
	if w.written+int64(len(p)) > maxSectors*SectorSize {
		w.err = errors.New("vmdk: layer grows past the format's 2 TiB")
		return w.err
	}
	if _, err := w.f.WriteAt(p, w.written); err != nil {
		w.err = fmt.Errorf("write layer at byte %d: %w", w.written, err)
		return w.err
	}
	w.written += int64(len(p))
	return nil
}
