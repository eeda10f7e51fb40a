package bench

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A mediumFile writes past the page cache what can be written so, as a store's extent files are.
type mediumFile struct {
	*os.File
	direct *os.File // the same file, O_DIRECT; nil where the file system has no such thing
}

func createMediumFile(path string) (*mediumFile, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	m := &mediumFile{File: f}
	if d, err := os.OpenFile(path, os.O_WRONLY|unix.O_DIRECT, 0); err == nil {
		m.direct = d
	}
	return m, nil
}

// directAlign is what addresses, offsets and lengths are multiples of past the page cache.
const directAlign = 4096

func (m *mediumFile) WriteAt(p []byte, off int64) (int, error) {
	if m.direct != nil && len(p) > 0 && (uint64(len(p))|uint64(off)|uint64(uintptr(unsafe.Pointer(unsafe.SliceData(p)))))%directAlign == 0 {
		n, err := m.direct.WriteAt(p, off)
		if n > 0 || !errors.Is(err, unix.EINVAL) {
			return n, err
		}
	}
	return m.File.WriteAt(p, off)
}

func (m *mediumFile) Close() error {
	var err error
	if m.direct != nil {
		err = m.direct.Close()
	}
	return errors.Join(err, m.File.Close())
}

// What writing to the medium is measured with: as many bytes as the image's disks have, within bounds,
// in the pieces that extent files are written in, to several files at once.
const (
	mediumWriters = 4
	mediumPiece   = 256 << 10
	minMedium     = 16 << 20
	maxMedium     = 1 << 30
)

// writeMedium writes at least n bytes to files in dir, syncs and removes them. It returns how many it wrote.
func writeMedium(ctx context.Context, dir string, n int64) (int64, usage, error) {
	pieces := min(max(n, minMedium), maxMedium) / mediumWriters / mediumPiece
	var wg sync.WaitGroup
	var c clock
	errs := make([]error, mediumWriters)
	c.to(StageWrite)
	for i := range errs {
		wg.Go(func() { errs[i] = writePieces(ctx, filepath.Join(dir, "medium-"+strconv.Itoa(i)), pieces) })
	}
	wg.Wait()
	c.to(stageIdle)
	for i := range errs {
		errs[i] = errors.Join(errs[i], os.Remove(filepath.Join(dir, "medium-"+strconv.Itoa(i))))
	}
	return pieces * mediumPiece * mediumWriters, c.spent[StageWrite], errors.Join(errs...)
}

func writePieces(ctx context.Context, path string, n int64) (err error) {
	f, err := createMediumFile(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	p := make([]byte, mediumPiece)
	for i := range p {
		p[i] = byte(i * 7) // some media do not store zeros
	}
	for i := range n {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := f.WriteAt(p, i*mediumPiece); err != nil {
			return err
		}
	}
	return f.Sync()
}
