package vsphere

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"vic/bench/corpus"
	"vic/bench/oracle"
	"vic/bench/vcsim"
	"vic/containervm"
	"vic/fetch/archive"
	"vic/layerstore"
	datastore "vic/layerstore/vsphere"
	"vic/tether/wire"
)

var (
	_ containervm.Hypervisor = (*Driver)(nil)
	_ containervm.Disks      = (*Driver)(nil)
	_ containervm.Registered = (*Driver)(nil)
	_ containervm.Observed   = (*machine)(nil)
)

// patience is how long anything is waited for. It is no measure: what hangs shall fail.
const patience = 2 * time.Minute

// capacity of the disks of the tests.
const capacity = 64 << 20

// A site is a simulated vSphere, a local store with an image, and a Driver.
type site struct {
	*Driver
	t     *testing.T
	sim   *vcsim.Server
	admin *vim25.Client
	ports *guests
	local *layerstore.Store
	image *layerstore.Image
	o     Options
}

func newSite(t *testing.T, o vcsim.Options) *site {
	t.Helper()
	if testing.Short() { // which is how the race detector runs
		t.Skip("the simulator writes to a VM that it makes without the lock under which it reads it")
	}
	o.PortGroups = append(o.PortGroups, "bridge", "public")
	sim, err := vcsim.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sim.Close(); err != nil {
			t.Error(err)
		}
	})
	s := &site{t: t, sim: sim, ports: newGuests()}
	if s.admin, err = sim.Administrator(t.Context()); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if s.local, err = layerstore.Open(dir, layerstore.Options{Capacity: capacity}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.local.Close() })
	s.image = pull(t, s.local)
	s.o = s.options(sim, dir)
	s.open()
	return s
}

// onBoth runs a test on a vCenter and on an ESXi host.
func onBoth(t *testing.T, test func(*testing.T, vcsim.Options)) {
	t.Run("vCenter", func(t *testing.T) { test(t, vcsim.Options{}) })
	t.Run("ESXi", func(t *testing.T) { test(t, vcsim.Options{ESX: true}) })
}

// options connects to the simulator.
func (s *site) options(sim *vcsim.Server, dir string) Options {
	s.t.Helper()
	ctx := s.t.Context()
	u := sim.URL()
	password, _ := u.User.Password()
	session, err := datastore.Connect(ctx, datastore.Endpoint{Server: u.Host, User: u.User.Username(), Password: password, Thumbprint: sim.Thumbprint()})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = session.Close(context.Background()) }) // the server may be away
	ds := func(root string) *datastore.Datastore {
		d, err := session.OpenDatastore(ctx, "", "datastore1", root)
		if err != nil {
			s.t.Fatal(err)
		}
		return d
	}
	images, err := datastore.OpenStore(ctx, ds("vic"), datastore.StoreOptions{VCH: "vch", Capacity: s.local.Capacity(), Encoding: datastore.Hosted})
	if err != nil {
		s.t.Fatal(err)
	}
	return Options{Session: session, Local: s.local, Images: images, Containers: ds("vch"), Ports: s.ports, Proxy: "telnet://127.0.0.1:1", Bridge: "bridge",
		Segment: segment{s.ports}, Name: "vch", Log: slog.New(slog.NewTextHandler(s.t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))}
}

// objects are datastores on which disks are no files.
var objects = vcsim.Options{Datastores: []vcsim.Datastore{{Name: "datastore1", Objects: true}}}

// appliance has the Driver run in a VM, which disks are attached to.
func (s *site) appliance(late chan struct{}) *object.VirtualMachine {
	s.t.Helper()
	oracle.Need(s.t, "qemu-storage-daemon")
	if err := s.Close(); err != nil {
		s.t.Fatal(err)
	}
	ctx := s.t.Context()
	var l object.VirtualDeviceList
	scsi, err := l.CreateSCSIController("pvscsi")
	if err != nil {
		s.t.Fatal(err)
	}
	scsi.GetVirtualDevice().Key = 1000
	vm := object.NewVirtualMachine(s.admin, s.must(s.folder.CreateVM(ctx, types.VirtualMachineConfigSpec{Name: "appliance",
		Files:        &types.VirtualMachineFileInfo{VmPathName: "[datastore1]"},
		DeviceChange: []types.BaseVirtualDeviceConfigSpec{&types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationAdd, Device: scsi}},
	}, s.pool, nil)).(types.ManagedObjectReference))
	var m mo.VirtualMachine
	if err := vm.Properties(ctx, vm.Reference(), []string{"config.uuid"}, &m); err != nil {
		s.t.Fatal(err)
	}
	// What it lives from is beside the folders of containers.
	if err := s.o.Containers.CreateDisk(ctx, "state.vmdk", capacity); err != nil {
		s.t.Fatal(err)
	}
	attach(s.t, vm, s.o.Containers.Path("state.vmdk"), 0)
	if s.o.Own, err = s.o.Session.FindOwnVM(ctx, m.Config.Uuid, attachable{s.sim, late}); err != nil {
		s.t.Fatal(err)
	}
	s.open()
	return vm
}

// attach gives a VM a disk.
func attach(t *testing.T, vm *object.VirtualMachine, file string, unit int32) {
	t.Helper()
	var disk types.VirtualDisk
	disk.ControllerKey, disk.UnitNumber = 1000, &unit
	disk.Backing = &types.VirtualDiskFlatVer2BackingInfo{VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{FileName: file}}
	if err := vm.AddDevice(t.Context(), &disk); err != nil {
		t.Fatal(err)
	}
}

// attachable are the devices of a machine that the simulator only pretends to run.
type attachable struct {
	*vcsim.Server
	late chan struct{} // unless it is nil, a device comes when nobody wants it any more, and that is told
}

func (d attachable) Open(ctx context.Context, disk datastore.AttachedDisk) (datastore.Device, error) {
	if d.late != nil {
		d.late <- struct{}{}
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return d.OpenDevice(ctx, disk.Path)
}

func (attachable) Gone(context.Context, datastore.AttachedDisk) error { return nil }

func (s *site) open() {
	s.t.Helper()
	d, err := New(s.t.Context(), s.o)
	if err != nil {
		s.t.Fatal(err)
	}
	s.Driver = d
	s.t.Cleanup(func() { _ = d.Close() })
}

// pull puts an image of two layers into a store.
func pull(t *testing.T, ls *layerstore.Store) *layerstore.Image {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "image")
	if _, err := corpus.Write(t.Context(), dir, corpus.Shape{Layers: 2, Files: 20, Sizes: corpus.Fixed(5000), Compression: "zstd"}); err != nil {
		t.Fatal(err)
	}
	a, err := archive.OpenFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	src, err := a.Entries()[0].Resolve(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	img, err := ls.Pull(t.Context(), src, nil, layerstore.PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// create makes a container's VM.
func (s *site) create(n int) string {
	s.t.Helper()
	id := fmt.Sprintf("%08x", n+0xabc0000) + strings.Repeat("5a", 28)
	if err := s.CreateContainer(s.t.Context(), id, "box", s.image.ID); err != nil {
		s.t.Fatal(err)
	}
	return id
}

// spec describes the VM of a container.
func (s *site) spec(id string) containervm.VM {
	s.t.Helper()
	conf := wire.Config{ID: id, Token: "secret", Args: []string{"/bin/true"}, Root: wire.Root{Serial: "root"}, Seed: []byte("seed"), Time: 1}
	text, err := conf.Strings()
	if err != nil {
		s.t.Fatal(err)
	}
	dir := s.folderOf(id)
	iso := filepath.Join(s.t.TempDir(), "iso")
	if err := os.WriteFile(iso, []byte("an ISO"), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return containervm.VM{ID: id, Dir: dir, Config: text, Memory: 257 << 20, CPUs: 2, DiskSerial: "root", Boot: containervm.Boot{ISO: iso},
		NICs: []containervm.NIC{{End: "net0", MAC: "02:42:ac:11:00:02"}}, Log: filepath.Join(dir, "output.log"), Console: filepath.Join(dir, "console.log")}
}

func (s *site) start(vm containervm.VM) *machine {
	s.t.Helper()
	m, err := s.Start(s.t.Context(), vm)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { m.Close() })
	return m.(*machine)
}

// wait waits for the end of a VM.
func (s *site) wait(m containervm.Machine) {
	s.t.Helper()
	select {
	case <-m.Done():
	case <-time.After(patience):
		s.t.Fatal("the VM does not end")
	}
}

// vm is a container's VM, for an administrator.
func (s *site) vm(id string) *object.VirtualMachine {
	s.t.Helper()
	r, err := object.NewSearchIndex(s.admin).FindByUuid(s.t.Context(), nil, UUID(id), true, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	if r == nil {
		return nil
	}
	return object.NewVirtualMachine(s.admin, r.Reference())
}

// config is what a container's VM is.
func (s *site) config(id string) mo.VirtualMachine {
	s.t.Helper()
	var m mo.VirtualMachine
	if err := property.DefaultCollector(s.admin).RetrieveOne(s.t.Context(), s.vm(id).Reference(), nil, &m); err != nil {
		s.t.Fatal(err)
	}
	return m
}

// must waits for a task of the administrator's, and returns its result.
func (s *site) must(task *object.Task, err error) any {
	s.t.Helper()
	var info *types.TaskInfo
	if err == nil {
		info, err = task.WaitForResult(s.t.Context())
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return info.Result
}

// change changes a property of an object behind everybody's back, where the simulator has no call for that which tells who watches.
func (s *site) change(ref types.ManagedObjectReference, name string, val any) {
	ctx := s.sim.Service.Context
	o := ctx.Map.Get(ref)
	ctx.WithLock(o, func() { ctx.Update(o, []types.PropertyChange{{Name: name, Val: val}}) })
}

// file is the path of a file in a VM's folder.
func (s *site) file(id, name string) string {
	return filepath.Join(s.sim.Folder("datastore1"), "vch", id, name)
}

// write has the guest write to its log.
func (s *site) write(id string, run int, text string) {
	s.t.Helper()
	f, err := os.OpenFile(s.file(id, logName(run)), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.WriteString(f, text); err != nil {
		s.t.Fatal(err)
	}
}

// until waits until a condition holds that a file's change, or a VM's, makes true.
func (s *site) until(what string, ok func() bool) {
	s.t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			s.t.Fatalf("waited in vain until %s", what)
		}
	}
}

// has waits until a file has that content.
func (s *site) has(path, want string) {
	s.t.Helper()
	var got []byte
	defer func() {
		if s.t.Failed() {
			s.t.Logf("%s has %q", path, got)
		}
	}()
	s.until(fmt.Sprintf("%s is %q", filepath.Base(path), want), func() bool {
		got, _ = os.ReadFile(path)
		return string(got) == want
	})
}

// guests are the far ends of serial ports, and of network cards, without guests.
type guests struct {
	mu    sync.Mutex
	ports map[string]chan net.Conn // by what is dialled: the guest's ends
}

func newGuests() *guests { return &guests{ports: map[string]chan net.Conn{}} }

func (g *guests) port(what string) chan net.Conn {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ports[what] == nil {
		g.ports[what] = make(chan net.Conn)
	}
	return g.ports[what]
}

// dial waits until the test takes the guest's end.
func (g *guests) dial(ctx context.Context, what string) (net.Conn, error) {
	here, there := net.Pipe()
	select {
	case g.port(what) <- there:
		return here, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Dial implements Ports.
func (g *guests) Dial(ctx context.Context, vm, service string) (net.Conn, error) {
	return g.dial(ctx, vm+" "+service)
}

// A segment is guests as a Segment.
type segment struct{ *guests }

func (s segment) Dial(ctx context.Context, mac string) (net.Conn, error) { return s.dial(ctx, mac) }

// take takes the guest's end of what is dialled.
func (s *site) take(what string) net.Conn {
	s.t.Helper()
	select {
	case c := <-s.ports.port(what):
		s.t.Cleanup(func() { c.Close() })
		return c
	case <-time.After(patience):
		s.t.Fatalf("nobody dials %s", what)
		return nil
	}
}
