package vsphere

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sync"

	"github.com/vmware/govmomi/vim25/types"

	"vic/containervm"
	"vic/layerstore"
	datastore "vic/layerstore/vsphere"
	"vic/vmdk"
)

// ContainerFS implements containervm.Disks, on what the VM's disk was when it was powered off.
func (d *Driver) ContainerFS(ctx context.Context, id string) (*layerstore.FS, error) {
	if err := d.bring(ctx, id); err != nil {
		return nil, err
	}
	return d.o.Local.ContainerFS(ctx, id)
}

// OpenChanges implements containervm.Disks.
func (d *Driver) OpenChanges(ctx context.Context, id string) (*layerstore.ContainerChanges, error) {
	if err := d.bring(ctx, id); err != nil {
		return nil, err
	}
	return d.o.Local.OpenChanges(ctx, id)
}

// broughtFile is a file in the container's folder that says after which run of the VM its disk was brought.
const broughtFile = "brought.json"

// bring makes the delta in the container's folder what that of its VM is, unless it is.
func (d *Driver) bring(ctx context.Context, id string) error {
	defer d.lock(id)()
	dir := d.folderOf(id)
	rec, err := readRecord(dir)
	if err != nil {
		return err
	}
	run, err := broughtAfter(dir)
	if err != nil || run == rec.Run {
		return err
	}
	if err := d.bringDelta(ctx, id); err != nil {
		return fmt.Errorf("bring the disk of the container's VM: %w", err)
	}
	// The VM may run again since. Then this is of the run before, and is brought anew.
	text, err := json.Marshal(rec.Run)
	if err != nil {
		return err
	}
	return containervm.WriteFile(filepath.Join(dir, broughtFile), text)
}

// lock keeps others from the disk of a container's VM. Who reads it ends when its context does.
func (d *Driver) lock(id string) (unlock func()) {
	lock, _ := d.bringing.LoadOrStore(id, new(sync.Mutex))
	lock.(*sync.Mutex).Lock()
	return lock.(*sync.Mutex).Unlock
}

// rootPath is the datastore path of a container's disk, if its VM has no snapshots.
func (d *Driver) rootPath(id string) string { return d.o.Containers.Path(path.Join(id, diskName)) }

// isRootDisk tells whether a datastore path is that of a container's disk.
func (d *Driver) isRootDisk(file string) bool {
	id := path.Base(path.Dir(file))
	return containervm.ValidID(id) && file == d.rootPath(id)
}

// attached attaches a disk to the machine in which this runs, for as long as use has its device.
func (d *Driver) attached(ctx context.Context, id string, r *rootFile, use func(datastore.Device) error) error {
	d.left.Store(id, nil)
	err := d.o.Own.With(ctx, r.path, d.Capacity(), use)
	if err == nil {
		d.left.Delete(id)
	}
	return err
}

// take is lock for who lets the VM have its disk, or removes it: it is attached nowhere else.
func (d *Driver) take(ctx context.Context, id string) (unlock func(), err error) {
	unlock = d.lock(id)
	if _, left := d.left.Load(id); left {
		if err := d.o.Own.DetachLeft(ctx, func(file string) bool { return file == d.rootPath(id) }); err != nil {
			unlock()
			return nil, fmt.Errorf("detach the container's disk from this machine: %w", err)
		}
		d.left.Delete(id)
	}
	return unlock, nil
}

// broughtAfter returns the run after which the disk was brought; 0 is what it was when it was made.
func broughtAfter(dir string) (run int, err error) {
	text, err := os.ReadFile(filepath.Join(dir, broughtFile))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &run)
	}
	return run, err
}

// unreadable is an error about a disk that only VMs can read, and this program runs in none, or that nobody reads.
func unreadable(format string, args ...any) error {
	return refuse(containervm.ErrNotImplemented, "the files of a stopped container cannot be read here: %s; start it, and read them in it", fmt.Sprintf(format, args...))
}

// maxDescriptor bounds what is read of a disk's descriptor.
const maxDescriptor = 64 << 10

// A rootFile is the disk of a VM that does not run.
type rootFile struct {
	path   string // of its descriptor, on its datastore
	extent string // the name of its extent file, "" if that can be read in a VM alone
	cowd   bool   // that is a vmfsSparse one
}

// root finds the root disk of a VM that does not run.
func (d *Driver) root(ctx context.Context, id string) (*rootFile, error) {
	if err := d.Available(); err != nil {
		return nil, err
	}
	v, err := d.lookUp(ctx, id)
	if err != nil {
		return nil, err
	}
	switch v.power {
	case gone:
		return nil, errDeleted
	case on, suspended, unknown:
		return nil, errors.New("it runs: somebody has powered it on")
	}
	all, err := d.devices(ctx, v.ref)
	if err != nil {
		return nil, err
	}
	file := path.Join(id, diskName)
	root := rootDisk(all)
	if root == nil {
		return nil, errors.New("it has no root disk")
	}
	if b, ok := root.Backing.(*types.VirtualDiskFlatVer2BackingInfo); !ok || b.FileName != d.rootPath(id) {
		return nil, unreadable("its virtual machine has snapshots")
	}
	r := &rootFile{path: d.rootPath(id)}
	text, err := d.o.Containers.ReadFile(ctx, file, maxDescriptor)
	if err != nil {
		return nil, err
	}
	desc, err := vmdk.ParseDescriptor(text)
	if err != nil {
		return nil, unreadable("its disk is of a kind that is not known (%v)", err)
	}
	if len(desc.Extents) == 1 && desc.Extents[0].File == path.Base(desc.Extents[0].File) {
		if x := desc.Extents[0]; x.Type == "SPARSE" || x.Type == "VMFSSPARSE" {
			r.extent, r.cowd = path.Join(id, x.File), x.Type == "VMFSSPARSE"
			return r, nil
		}
	}
	if d.o.Own == nil {
		return nil, unreadable("its datastore keeps disks as %s, which an appliance can read", kindOf(desc))
	}
	return r, nil
}

// kindOf is what a disk's extents are.
func kindOf(desc *vmdk.Descriptor) string {
	if len(desc.Extents) != 1 {
		return fmt.Sprintf("%d extents", len(desc.Extents))
	}
	return desc.Extents[0].Type
}

func (d *Driver) bringDelta(ctx context.Context, id string) error {
	r, err := d.root(ctx, id)
	if err != nil {
		return err
	}
	if r.extent == "" {
		return d.attached(ctx, id, r, func(dev datastore.Device) error { return d.o.Local.ReplaceContainerBlocks(ctx, id, dev) })
	}
	f, err := d.download(ctx, r.extent)
	if err != nil {
		return err
	}
	defer f.Close()
	return d.o.Local.ReplaceContainerDelta(ctx, id, f)
}

// download brings a file of the datastore into one without a name. Where it has zeros that has holes.
func (d *Driver) download(ctx context.Context, name string) (_ *os.File, err error) {
	size, err := d.o.Containers.Stat(ctx, name)
	if err != nil {
		return nil, err
	}
	f, err := d.o.Local.TempFile()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	const most = 4 << 20 // of a request
	buf, zeros := make([]byte, most), make([]byte, 64<<10)
	for off := int64(0); off < size; {
		p := buf[:min(most, size-off)]
		if err := d.o.Containers.ReadRange(ctx, name, p, off); err != nil {
			return nil, err
		}
		for i := 0; i < len(p); i += len(zeros) {
			q := p[i:min(i+len(zeros), len(p))]
			if bytes.Equal(q, zeros[:len(q)]) {
				continue
			}
			if _, err := f.WriteAt(q, off+int64(i)); err != nil {
				return nil, err
			}
		}
		off += int64(len(p))
	}
	return f, f.Truncate(size)
}
