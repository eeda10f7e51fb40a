package vsphere

import (
	"context"
	"errors"
	"fmt"
	"path"

	"github.com/opencontainers/go-digest"

	"vic/vmdk"
)

// ErrForeign is wrapped by the error of a disk that only ESXi can read: its own format, or no file.
var ErrForeign = errors.New("only ESXi reads disks of this format")

// A Disk is a chain of disks on the datastore, read over the network as one block device.
type Disk struct {
	*vmdk.Disk
	// Names are those of its disks, top first, without the store's base disk.
	Names []string
	// deltas tells of each disk whether it holds only what it changes.
	deltas []bool
	ctx    context.Context // ends with Close, for io.ReaderAt passes none
	stop   context.CancelFunc
}

// ReadAt is that of the chain, until the disk is closed.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	if err := d.ctx.Err(); err != nil {
		return 0, err
	}
	return d.Disk.ReadAt(p, off)
}

// Chain is the chain ID of the topmost layer in it, "" if it has none.
func (d *Disk) Chain() digest.Digest {
	if len(d.Names) == 0 {
		return ""
	}
	return ChainOf(d.Names[0])
}

// Close ends all reads.
func (d *Disk) Close() error {
	d.stop()
	return nil
}

// Same tells whether n bytes at byte off of two disks are known to be the same, because they stand in one file, without reading them.
func (d *Disk) Same(other *Disk, off, n int64) (bool, error) {
	for n > 0 {
		a, posA, lenA, err := d.Plain(off, n)
		if err != nil {
			return false, err
		}
		b, posB, lenB, err := other.Plain(off, lenA)
		if err != nil {
			return false, err
		}
		x, _ := a.(*remoteFile)
		y, _ := b.(*remoteFile)
		if lenB <= 0 || x == nil || y == nil || x.d != y.d || x.name != y.name || posA != posB {
			return false, nil
		}
		off, n = off+lenB, n-lenB
	}
	return true, nil
}

// OpenImage opens the disk that shows an image which this VCH has published. The error is fs.ErrNotExist if it has not.
func (s *Store) OpenImage(ctx context.Context, id digest.Digest) (*Disk, error) {
	rec, err := s.imageRecord(ctx, id)
	if err != nil {
		return nil, err
	}
	return s.OpenDisk(ctx, rec.Disks[0])
}

// OpenDisk opens a disk of the store with all below it, for reading until it is closed or ctx ends. The error is fs.ErrNotExist if it is not
// there or not complete, ErrForeign if it cannot be read.
func (s *Store) OpenDisk(ctx context.Context, name string) (*Disk, error) {
	return s.openDisk(ctx, name, s.cache)
}

// openDisk is OpenDisk with another cache than that of the Store.
func (s *Store) openDisk(ctx context.Context, name string, c *cache) (_ *Disk, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer func() {
		if err != nil {
			cancel()
		}
	}()
	d := &Disk{ctx: ctx, stop: cancel}
	var links []vmdk.Link
	below := ""
	for rec, err := range s.stack(ctx, name) {
		if err != nil {
			return nil, err
		}
		link, err := s.openLink(ctx, rec.name, c)
		if err != nil {
			return nil, fmt.Errorf("disk %s: %w", s.DiskPath(rec.name), err)
		}
		below = rec.Parent
		links = append(links, link)
		d.Names, d.deltas = append(d.Names, rec.name), append(d.deltas, below != "")
	}
	if below == baseName {
		links, d.deltas = append(links, s.emptyLink()), append(d.deltas, false)
	}
	if d.Disk, err = vmdk.OpenDisk(links); err != nil {
		return nil, fmt.Errorf("disk %s: %w", s.DiskPath(name), err)
	}
	return d, nil
}

// emptyLink is the base disk, without its file: that is as large as the disk, and nobody is to read zeros over the network.
func (s *Store) emptyLink() vmdk.Link {
	desc := *s.base
	desc.Extents = []vmdk.ExtentLine{{Access: "RW", Sectors: desc.Capacity() / vmdk.SectorSize, Type: "ZERO"}}
	return vmdk.Link{Descriptor: &desc}
}

// openLink opens one disk of a chain.
func (s *Store) openLink(ctx context.Context, name string, c *cache) (vmdk.Link, error) {
	return s.d.openLink(ctx, path.Join(disksFolder, name), c)
}

// openLink opens a disk, less its suffix, without those below it, to be read through a cache.
func (d *Datastore) openLink(ctx context.Context, name string, c *cache) (vmdk.Link, error) {
	desc, err := d.descriptor(ctx, name)
	if err != nil {
		return vmdk.Link{}, err
	}
	if len(desc.Extents) != 1 || path.Base(desc.Extents[0].File) != desc.Extents[0].File {
		return vmdk.Link{}, ErrForeign
	}
	file := path.Join(path.Dir(name), desc.Extents[0].File)
	size, err := d.Stat(ctx, file)
	if err != nil {
		return vmdk.Link{}, err
	}
	f := &remoteFile{ctx: ctx, d: d, name: file, size: size, cache: c}
	switch desc.Extents[0].Type {
	case "VMFSSPARSE", "SPARSE":
		e, err := vmdk.OpenExtent(f, size)
		return vmdk.Link{Descriptor: desc, Extents: []*vmdk.Extent{e}}, err
	case "VMFS", "FLAT":
		return vmdk.Link{Descriptor: desc, Extents: []*vmdk.Extent{vmdk.OpenFlat(f, size)}}, nil
	}
	return vmdk.Link{}, fmt.Errorf("%w: %s", ErrForeign, desc.Extents[0].Type)
}

// descriptor reads a disk's descriptor.
func (s *Store) descriptor(ctx context.Context, name string) (*vmdk.Descriptor, error) {
	return s.d.descriptor(ctx, path.Join(disksFolder, name))
}

func (d *Datastore) descriptor(ctx context.Context, name string) (*vmdk.Descriptor, error) {
	text, err := d.ReadFile(ctx, name+".vmdk", recordLimit)
	if err != nil {
		return nil, err
	}
	return vmdk.ParseDescriptor(text)
}
