package diskfs

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"testing"
)

// A memDisk is a sparse disk in memory, possibly over another that it leaves alone.
type memDisk struct {
	size   int64
	blocks map[int64]*[BlockSize]byte
	below  *memDisk
}

func newMemDisk(size int64, below *memDisk) *memDisk {
	return &memDisk{size, make(map[int64]*[BlockSize]byte), below}
}

func (d *memDisk) block(n int64) *[BlockSize]byte {
	for ; d != nil; d = d.below {
		if b := d.blocks[n]; b != nil {
			return b
		}
	}
	return &zeroBlock
}

func (d *memDisk) ReadAt(p []byte, off int64) (int, error) {
	n := 0
	for n < len(p) && off < d.size {
		k := copy(p[n:], d.block(off / BlockSize)[off%BlockSize:])
		n, off = n+k, off+int64(k)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (d *memDisk) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > d.size {
		return 0, errors.New("write beyond the disk's end")
	}
	for n := 0; n < len(p); {
		b := d.blocks[off/BlockSize]
		if b == nil {
			c := *d.block(off / BlockSize)
			b = &c
			d.blocks[off/BlockSize] = b
		}
		k := copy(b[off%BlockSize:], p[n:])
		n, off = n+k, off+int64(k)
	}
	return len(p), nil
}

// format makes an empty file system on a new memDisk.
func formatMem(t testing.TB, o FormatOptions) (*FS, *memDisk, int64) {
	t.Helper()
	f, d, err := Format(o)
	if err != nil {
		t.Fatal(err)
	}
	disk := newMemDisk(o.Capacity, nil)
	if err := disk.write(d, nil); err != nil {
		t.Fatal(err)
	}
	f.Rebase(disk)
	return f, disk, d.High
}

// write puts a delta on the disk.
func (d *memDisk) write(delta *Delta, stream []byte) error {
	var meta bytes.Buffer
	if err := delta.WriteMeta(&meta); err != nil {
		return err
	}
	stream = append(bytes.Clone(stream), meta.Bytes()...)
	for _, r := range delta.Dead {
		clear(stream[r.Off : r.Off+r.Len])
	}
	stream = append(stream, make([]byte, -len(stream)&(ClusterSize-1))...)
	for _, r := range delta.Map {
		if _, err := d.WriteAt(stream[r.Stream*ClusterSize:(r.Stream+r.N)*ClusterSize], r.Disk*ClusterSize); err != nil {
			return err
		}
	}
	return delta.Fixed(func(cluster int64, p []byte) error {
		_, err := d.WriteAt(p, cluster*ClusterSize)
		return err
	})
}

// applyMem applies a tar to a file system on a memDisk. A non-nil error is Apply's or
// ReadTar's.
func applyMem(t testing.TB, f *FS, disk *memDisk, tar []byte, high int64, lim Limits) (int64, error) {
	t.Helper()
	var stream bytes.Buffer
	recipe := newRecipe(t)
	cs, err := ReadTar(recipe.see(bytes.NewReader(tar)), &stream, recipe.skeleton, lim)
	if err != nil {
		return high, err
	}
	d, err := f.Apply(cs, ApplyOptions{Data: bytes.NewReader(stream.Bytes()), High: high})
	if err != nil {
		return high, err
	}
	if err := d.WriteSources(recipe.sources, bytes.NewReader(stream.Bytes())); err != nil {
		t.Fatal(err)
	}
	if err := disk.write(d, stream.Bytes()); err != nil {
		t.Fatal(err)
	}
	f.Rebase(disk)
	recipe.check(disk, f.sb.blocksCount*BlockSize)
	return d.High, nil
}

// touchAll reads everything that can be reached on a file system that may be damaged:
// all names, attributes and symlinks, and the first data of each file. It reports how much
// it met.
func touchAll(f *FS) (paths int) {
	buf := make([]byte, 16<<10)
	fs.WalkDir(f, ".", func(p string, e fs.DirEntry, err error) error {
		if paths++; err != nil {
			return nil
		}
		f.Lstat(p)
		f.Xattrs(p)
		f.ReadLink(p)
		f.Find(p+"/..", true)
		file, err := f.Open(p)
		if err != nil {
			return nil
		}
		if g := file.(*File); g.data != nil {
			g.ReadAt(buf, 0)
			for off, k := int64(0), 0; k < 10; k++ {
				start, n := g.Data(off)
				if n <= 0 {
					break
				}
				g.ReadAt(buf[:min(n, int64(len(buf)))], start)
				off = start + n
			}
		}
		return nil
	})
	return paths
}
