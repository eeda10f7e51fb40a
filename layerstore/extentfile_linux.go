package layerstore

import (
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// diskMode is the mode of finished disks: nobody writes them again. Who may see
// them is decided by the mode of the store's folder.
const diskMode = 0o444

const (
	// writebackStep is how many bytes of an extent file are written before the
	// kernel is told to begin with putting them on the medium: the sync at the end
	// then finds little left to do.
	writebackStep = 32 << 20
	// directAlign is what an address in memory, an offset and a length must be
	// multiples of to bypass the page cache: the greatest block size of media.
	directAlign = 4096
)

// An extentFile is an extent file on its way into the store. It is a vmdk.File
// that can punch holes.
//
// What can be is written past the page cache: it is not read again soon, and
// filling the cache costs more CPU time than anything else but decompressing. The
// file's checksum is taken from what is written, while it is in the processor's
// cache.
type extentFile struct {
	*os.File
	direct *os.File // the same file, O_DIRECT; nil where the file system has no such thing
	sum    pieceSums
	end    int64 // of what has been written
	pushed int64 // of what the kernel was told to write back
}

// createExtentFile makes an empty extent file. A small one is better off in the
// page cache, and so is one that a mirror reads soon.
func createExtentFile(path string, cached bool) (*extentFile, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	e := &extentFile{File: f}
	if !cached {
		if d, err := os.OpenFile(path, os.O_WRONLY|unix.O_DIRECT, 0); err == nil {
			e.direct = d
		}
	}
	return e, nil
}

func (f *extentFile) Close() error {
	return errors.Join(f.closeDirect(), f.File.Close())
}

func (f *extentFile) closeDirect() error {
	if f.direct == nil {
		return nil
	}
	err := f.direct.Close()
	f.direct = nil
	return err
}

// WriteAt is os.File's, by the faster way.
func (f *extentFile) WriteAt(p []byte, off int64) (int, error) {
	n, err := f.write(p, off)
	f.sum.write(p[:n], off)
	f.end = max(f.end, off+int64(n))
	return n, err
}

func (f *extentFile) write(p []byte, off int64) (int, error) {
	if f.direct != nil && len(p) > 0 && (uint64(len(p))|uint64(off)|uint64(uintptr(unsafe.Pointer(unsafe.SliceData(p)))))%directAlign == 0 {
		n, err := f.direct.WriteAt(p, off)
		if n > 0 || !errors.Is(err, unix.EINVAL) {
			return n, err
		}
		// The file could be opened so, but not written.
		if err := f.closeDirect(); err != nil {
			return 0, err
		}
	}
	n, err := f.File.WriteAt(p, off)
	if end := off + int64(n); f.direct == nil && err == nil && end-f.pushed >= writebackStep {
		// A hint: a file system that does not take it syncs later.
		_ = unix.SyncFileRange(int(f.Fd()), f.pushed, end-f.pushed, unix.SYNC_FILE_RANGE_WRITE)
		f.pushed = end
	}
	return n, err
}

// PunchHole frees the storage of n bytes from off, which read as zeros from then
// on. Where the file system has no holes the error is errors.ErrUnsupported.
func (f *extentFile) PunchHole(off, n int64) error {
	f.sum.forget(off, n)
	err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		return errors.ErrUnsupported
	}
	return err
}

// checksum returns the CRC-32C of the file's first n bytes. It reads only what was
// not written in one go.
func (f *extentFile) checksum(n int64) (uint32, error) { return f.sum.total(f.File, n) }

// seal makes a file's content durable and its mode that of finished disks.
func seal(f *os.File) error {
	if err := f.Chmod(diskMode); err != nil {
		return err
	}
	return f.Sync()
}

// sumPiece is the length of the pieces of a file that are summed up alone.
const sumPiece = 256 << 10

// pieceSums are the CRC-32C of a file's pieces, as far as each was written from its
// beginning on.
type pieceSums []pieceSum

type pieceSum struct {
	crc uint32
	n   int32 // bytes of the piece that crc covers
}

func (s *pieceSums) write(p []byte, off int64) {
	for len(p) > 0 {
		i, at := off/sumPiece, off%sumPiece
		for int64(len(*s)) <= i {
			*s = append(*s, pieceSum{})
		}
		part := p[:min(int64(len(p)), sumPiece-at)]
		piece := &(*s)[i]
		switch {
		case int64(piece.n) == at:
			piece.crc = crc32.Update(piece.crc, castagnoli, part)
			piece.n += int32(len(part))
		case int64(piece.n) > at:
			*piece = pieceSum{} // written over
		}
		p, off = p[len(part):], off+int64(len(part))
	}
}

// forget notes that n bytes from off changed in another way.
func (s pieceSums) forget(off, n int64) {
	for i := off / sumPiece; i*sumPiece < off+n && i < int64(len(s)); i++ {
		s[i] = pieceSum{}
	}
}

// total returns the sum of the first n bytes, of which f has those that are not known.
func (s pieceSums) total(f *os.File, n int64) (uint32, error) {
	var total uint32
	var buf []byte
	for off := int64(0); off < n; off += sumPiece {
		size := min(n-off, sumPiece)
		var piece pieceSum
		if i := off / sumPiece; i < int64(len(s)) {
			piece = s[i]
		}
		if int64(piece.n) != size {
			if buf == nil {
				buf = make([]byte, sumPiece)
			}
			if _, err := f.ReadAt(buf[:size], off); err != nil {
				return 0, fmt.Errorf("read back at byte %d: %w", off, err)
			}
			piece.crc = crc32.Checksum(buf[:size], castagnoli)
		}
		total = joinSums(total, piece.crc, size)
	}
	return total, nil
}
