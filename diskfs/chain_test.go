package diskfs

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"vic/bench/oracle"

	"golang.org/x/sys/unix"
)

// A chain is a stack of layers on a flat sparse file: what the disk formats do with
// Deltas, done in the simplest way.
type chain struct {
	t    testing.TB
	fs   *FS
	path string
	disk *os.File
	high int64
	last *Delta
	// forgetful reopens the file system from the disk before every layer, and packs what it
	// has in memory as often as it can.
	forgetful bool
	// warnings are the last layer's.
	warnings []string
	// mapped are the clusters given out, to prove that none is given out twice.
	mapped map[int64]bool
}

// walkedTwice is up to how many paths a tree is read in a second way as well.
const walkedTwice = 5000

// smallDisk is the shape of the disk of tests whose subject is not the disk.
var smallDisk = FormatOptions{Capacity: 64 << 20}

func newChain(t testing.TB, o FormatOptions) *chain {
	t.Helper()
	c := &chain{t: t, path: filepath.Join(t.TempDir(), "disk.raw"), mapped: make(map[int64]bool)}
	f, d, err := Format(o)
	if err != nil {
		t.Fatal(err)
	}
	if c.disk, err = os.Create(c.path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.disk.Close() })
	capacity := o.Capacity
	if capacity == 0 {
		capacity = DefaultCapacity
	}
	if err := c.disk.Truncate(capacity); err != nil {
		t.Fatal(err)
	}
	c.fs = f
	stream := c.stream()
	defer stream.Close()
	c.write(d, stream)
	return c
}

// stream makes the file that a layer's data goes to.
func (c *chain) stream() *os.File {
	c.t.Helper()
	f, err := os.CreateTemp(filepath.Dir(c.path), "stream")
	if err != nil {
		c.t.Fatal(err)
	}
	if err := os.Remove(f.Name()); err != nil {
		c.t.Fatal(err)
	}
	return f
}

// write puts a delta on the disk.
func (c *chain) write(d *Delta, stream *os.File) {
	c.t.Helper()
	for _, r := range d.Map {
		for i := range r.N {
			if c.mapped[r.Disk+i] {
				c.t.Fatalf("cluster %d placed twice", r.Disk+i)
			}
			c.mapped[r.Disk+i] = true
		}
	}
	if err := writeDelta(c.disk, stream, d); err != nil {
		c.t.Fatal(err)
	}
	c.fs.Rebase(c.disk)
	c.high, c.last = d.High, d
}

// writeDelta does what a disk format does with a Delta: metadata behind the data, zeros
// over what is dead, clusters to their places.
func writeDelta(disk, stream *os.File, d *Delta) error {
	if _, err := stream.Seek(0, io.SeekEnd); err != nil {
		return err
	}
	if err := d.WriteMeta(stream); err != nil {
		return err
	}
	end, err := stream.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	if end%BlockSize != 0 {
		return fmt.Errorf("stream of %d bytes is not whole blocks", end)
	}
	for _, r := range d.Dead {
		if r.Off < 0 || r.Len <= 0 || r.Off+r.Len > end {
			return fmt.Errorf("dead range %+v of a stream of %d bytes", r, end)
		}
		if err := unix.Fallocate(int(stream.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, r.Off, r.Len); err != nil {
			return err
		}
	}
	if err := stream.Truncate((end + ClusterSize - 1) &^ (ClusterSize - 1)); err != nil {
		return err
	}
	for _, r := range d.Map {
		from, to := r.Stream*ClusterSize, r.Disk*ClusterSize
		for left := r.N * ClusterSize; left > 0; {
			n, err := unix.CopyFileRange(int(stream.Fd()), &from, int(disk.Fd()), &to, int(min(left, 1<<30)), 0)
			if err != nil || n == 0 {
				return fmt.Errorf("copy stream cluster %d to the disk: %d bytes, %v", r.Stream, n, err)
			}
			left -= int64(n)
		}
	}
	return d.Fixed(func(cluster int64, p []byte) error {
		_, err := disk.WriteAt(p, cluster*ClusterSize)
		return err
	})
}

// apply applies a tar.
func (c *chain) apply(tar io.Reader) *Delta {
	c.t.Helper()
	d, err := c.try(tar)
	if err != nil {
		c.t.Fatal(err)
	}
	return d
}

func (c *chain) try(tar io.Reader) (*Delta, error) {
	c.t.Helper()
	if c.forgetful {
		c.reopen()
		c.fs.hot = 1
	}
	stream := c.stream()
	defer stream.Close()
	recipe := newRecipe(c.t)
	cs, err := ReadTar(recipe.see(tar), stream, recipe.skeleton, Limits{})
	if err != nil {
		return nil, err
	}
	c.warnings = cs.Warnings()
	if st, err := stream.Stat(); err != nil || st.Size() != cs.DataSize() {
		c.t.Fatalf("stream has %d bytes, changeset says %d (%v)", st.Size(), cs.DataSize(), err)
	}
	d, err := c.fs.Apply(cs, ApplyOptions{Data: stream, High: c.high})
	if err != nil {
		return nil, err
	}
	if err := d.WriteSources(recipe.sources, stream); err != nil {
		c.t.Fatal(err)
	}
	c.write(d, stream)
	st, err := c.disk.Stat()
	if err != nil {
		c.t.Fatal(err)
	}
	recipe.check(c.disk, st.Size())
	skeleton, _ := recipe.rewind()
	o, err := c.fs.ReadOutline(skeleton)
	if err == nil && cs.Len() <= walkedTwice {
		_, err = outlineLines(o)
	}
	if err != nil {
		c.t.Errorf("outline: %v", err)
	}
	return d, nil
}

// reopen drops everything in memory.
func (c *chain) reopen() {
	c.t.Helper()
	st, err := c.disk.Stat()
	if err != nil {
		c.t.Fatal(err)
	}
	if c.fs, err = Open(c.disk, st.Size()); err != nil {
		c.t.Fatal(err)
	}
}

// check holds the disk against e2fsck and our own checker.
func (c *chain) check() {
	c.t.Helper()
	checkFS(c.t, c.fs)
	fsck(c.t, c.path)
}

// checkFS wants FS.Check to find nothing.
func checkFS(t testing.TB, f *FS) {
	t.Helper()
	found := 0
	err := f.Check(func(err error) error {
		t.Error("check:", err)
		if found++; found == 20 {
			return fmt.Errorf("too many errors")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// kernelTree is what the kernel sees on the disk. It mounts read-only and replays nothing.
func (c *chain) kernelTree() tree {
	c.t.Helper()
	dir, unmount := mountDisk(c.t, c.path, "ro,noload")
	defer unmount()
	// No process may be forked meanwhile: until it calls exec, it has the files open
	// that the walk reads, and the disk cannot be unmounted.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	return hostTree(c.t, dir)
}

// checkReader wants our reader to see what the kernel sees, and returns that.
func (c *chain) checkReader() tree {
	c.t.Helper()
	ours := fsTree(c.t, c.fs)
	if len(ours) <= walkedTwice {
		byNumber, err := nodeTree(c.fs)
		if err != nil {
			c.t.Fatal(err)
		}
		compareTrees(c.t, "our reader by inode", byNumber, "our reader", ours)
	}
	if os.Geteuid() == 0 || oracle.Demanded() {
		compareTrees(c.t, "our reader", ours, "kernel", c.kernelTree())
	}
	return ours
}

// digest hashes the blocks of a sparse file that are not zeros, with their places.
func digest(t testing.TB, f *os.File) (sum [sha256.Size]byte) {
	t.Helper()
	h := sha256.New()
	eachBlock(t, f, func(off int64, p []byte) {
		var at [8]byte
		binary.LittleEndian.PutUint64(at[:], uint64(off))
		h.Write(at[:])
		h.Write(p)
	})
	return [sha256.Size]byte(h.Sum(nil))
}

// eachBlock calls fn for the blocks of a sparse file that are not zeros.
func eachBlock(t testing.TB, f *os.File, fn func(off int64, p []byte)) {
	t.Helper()
	buf := make([]byte, 1<<20)
	for next := int64(0); ; {
		off, err := unix.Seek(int(f.Fd()), next, unix.SEEK_DATA)
		if err == unix.ENXIO {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		off &^= BlockSize - 1
		n, err := f.ReadAt(buf, off)
		if err != nil && err != io.EOF {
			t.Fatal(err)
		}
		for at := 0; at < n; at += BlockSize {
			if p := buf[at:min(at+BlockSize, n)]; !bytes.Equal(p, zeroBlock[:len(p)]) {
				fn(off+int64(at), p)
			}
		}
		next = off + int64(n)
	}
}
