package vch

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"path"
	"time"

	"github.com/google/uuid"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"

	"vic/containervm/appliance"
	"vic/layerstore/vsphere"
)

// Files in a container store.
const (
	recordFile      = "vch.json"
	stateFile       = "state.vmdk"
	applianceFolder = "appliance"
	mediaFolder     = "boot" // as package containervm/vsphere names it
)

// room is what the files of an appliance take beside its ISO: its state disk is thin.
const room = 1 << 30

// Access is how the appliance reaches vSphere.
type Access struct {
	Target     string // HOST[:PORT]
	Thumbprint string // of the server's certificate; "" with CAFile
	CAFile     string // PEM, of the server's authority
	// User is who installs the VCH; the appliance logs in as the same if the Spec has no OpsUser.
	User, Password string
	OpsPassword    string
}

// An ISO is what an appliance boots.
type ISO struct {
	io.ReaderAt
	Size int64
}

// CreateOptions say what a VCH is made of, beside its Spec.
type CreateOptions struct {
	Spec   Spec
	Access Access
	// TLS is what the API shows its clients. If MakeTLS is set it makes that first, as MakeTLSText says.
	TLS         TLS
	MakeTLS     func() (TLS, error)
	MakeTLSText string
	// RegistryCAs are authorities of registries, PEM.
	RegistryCAs [][]byte
	ISO         ISO
	Version     string        // of this program
	Timeout     time.Duration // of the appliance's start
}

// An installation is a VCH that is being made.
type installation struct {
	site   *Site
	o      CreateOptions
	r      *resolved
	record Record
	iso    string // its file in the container store
	key    appliance.Key
	again  bool // its state disk is there: whatever fails, the VCH's containers and images stay

	poolRef   *object.ResourcePool // the VCH's
	folderRef *object.Folder
	group     *group // nil if there is nothing to do about it
	vm        *object.VirtualMachine
}

// Create plans a VCH. The error is Problems if something stands against it. The plan ends when the
// appliance's API answers.
func (s *Site) Create(ctx context.Context, o CreateOptions) (*Plan, error) {
	var p Problems
	r, err := s.resolve(ctx, &p, &o.Spec)
	if err != nil {
		return nil, err
	}
	o.checkTLS(&p)
	checkCAs(&p, o.RegistryCAs)
	if err := s.checkAccess(ctx, &p, o); err != nil {
		return nil, err
	}
	in := &installation{site: s, o: o, r: r}
	if err := in.nameISO(); err != nil {
		p.add("appliance-iso", "%v", err)
	}
	plan := &Plan{Warnings: r.warnings}
	if r.pool != nil && r.folder != nil && r.container != nil {
		if err := s.checkRoom(ctx, &p, r.container, room+o.ISO.Size); err != nil {
			return nil, err
		}
		if err := s.planPersistence(ctx, plan); err != nil {
			return nil, err
		}
		if err := in.plan(ctx, &p, plan); err != nil {
			return nil, err
		}
	}
	if len(p) > 0 {
		return nil, p
	}
	return plan, nil
}

// checkAccess logs in as the appliance will.
func (s *Site) checkAccess(ctx context.Context, p *Problems, o CreateOptions) error {
	if o.Spec.OpsUser == "" {
		return nil
	}
	e := vsphere.Endpoint{Server: o.Access.Target, User: o.Spec.OpsUser, Password: o.Access.OpsPassword, Thumbprint: o.Access.Thumbprint, CAFile: o.Access.CAFile}
	session, err := vsphere.Connect(ctx, e)
	if err != nil {
		p.add("ops-user", "%v", err)
		return nil
	}
	return session.Close(ctx)
}

// nameISO names the ISO by what is in it.
func (in *installation) nameISO() error {
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(in.o.ISO, 0, in.o.ISO.Size)); err != nil {
		return err
	}
	in.iso = "appliance-" + hex.EncodeToString(h.Sum(nil))[:16] + ".iso"
	in.key = appliance.NewKey()
	_, err := appliance.WithKey(in.o.ISO, in.key)
	return err
}

// plan plans what is not there yet, and finds out whether what is there is the VCH's.
func (in *installation) plan(ctx context.Context, p *Problems, plan *Plan) error {
	files, folderThere, err := listOrNone(ctx, in.r.container, ".")
	if err != nil {
		return err
	}
	before, err := readRecord(ctx, in.r.container)
	if err != nil {
		return err
	}
	name, folder := in.r.spec.Name, in.r.container.Path(".")
	switch {
	case before == nil && len(files) > 0:
		p.add("container-store", "%s is there, with something in it that is not of this VCH", folder)
	case before != nil && before.Spec.Name != name:
		p.add("container-store", "%s is that of VCH %s", folder, before.Spec.Name)
	case before != nil && (before.Spec.ComputeResource != in.r.spec.ComputeResource || before.Spec.Folder != in.r.spec.Folder):
		p.add("compute-resource", "%s is of a VCH %s in compute resource %q and folder %q: give the same", folder, name, before.Spec.ComputeResource, before.Spec.Folder)
	}
	in.record = Record{
		Format: recordFormat, ID: uuid.NewString(), Version: in.o.Version, Spec: in.o.Spec, Target: in.o.Access.Target, User: in.o.Access.User,
		Datacenter: in.site.Datacenter(), Pool: in.r.pool.divisible, Folder: in.site.VCenter(), Changing: "create",
	}
	if before != nil {
		in.record.ID = before.ID
	} else {
		// What of this name is there already is somebody else's.
		before = &Record{}
	}
	vms, err := in.inventory(ctx, p, before)
	if err != nil {
		return err
	}
	if len(*p) > 0 {
		return nil
	}
	if err := in.checkPrivileges(ctx, p, plan); err != nil || len(*p) > 0 {
		return err
	}
	in.planFiles(plan, files, folderThere)
	return in.planObjects(ctx, plan, vms)
}

// inventory looks for objects of the VCH's name: what is not the VCH's own is a problem. It returns the appliance of a creation that was not
// finished, if there is one.
func (in *installation) inventory(ctx context.Context, p *Problems, before *Record) (unfinished *VCH, err error) {
	name := in.r.spec.Name
	all, err := in.site.List(ctx, "")
	if err != nil {
		return nil, err
	}
	checkBridge(p, in.r.spec, all)
	for _, v := range all {
		switch {
		case v.ID == before.ID && before.Changing == "create":
			unfinished = v
		case v.Spec.Name == name:
			p.add("name", "there is a VCH %s already, %s: vic-machine configure changes it", name, v.Path)
			return nil, nil
		}
	}
	pools, err := in.site.find.ResourcePoolList(ctx, path.Join(in.r.pool.path, name))
	switch {
	case err != nil && !isLookup(err):
		return nil, err
	case err == nil && in.record.Pool && !before.Pool:
		p.add("name", "there is a resource pool %s already, which is not the VCH's", pools[0].InventoryPath)
	case err == nil:
		in.poolRef = pools[0]
	}
	for _, place := range []string{in.r.folder.InventoryPath, path.Join(in.r.folder.InventoryPath, name)} {
		vm, err := in.site.find.VirtualMachine(ctx, path.Join(place, name))
		if err != nil && !isLookup(err) {
			return nil, err
		}
		if err == nil && (unfinished == nil || vm.Reference() != unfinished.object.Self) {
			p.add("name", "there is a VM %s already, which is not the VCH's", vm.InventoryPath)
		}
	}
	folders, err := in.site.find.FolderList(ctx, path.Join(in.r.folder.InventoryPath, name))
	switch {
	case err != nil && !isLookup(err):
		return nil, err
	case err == nil && in.record.Folder && !before.Folder:
		p.add("name", "there is a folder %s already, which is not the VCH's", folders[0].InventoryPath)
	case err == nil:
		in.folderRef = folders[0]
	}
	return unfinished, in.findGroup(ctx, p, before.Spec.AffinityGroup)
}

// findGroup looks for the VM group. It is the VCH's if an earlier creation was to make it.
func (in *installation) findGroup(ctx context.Context, p *Problems, ours bool) (err error) {
	if in.r.pool.config == nil || !in.r.spec.AffinityGroup && !ours {
		return nil
	}
	if in.group, err = in.site.group(ctx, in.r.pool.owner, in.r.spec.Name); err == nil && in.r.spec.AffinityGroup {
		in.group.check(p, ours)
	}
	return err
}

// planFiles plans what is on datastores.
func (in *installation) planFiles(plan *Plan, files []vsphere.Entry, folderThere bool) {
	if in.o.MakeTLS != nil {
		plan.add(in.o.MakeTLSText, simple(func(context.Context) (err error) {
			in.o.TLS, err = in.o.MakeTLS()
			return err
		}), nil)
	}
	d := in.r.container
	has := map[string]int64{}
	for _, f := range files {
		has[f.Name] = f.Size
	}
	_, claimed := has[recordFile]
	_, in.again = has[stateFile]
	plan.add("claim folder "+d.Path("."), simple(func(ctx context.Context) error {
		if err := d.MakeFolder(ctx, "."); err != nil {
			return err
		}
		return in.writeRecord(ctx)
	}), func(ctx context.Context) error {
		if claimed {
			return nil
		}
		if err := d.RemoveAll(ctx, recordFile); err != nil {
			return err
		}
		if folderThere {
			return nil
		}
		return in.site.removeEmpty(ctx, in.r.containers)
	})
	if has[in.iso] == in.o.ISO.Size {
		plan.add("read the key in "+d.Path(in.iso), simple(func(ctx context.Context) (err error) {
			in.key, err = readKey(ctx, d, in.iso)
			return err
		}), nil)
	} else {
		plan.add("upload "+d.Path(in.iso), in.upload, func(ctx context.Context) error { return d.RemoveAll(ctx, in.iso) })
	}
	in.planFolder(plan, "image store", in.r.images)
	for _, v := range in.r.volumes {
		in.planFolder(plan, "volume store", v.location)
	}
	if !in.again {
		plan.add(fmt.Sprintf("make disk %s of %d GiB", d.Path(stateFile), in.r.spec.StateSize), simple(func(ctx context.Context) error {
			return d.CreateDisk(ctx, stateFile, in.r.spec.StateSize<<30)
		}), func(ctx context.Context) error {
			return in.site.deleteDisk(ctx, d.Path(stateFile))
		})
	}
}

// planFolder plans a folder on a datastore. Undone, what a VCH has noted in an image store goes, and the folder if nothing else is in it.
func (in *installation) planFolder(plan *Plan, what string, l location) {
	made := false
	plan.add(fmt.Sprintf("have folder [%s] %s as %s", l.datastore, l.folder, what), simple(func(ctx context.Context) error {
		d, err := in.site.open(ctx, l)
		if err != nil {
			return err
		}
		_, there, err := listOrNone(ctx, d, ".")
		if err != nil {
			return err
		}
		made = !there
		return d.MakeFolder(ctx, ".")
	}), func(ctx context.Context) error {
		if l == in.r.images && !in.again {
			if err := vsphere.Retire(ctx, in.r.imageData, in.r.spec.Name); err != nil {
				return err
			}
		}
		if !made {
			return nil
		}
		return in.site.removeEmpty(ctx, l)
	})
}

// planObjects plans what is in the inventory.
func (in *installation) planObjects(ctx context.Context, plan *Plan, unfinished *VCH) error {
	name := in.r.spec.Name
	if in.group != nil && in.group.there && !in.r.spec.AffinityGroup {
		in.group.planRemoval(plan) // an earlier creation was to have it
		plan.keep()
	}
	if unfinished != nil {
		plan.add("remove what an earlier creation left of VM "+name, simple(func(ctx context.Context) error {
			if err := in.site.removeAppliance(ctx, unfinished.machine()); err != nil || in.group == nil {
				return err
			}
			return in.group.Drop(ctx, unfinished.object.Self)
		}), nil)
	}
	switch {
	case !in.record.Pool:
		in.poolRef = in.r.pool.ResourcePool
	case in.poolRef == nil:
		own := path.Join(in.r.pool.path, name)
		plan.add("make resource pool "+own, simple(in.makePool), func(ctx context.Context) error {
			pool, err := in.site.find.ResourcePool(ctx, own)
			if err != nil {
				return notFound(err)
			}
			return in.site.removePool(ctx, pool.Reference())
		})
	}
	switch {
	case !in.record.Folder:
		in.folderRef = in.r.folder
	case in.folderRef == nil:
		own := path.Join(in.r.folder.InventoryPath, name)
		plan.add("make folder of VMs "+own, simple(func(ctx context.Context) (err error) {
			in.folderRef, err = in.r.folder.CreateFolder(ctx, name)
			return err
		}), func(ctx context.Context) error {
			f, err := in.site.find.Folder(ctx, own)
			if err != nil {
				return notFound(err)
			}
			return in.site.removeFolder(ctx, f.Reference())
		})
	}
	if in.r.spec.OpsGrant {
		in.planGrants(plan)
	}
	if unfinished == nil {
		if err := in.planLeftovers(ctx, plan); err != nil {
			return err
		}
	}
	plan.add("make VM "+name, simple(in.makeVM), func(ctx context.Context) error {
		// By its UUID: a task may fail that has made it.
		vm, err := object.NewSearchIndex(in.site.client).FindByUuid(ctx, in.site.dc, in.record.ID, true, nil)
		if err != nil || vm == nil {
			return err
		}
		return in.site.removeAppliance(ctx, object.NewVirtualMachine(in.site.client, vm.Reference()))
	})
	if in.r.spec.AffinityGroup {
		in.group.planMaking(plan, func(context.Context) ([]types.ManagedObjectReference, error) {
			return []types.ManagedObjectReference{in.vm.Reference()}, nil // the appliance sees to containers that there are
		})
	}
	plan.add("power on "+name, simple(func(ctx context.Context) error { return in.site.powerOn(ctx, in.vm) }), nil)
	plan.add("wait for the API", func(ctx context.Context, report func(Event)) error {
		v, err := in.site.Find(ctx, in.vm.Reference().Value)
		if err != nil {
			return err
		}
		return v.start(ctx, in.o.Timeout, in.o.TLS, report)
	}, nil)
	return nil
}

// planLeftovers plans to remove the files of an appliance that is in no inventory any more, beside which the server makes no VM. Those of one
// that still runs somewhere are locked. The console stays: it may tell what became of it.
func (in *installation) planLeftovers(ctx context.Context, plan *Plan) error {
	d := in.r.container
	files, _, err := listOrNone(ctx, d, applianceFolder)
	if err != nil {
		return err
	}
	var left []string
	for _, f := range files {
		if f.Name != consoleFile {
			left = append(left, path.Join(applianceFolder, f.Name))
		}
	}
	if len(left) == 0 {
		return nil
	}
	plan.add("remove what is left of a VM in "+d.Path(applianceFolder), simple(func(ctx context.Context) error {
		for _, name := range left {
			if err := d.RemoveAll(ctx, name); err != nil {
				return err
			}
		}
		return nil
	}), nil)
	return nil
}

// writeRecord writes vch.json.
func (in *installation) writeRecord(ctx context.Context) error {
	return putRecord(ctx, in.r.container, &in.record)
}

func putRecord(ctx context.Context, d *vsphere.Datastore, r *Record) error {
	text, err := r.marshal()
	if err != nil {
		return err
	}
	return d.Put(ctx, recordFile, int64(len(text)), func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(text)), nil }, nil)
}

// upload sends the ISO with the VCH's key in it.
func (in *installation) upload(ctx context.Context, report func(Event)) error {
	iso, err := appliance.WithKey(in.o.ISO, in.key)
	if err != nil {
		return err
	}
	size := in.o.ISO.Size
	open := func() (io.ReadCloser, error) { return io.NopCloser(io.NewSectionReader(iso, 0, size)), nil }
	return in.r.container.Put(ctx, in.iso, size, open, func(sent int64) { report(Event{Sent: sent, Total: size}) })
}

func (in *installation) makePool(ctx context.Context) (err error) {
	spec := types.DefaultResourceConfigSpec()
	if err := in.r.spec.allocate(&spec); err != nil {
		return err
	}
	in.poolRef, err = in.r.pool.Create(ctx, in.r.spec.Name, spec)
	return err
}

// allocate sets what a resource pool is bounded by.
func (s *Spec) allocate(spec *types.ResourceConfigSpec) error {
	for _, x := range []struct {
		Shares
		to *types.ResourceAllocationInfo
	}{{s.CPU, &spec.CpuAllocation}, {s.Memory, &spec.MemoryAllocation}} {
		limit, reservation := x.Limit, x.Reservation
		if limit == 0 {
			limit = -1
		}
		shares, err := sharesInfo(x.Shares.Shares)
		if err != nil {
			return err
		}
		x.to.Limit, x.to.Reservation, x.to.Shares = &limit, &reservation, shares
	}
	return nil
}

// makeVM makes the appliance.
func (in *installation) makeVM(ctx context.Context) error {
	if in.record.Pool {
		in.record.PoolID = in.poolRef.Reference().Value
	}
	if in.record.Folder {
		in.record.FolderID = in.folderRef.Reference().Value
	}
	spec, err := in.vmSpec(ctx)
	if err != nil {
		return err
	}
	host, err := in.site.session.ChooseHost(ctx, in.poolRef.Reference(), in.r.imageData.Reference(), in.r.container.Reference())
	if err != nil {
		return err
	}
	result, err := in.site.session.Run(ctx, func() (*object.Task, error) { return in.folderRef.CreateVM(ctx, *spec, in.poolRef, host) })
	if err != nil {
		return err
	}
	ref, ok := result.(types.ManagedObjectReference)
	if !ok {
		return fmt.Errorf("the task ended with a %T", result)
	}
	in.vm = object.NewVirtualMachine(in.site.client, ref)
	return nil
}

// notFound is nil for the error of a name that is not there.
func notFound(err error) error {
	if isLookup(err) {
		return nil
	}
	return err
}

// powerOn powers a VM on.
func (s *Site) powerOn(ctx context.Context, vm *object.VirtualMachine) error {
	return s.session.Do(ctx, func() (*object.Task, error) { return vm.PowerOn(ctx) })
}

// readerAt is a function that reads as io.ReaderAt does.
type readerAt func(p []byte, off int64) (int, error)

func (r readerAt) ReadAt(p []byte, off int64) (int, error) { return r(p, off) }

// readKey reads the key in an ISO on a datastore.
func readKey(ctx context.Context, d *vsphere.Datastore, iso string) (appliance.Key, error) {
	return appliance.ReadKey(readerAt(func(p []byte, off int64) (int, error) {
		if err := d.ReadRange(ctx, iso, p, off); err != nil {
			return 0, err
		}
		return len(p), nil
	}))
}
