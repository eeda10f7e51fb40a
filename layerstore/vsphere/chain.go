package vsphere

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"sync"

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
	stop   context.CancelFunc
}

// Close ends all reads.
func (d *Disk) Close() error {
	d.stop()
	return nil
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
func (s *Store) OpenDisk(ctx context.Context, name string) (_ *Disk, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer func() {
		if err != nil {
			cancel()
		}
	}()
	d := &Disk{stop: cancel}
	var links []vmdk.Link
	for name != "" {
		if slices.Contains(d.Names, name) {
			return nil, fmt.Errorf("the parents of disk %s come back to it", s.DiskPath(name))
		}
		parent := ""
		if name != baseName {
			rec, err := s.record(ctx, name)
			if err != nil {
				return nil, err
			}
			parent = rec.Parent
			d.Names = append(d.Names, name)
		}
		link, err := s.openLink(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("disk %s: %w", s.DiskPath(name), err)
		}
		links = append(links, link)
		d.deltas = append(d.deltas, parent != "")
		name = parent
	}
	if d.Disk, err = vmdk.OpenDisk(links); err != nil {
		return nil, fmt.Errorf("disk %s: %w", s.DiskPath(d.Names[0]), err)
	}
	return d, nil
}

// openLink opens one disk of a chain.
func (s *Store) openLink(ctx context.Context, name string) (vmdk.Link, error) {
	return s.d.openLink(ctx, path.Join(disksFolder, name))
}

// openLink opens a disk, less its suffix, without those below it.
func (d *Datastore) openLink(ctx context.Context, name string) (vmdk.Link, error) {
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
	f := &remoteFile{ctx: ctx, d: d, name: file, size: size, chunks: map[int64][]byte{}}
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

const (
	// chunkSize is how much of a file is asked for at least: a request costs as much as some hundred KiB.
	chunkSize = 256 << 10
	// cachedChunks is how many of them a file keeps.
	cachedChunks = 64
)

// A remoteFile reads a file of a datastore that does not change.
type remoteFile struct {
	ctx  context.Context // of who opened it, for io.ReaderAt passes none
	d    *Datastore
	name string
	size int64

	mu     sync.Mutex // guards what follows; not held while reading
	chunks map[int64][]byte
	order  []int64 // of chunks, the oldest first
}

func (f *remoteFile) ReadAt(p []byte, off int64) (n int, err error) {
	want := len(p)
	if off >= f.size {
		return 0, io.EOF
	}
	p = p[:min(int64(want), f.size-off)]
	for n < len(p) {
		at := off + int64(n)
		if rest := p[n:]; at%chunkSize == 0 && len(rest) >= chunkSize { // what is large passes the cache by
			whole := rest[:len(rest)/chunkSize*chunkSize]
			if err := f.d.ReadRange(f.ctx, f.name, whole, at); err != nil {
				return n, err
			}
			n += len(whole)
			continue
		}
		chunk, err := f.chunk(at / chunkSize)
		if err != nil {
			return n, err
		}
		n += copy(p[n:], chunk[at%chunkSize:])
	}
	if n < want {
		return n, io.EOF
	}
	return n, nil
}

// chunk returns a piece of the file, whose content the caller does not change.
func (f *remoteFile) chunk(i int64) ([]byte, error) {
	f.mu.Lock()
	chunk := f.chunks[i]
	f.mu.Unlock()
	if chunk != nil {
		return chunk, nil
	}
	chunk = make([]byte, min(chunkSize, f.size-i*chunkSize))
	if err := f.d.ReadRange(f.ctx, f.name, chunk, i*chunkSize); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.chunks[i] == nil {
		if f.order = append(f.order, i); len(f.order) > cachedChunks {
			delete(f.chunks, f.order[0])
			f.order = f.order[1:]
		}
	}
	f.chunks[i] = chunk
	return chunk, nil
}
