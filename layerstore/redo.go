package layerstore

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"vic/diskfs"
)

// Applying a layer to the disk of a container that does not run, or of a volume that no VM has: new data goes where
// nothing is in use, so that a crash leaves the file system as it was. What changes in place is written to the file
// "redo" beside the disk first. Once that has its name the layer is applied; whoever wants to use the disk next
// writes it there again until it was.
//
//	redo   8  magic "vic-redo"
//	       …  ranges: 8 offset on the disk, 4 length, data; little-endian
//	       8  all ones, 4  CRC32C of all before
const (
	redoFile    = "redo"
	redoMagic   = "vic-redo"
	redoEnd     = ^uint64(0)
	maxRedoPart = diskfs.ClusterSize
)

// writeRedo writes what a delta changes in place, and what the journal had to say before.
func (g *guestDisk) writeRedo(r io.ReaderAt, delta *diskfs.Delta) (err error) {
	lock, err := g.store.lockShared() // no Open takes the file in tmp for a dead one
	if err != nil {
		return err
	}
	defer lock.unlock()
	f, err := os.CreateTemp(g.store.tmp(), "file-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	sum := crc32.New(castagnoli)
	w := bufio.NewWriterSize(io.MultiWriter(f, sum), 1<<20)
	w.WriteString(redoMagic)
	put := func(off int64, p []byte) error {
		var head [12]byte
		binary.LittleEndian.PutUint64(head[:], uint64(off))
		binary.LittleEndian.PutUint32(head[8:], uint32(len(p)))
		w.Write(head[:])
		_, err := w.Write(p) // of bufio: the first error stays
		return err
	}
	if old, ok := r.(*diskfs.Replayed); ok {
		if err := old.Each(func(n int64, p []byte) error {
			if delta.Places(n) { // it was free, and there is something else by now
				return nil
			}
			return put(n*diskfs.BlockSize, p)
		}); err != nil {
			return err
		}
	}
	if err := delta.Fixed(func(c int64, p []byte) error { return put(c*diskfs.ClusterSize, p) }); err != nil {
		return err
	}
	w.Write(binary.LittleEndian.AppendUint64(nil, redoEnd))
	if err := w.Flush(); err != nil {
		return err
	}
	if _, err := f.Write(binary.LittleEndian.AppendUint32(nil, sum.Sum32())); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), filepath.Join(g.folder, redoFile)); err != nil {
		return err
	}
	return syncDir(g.folder)
}

// redo writes what the file of that name has to the disk, and removes it.
func (g *guestDisk) redo() error {
	path := filepath.Join(g.folder, redoFile)
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := eachRedo(f, func(int64, []byte) error { return nil }); err != nil { // is it whole?
		return fmt.Errorf("%s: %w", path, err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	err = eachRedo(f, func(off int64, p []byte) error {
		_, err := g.WriteAt(p, off)
		return err
	})
	if err != nil {
		return err
	}
	if err := g.Sync(); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil {
		return err
	}
	return syncDir(g.folder)
}

// checkRedo tells whether there is a redo file in a folder. The error is a *FormatError if it is damaged.
func checkRedo(folder string) (there bool, err error) {
	path := filepath.Join(folder, redoFile)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close() // read only
	if err := eachRedo(f, func(int64, []byte) error { return nil }); err != nil {
		return true, fmt.Errorf("%s: %w", path, err)
	}
	return true, nil
}

// eachRedo calls fn with the ranges of a redo file.
func eachRedo(f io.Reader, fn func(off int64, p []byte) error) error {
	sum := crc32.New(castagnoli)
	in := bufio.NewReaderSize(f, 1<<20)
	r := io.TeeReader(in, sum)
	bad := func(msg string) error { return formatErrorf("", "redo", "%s", msg) }
	head := make([]byte, len(redoMagic), 12)
	if _, err := io.ReadFull(r, head); err != nil || string(head) != redoMagic {
		return bad("does not begin as one")
	}
	buf := make([]byte, maxRedoPart)
	for {
		off := head[:8]
		if _, err := io.ReadFull(r, off); err != nil {
			return bad("has no end")
		}
		at := binary.LittleEndian.Uint64(off)
		if at == redoEnd {
			break
		}
		var length [4]byte
		if _, err := io.ReadFull(r, length[:]); err != nil {
			return bad("has no end")
		}
		n := binary.LittleEndian.Uint32(length[:])
		if at > 1<<62 || n > maxRedoPart {
			return bad("has a range that cannot be")
		}
		if _, err := io.ReadFull(r, buf[:n]); err != nil {
			return bad("has no end")
		}
		if err := fn(int64(at), buf[:n]); err != nil {
			return err
		}
	}
	var want [4]byte
	got := sum.Sum32()
	if _, err := io.ReadFull(in, want[:]); err != nil || binary.LittleEndian.Uint32(want[:]) != got {
		return bad("has another checksum")
	}
	return nil
}
