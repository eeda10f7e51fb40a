package layerstore

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// diskMode is the mode of finished disks: nobody writes them again. Who may see
// them is decided by the mode of the store's folder.
const diskMode = 0o444

// writebackStep is how many bytes of an extent file are written before the
// kernel is told to begin with putting them on the medium: the sync at the end
// then finds little left to do.
const writebackStep = 32 << 20

// An extentFile is an extent file on its way into the store. It is a vmdk.File
// that can punch holes.
type extentFile struct {
	*os.File
	end    int64 // of what has been written
	pushed int64 // of what the kernel was told to write back
}

func createExtentFile(path string) (*extentFile, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	return &extentFile{File: f}, nil
}

// WriteAt is os.File's, and keeps the medium busy.
func (f *extentFile) WriteAt(p []byte, off int64) (int, error) {
	n, err := f.File.WriteAt(p, off)
	f.end = max(f.end, off+int64(n))
	if err == nil && f.end-f.pushed >= writebackStep {
		// A hint: a file system that does not take it syncs later.
		_ = unix.SyncFileRange(int(f.Fd()), f.pushed, f.end-f.pushed, unix.SYNC_FILE_RANGE_WRITE)
		f.pushed = f.end
	}
	return n, err
}

// PunchHole frees the storage of n bytes from off, which read as zeros from then
// on. Where the file system has no holes the error is errors.ErrUnsupported.
func (f *extentFile) PunchHole(off, n int64) error {
	err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		return errors.ErrUnsupported
	}
	return err
}

// seal makes a file's content durable and its mode that of finished disks.
func seal(f *os.File) error {
	if err := f.Chmod(diskMode); err != nil {
		return err
	}
	return f.Sync()
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum returns the CRC-32C of the first n bytes of r.
func checksum(ctx context.Context, r io.ReaderAt, n int64) (uint32, error) {
	var sum uint32
	buf := make([]byte, min(n, 1<<20))
	for off := int64(0); off < n; {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		m, err := r.ReadAt(buf[:min(n-off, int64(len(buf)))], off)
		if m == 0 {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return 0, fmt.Errorf("read at byte %d of %d: %w", off, n, err)
		}
		sum = crc32.Update(sum, castagnoli, buf[:m])
		off += int64(m)
	}
	return sum, nil
}
