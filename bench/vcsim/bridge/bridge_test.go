package bridge

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"vic/bench/oracle"
	"vic/bench/vcsim"
	"vic/containervm/boot"
	"vic/fetch/archive"
	"vic/layerstore"
)

// patience is how long a guest is waited for. It is no measure of anything: what hangs shall fail.
const patience = 3 * time.Minute

// A lab is a vSphere whose VMs run.
type lab struct {
	*vim25.Client
	t      *testing.T
	s      *vcsim.Server
	b      *Bridge
	dc     *object.Datacenter
	ds     *object.Datastore
	pool   *object.ResourcePool
	vms    *object.Folder
	bridge object.NetworkReference
}

func newLab(t *testing.T, o Options) *lab {
	t.Helper()
	ctx := t.Context()
	l := &lab{t: t}
	var err error
	if l.s, err = vcsim.Start(ctx, vcsim.Options{PortGroups: []string{"bridge", "lan"}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.s.Close(); err != nil {
			t.Error(err)
		}
	})
	var log bytes.Buffer
	o.Log = slog.New(slog.NewTextHandler(&log, nil))
	if l.b, err = Attach(l.s, o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.b.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("bridge's log:\n%s", &log)
		}
	})
	c, err := l.s.Client(ctx)
	if err != nil {
		t.Fatal(err)
	}
	l.Client = c.Client
	f := find.NewFinder(l.Client)
	if l.dc, err = f.DefaultDatacenter(ctx); err != nil {
		t.Fatal(err)
	}
	f.SetDatacenter(l.dc)
	if l.ds, err = f.Datastore(ctx, "datastore1"); err != nil {
		t.Fatal(err)
	}
	if l.pool, err = f.ResourcePool(ctx, "*/Resources"); err != nil {
		t.Fatal(err)
	}
	if l.bridge, err = f.Network(ctx, "bridge"); err != nil {
		t.Fatal(err)
	}
	folders, err := l.dc.Folders(ctx)
	if err != nil {
		t.Fatal(err)
	}
	l.vms = folders.VmFolder
	return l
}

func (l *lab) upload(from, to string) {
	l.t.Helper()
	o := soap.DefaultUpload
	if err := l.ds.UploadFile(l.t.Context(), from, to, &o); err != nil {
		l.t.Fatal(err)
	}
}

// must waits for a task.
func (l *lab) must(task *object.Task, err error) *types.TaskInfo {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
	info, err := task.WaitForResult(l.t.Context())
	if err != nil {
		l.t.Fatal(err)
	}
	return info
}

// await waits until a property of a VM is what is wanted.
func (l *lab) await(vm *object.VirtualMachine, path string, want func(any) bool) {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), patience)
	defer cancel()
	var last any
	err := property.Wait(ctx, property.DefaultCollector(l.Client), vm.Reference(), []string{path}, func(changes []types.PropertyChange) bool {
		for _, c := range changes {
			last = c.Val
			if want(c.Val) {
				return true
			}
		}
		return false
	})
	if err != nil {
		l.t.Fatalf("wait for %s, which is %v: %v", path, last, err)
	}
}

// pack makes a tar of files.
func pack(t *testing.T, files map[string][]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0755, Size: int64(len(files[name]))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(files[name]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// pulledDisks puts an image of two layers into a store and returns its disks' folder and the top disk's file name.
func pulledDisks(t *testing.T) (dir, top string) {
	t.Helper()
	busybox, err := os.ReadFile(oracle.Find(t, "busybox"))
	if err != nil {
		t.Fatal(err)
	}
	lower := pack(t, map[string][]byte{"lower": []byte("from the first layer"), "busybox": busybox})
	upper := pack(t, map[string][]byte{"upper": []byte("from the second")})
	config := fmt.Sprintf(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["%s","%s"]}}`,
		digest.FromBytes(lower), digest.FromBytes(upper))
	manifest := `[{"Config":"config.json","RepoTags":["guest:1"],"Layers":["lower.tar","upper.tar"]}]`
	saved := pack(t, map[string][]byte{"manifest.json": []byte(manifest), "config.json": []byte(config), "lower.tar": lower, "upper.tar": upper})
	store, err := layerstore.Open(filepath.Join(t.TempDir(), "store"), layerstore.Options{Capacity: 256 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	a, err := archive.Read(t.Context(), bytes.NewReader(saved), store.TempFile)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	src, err := a.Entries()[0].Resolve(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	name, err := reference.ParseNormalizedNamed("guest:1")
	if err != nil {
		t.Fatal(err)
	}
	img, err := store.Pull(t.Context(), src, name, layerstore.PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	path, err := store.DiskPath(img)
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Dir(path), filepath.Base(path)
}

// bootISO makes what a guest boots from: the package is that of its PID 1.
func bootISO(t *testing.T, pkg string) string {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", dir+"/guest", pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	if m, err := filepath.Glob("/boot/vmlinuz-*"); err != nil || len(m) == 0 {
		oracle.Missing(t, fmt.Errorf("a kernel: %v", err))
	}
	m, err := boot.Build(t.Context(), dir, boot.Options{Tether: dir + "/guest"})
	if err != nil {
		t.Fatal(err)
	}
	if err := boot.WriteISO(dir+"/guest.iso", m, boot.Options{}); err != nil {
		t.Fatal(err)
	}
	return dir + "/guest.iso"
}

// A port is the far end of a VM's serial port.
type port struct {
	t    *testing.T
	l    net.Listener
	conn net.Conn
	in   *bufio.Scanner
}

func listen(t *testing.T) *port {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return &port{t: t, l: l}
}

func (p *port) uri() string { return "tcp://" + p.l.Addr().String() }

// accept waits for the VM to connect.
func (p *port) accept() {
	p.t.Helper()
	if err := p.l.(*net.TCPListener).SetDeadline(time.Now().Add(patience)); err != nil {
		p.t.Fatal(err)
	}
	var err error
	if p.conn, err = p.l.Accept(); err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { p.conn.Close() })
	p.in = bufio.NewScanner(p.conn)
}

// until reads lines until one is text, and returns those before.
func (p *port) until(text string) (before []string) {
	p.t.Helper()
	if err := p.conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		p.t.Fatal(err)
	}
	for p.in.Scan() {
		line := strings.TrimRight(p.in.Text(), "\r")
		if line == text {
			return before
		}
		before = append(before, line)
	}
	p.t.Fatalf("the guest does not say %q but %q: %v", text, before, p.in.Err())
	return nil
}

// say types a line.
func (p *port) say(line string) {
	p.t.Helper()
	if _, err := io.WriteString(p.conn, line+"\n"); err != nil {
		p.t.Fatal(err)
	}
}

// has asks the guest until it has so many disks and interfaces: it notices what is plugged when it does.
func (p *port) has(disks, interfaces int) {
	p.t.Helper()
	want := fmt.Sprint("has ", disks, " disks ", interfaces, " interfaces")
	if err := p.conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		p.t.Fatal(err)
	}
	last := ""
	for over := time.Now().Add(patience); time.Now().Before(over); {
		p.say("list")
		for p.in.Scan() {
			if last = p.in.Text(); strings.HasPrefix(last, "has ") {
				break
			}
		}
		if last == want {
			return
		}
	}
	p.t.Fatalf("the guest says %q, want %q", last, want)
}

// diskOver is the device of a delta over a disk of the datastore.
func (l *lab) diskOver(devices object.VirtualDeviceList, scsi types.BaseVirtualController, name, parent string) *types.VirtualDisk {
	d := devices.CreateDisk(scsi, l.ds.Reference(), l.ds.Path(name))
	b := d.Backing.(*types.VirtualDiskFlatVer2BackingInfo)
	b.ThinProvisioned = types.NewBool(true)
	b.Parent = &types.VirtualDiskFlatVer2BackingInfo{VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{FileName: l.ds.Path(parent)}}
	return d
}

func serialPort(key int32, backing types.BaseVirtualDeviceBackingInfo) *types.VirtualSerialPort {
	return &types.VirtualSerialPort{YieldOnPoll: true, VirtualDevice: types.VirtualDevice{Key: key, ControllerKey: 400, Backing: backing,
		Connectable: &types.VirtualDeviceConnectInfo{StartConnected: true, Connected: true}}}
}

func uriBacking(uri string) *types.VirtualSerialPortURIBackingInfo {
	return &types.VirtualSerialPortURIBackingInfo{VirtualDeviceURIBackingInfo: types.VirtualDeviceURIBackingInfo{
		Direction: string(types.VirtualDeviceURIBackingOptionDirectionClient), ServiceURI: uri}}
}

// createVM makes a VM with a delta over a disk, the ISO, an interface and serial ports.
func (l *lab) createVM(name, parent, iso string, extra map[string]string, ports ...types.BaseVirtualDeviceBackingInfo) *object.VirtualMachine {
	t, ctx := l.t, l.t.Context()
	t.Helper()
	var devices object.VirtualDeviceList
	scsi, err := devices.CreateSCSIController("pvscsi")
	if err != nil {
		t.Fatal(err)
	}
	devices = append(devices, scsi, l.diskOver(devices, scsi.(types.BaseVirtualController), name+"/"+name+".vmdk", parent))
	ide, err := devices.CreateIDEController()
	if err != nil {
		t.Fatal(err)
	}
	devices = append(devices, ide)
	cd, err := devices.CreateCdrom(ide.(*types.VirtualIDEController))
	if err != nil {
		t.Fatal(err)
	}
	devices = append(devices, devices.InsertIso(cd, l.ds.Path(iso)), l.newNIC(devices))
	for i, p := range ports {
		devices = append(devices, serialPort(int32(-90-i), p))
	}
	var values []types.BaseOptionValue
	for key, value := range extra {
		values = append(values, &types.OptionValue{Key: key, Value: value})
	}
	change, err := devices.ConfigSpec(types.VirtualDeviceConfigSpecOperationAdd)
	if err != nil {
		t.Fatal(err)
	}
	info := l.must(l.vms.CreateVM(ctx, types.VirtualMachineConfigSpec{Name: name, GuestId: "other5xLinux64Guest", NumCPUs: 1, MemoryMB: 128,
		Files: &types.VirtualMachineFileInfo{VmPathName: l.ds.Path(name + "/" + name + ".vmx")}, DeviceChange: change,
		ExtraConfig: values,
	}, l.pool, nil))
	return object.NewVirtualMachine(l.Client, info.Result.(types.ManagedObjectReference))
}

func (l *lab) fileBacking(name string) *types.VirtualSerialPortFileBackingInfo {
	return &types.VirtualSerialPortFileBackingInfo{VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{FileName: l.ds.Path(name)}}
}

func (l *lab) newNIC(devices object.VirtualDeviceList) types.BaseVirtualDevice {
	l.t.Helper()
	backing, err := l.bridge.EthernetCardBackingInfo(l.t.Context())
	if err != nil {
		l.t.Fatal(err)
	}
	nic, err := devices.CreateEthernetCard("vmxnet3", backing)
	if err != nil {
		l.t.Fatal(err)
	}
	return nic
}

func (l *lab) devices(vm *object.VirtualMachine) object.VirtualDeviceList {
	l.t.Helper()
	devices, err := vm.Device(l.t.Context())
	if err != nil {
		l.t.Fatal(err)
	}
	return devices
}

// change reconfigures a VM's devices in one call.
func (l *lab) change(vm *object.VirtualMachine, op types.VirtualDeviceConfigSpecOperation, devices ...types.BaseVirtualDevice) {
	l.t.Helper()
	spec, err := object.VirtualDeviceList(devices).ConfigSpec(op)
	if err != nil {
		l.t.Fatal(err)
	}
	l.must(vm.Reconfigure(l.t.Context(), types.VirtualMachineConfigSpec{DeviceChange: spec}))
}

// uploadImage uploads the disks of an image and returns the path of the top one.
func (l *lab) uploadImage() string {
	l.t.Helper()
	dir, top := pulledDisks(l.t)
	disks, err := os.ReadDir(dir)
	if err != nil {
		l.t.Fatal(err)
	}
	for _, d := range disks {
		if strings.HasSuffix(d.Name(), ".vmdk") {
			l.upload(filepath.Join(dir, d.Name()), "vic/disks/"+d.Name())
		}
	}
	return "vic/disks/" + top
}

// sameDisks checks that the guest sees the disks that a VM has, where it has them.
func (l *lab) sameDisks(p *port, vm *object.VirtualMachine) {
	l.t.Helper()
	var want []string
	for _, d := range l.devices(vm).SelectByType((*types.VirtualDisk)(nil)) {
		disk := d.(*types.VirtualDisk)
		uuid := strings.ReplaceAll(disk.Backing.(*types.VirtualDiskFlatVer2BackingInfo).Uuid, "-", "")
		want = append(want, fmt.Sprintf("disk at %d serial %s sectors %d", *disk.UnitNumber, uuid, disk.CapacityInBytes/512))
	}
	p.say("disks")
	got := p.until("that is all")
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		l.t.Errorf("the guest has %q, want %q", got, want)
	}
}

// TestBridge takes one VM through its life: created over an image's layers as they were uploaded, booted, asked over its serial port,
// changed while it runs, suspended, ended by its guest, and destroyed.
func TestBridge(t *testing.T) {
	oracle.Need(t, "qemu-system-x86_64", "qemu-img", "debugfs", "e2fsck")
	l := newLab(t, Options{})
	ctx := t.Context()
	top := l.uploadImage()
	l.upload(bootISO(t, "./testdata/guest"), "vic/guest.iso")
	uploaded, err := os.ReadDir(l.s.Folder("datastore1") + "/vic/disks")
	if err != nil {
		t.Fatal(err)
	}

	p := listen(t)
	vm := l.createVM("one", top, "vic/guest.iso", map[string]string{"guestinfo.vic.test": "a, b=c", "other": "secret"},
		uriBacking(p.uri()), l.fileBacking("one/second"))
	l.must(vm.PowerOn(ctx))
	p.accept()
	said := p.until("ready")
	bios, err := vmwareUUID(vm.UUID(ctx))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"serial VMware-" + bios, "oem guestinfo.vic.test=a, b=c", "file /disk/lower from the first layer", "file /disk/upper from the second"} {
		if !strings.Contains(strings.Join(said, "\n"), want) {
			t.Errorf("the guest does not say %q but %q", want, said)
		}
	}
	if strings.Contains(strings.Join(said, "\n"), "secret") {
		t.Errorf("the guest knows what is not for it: %q", said)
	}
	l.await(vm, "guest.ipAddress", func(v any) bool { return v == "10.9.8.7" })

	devices := l.devices(vm)
	scsi := devices.SelectByType((*types.ParaVirtualSCSIController)(nil))[0].(types.BaseVirtualController)
	l.change(vm, types.VirtualDeviceConfigSpecOperationAdd, l.diskOver(devices, scsi, "one/two.vmdk", top), l.newNIC(devices))
	p.has(2, 2)
	l.sameDisks(p, vm)
	known := map[int32]bool{}
	for _, d := range devices {
		known[d.GetVirtualDevice().Key] = true
	}
	added := l.devices(vm).Select(func(d types.BaseVirtualDevice) bool { return !known[d.GetVirtualDevice().Key] })
	if len(added) != 2 {
		t.Fatalf("%d devices were added", len(added))
	}
	l.change(vm, types.VirtualDeviceConfigSpecOperationRemove, added...)
	p.has(1, 1)

	l.must(vm.Suspend(ctx))
	if state, err := vm.PowerState(ctx); state != types.VirtualMachinePowerStateSuspended || err != nil {
		t.Errorf("state %s, %v", state, err)
	}
	l.must(vm.PowerOn(ctx))
	p.has(1, 1)

	elsewhere := listen(t)
	serial := l.devices(vm).SelectByType((*types.VirtualSerialPort)(nil))[0].(*types.VirtualSerialPort)
	serial.Backing = uriBacking(elsewhere.uri())
	l.change(vm, types.VirtualDeviceConfigSpecOperationEdit, serial)
	elsewhere.accept()
	elsewhere.has(1, 1)

	elsewhere.say("off")
	l.await(vm, "runtime.powerState", func(v any) bool { return v == types.VirtualMachinePowerStatePoweredOff })
	if l.b.Running(vm.Reference()) {
		t.Error("QEMU runs")
	}
	folder := l.s.Folder("datastore1") + "/one"
	if text, err := os.ReadFile(folder + "/second"); string(text) != "to the file\n" && string(text) != "to the file\r\n" {
		t.Errorf("the second serial port's file has %q, %v", text, err)
	}
	raw := filepath.Join(t.TempDir(), "raw")
	script := `qemu-img convert -f vmdk -O raw "$1/one.vmdk" "$2"; e2fsck -fn "$2" >&2; debugfs -R 'cat /written' "$2" 2>/dev/null`
	var stderr bytes.Buffer
	judge := exec.Command("sh", "-ec", script, "sh", folder, raw)
	judge.Stderr = &stderr
	if out, err := judge.Output(); err != nil || string(out) != "by the guest" {
		t.Errorf("the guest's file is %q: %v\n%s", out, err, &stderr)
	}

	l.must(vm.Destroy(ctx))
	if left, err := os.ReadDir(folder); !os.IsNotExist(err) {
		t.Errorf("left of the VM: %v, %v", left, err)
	}
	if now, err := os.ReadDir(l.s.Folder("datastore1") + "/vic/disks"); err != nil || len(now) != len(uploaded) {
		t.Errorf("of %d files of layers there are %d, %v", len(uploaded), len(now), err)
	}
}

// TestPower looks at the power states of VMs that have nothing to boot from.
func TestPower(t *testing.T) {
	oracle.Need(t, "qemu-system-x86_64")
	socket := filepath.Join(t.TempDir(), "switch")
	network, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer network.Close()
	l := newLab(t, Options{Networks: map[string]string{"bridge": socket}})
	ctx := t.Context()
	create := func(name string, devices ...types.BaseVirtualDevice) *object.VirtualMachine {
		t.Helper()
		change, err := object.VirtualDeviceList(devices).ConfigSpec(types.VirtualDeviceConfigSpecOperationAdd)
		if err != nil {
			t.Fatal(err)
		}
		info := l.must(l.vms.CreateVM(ctx, types.VirtualMachineConfigSpec{Name: name, GuestId: "otherGuest64", NumCPUs: 1, MemoryMB: 16,
			Files: &types.VirtualMachineFileInfo{VmPathName: l.ds.Path(name + "/" + name + ".vmx")}, DeviceChange: change}, l.pool, nil))
		return object.NewVirtualMachine(l.Client, info.Result.(types.ManagedObjectReference))
	}
	vm := create("empty")
	ref := vm.Reference()

	l.must(vm.PowerOn(ctx))
	first := l.b.machine(ref)
	l.must(vm.Reset(ctx))
	second := l.b.machine(ref)
	if first == nil || second == nil || first == second {
		t.Fatalf("after a reset the VM runs as %p, before as %p", second, first)
	}
	if err := second.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	l.await(vm, "runtime.powerState", func(v any) bool { return v == types.VirtualMachinePowerStatePoweredOff })

	l.must(vm.PowerOn(ctx))
	l.must(vm.PowerOff(ctx))
	if l.b.Running(ref) {
		t.Error("a VM that is off runs")
	}

	l.must(vm.PowerOn(ctx))
	l.must(vm.Suspend(ctx))
	suspended := l.b.machine(ref)
	l.must(vm.Destroy(ctx))
	<-suspended.done

	wired := create("wired", l.newNIC(object.VirtualDeviceList{}))
	l.must(wired.PowerOn(ctx))
	if conn, err := network.Accept(); err != nil { // whoever is on the network connects before it runs
		t.Error(err)
	} else {
		conn.Close()
	}
	l.must(wired.PowerOff(ctx))

	var none object.VirtualDeviceList
	backing, err := l.bridge.EthernetCardBackingInfo(ctx)
	if err != nil {
		t.Fatal(err)
	}
	e1000, err := none.CreateEthernetCard("e1000", backing)
	if err != nil {
		t.Fatal(err)
	}
	proxied := uriBacking("vic.control")
	proxied.ProxyURI = "tcp://127.0.0.1:1"
	for name, d := range map[string]types.BaseVirtualDevice{
		"counterpart": e1000,
		"telnet://HOST:PORT or telnets://HOST:PORT#thumbprint=SHA1": serialPort(-90, proxied),
		"tcp://HOST:PORT or telnet://HOST":                          serialPort(-90, uriBacking("telnets://127.0.0.1:1")),
		"is no file":                                                serialPort(-90, l.fileBacking("../out")),
		"directory":                                                 serialPort(-90, l.fileBacking("")), // a folder, for QEMU
	} {
		t.Run(name, func(t *testing.T) {
			vm := create(strings.NewReplacer("/", "-", ":", "-").Replace(name), d)
			task, err := vm.PowerOn(ctx)
			if err == nil {
				err = task.WaitEx(ctx)
			}
			if err == nil {
				t.Fatal("it was powered on")
			}
			var f *types.GenericVmConfigFault
			if _, ok := fault.As(err, &f); !ok || !strings.Contains(f.Reason, name) {
				t.Errorf("power on: %v (%+v)", err, f)
			}
			if state, err := vm.PowerState(ctx); state != types.VirtualMachinePowerStatePoweredOff || err != nil {
				t.Errorf("state %s, %v", state, err)
			}
		})
	}
}
