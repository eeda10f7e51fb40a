package vcsim

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"vic/bench/oracle"
	"vic/vmdk"
)

func start(t *testing.T, o Options) *Server {
	t.Helper()
	s, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func login(t *testing.T, s *Server) *govmomi.Client {
	t.Helper()
	c, err := s.Client(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// inventory is what a test needs of one.
type inventory struct {
	*govmomi.Client
	finder *find.Finder
	dc     *object.Datacenter
	ds     *object.Datastore
	pool   *object.ResourcePool
	vms    *object.Folder
}

func look(t *testing.T, c *govmomi.Client) *inventory {
	t.Helper()
	i := &inventory{Client: c, finder: find.NewFinder(c.Client)}
	var err error
	if i.dc, err = i.finder.DefaultDatacenter(t.Context()); err != nil {
		t.Fatal(err)
	}
	i.finder.SetDatacenter(i.dc)
	if i.ds, err = i.finder.Datastore(t.Context(), "datastore1"); err != nil {
		t.Fatal(err)
	}
	if i.pool, err = i.finder.ResourcePool(t.Context(), "*/Resources"); err != nil {
		t.Fatal(err)
	}
	folders, err := i.dc.Folders(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	i.vms = folders.VmFolder
	return i
}

// createVM makes a VM with disks: "" is an empty one of 1 MiB, anything else a child of that.
func (i *inventory) createVM(ctx context.Context, name string, parents ...string) (*object.VirtualMachine, error) {
	var l object.VirtualDeviceList
	scsi, err := l.CreateSCSIController("pvscsi")
	if err != nil {
		return nil, err
	}
	l = append(l, scsi)
	for _, p := range parents {
		d := l.CreateDisk(scsi.(types.BaseVirtualController), i.ds.Reference(), i.ds.Path(name+"/"+string(rune('a'+len(l)-1))+".vmdk"))
		b := d.Backing.(*types.VirtualDiskFlatVer2BackingInfo)
		b.ThinProvisioned = types.NewBool(true)
		if p == "" {
			d.CapacityInKB = 1 << 10
		} else {
			b.Parent = &types.VirtualDiskFlatVer2BackingInfo{VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{FileName: i.ds.Path(p)}}
		}
		l = append(l, d)
	}
	change, err := l.ConfigSpec(types.VirtualDeviceConfigSpecOperationAdd)
	if err != nil {
		return nil, err
	}
	task, err := i.vms.CreateVM(ctx, types.VirtualMachineConfigSpec{Name: name, GuestId: "other5xLinux64Guest", NumCPUs: 1, MemoryMB: 64,
		Files: &types.VirtualMachineFileInfo{VmPathName: i.ds.Path(name + "/" + name + ".vmx")}, DeviceChange: change}, i.pool, nil)
	if err != nil {
		return nil, err
	}
	info, err := task.WaitForResult(ctx)
	if err != nil {
		return nil, err
	}
	return object.NewVirtualMachine(i.Client.Client, info.Result.(types.ManagedObjectReference)), nil
}

func put(ctx context.Context, ds *object.Datastore, name string, p []byte) error {
	return ds.Upload(ctx, bytes.NewReader(p), name, &soap.Upload{Type: "application/octet-stream", Method: "PUT", ContentLength: int64(len(p))})
}

// TestGovc has VMware's own client of years ago look at everything that the options ask for.
func TestGovc(t *testing.T) {
	bin := oracle.Find(t, "govc")
	nfs := t.TempDir()
	common := Options{Datastores: []Datastore{{Name: "datastore1"}, {Name: "backup", Dir: nfs, Type: NFS}, {Name: "old", Type: VMFS5}},
		PortGroups: []string{"bridge"}, Pools: []string{"vch1", "vch2"}, User: url.UserPassword("admin", "s3cret!")}
	vpx, esx := common, common
	vpx.Hosts, vpx.Switched = 3, []string{"public", "management"}
	esx.ESX = true
	for name, o := range map[string]Options{"vCenter": vpx, "ESXi": esx} {
		t.Run(name, func(t *testing.T) {
			s := start(t, o)
			govc := func(args ...string) string {
				t.Helper()
				u := s.URL()
				password, _ := u.User.Password()
				cmd := exec.Command(bin, args...)
				cmd.Env = append(os.Environ(), "GOVC_URL="+u.Host, "GOVC_USERNAME="+u.User.Username(), "GOVC_PASSWORD="+password,
					"GOVC_TLS_CA_CERTS="+authority(t, s), "GOVC_PERSIST_SESSION=false", "GOVC_DATASTORE=datastore1")
				out, err := cmd.CombinedOutput()
				if err != nil {
					t.Fatalf("govc %v: %v\n%s", args, err, out)
				}
				return string(out)
			}
			want := []string{"/datastore/datastore1", "/datastore/backup", "/datastore/old", "/network/VM Network", "/network/bridge",
				"/Resources/vch1", "/Resources/vch2"}
			if o.ESX {
				want = append(want, "/host/localhost.localdomain/localhost.localdomain")
			} else {
				want = append(want, "/network/public", "/network/management", "_H0", "_H1", "_H2")
			}
			for args, texts := range map[string][]string{"find .": want, "datastore.info": {"VMFS", "NFS", "nfs.example.com"}} {
				out := govc(strings.Fields(args)...)
				for _, text := range texts {
					if !strings.Contains(out, text) {
						t.Errorf("govc %s: no %q in\n%s", args, text, out)
					}
				}
			}
			local := filepath.Join(t.TempDir(), "local")
			if err := os.WriteFile(local, []byte("content"), 0600); err != nil {
				t.Fatal(err)
			}
			govc("datastore.upload", local, "vic/file")
			if p, err := os.ReadFile(filepath.Join(s.Folder("datastore1"), "vic/file")); string(p) != "content" {
				t.Errorf("file in the datastore's folder has %q, %v", p, err)
			}
			if out := govc("datastore.ls", "vic"); out != "file\n" {
				t.Errorf("govc datastore.ls: %q", out)
			}
			govc("datastore.download", "-ds=datastore1", "vic/file", local+"2")
			if p, err := os.ReadFile(local + "2"); string(p) != "content" {
				t.Errorf("downloaded %q, %v", p, err)
			}
			govc("vm.create", "-m=64", "-disk=1MB", "-net=bridge", "-on=false", "-pool=*/Resources/vch1", "-g=otherLinux64Guest", "judged")
			if out := govc("vm.info", "judged"); !strings.Contains(out, "poweredOff") {
				t.Errorf("govc vm.info: %s", out)
			}
			govc("vm.destroy", "judged")
			if left, err := filepath.Glob(filepath.Join(s.Folder("datastore1"), "judged*", "*.vmdk")); err != nil || len(left) > 0 {
				t.Errorf("left of a destroyed VM: %v, %v", left, err)
			}
		})
	}
}

// authority makes a file of the server's certificate.
func authority(t *testing.T, s *Server) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.cert.Raw}), 0600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestLogin(t *testing.T) {
	s := start(t, Options{User: url.UserPassword("vic", "right")})
	good := s.URL()
	bad := s.URL()
	bad.User = url.UserPassword("vic", "wrong")
	if _, err := govmomi.NewClient(t.Context(), bad, true); !fault.Is(err, &types.InvalidLogin{}) {
		t.Errorf("wrong password: %v", err)
	}
	if _, err := govmomi.NewClient(t.Context(), good, false); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a certificate that nobody vouches for: %v", err)
	}
	c := login(t, s)
	i := look(t, c)
	if err := put(t.Context(), i.ds, "x", []byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := c.Logout(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := put(t.Context(), i.ds, "y", []byte("y")); err == nil || !strings.Contains(err.Error(), "401") {
		t.Errorf("upload without a session: %v", err)
	}
}

// TestDisks has qemu-img judge what the simulator only pretends to create.
func TestDisks(t *testing.T) {
	oracle.Need(t, "qemu-img")
	s := start(t, Options{})
	i := look(t, login(t, s))
	ctx := t.Context()
	dir := s.Folder("datastore1")

	// A layer as it is uploaded: a descriptor and an extent file that has tables where it has grains.
	const capacity = 8 << 20
	f, err := os.Create(filepath.Join(t.TempDir(), "extent"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w, err := vmdk.NewLayerWriter(f, capacity)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.WriteGrain(3, bytes.Repeat([]byte("grain---"), vmdk.DefaultGrainSize/8)); err != nil {
		t.Fatal(err)
	}
	if err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	extent, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	text, err := vmdk.NewDescriptor("base-delta.vmdk", capacity, 0x1234).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	for name, p := range map[string][]byte{"layers/base-delta.vmdk": extent, "layers/base.vmdk": text} {
		if err := put(ctx, i.ds, name, p); err != nil {
			t.Fatal(err)
		}
	}

	vm, err := i.createVM(ctx, "one", "", "layers/base.vmdk")
	if err != nil {
		t.Fatal(err)
	}
	info := func(path string) string {
		t.Helper()
		out, err := exec.Command("qemu-img", "info", "--backing-chain", path).CombinedOutput()
		if err != nil {
			t.Fatalf("qemu-img info %s: %v\n%s", path, err, out)
		}
		return string(out)
	}
	if out := info(dir + "/one/a.vmdk"); !strings.Contains(out, "virtual size: 1 MiB") || !strings.Contains(out, "create type: vmfs\n") {
		t.Errorf("empty disk: %s", out)
	}
	out := info(dir + "/one/b.vmdk")
	if n := strings.Count(out, "virtual size: 8 MiB"); n != 2 || !strings.Contains(out, "create type: vmfsSparse") {
		t.Errorf("chain: %s", out)
	}
	// What the chain reads, and that QEMU can write it without harm: a disk without all of its tables loses its header.
	rw := exec.Command("qemu-io", "-f", "vmdk", "-c", "read -P 0x67 196608 1", "-c", "write -P 7 4M 64k", "-c", "read -P 7 4M 64k", dir+"/one/b.vmdk")
	if out, err := rw.CombinedOutput(); err != nil || strings.Contains(string(out), "failed") {
		t.Errorf("qemu-io: %v\n%s", err, out)
	}
	// A child of the child, whose content ID has changed since.
	if _, err := i.createVM(ctx, "two", "one/b.vmdk"); err != nil {
		t.Fatal(err)
	}
	check := exec.Command("qemu-io", "-r", "-f", "vmdk", "-c", "read -P 7 4M 64k", "-c", "read -P 0x67 196608 1", dir+"/two/a.vmdk")
	if out, err := check.CombinedOutput(); err != nil || strings.Contains(string(out), "failed") {
		t.Errorf("qemu-io: %v\n%s", err, out)
	}

	var m mo.VirtualMachine
	if err := vm.Properties(ctx, vm.Reference(), []string{"config.hardware.device"}, &m); err != nil {
		t.Fatal(err)
	}
	for _, d := range object.VirtualDeviceList(m.Config.Hardware.Device).SelectByType((*types.VirtualDisk)(nil)) {
		if got := d.(*types.VirtualDisk).CapacityInBytes; got != 1<<20 && got != capacity {
			t.Errorf("capacity of a disk is %d", got)
		}
	}

	if _, err := i.createVM(ctx, "orphan", "layers/none.vmdk"); err == nil {
		t.Error("a child without a parent was made")
	}
	disks := object.NewVirtualDiskManager(i.Client.Client)
	task, err := disks.DeleteVirtualDisk(ctx, i.ds.Path("layers/base.vmdk"), i.dc)
	if err == nil {
		err = task.WaitEx(ctx)
	}
	if left, _ := os.ReadDir(dir + "/layers"); err != nil || len(left) != 0 {
		t.Errorf("after the deletion of a disk there is %v, %v", left, err)
	}
}

// Of a disk that is an object the API shows the descriptor alone.
func TestObjects(t *testing.T) {
	s := start(t, Options{Datastores: []Datastore{{Name: "datastore1", Objects: true}}})
	i := look(t, login(t, s))
	ctx := t.Context()
	if _, err := i.createVM(ctx, "one", ""); err != nil {
		t.Fatal(err)
	}
	if err := put(ctx, i.ds, "one/note", []byte("a file")); err != nil {
		t.Fatal(err)
	}
	read := func(name string) (string, error) {
		r, _, err := i.ds.Download(ctx, name, nil)
		if err != nil {
			return "", err
		}
		defer r.Close()
		text, err := io.ReadAll(r)
		return string(text), err
	}
	text, err := read("one/a.vmdk")
	if err != nil {
		t.Fatal(err)
	}
	d, err := vmdk.ParseDescriptor([]byte(text))
	if err != nil || d.Capacity() != 1<<20 || len(d.Extents) != 1 || !strings.HasPrefix(d.Extents[0].File, "vvol://") {
		t.Errorf("descriptor %v: %s", err, text)
	}
	if _, err := read("one/a-flat.vmdk"); err == nil {
		t.Error("the object is a file")
	}
	if text, err := read("one/note"); text != "a file" {
		t.Errorf("a file has %q, %v", text, err)
	}
	browser, err := i.ds.Browser(ctx)
	if err != nil {
		t.Fatal(err)
	}
	task, err := browser.SearchDatastore(ctx, i.ds.Path("one"), &types.HostDatastoreBrowserSearchSpec{MatchPattern: []string{"*.vmdk"}})
	if err != nil {
		t.Fatal(err)
	}
	info, err := task.WaitForResult(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if found := info.Result.(types.HostDatastoreBrowserSearchResults).File; len(found) != 1 || found[0].GetFileInfo().Path != "a.vmdk" {
		t.Errorf("a search finds %d files", len(found))
	}
}

// The folders at the top of vSAN have UUIDs, and names that stand for them.
func TestNamespaces(t *testing.T) {
	oracle.Need(t, "qemu-img")
	s := start(t, Options{Datastores: []Datastore{{Name: "datastore1", Type: VSAN}}})
	c := login(t, s)
	i, ctx := look(t, c), t.Context()
	uuid, err := object.NewDatastoreNamespaceManager(c.Client).CreateDirectory(ctx, i.ds, "layers", "")
	if err != nil {
		t.Fatal(err)
	}
	if err := put(ctx, i.ds, "layers/note", []byte("a file")); err != nil {
		t.Fatal(err)
	}
	task, err := object.NewVirtualDiskManager(c.Client).CreateVirtualDisk(ctx, i.ds.Path("layers/base.vmdk"), i.dc,
		&types.FileBackedVirtualDiskSpec{VirtualDiskSpec: types.VirtualDiskSpec{DiskType: "thin", AdapterType: "lsiLogic"}, CapacityKb: 1 << 10})
	if err == nil {
		err = task.WaitEx(ctx)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, folder := range []string{"layers", filepath.Base(uuid)} {
		r, _, err := i.ds.Download(ctx, folder+"/note", nil)
		if err != nil {
			t.Fatal(err)
		}
		if text, err := io.ReadAll(r); string(text) != "a file" || err != nil {
			t.Errorf("%s: a file has %q, %v", folder, text, err)
		}
		r.Close()
		file, err := s.Path(i.ds.Path(folder + "/base.vmdk"))
		if err != nil {
			t.Fatal(err)
		}
		if file != filepath.Join(uuid, "base.vmdk") {
			t.Errorf("%s is %s", folder, file)
		}
		if out, err := exec.Command("qemu-img", "info", "--output=json", file).CombinedOutput(); err != nil || !strings.Contains(string(out), `"virtual-size": 1048576`) {
			t.Errorf("qemu-img: %v\n%s", err, out)
		}
	}
}

func TestFaults(t *testing.T) {
	s := start(t, Options{})
	ctx := t.Context()
	i := look(t, login(t, s))

	t.Run("sessions are dropped", func(t *testing.T) {
		c := login(t, s)
		if err := s.DropSessions(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := find.NewFinder(c.Client).DefaultDatacenter(ctx); !fault.Is(err, &types.NotAuthenticated{}) {
			t.Errorf("call after the end of the session: %v", err)
		}
		i = look(t, login(t, s))
	})

	t.Run("task fails before", func(t *testing.T) {
		s.FailTask(TaskFault{Task: "Folder.createVm", Fault: &types.InsufficientResourcesFault{}, Skip: 1})
		if _, err := i.createVM(ctx, "first"); err != nil {
			t.Fatal(err)
		}
		if _, err := i.createVM(ctx, "before"); !fault.Is(err, &types.InsufficientResourcesFault{}) {
			t.Errorf("creation ended with %v", err)
		}
		if _, err := i.finder.VirtualMachine(ctx, "before"); err == nil {
			t.Error("the VM is there")
		}
	})

	t.Run("task fails after", func(t *testing.T) {
		s.FailTask(TaskFault{Task: "Folder.createVm", Done: true})
		if _, err := i.createVM(ctx, "after"); err == nil || !strings.Contains(err.Error(), "injected") && !fault.Is(err, &types.SystemError{}) {
			t.Errorf("creation ended with %v", err)
		}
		if _, err := i.finder.VirtualMachine(ctx, "after"); err != nil {
			t.Errorf("the VM is not there: %v", err)
		}
	})

	t.Run("call fails", func(t *testing.T) {
		s.Service.AddFaultRule(&simulator.FaultInjectionRule{MethodName: "PowerOnVM_Task", ObjectType: "*", ObjectName: "*", Probability: 1,
			FaultType: simulator.FaultTypeNoPermission, MaxCount: 1, Enabled: true})
		vm, err := i.finder.VirtualMachine(ctx, "first")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := vm.PowerOn(ctx); !fault.Is(err, &types.NoPermission{}) {
			t.Errorf("power on: %v", err)
		}
	})

	t.Run("datastore is full", func(t *testing.T) {
		p := bytes.Repeat([]byte("x"), 1<<20)
		s.FillDatastore("datastore1", 1<<20+1000)
		if err := put(ctx, i.ds, "fits", p); err != nil {
			t.Fatal(err)
		}
		if err := put(ctx, i.ds, "fits-not", p); err == nil || !strings.Contains(err.Error(), "507") {
			t.Errorf("upload: %v", err)
		}
		if fi, err := os.Stat(s.Folder("datastore1") + "/fits-not"); err != nil || fi.Size() != 1000 {
			t.Errorf("of what did not fit there is %v, %v", fi, err)
		}
		s.FillDatastore("datastore1", -1)
		if err := put(ctx, i.ds, "fits-not", p); err != nil {
			t.Errorf("upload with room: %v", err)
		}
	})

	t.Run("upload breaks", func(t *testing.T) {
		p := bytes.Repeat([]byte("x"), 4<<20)
		s.BreakUpload(0.5)
		if err := put(ctx, i.ds, "broken", p); err == nil {
			t.Error("upload went well")
		}
		if fi, err := os.Stat(s.Folder("datastore1") + "/broken"); err != nil || fi.Size() != 2<<20 {
			t.Errorf("of what broke there is %v, %v", fi, err)
		}
		if err := put(ctx, i.ds, "broken", p); err != nil {
			t.Errorf("the next upload: %v", err)
		}
	})

	t.Run("vCenter is away", func(t *testing.T) {
		if err := s.Away(); err != nil {
			t.Fatal(err)
		}
		_, err := find.NewFinder(i.Client.Client).DefaultDatacenter(ctx)
		if u := (*url.Error)(nil); !errors.As(err, &u) {
			t.Errorf("call while away: %v", err)
		}
		if err := s.Return(); err != nil {
			t.Fatal(err)
		}
		if _, err := find.NewFinder(i.Client.Client).DefaultDatacenter(ctx); err != nil {
			t.Errorf("call with the session of before: %v", err)
		}
	})

	t.Run("VM is deleted", func(t *testing.T) {
		c, err := s.Administrator(ctx)
		if err != nil {
			t.Fatal(err)
		}
		vm, err := i.finder.VirtualMachine(ctx, "first")
		if err != nil {
			t.Fatal(err)
		}
		task, err := object.NewVirtualMachine(c, vm.Reference()).Destroy(ctx)
		if err == nil {
			err = task.WaitEx(ctx)
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := vm.PowerState(ctx); !fault.Is(err, &types.ManagedObjectNotFound{}) {
			t.Errorf("state of what was deleted: %v", err)
		}
	})

	t.Run("calls are counted", func(t *testing.T) {
		calls := s.Calls()
		for name, least := range map[string]int{"Login": 2, "CreateVM_Task": 3, "PUT /folder": 5} {
			if calls[name] < least {
				t.Errorf("%s was called %d times, at least %d are known", name, calls[name], least)
			}
		}
		if calls["Destroy_Task"] != 0 {
			t.Errorf("the administrator's calls count: %v", calls)
		}
	})

	t.Run("no other methods for files", func(t *testing.T) {
		req, err := http.NewRequestWithContext(ctx, http.MethodDelete, i.ds.NewURL("broken").String(), nil)
		if err != nil {
			t.Fatal(err)
		}
		err = i.Client.Client.Do(ctx, req, func(res *http.Response) error {
			if res.StatusCode != http.StatusNotImplemented {
				t.Errorf("DELETE is answered with %s", res.Status)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
}

// TestIdle has a session end by itself.
func TestIdle(t *testing.T) {
	s := start(t, Options{Idle: 50 * time.Millisecond})
	c := login(t, s)
	for ctx := t.Context(); ; { // the time is the simulator's
		u, err := c.SessionManager.UserSession(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if u == nil {
			return
		}
		time.Sleep(200 * time.Millisecond)
	}
}

func TestRefused(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for name, o := range map[string]Options{
		"distributed port groups on ESXi": {ESX: true, Switched: []string{"x"}},
		"many ESXi hosts":                 {ESX: true, Hosts: 2},
		"folder that is not there":        {Datastores: []Datastore{{Name: "x", Dir: filepath.Join(t.TempDir(), "none")}}},
		"type of datastore":               {Datastores: []Datastore{{Name: "x", Type: "FAT"}}},
		"datastore twice":                 {Datastores: []Datastore{{Name: "x"}, {Name: "x"}}},
		"datastore of more hosts":         {Datastores: []Datastore{{Name: "x", Hosts: 3}}},
		"address that is taken":           {Address: taken.Addr().String()},
		"address":                         {Address: "127.0.0.1:no"},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := Start(t.Context(), o)
			if err == nil {
				s.Close()
				t.Error("started")
			}
		})
	}
}
