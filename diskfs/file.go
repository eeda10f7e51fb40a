package diskfs

import (
	"errors"
	"io"
	"io/fs"
	"slices"
	"sort"
)

// A fileReader reads the bytes of a file from the runs that hold them.
type fileReader struct {
	disk io.ReaderAt
	size int64
	runs []run // ascending; what none covers is zeros
}

// newFileReader maps the inode's data.
func (f *FS) newFileReader(ino uint32, in rawInode) (*fileReader, error) {
	if in.flags()&inodeInline != 0 {
		return nil, badInode(ino, "inline data is not supported")
	}
	r := &fileReader{disk: f.disk, size: in.size()}
	err := f.extents(ino, in, func(x run, unwritten bool) error {
		if !unwritten {
			r.runs = append(r.runs, x)
		}
		return nil
	}, nil)
	return r, err
}

// ReadAt implements io.ReaderAt.
func (r *fileReader) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fs.ErrInvalid
	}
	if off >= r.size {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), r.size-off))
	short := n < len(p)
	p = p[:n]
	i := sort.Search(len(r.runs), func(i int) bool { return (r.runs[i].at+r.runs[i].n)*BlockSize > off })
	for len(p) > 0 {
		gap := int64(len(p))
		if i < len(r.runs) {
			gap = min(gap, r.runs[i].at*BlockSize-off)
		}
		if gap > 0 {
			clear(p[:gap])
			p, off = p[gap:], off+gap
			continue
		}
		x := r.runs[i]
		k := min(int64(len(p)), (x.at+x.n)*BlockSize-off)
		if err := readFull(r.disk, p[:k], x.where*BlockSize+off-x.at*BlockSize); err != nil {
			return n - len(p), err
		}
		p, off, i = p[k:], off+k, i+1
	}
	if short {
		return n, io.EOF
	}
	return n, nil
}

// data returns the next range of the file at or after off that is not a hole. n is 0
// if there is none.
func (r *fileReader) data(off int64) (start, n int64) {
	i := sort.Search(len(r.runs), func(i int) bool { return (r.runs[i].at+r.runs[i].n)*BlockSize > off })
	if i == len(r.runs) {
		return 0, 0
	}
	start = max(off, r.runs[i].at*BlockSize)
	end := min((r.runs[i].at+r.runs[i].n)*BlockSize, r.size)
	if start >= end {
		return 0, 0 // behind the file's end
	}
	return start, end - start
}

// place tells where the file's bytes from off on stand on the disk, as many as follow each
// other, at most limit; disk is -1 for those that read as zeros. n is 0 at the file's end.
func (r *fileReader) place(off, limit int64) (disk, n int64) {
	limit = min(limit, r.size-off)
	if off < 0 || limit <= 0 {
		return -1, 0
	}
	start, n := r.data(off)
	switch {
	case n == 0:
		return -1, limit
	case start > off:
		return -1, min(limit, start-off)
	}
	i := sort.Search(len(r.runs), func(i int) bool { return (r.runs[i].at+r.runs[i].n)*BlockSize > off })
	return (r.runs[i].where-r.runs[i].at)*BlockSize + off, min(limit, n)
}

// A File is an open file or directory. It implements fs.ReadDirFile, io.ReaderAt and
// io.Seeker. ReadAt may run concurrently with itself.
type File struct {
	info FileInfo
	fs   *FS
	data *fileReader // nil for what is not a regular file
	off  int64
	list []fs.DirEntry // of a directory, once asked for
	pos  int
}

var errIsDir = errors.New("is a directory")

// Stat returns what is known of the file.
func (f *File) Stat() (fs.FileInfo, error) { return f.info, nil }

// Close does nothing: a File holds nothing but memory.
func (f *File) Close() error { return nil }

func (f *File) readable(op string) error {
	if f.data != nil {
		return nil
	}
	err := fs.ErrInvalid
	if f.info.IsDir() {
		err = errIsDir
	}
	return &fs.PathError{Op: op, Path: f.info.name, Err: err}
}

// Read implements io.Reader.
func (f *File) Read(p []byte) (int, error) {
	if err := f.readable("read"); err != nil {
		return 0, err
	}
	if len(p) == 0 {
		return 0, nil
	}
	n, err := f.data.ReadAt(p, f.off)
	f.off += int64(n)
	if n > 0 && err == io.EOF {
		err = nil
	}
	return n, err
}

// ReadAt implements io.ReaderAt.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	if err := f.readable("read"); err != nil {
		return 0, err
	}
	return f.data.ReadAt(p, off)
}

// Data returns the first range of bytes at or after off that is not a hole; n is 0 if
// there is none.
func (f *File) Data(off int64) (start, n int64) {
	if f.data == nil {
		return 0, 0
	}
	return f.data.data(off)
}

// Place tells where on the disk the bytes of a regular file from off on stand, as many as
// follow each other, at most limit; disk is -1 for those that read as zeros. n is 0 at the
// file's end.
func (f *File) Place(off, limit int64) (disk, n int64) {
	if f.data == nil {
		return -1, 0
	}
	return f.data.place(off, limit)
}

// Seek implements io.Seeker.
func (f *File) Seek(off int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		off += f.off
	case io.SeekEnd:
		off += f.info.Size()
	}
	if off < 0 || whence < io.SeekStart || whence > io.SeekEnd {
		return 0, &fs.PathError{Op: "seek", Path: f.info.name, Err: fs.ErrInvalid}
	}
	f.off = off
	return off, nil
}

// ReadDir implements fs.ReadDirFile. Names come sorted.
func (f *File) ReadDir(n int) ([]fs.DirEntry, error) {
	if !f.info.IsDir() {
		return nil, &fs.PathError{Op: "readdir", Path: f.info.name, Err: errNotDir}
	}
	if f.list == nil {
		list, err := f.fs.readDirEntries(f.info.ino)
		if err != nil {
			return nil, err
		}
		f.list = list
	}
	rest := f.list[f.pos:]
	if n > 0 {
		if len(rest) == 0 {
			return nil, io.EOF
		}
		rest = rest[:min(n, len(rest))]
	}
	f.pos += len(rest)
	return slices.Clone(rest), nil
}
