package layerstore

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/opencontainers/go-digest"

	"vic/diskfs"
	"vic/vmdk"
)

// A Disk is an open chain of disks of the store, read as one block device.
type Disk struct {
	*vmdk.Disk
	// Of each disk, top first: what the chain is made of, its file and its file name less
	// the suffix.
	links []vmdk.Link
	files []*os.File
	names []string
}

// Close closes the files of the chain.
func (d *Disk) Close() error {
	var errs []error
	for _, f := range d.files {
		errs = append(errs, f.Close())
	}
	d.files = nil
	return errors.Join(errs...)
}

// Sync syncs the file of the top disk, which is the one that is written to.
func (d *Disk) Sync() error { return d.files[0].Sync() }

// CopyCID returns the content ID for a copy of what the chain shows, in one disk.
func (d *Disk) CopyCID() uint32 { return copyCID(d.descriptor().CID) }

// CopyCID is Disk.CopyCID of the disk of a layer, "" for none, in whichever store of disks of that capacity it is.
func CopyCID(chain digest.Digest, capacity int64) uint32 {
	return copyCID((&versionRecord{Capacity: capacity}).cidOf(chain))
}

func copyCID(cid uint32) uint32 { return vmdk.CIDFor(fmt.Sprintf("copy %08x", cid)) }

// descriptor returns the descriptor of the top disk.
func (d *Disk) descriptor() *vmdk.Descriptor { return d.links[0].Descriptor }

// replace returns the chain with one disk on top in place of the first k. The file, an
// extent file of size bytes, belongs to it, and so does what belonged to d, but for the
// files of these k, which it closes.
func (d *Disk) replace(k int, name string, desc *vmdk.Descriptor, f *os.File, size int64) (*Disk, error) {
	e, err := vmdk.OpenExtent(f, size)
	if err != nil {
		return nil, err
	}
	n := &Disk{
		links: append([]vmdk.Link{{Descriptor: desc, Extents: []*vmdk.Extent{e}}}, d.links[k:]...),
		files: append([]*os.File{f}, d.files[k:]...),
		names: append([]string{name}, d.names[k:]...),
	}
	if n.Disk, err = vmdk.OpenDisk(n.links); err != nil {
		return nil, err
	}
	for _, f := range d.files[:k] {
		f.Close() // read only
	}
	return n, nil
}

// OpenDisk opens the disk that shows a layer and all below it; "" is the empty
// base disk. The error is fs.ErrNotExist if the store does not have the layer.
// The disk stays readable if the layer is removed meanwhile. The caller closes
// it.
func (s *Store) OpenDisk(chain digest.Digest) (*Disk, error) {
	disk := chain
	if chain != "" {
		l, err := s.Layer(chain)
		if err != nil {
			return nil, fmt.Errorf("open disk: %w", err)
		}
		disk = l.Disk
	}
	if disk != "" {
		if l, err := s.dir.readLayer(disk); err == nil && l.In != "" {
			return nil, fmt.Errorf("open disk of layer %s: it was flattened into that of layer %s", chain, l.In)
		}
	}
	d, err := s.dir.openDisk(disk)
	if err != nil {
		return nil, fmt.Errorf("open disk of layer %s: %w", chain, err)
	}
	return d, nil
}

// openDisk opens a disk and, going by the hints in the descriptors, its parents.
func (d Dir) openDisk(disk digest.Digest) (_ *Disk, err error) {
	c := &Disk{}
	defer func() {
		if err != nil {
			c.Close()
		}
	}()
	seen := make(map[digest.Digest]bool)
	for {
		if seen[disk] {
			return nil, formatErrorf(d.disk(disk), "parentFileNameHint", "the chain comes back to it")
		}
		seen[disk] = true
		desc, err := d.readDescriptor(d.disk(disk))
		if err != nil {
			return nil, err
		}
		e, f, err := d.openExtent(disk, desc)
		if err != nil {
			return nil, err
		}
		c.files, c.names = append(c.files, f), append(c.names, diskName(disk))
		c.links = append(c.links, vmdk.Link{Descriptor: desc, Extents: []*vmdk.Extent{e}})
		if desc.ParentCID == vmdk.NoParent {
			break
		}
		if disk, err = d.parentDisk(disk, desc); err != nil {
			return nil, err
		}
	}
	if c.Disk, err = vmdk.OpenDisk(c.links); err != nil {
		return nil, err
	}
	return c, nil
}

// readDescriptor reads a descriptor file.
func (d Dir) readDescriptor(path string) (*vmdk.Descriptor, error) {
	b, err := readBounded(path, recordLimit)
	if err != nil {
		return nil, err
	}
	desc, err := vmdk.ParseDescriptor(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return desc, nil
}

// openExtent opens the extent file of a disk of the disks folder.
func (d Dir) openExtent(disk digest.Digest, desc *vmdk.Descriptor) (*vmdk.Extent, *os.File, error) {
	path, err := d.extentInUse(disk, desc)
	if err != nil {
		return nil, nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	fi, err := f.Stat()
	if err == nil {
		var e *vmdk.Extent
		if e, err = vmdk.OpenExtent(f, fi.Size()); err == nil {
			return e, f, nil
		}
		err = fmt.Errorf("%s: %w", path, err)
	}
	f.Close()
	return nil, nil, err
}

// extentInUse returns the path of the extent file of a disk: its own, or the one that
// Flatten made.
func (d Dir) extentInUse(disk digest.Digest, desc *vmdk.Descriptor) (string, error) {
	if len(desc.Extents) == 1 {
		switch desc.Extents[0].File {
		case diskName(disk) + extentSuffix:
			return d.extent(disk), nil
		case diskName(disk) + flatSuffix:
			return d.flat(disk), nil
		}
	}
	return "", formatErrorf(d.disk(disk), "extent", "is not the one file %s%s", diskName(disk), extentSuffix)
}

// parentDisk returns the chain ID of a disk's parent.
func (d Dir) parentDisk(disk digest.Digest, desc *vmdk.Descriptor) (digest.Digest, error) {
	name, ok := strings.CutSuffix(desc.ParentFileNameHint, ".vmdk")
	if ok && name == baseName {
		return "", nil
	}
	parent, valid := parseHex(name)
	if !ok || !valid {
		return "", formatErrorf(d.disk(disk), "parentFileNameHint", "%q is no disk of the store", desc.ParentFileNameHint)
	}
	return parent, nil
}

// depth returns the number of disks in a disk's chain, 0 if that cannot be read. known
// remembers what has been found out.
func (d Dir) depth(disk digest.Digest, known map[digest.Digest]int) int {
	if n, ok := known[disk]; ok {
		return n
	}
	known[disk] = 0 // if the chain comes back here
	desc, err := d.readDescriptor(d.disk(disk))
	if err != nil {
		return 0
	}
	n := 1
	if desc.ParentCID != vmdk.NoParent {
		parent, err := d.parentDisk(disk, desc)
		if err != nil {
			return 0
		}
		if n = d.depth(parent, known); n == 0 {
			return 0
		}
		n++
	}
	known[disk] = n
	return n
}

// DiskPath returns the path of the descriptor of the image's top disk, which
// QEMU opens with the whole chain. Nobody may write it.
func (s *Store) DiskPath(img *Image) (string, error) {
	path, err := s.LayerDisk(img.Chain())
	if errors.Is(err, fs.ErrNotExist) {
		err = ErrNotFound
	}
	if err != nil {
		return "", fmt.Errorf("disk of image %s: %w", img.ID, err)
	}
	return path, nil
}

// LayerDisk is DiskPath for a layer; "" is the empty base disk.
func (s *Store) LayerDisk(chain digest.Digest) (string, error) {
	if chain == "" {
		return s.dir.disk(""), nil
	}
	l, err := s.dir.readLayer(chain)
	if err != nil {
		return "", err
	}
	return s.dir.disk(l.Disk), nil
}

// An FS is the root file system of an image.
type FS struct {
	*diskfs.FS
	disk io.Closer
}

// Close closes the disk below the file system.
func (f *FS) Close() error { return f.disk.Close() }

// FS opens the root file system of an image. The caller closes it.
func (s *Store) FS(img *Image) (*FS, error) {
	disk, err := s.OpenDisk(img.Chain())
	if err != nil {
		return nil, err
	}
	f, err := diskfs.Open(disk, disk.Capacity())
	if err != nil {
		disk.Close()
		return nil, fmt.Errorf("open file system of image %s: %w", img.ID, err)
	}
	return &FS{f, disk}, nil
}

// Chains returns the chain IDs of the layers whose disks these are, top first; "" is the base disk.
func (d *Disk) Chains() []digest.Digest {
	var out []digest.Digest
	for _, name := range d.names {
		var chain digest.Digest
		if d, ok := parseHex(name); ok {
			chain = d
		}
		out = append(out, chain)
	}
	return out
}

// Extent returns the extent file of the top disk.
func (d *Disk) Extent() (*io.SectionReader, error) {
	fi, err := d.files[0].Stat()
	if err != nil {
		return nil, err
	}
	return io.NewSectionReader(d.files[0], 0, fi.Size()), nil
}
