package mount

import (
	"bytes"
	"io"
	"os"

	"vic/diskfs"
)

// A content is what a regular file has. Its methods may run concurrently.
type content interface {
	io.ReaderAt
	// size returns the length in bytes.
	size() int64
	// plain tells which file of this machine has the n bytes from off on as they stand, and
	// where; nil if none has.
	plain(off, n int64) (f *os.File, pos int64)
	// data returns the first range at or after off that is not a hole; n is 0 if there is none.
	data(off int64) (start, n int64, err error)
}

// bytesContent is a small file in memory.
type bytesContent struct{ *bytes.Reader }

func newBytes(b []byte) content { return bytesContent{bytes.NewReader(b)} }

func (c bytesContent) size() int64                          { return c.Reader.Size() }
func (c bytesContent) plain(off, n int64) (*os.File, int64) { return nil, 0 }
func (c bytesContent) data(off int64) (int64, int64, error) {
	return off, max(0, c.size()-off), nil
}

// diskContent is a whole disk.
type diskContent struct{ Disk }

func (c diskContent) size() int64 { return c.Capacity() }

func (c diskContent) plain(off, n int64) (*os.File, int64) {
	r, pos, k, err := c.Plain(off, n)
	if f, ok := r.(*os.File); ok && err == nil && k == n {
		return f, pos
	}
	return nil, 0 // and what is wrong will be met by ReadAt
}

func (c diskContent) data(off int64) (start, n int64, err error) {
	for r, err := range c.Runs(off) {
		switch {
		case err != nil:
			return 0, 0, err
		case n == 0:
			start, n = max(off, r.Off), r.Off+r.Len-max(off, r.Off)
		case r.Off == start+n:
			n += r.Len // of another disk of the chain
		default:
			return start, n, nil
		}
	}
	return start, n, nil
}

// stored returns how many bytes of the disk are not holes.
func (c diskContent) stored() (n int64, err error) {
	for r, err := range c.Runs(0) {
		if err != nil {
			return 0, err
		}
		n += r.Len
	}
	return n, nil
}

// fileContent is a file of the file system on a disk.
type fileContent struct {
	*diskfs.File
	disk  Disk
	bytes int64
}

func (c fileContent) size() int64 { return c.bytes }

func (c fileContent) plain(off, n int64) (*os.File, int64) {
	at, k := c.Place(off, n)
	if at < 0 || k != n {
		return nil, 0
	}
	return diskContent{c.disk}.plain(at, n)
}

func (c fileContent) data(off int64) (start, n int64, err error) {
	start, n = c.Data(off)
	return start, n, nil
}
