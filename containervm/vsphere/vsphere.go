// Package vsphere runs container VMs on vSphere: each container is a virtual machine in a resource pool, which an administrator
// sees and manages as any other.
//
// # The VM of a container
//
// It is made with the container and destroyed with it. Its BIOS UUID, and its instance UUID, is the beginning of the container's
// ID: by it the VM is found again, whatever it is called and wherever vSphere has moved it. It has
//
//	disk, unit 0         a delta, made by the server, over the published disk of the image; on a paravirtual SCSI controller
//	disks from unit 1    those of volumes, as long as the container runs
//	CD-ROM               the boot medium, from the first start on; booted from before any disk
//	vmxnet3              for each network, on its port group
//	COM1                 the console: a file in the VM's folder, for each run another
//	COM2                 control stream, by the network, through a proxy: service "vic.control"
//	COM3                 the log: a file like the console's
//	COM4                 the bell, which rings when the log has grown: as COM2, service "vic.bell"
//	guestinfo            the guest's configuration
//
// The files of a run go when the next one has begun, after the local log is on disk; a log of which that does not have all stays.
// The VM's folder on the datastore is named by the container's ID. Processes in the guest cannot reach the backdoor.
//
// # The folder of a container
//
// On the machine of the VCH there is a folder of a layerstore for each container as well. Its layers.json keeps the image;
// the delta there is what the VM's was when somebody last looked into the stopped container: it is brought once after each run.
// The log is mirrored there while it grows: nothing else of this program reads a datastore for it.
// vsphere.json is this package's record.
//
// # What vSphere does by itself
//
// A watcher, one long call to the property collector, learns of each change of a VM in the pool. It goes on when vCenter was away, and
// finds out what has happened meanwhile. A VM that was powered off, by whomever, is a container that has exited; one that was suspended
// is one that is paused; one that was deleted has exited, and cannot be started again. A VM that was reset, or that HA
// has started on another host, runs its process from the beginning: as if it had been killed and started. Who powers a VM on
// whose container has exited runs it past the VCH: it is not taken for the container until that is started again.
//
// A container is not called dead while its VM may run. A VM that vSphere says is off while its host, or its files, are away, and one whose
// host has failed while HA protects it, are taken to run on, until vSphere is certain or somebody kills them. What of these a VCH finds when
// it begins may run: such a container is alive, and is not started.
//
// As long as the watcher has lost vCenter, what needs it is refused with an error that wraps ErrUnavailable of layerstore/vsphere. VMs run
// on, and so do their control streams.
//
// # The VM group
//
// With a group of the cluster's DRS each VM is a member before its creation is over, and VMs that are none when a VCH begins become members
// then. A container that cannot be put into it is not made: a rule of the administrator's may say where it must not run.
//
// # What only a real vSphere can show
//
// That a delta which the server made is of a kind that can be read here (ContainerFS and what comes with it): vmfsSparse can, which hosts
// make on VMFS5 and NFS; seSparse and vSAN's objects are attached to the machine in which this runs, if it is a VM. That the size of a log file is told by all hosts as soon as it has grown.
// That MAC addresses which are not VMware's are taken, for which each VM has the settings.
package vsphere

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/types"

	"vic/containervm"
	"vic/containervm/vmgroup"
	"vic/containervm/vmname"
	"vic/layerstore"
	datastore "vic/layerstore/vsphere"
)

// Services of serial ports, as VMs tell them to the proxy.
const (
	ControlService = "vic.control"
	BellService    = "vic.bell"
)

// Ports are the network serial ports of VMs.
type Ports interface {
	// Dial returns the stream of the port of a VM, by UUID, that leads to a service. It waits until the VM has connected.
	Dial(ctx context.Context, vm, service string) (net.Conn, error)
}

// A Segment is the machine's own interface on the bridge port group.
type Segment interface {
	// Dial returns the frames of the guest with that MAC address, each after its length.
	Dial(ctx context.Context, mac string) (net.Conn, error)
}

// Options say where VMs are. Session, Local, Images, Containers, Ports and Proxy must be set.
type Options struct {
	Session *datastore.Session
	// Pool is the inventory path, or the name, of the resource pool, Folder that of the folder of VMs. "" is the only one, and the
	// datacenter's own.
	Pool, Folder string
	// Local is the store on this machine, Images the one whose disks VMs have. An image that a container is made of is published if it is not.
	Local  *layerstore.Store
	Images *datastore.Store
	// Volumes are the volumes of Local, whose datastores the hosts of VMs need; nil is none.
	Volumes *datastore.Volumes
	// Own is the virtual machine in which this runs, which reads disks of VMs that are no files; nil is none.
	Own *datastore.OwnVM
	// Containers is the folder that VMs' folders are made in.
	Containers *datastore.Datastore
	// Ports dials what VMs connect to Proxy, a URI such as tcp://HOST:PORT that ESXi hosts reach.
	Ports Ports
	Proxy string
	// Bridge is the port group of networks that the VCH carries, Segment the way to it. Without them there are no such networks.
	Bridge  string
	Segment Segment
	// Name is that of the VCH, for people.
	Name string
	// Convention is how VMs are called.
	Convention vmname.Convention
	// Group is the name of the DRS group that VMs are members of, which is there already; "" is none.
	Group string
	// Log is told what no caller is; nil is silent.
	Log *slog.Logger
}

// A Driver is a containervm.Hypervisor, and the containervm.Disks of its VMs.
type Driver struct {
	o      Options
	log    *slog.Logger
	client *vim25.Client
	dc     *object.Datacenter
	pool   *object.ResourcePool
	folder *object.Folder
	group  *vmgroup.Group // nil is none
	watch  *watch

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu       sync.Mutex // guards networks and media
	networks map[string]types.BaseVirtualDeviceBackingInfo
	media    map[medium]string // where ISOs are on the datastore

	uploading sync.Mutex // held while an ISO is uploaded

	bringing sync.Map // by container ID: *sync.Mutex, held while its disk is brought or written, or its VM is about to have it
	left     sync.Map // by container ID: those whose disk may still be attached to the machine in which this runs
}

// New finds the objects that the options name and begins to watch the pool. The Driver does not close what the options hold.
func New(ctx context.Context, o Options) (*Driver, error) {
	d := &Driver{o: o, log: o.Log, client: o.Session.Client(), dc: o.Containers.Datacenter(),
		networks: map[string]types.BaseVirtualDeviceBackingInfo{}, media: map[medium]string{}}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	err := o.Session.Call(ctx, func() error { return d.find(ctx) })
	if err != nil {
		return nil, err
	}
	if o.Group != "" {
		if err := d.findGroup(ctx); err != nil {
			return nil, err
		}
	}
	if err := o.Containers.MakeFolder(ctx, "."); err != nil {
		return nil, fmt.Errorf("make folder of container VMs: %w", err)
	}
	if o.Own != nil {
		if err := o.Own.DetachLeft(ctx, d.isRootDisk); err != nil {
			return nil, fmt.Errorf("let go of containers' disks: %w", err)
		}
	}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	d.watch = newWatch(o.Session, d.pool.Reference(), d.log)
	d.wg.Go(func() { d.watch.run(d.ctx) })
	if err := d.watch.await(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("look at the VMs of pool %s: %w", o.Pool, err), d.Close())
	}
	d.enrolAll(ctx)
	return d, nil
}

// find finds pool and folder.
func (d *Driver) find(ctx context.Context) (err error) {
	f := find.NewFinder(d.client, false)
	f.SetDatacenter(d.dc)
	if d.pool, err = f.ResourcePoolOrDefault(ctx, d.o.Pool); err != nil {
		return fmt.Errorf("find resource pool: %w", err)
	}
	if d.folder, err = f.FolderOrDefault(ctx, d.o.Folder); err != nil {
		return fmt.Errorf("find folder of VMs: %w", err)
	}
	return nil
}

// Close ends the watching. VMs run on; Machines are to be closed before.
func (d *Driver) Close() error {
	d.cancel()
	d.wg.Wait()
	return nil
}

// Available is nil unless vSphere cannot be reached.
func (d *Driver) Available() error { return d.watch.available() }

// Reach waits until vSphere can be reached.
func (d *Driver) Reach(ctx context.Context) error { return d.watch.reach(ctx) }

// UUID is that of the VM of a container, as vSphere writes it.
func UUID(id string) string {
	id = (id + strings.Repeat("0", 32))[:32]
	// Version 4, variant 1 (RFC 9562): what the ID holds is as random as they want it.
	id = id[:12] + "4" + id[13:16] + string("89ab"[strings.IndexByte("0123456789abcdef", id[16])&3]) + id[17:]
	return id[:8] + "-" + id[8:12] + "-" + id[12:16] + "-" + id[16:20] + "-" + id[20:]
}

// taskTime bounds what one task of vSphere takes, with all waiting for vCenter.
const taskTime = 10 * time.Minute

// refuse is an error about what was asked for.
func refuse(kind error, format string, args ...any) error {
	return &containervm.Error{Kind: kind, Msg: fmt.Sprintf(format, args...)}
}
