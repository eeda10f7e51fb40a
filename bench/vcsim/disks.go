package vcsim

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"vic/vmdk"
)

// maxDescriptor bounds what is read of a descriptor; it has a few lines.
const maxDescriptor = 64 << 10

// manageDisks makes the simulator's disks real ones, and has them deleted as such.
func (s *Server) manageDisks(c *vim25.Client) error {
	m, ok := s.Service.Context.Map.Get(*c.ServiceContent.VirtualDiskManager).(*simulator.VirtualDiskManager)
	if !ok {
		return errors.New("the simulator's disk manager is not its own")
	}
	s.Service.Context.Map.Put(&diskManager{m, s})
	s.OnTask(s.makeDisksReal)
	s.OnTask(s.hideObjects)
	s.OnTask(s.powerOffAsking)
	return nil
}

// Path is where the file of a datastore path, "[datastore] folder/file", is on this machine.
func (s *Server) Path(datastorePath string) (string, error) {
	var p object.DatastorePath
	if !p.FromString(datastorePath) || s.Folder(p.Datastore) == "" || !filepath.IsLocal(p.Path) {
		return "", fmt.Errorf("vcsim: %q is no file of a datastore", datastorePath)
	}
	d := s.datastores[p.Datastore]
	if d.Type == VSAN && p.Path != "." {
		return s.objectPath(d.Dir, p.Path)
	}
	return filepath.Join(d.Dir, p.Path), nil
}

// objectPath is where a file of a vSAN datastore is: the folders at its top have UUIDs, and names that stand for them.
func (s *Server) objectPath(folder, name string) (string, error) {
	ctx := s.Service.Context.For("/sdk") // with locks of its own
	dc := ctx.Map.Any("Datacenter").Reference()
	r, ok := new(simulator.DatastoreNamespaceManager).ConvertNamespacePathToUuidPath(ctx,
		&types.ConvertNamespacePathToUuidPath{Datacenter: &dc, NamespaceUrl: folder + name}).(*methods.ConvertNamespacePathToUuidPathBody)
	if !ok || r.Res == nil {
		return "", fmt.Errorf("vcsim: %q has no UUID", name)
	}
	return r.Res.Returnval, nil
}

// datastoreOf is the datastore in a datastore path.
func datastoreOf(datastorePath string) string {
	var p object.DatastorePath
	p.FromString(datastorePath)
	return p.Datastore
}

// makeDisksReal looks, after tasks that may make disks, at what they made.
func (s *Server) makeDisksReal(t *simulator.Task, run func() Outcome) Outcome {
	var disks []string
	if t.Info.DescriptionId == "VirtualMachine.destroy" {
		disks = s.disksOf(*t.Info.Entity)
	}
	o := run()
	if o.Fault != nil {
		return o
	}
	var err error
	switch t.Info.DescriptionId {
	case "Folder.createVm", "VirtualMachine.cloneVm":
		if ref, ok := o.Result.(types.ManagedObjectReference); ok {
			err = s.realiseAll(ref)
		}
	case "VirtualMachine.reconfigVm":
		err = s.realiseAll(*t.Info.Entity)
	case "VirtualDiskManager.createVirtualDisk":
		if name, ok := o.Result.(string); ok {
			err = s.realise(name, "", 0)
		}
	case "VirtualMachine.destroy":
		for _, d := range disks {
			// Those in the VM's folder went with it.
			if err := s.deleteDisk(d); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return Outcome{Fault: fileFault(d, err)}
			}
		}
	}
	if err != nil {
		return Outcome{Fault: fileFault("", err)}
	}
	return o
}

// disksOf lists the datastore paths of a VM's disks.
func (s *Server) disksOf(ref types.ManagedObjectReference) []string {
	var names []string
	_ = s.eachDisk(ref, func(_ *types.VirtualDisk, b *types.VirtualDiskFlatVer2BackingInfo) error { // of which the only error is the function's
		names = append(names, b.FileName)
		return nil
	})
	return names
}

func (s *Server) eachDisk(ref types.ManagedObjectReference, fn func(*types.VirtualDisk, *types.VirtualDiskFlatVer2BackingInfo) error) error {
	vm, ok := s.Service.Context.Map.Get(ref).(*simulator.VirtualMachine)
	if !ok || vm.Config == nil {
		return nil
	}
	for _, d := range vm.Config.Hardware.Device {
		if disk, ok := d.(*types.VirtualDisk); ok {
			if b, ok := disk.Backing.(*types.VirtualDiskFlatVer2BackingInfo); ok {
				if err := fn(disk, b); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// realiseAll makes all disks of a VM real, and tells their capacities where the simulator did not look for them.
func (s *Server) realiseAll(ref types.ManagedObjectReference) error {
	return s.eachDisk(ref, func(d *types.VirtualDisk, b *types.VirtualDiskFlatVer2BackingInfo) error {
		parent := ""
		if b.Parent != nil {
			parent = b.Parent.FileName
		}
		if err := s.realise(b.FileName, parent, d.CapacityInBytes); err != nil {
			return fmt.Errorf("make disk %s: %w", b.FileName, err)
		}
		path, err := s.Path(b.FileName)
		if err != nil {
			return err
		}
		desc, err := readDescriptor(path)
		if err != nil {
			return err
		}
		if parent == "" && d.CapacityInBytes > desc.Capacity() { // it was edited
			return extendDisk(path, desc, d.CapacityInBytes)
		}
		if d.CapacityInBytes == 0 {
			d.CapacityInBytes, d.CapacityInKB = desc.Capacity(), desc.Capacity()>>10
		}
		return nil
	})
}

// realise replaces what the simulator makes of a disk, a descriptor and an empty file, by a disk: a flat one, or a delta over its
// parent with all of its grain tables, as QEMU must have it. Any other it leaves alone.
func (s *Server) realise(name, parent string, capacity int64) error {
	path, err := s.Path(name)
	if err != nil {
		return err
	}
	flat := simulator.VirtualDiskBackingFileName(path)
	fi, err := os.Stat(flat)
	if errors.Is(err, fs.ErrNotExist) || err == nil && fi.Size() > 0 {
		return nil
	} else if err != nil {
		return err
	}
	d, err := readDescriptor(path)
	if err != nil || d.CID != 0 { // the simulator's descriptors have no content ID
		return err
	}
	capacity = max(capacity, d.Capacity())
	if parent == "" {
		if err := os.Truncate(flat, capacity); err != nil {
			return err
		}
		return writeDescriptor(path, vmdk.NewFlatDescriptor(filepath.Base(flat), capacity, vmdk.CIDFor(name)))
	}
	return s.makeChild(name, path, parent)
}

// makeChild makes an empty delta at path.
func (s *Server) makeChild(name, path, parent string) error {
	parentPath, err := s.Path(parent)
	if err != nil {
		return err
	}
	above, err := readDescriptor(parentPath)
	if err != nil {
		return fmt.Errorf("read parent: %w", err)
	}
	hint, err := filepath.Rel(filepath.Dir(path), parentPath)
	if err != nil {
		return err
	}
	delta := strings.TrimSuffix(path, ".vmdk") + "-delta.vmdk"
	f, err := os.Create(delta)
	if err != nil {
		return err
	}
	if err := errors.Join(vmdk.CreateExtent(f, above.Capacity()), f.Close()); err != nil {
		return err
	}
	d := above.Child(filepath.Base(delta), hint, vmdk.CIDFor(fmt.Sprintf("%s over %08x", name, above.CID)))
	d.CreateType = "vmfsSparse"
	if err := writeDescriptor(path, d); err != nil {
		return err
	}
	return os.Remove(simulator.VirtualDiskBackingFileName(path))
}

func readDescriptor(path string) (*vmdk.Descriptor, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxDescriptor))
	if err != nil {
		return nil, err
	}
	return vmdk.ParseDescriptor(text)
}

func writeDescriptor(path string, d *vmdk.Descriptor) error {
	text, err := d.Marshal()
	if err != nil {
		return err
	}
	return os.WriteFile(path, text, 0600)
}

// deleteDisk removes a descriptor and the extent files that it names.
func (s *Server) deleteDisk(name string) error {
	path, err := s.Path(name)
	if err != nil {
		return err
	}
	d, err := readDescriptor(path)
	if err != nil {
		return err
	}
	for _, x := range d.Extents {
		if x.File != "" && filepath.Base(x.File) == x.File {
			if err := os.Remove(filepath.Join(filepath.Dir(path), x.File)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return os.Remove(path)
}

// fileFault is what the API says about a failure with a file.
func fileFault(name string, err error) types.BaseMethodFault {
	if errors.Is(err, fs.ErrNotExist) {
		return &types.FileNotFound{FileFault: types.FileFault{File: name}}
	}
	return &types.GenericVmConfigFault{Reason: err.Error()}
}

// diskManager deletes disks with all of their files, copies what a disk shows, and extends; the simulator's own takes every disk for a flat one
// without holes.
type diskManager struct {
	*simulator.VirtualDiskManager
	s *Server
}

// DeleteVirtualDiskTask implements VirtualDiskManager.DeleteVirtualDisk_Task.
func (m *diskManager) DeleteVirtualDiskTask(ctx *simulator.Context, req *types.DeleteVirtualDisk_Task) soap.HasFault {
	t := simulator.CreateTask(m.VirtualDiskManager, "deleteVirtualDisk", func(*simulator.Task) (types.AnyType, types.BaseMethodFault) {
		if err := m.s.deleteDisk(req.Name); err != nil {
			return nil, fileFault(req.Name, err)
		}
		return nil, nil
	})
	return &methods.DeleteVirtualDisk_TaskBody{Res: &types.DeleteVirtualDisk_TaskResponse{Returnval: t.Run(ctx)}}
}

// CopyVirtualDiskTask implements VirtualDiskManager.CopyVirtualDisk_Task. The copy is a flat disk.
func (m *diskManager) CopyVirtualDiskTask(ctx *simulator.Context, req *types.CopyVirtualDisk_Task) soap.HasFault {
	t := simulator.CreateTask(m.VirtualDiskManager, "copyVirtualDisk", func(*simulator.Task) (types.AnyType, types.BaseMethodFault) {
		if err := m.s.copyDisk(req.SourceName, req.DestName); err != nil {
			if errors.Is(err, fs.ErrExist) {
				return nil, &types.FileAlreadyExists{FileFault: types.FileFault{File: req.DestName}}
			}
			return nil, fileFault(req.SourceName, err)
		}
		return nil, nil
	})
	return &methods.CopyVirtualDisk_TaskBody{Res: &types.CopyVirtualDisk_TaskResponse{Returnval: t.Run(ctx)}}
}

// ExtendVirtualDiskTask implements VirtualDiskManager.ExtendVirtualDisk_Task.
func (m *diskManager) ExtendVirtualDiskTask(ctx *simulator.Context, req *types.ExtendVirtualDisk_Task) soap.HasFault {
	t := simulator.CreateTask(m.VirtualDiskManager, "extendVirtualDisk", func(*simulator.Task) (types.AnyType, types.BaseMethodFault) {
		path, err := m.s.Path(req.Name)
		if err != nil {
			return nil, fileFault(req.Name, err)
		}
		desc, err := readDescriptor(path)
		if err != nil {
			return nil, fileFault(req.Name, err)
		}
		if req.NewCapacityKb<<10 <= desc.Capacity() {
			return nil, &types.InvalidArgument{InvalidProperty: "newCapacityKb"}
		}
		if err := extendDisk(path, desc, req.NewCapacityKb<<10); err != nil {
			return nil, fileFault(req.Name, err)
		}
		return nil, nil
	})
	return &methods.ExtendVirtualDisk_TaskBody{Res: &types.ExtendVirtualDisk_TaskResponse{Returnval: t.Run(ctx)}}
}

// extendDisk enlarges a flat disk. Another cannot be.
func extendDisk(path string, d *vmdk.Descriptor, capacity int64) error {
	if len(d.Extents) != 1 || d.ParentCID != vmdk.NoParent || d.Extents[0].Type != "FLAT" && d.Extents[0].Type != "VMFS" {
		return errors.New("it is no flat disk")
	}
	if err := os.Truncate(filepath.Join(filepath.Dir(path), d.Extents[0].File), capacity); err != nil {
		return err
	}
	return writeDescriptor(path, vmdk.NewFlatDescriptor(d.Extents[0].File, capacity, d.CID))
}

func (s *Server) copyDisk(from, to string) error {
	source, err := s.Path(from)
	if err != nil {
		return err
	}
	path, err := s.Path(to)
	if err != nil {
		return err
	}
	above, err := readDescriptor(source)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(err, fs.ErrExist)
	}
	flat := simulator.VirtualDiskBackingFileName(path)
	if out, err := exec.Command("qemu-img", "convert", "-f", "vmdk", "-O", "raw", source, flat).CombinedOutput(); err != nil {
		return fmt.Errorf("qemu-img convert: %w: %s", err, out)
	}
	return writeDescriptor(path, vmdk.NewFlatDescriptor(filepath.Base(flat), above.Capacity(), vmdk.CIDFor(to)))
}
