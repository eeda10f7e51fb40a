package layerstore

import (
	"bufio"
	"context"
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

// Applying a layer to the disk of a container that does not run: new data goes where nothing is in use,
// so that a crash leaves the file system as it was. What changes in place is written to the file
// "redo" in the container's folder first. Once that has its name the layer is applied; SettleContainer
// writes it to the disk again until it was.
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

// ApplyToContainer applies the tar of a layer to the disk of a container, whose VM must not run,
// as if it were a layer's. An error leaves the file system as it was: one that wraps
// diskfs.ErrNoSpace if there is no room behind all that is in use.
func (s *Store) ApplyToContainer(ctx context.Context, id string, layer io.Reader) error {
	if !containerID.MatchString(id) {
		return fmt.Errorf("write to container: %q cannot be the ID of one", id)
	}
	if err := s.applyToContainer(ctx, id, layer); err != nil {
		return fmt.Errorf("write to container %s: %w", id, err)
	}
	return nil
}

func (s *Store) applyToContainer(ctx context.Context, id string, layer io.Reader) error {
	if err := s.SettleContainer(id); err != nil {
		return err
	}
	p, err := s.dir.readPin(id)
	if err != nil {
		return err
	}
	stream, err := s.dir.tempFile()
	if err != nil {
		return err
	}
	defer stream.Close()
	out := bufio.NewWriterSize(stream, 1<<20)
	cs, err := diskfs.ReadTar(layer, out, nil, s.lim.Tar)
	if err != nil || cs.Len() == 0 {
		return err
	}
	disk, err := s.dir.openContainerDisk(p, os.O_RDWR)
	if err != nil {
		return err
	}
	err = s.dir.decide(ctx, id, disk, cs, stream, out)
	if err == nil {
		err = s.dir.redo(id, disk)
	}
	return errors.Join(err, disk.Close())
}

// decide writes all that a changeset needs, but changes nothing that counts: SettleContainer does. The
// changeset's data is in stream already, or in out before it.
func (d Dir) decide(ctx context.Context, id string, disk *Disk, cs *diskfs.Changeset, stream *os.File, out *bufio.Writer) error {
	r, err := diskfs.Replay(disk, disk.Capacity())
	if err != nil {
		return err
	}
	f, err := diskfs.Open(r, disk.Capacity())
	if err != nil {
		return err
	}
	high, err := f.High()
	if err != nil {
		return err
	}
	delta, err := f.Apply(cs, diskfs.ApplyOptions{High: high})
	if err != nil {
		return err
	}
	if err := delta.WriteMeta(out); err != nil {
		return err
	}
	if err := out.Flush(); err != nil {
		return err
	}
	if err := placeStream(ctx, disk, stream, delta); err != nil {
		return err
	}
	if err := disk.files[0].Sync(); err != nil {
		return err
	}
	return d.writeRedo(id, r, delta)
}

// placeStream copies the clusters of a delta's stream to where they belong on the disk.
func placeStream(ctx context.Context, disk *Disk, stream *os.File, delta *diskfs.Delta) error {
	buf := make([]byte, diskfs.ClusterSize)
	dead := delta.Dead
	for _, run := range delta.Map {
		for i := range run.N {
			if err := ctx.Err(); err != nil {
				return err
			}
			at := (run.Stream + i) * diskfs.ClusterSize
			n, err := stream.ReadAt(buf, at)
			if err != nil && err != io.EOF {
				return err
			}
			clear(buf[n:])
			for len(dead) > 0 && dead[0].Off+dead[0].Len <= at {
				dead = dead[1:]
			}
			for _, d := range dead {
				if d.Off >= at+diskfs.ClusterSize {
					break
				}
				clear(buf[max(0, d.Off-at):min(diskfs.ClusterSize, d.Off+d.Len-at)])
			}
			if _, err := disk.WriteAt(buf, (run.Disk+i)*diskfs.ClusterSize); err != nil {
				return err
			}
		}
	}
	return nil
}

// writeRedo writes what a delta changes in place, and what the journal had to say before.
func (d Dir) writeRedo(id string, r io.ReaderAt, delta *diskfs.Delta) (err error) {
	dir := d.container(id)
	f, err := os.CreateTemp(dir, ".tmp-")
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
		if err := old.Each(func(n int64, p []byte) error { return put(n*diskfs.BlockSize, p) }); err != nil {
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
	if err := os.Rename(f.Name(), filepath.Join(dir, redoFile)); err != nil {
		return err
	}
	return syncDir(dir)
}

// SettleContainer finishes an ApplyToContainer that was cut short after it was decided. It must have been called since the
// store's last crash before a VM uses a container's disk.
func (s *Store) SettleContainer(id string) error {
	if !containerID.MatchString(id) {
		return fmt.Errorf("settle disk of container: %q cannot be the ID of one", id)
	}
	_, err := os.Lstat(filepath.Join(s.dir.container(id), redoFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = s.dir.settle(id)
	}
	if err != nil {
		return fmt.Errorf("settle disk of container %s: %w", id, err)
	}
	return nil
}

func (d Dir) settle(id string) error {
	p, err := d.readPin(id)
	if err != nil {
		return err
	}
	disk, err := d.openContainerDisk(p, os.O_RDWR)
	if err != nil {
		return err
	}
	return errors.Join(d.redo(id, disk), disk.Close())
}

// redo writes what the file of that name has to the disk, and removes it.
func (d Dir) redo(id string, disk *Disk) error {
	path := filepath.Join(d.container(id), redoFile)
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
		_, err := disk.WriteAt(p, off)
		return err
	})
	if err != nil {
		return err
	}
	if err := disk.files[0].Sync(); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil {
		return err
	}
	return syncDir(d.container(id))
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
