package vsphere

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"

	"vic/bench/oracle"
	"vic/bench/vcsim"
	"vic/containervm"
	datastore "vic/layerstore/vsphere"
	"vic/tether/wire"
)

func TestUUID(t *testing.T) {
	if got, want := UUID("0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"), "01234567-89ab-4def-8123-456789abcdef"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// TestVM looks at what an administrator sees of a container.
func TestVM(t *testing.T) { onBoth(t, testVM) }

func testVM(t *testing.T, o vcsim.Options) {
	s := newSite(t, o)
	id := s.create(1)
	vm := s.config(id)
	if want := "box-" + id[:12]; vm.Name != want || vm.Config.InstanceUuid != UUID(id) || vm.Runtime.PowerState != off {
		t.Errorf("VM %s, instance UUID %s, %s; want %s", vm.Name, vm.Config.InstanceUuid, vm.Runtime.PowerState, want)
	}
	spec := s.spec(id)
	m := s.start(spec)
	vm = s.config(id)
	extra := map[string]string{}
	for _, o := range vm.Config.ExtraConfig {
		extra[o.GetOptionValue().Key], _ = o.GetOptionValue().Value.(string)
	}
	text, err := wire.ReadGuestInfo(func(key string) (string, error) { return extra[key], nil })
	if err != nil {
		t.Fatal(err)
	}
	conf, err := wire.ParseConfig(text)
	if err != nil {
		t.Fatal(err)
	}
	root := rootDisk(vm.Config.Hardware.Device)
	if conf.ID != id || conf.Root.Serial == "" || conf.Root.Serial != serialOf(root) || conf.Time != 0 || extra["monitor_control.restrict_backdoor"] != "TRUE" {
		t.Errorf("the guest is told %+v; extraConfig %v", conf, extra)
	}
	parent := root.Backing.(*types.VirtualDiskFlatVer2BackingInfo).Parent
	if top, err := s.o.Images.TopDisk(t.Context(), s.image.ID); err != nil || parent == nil || parent.FileName != top {
		t.Errorf("the disk's parent is %+v, want %s, %v", parent, top, err)
	}
	if h := vm.Config.Hardware; h.MemoryMB != 260 || h.NumCPU != 2 {
		t.Errorf("%d MB and %d CPUs", h.MemoryMB, h.NumCPU)
	}
	cards := devices[*types.VirtualVmxnet3](vm.Config.Hardware.Device)
	if len(cards) != 1 || cards[0].MacAddress != spec.NICs[0].MAC || vm.Runtime.PowerState != on {
		t.Errorf("it is %s, with %d cards", vm.Runtime.PowerState, len(cards))
	}
	if err := s.RenameContainer(t.Context(), id, "other"); err != nil || s.config(id).Name != "other-"+id[:12] {
		t.Errorf("renamed to %s, %v", s.config(id).Name, err)
	}
	if _, err := s.Start(t.Context(), spec); err == nil || !strings.Contains(err.Error(), "runs already") {
		t.Errorf("second start: %v", err)
	}
	if err := m.Kill(); err != nil {
		t.Fatal(err)
	}
	s.wait(m)
	if _, err := s.Find(t.Context(), spec); !errors.Is(err, containervm.ErrNoMachine) {
		t.Errorf("find a VM that has ended: %v", err)
	}
	if err := s.RemoveContainer(id); err != nil {
		t.Fatal(err)
	}
	if s.vm(id) != nil {
		t.Error("the VM is still there")
	}
	for _, path := range []string{s.folderOf(id), s.file(id, "")} {
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there: %v", path, err)
		}
	}
	if err := s.RemoveContainer(id); err != nil {
		t.Errorf("removed again: %v", err)
	}
}

// TestLog has a guest write to its log in two runs, and the VCH be away meanwhile.
func TestLog(t *testing.T) {
	s := newSite(t, vcsim.Options{})
	id := s.create(1)
	spec := s.spec(id)
	m := s.start(spec)
	bell := s.take(m.uuid + " " + BellService)
	s.write(id, 1, "one ")
	ring(t, bell)
	s.has(spec.Log, "one ")
	s.write(id, 1, "two ")
	bell.Close() // as when the VCH's host loses its connection
	s.write(id, 1, "three ")
	bell = s.take(m.uuid + " " + BellService)
	s.has(spec.Log, "one two three ")
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	s.write(id, 1, "four ")
	found, err := s.Find(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	s.take(m.uuid + " " + BellService)
	s.has(spec.Log, "one two three four ")
	if err := found.Close(); err != nil {
		t.Fatal(err)
	}
	s.write(id, 1, "five ")
	if err := os.WriteFile(s.file(id, consoleName(1)), []byte(strings.Repeat("x", 2*maxConsole)+"the end"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.must(s.vm(id).PowerOff(t.Context()))
	s.until("it is off", func() bool { return s.watch.lookUp(UUID(id)).power == off })
	if _, err := s.Find(t.Context(), spec); !errors.Is(err, containervm.ErrNoMachine) {
		t.Errorf("find a VM that has ended: %v", err)
	}
	s.has(spec.Log, "one two three four five ")
	if text, err := os.ReadFile(spec.Console); err != nil || len(text) != maxConsole || !strings.HasSuffix(string(text), "the end") {
		t.Errorf("%d bytes of console, %v", len(text), err)
	}
	m = s.start(spec)
	s.write(id, 2, "six")
	if err := m.Kill(); err != nil {
		t.Fatal(err)
	}
	s.wait(m)
	s.has(spec.Log, "one two three four five six")
}

// ring rings the bell.
func ring(t *testing.T, bell interface{ Write([]byte) (int, error) }) {
	t.Helper()
	if _, err := bell.Write([]byte{0}); err != nil {
		t.Fatal(err)
	}
}

// TestOthers has an administrator do things to VMs.
func TestOthers(t *testing.T) { onBoth(t, testOthers) }

func testOthers(t *testing.T, o vcsim.Options) {
	s := newSite(t, o)
	ctx := t.Context()
	for name, x := range map[string]struct {
		n      int
		do     func(id string)
		reason string
	}{
		"power off": {1, func(id string) { s.must(s.vm(id).PowerOff(ctx)) }, "its virtual machine was powered off"},
		"destroy": {2, func(id string) {
			s.must(s.vm(id).PowerOff(ctx))
			s.must(s.vm(id).Destroy(ctx))
		}, "its virtual machine was"},
		"power off while vCenter is away": {3, func(id string) {
			if err := s.sim.Away(); err != nil {
				t.Fatal(err)
			}
			s.must(s.vm(id).PowerOff(ctx))
			if err := s.sim.Return(); err != nil {
				t.Fatal(err)
			}
		}, "its virtual machine was powered off"},
		"destroy while vCenter is away": {4, func(id string) {
			if err := s.sim.Away(); err != nil {
				t.Fatal(err)
			}
			s.must(s.vm(id).PowerOff(ctx))
			s.must(s.vm(id).Destroy(ctx))
			if err := s.sim.Return(); err != nil {
				t.Fatal(err)
			}
		}, "its virtual machine was deleted"},
		"power off after the session was dropped": {5, func(id string) {
			if err := s.sim.DropSessions(ctx); err != nil {
				t.Fatal(err)
			}
			s.must(s.vm(id).PowerOff(ctx))
		}, "its virtual machine was powered off"},
	} {
		t.Run(name, func(t *testing.T) {
			id := s.create(x.n)
			m := s.start(s.spec(id))
			x.do(id)
			s.wait(m)
			if got := m.Info().Reason; !strings.HasPrefix(got, x.reason) {
				t.Errorf("it ended for %q, want %q", got, x.reason)
			}
		})
	}
	t.Run("start one that was destroyed", func(t *testing.T) {
		id := s.create(6)
		s.must(s.vm(id).Destroy(ctx))
		if _, err := s.Start(ctx, s.spec(id)); err == nil || !strings.Contains(err.Error(), "somebody has deleted it") {
			t.Errorf("start: %v", err)
		}
		if err := s.RemoveContainer(id); err != nil {
			t.Error(err)
		}
	})
	t.Run("suspend", func(t *testing.T) {
		id := s.create(7)
		m := s.start(s.spec(id))
		paused := func(want bool) {
			t.Helper()
			select {
			case <-m.Changed():
			case <-time.After(patience):
				t.Fatal("nobody says so")
			}
			if got := m.Info().Paused; got != want {
				t.Errorf("paused %v, want %v", got, want)
			}
		}
		s.must(s.vm(id).Suspend(ctx))
		paused(true)
		found, err := s.Find(ctx, s.spec(id))
		if err != nil || !found.Info().Paused {
			t.Errorf("find a VM that is suspended: %v", err)
		}
		found.Close()
		s.must(s.vm(id).PowerOn(ctx))
		paused(false)
		if err := m.Pause(ctx); err != nil || !m.Info().Paused || s.config(id).Runtime.PowerState != suspended {
			t.Errorf("pause: %v", err)
		}
		if err := m.Pause(ctx); err != nil {
			t.Errorf("pause again: %v", err)
		}
		if err := m.Resume(ctx); err != nil || m.Info().Paused {
			t.Errorf("resume: %v", err)
		}
		if err := m.Resume(ctx); err != nil {
			t.Errorf("resume again: %v", err)
		}
	})
}

// TestPoweredOn has VMs powered on by others, and by the driver.
func TestPoweredOn(t *testing.T) { onBoth(t, testPoweredOn) }

func testPoweredOn(t *testing.T, o vcsim.Options) {
	s := newSite(t, o)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	ran, made := s.create(1), s.create(2)
	m := s.start(s.spec(ran))
	if err := m.Kill(); err != nil {
		t.Fatal(err)
	}
	s.wait(m)
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{ran, made} {
		s.must(s.vm(id).PowerOn(ctx))
		if got, err := s.PoweredOn(ctx); got != id || err != nil {
			t.Fatalf("powered on is %q, %v, want %q", got, err, id)
		}
		m, err := s.Find(ctx, s.spec(id))
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Kill(); err != nil {
			t.Fatal(err)
		}
		s.wait(m)
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
	}
	m = s.start(s.spec(made))
	defer m.Close()
	cancel()
	if id, err := s.PoweredOn(ctx); err == nil {
		t.Errorf("powered on by the driver: %q", id)
	}
}

// TestAway asks for things while vCenter does not answer. VMs that run do not mind.
func TestAway(t *testing.T) {
	s := newSite(t, vcsim.Options{})
	running, made := s.create(1), s.create(2)
	spec := s.spec(running)
	m := s.start(spec)
	if err := s.sim.Away(); err != nil {
		t.Fatal(err)
	}
	s.until("it is lost", func() bool { return s.Available() != nil })
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for name, do := range map[string]func() error{
		"create": func() error { return s.CreateContainer(ctx, strings.Repeat("ab", 32), "box", s.image.ID) },
		"start":  func() error { _, err := s.Start(ctx, s.spec(made)); return err },
		"kill":   m.Kill,
		"pause":  func() error { return m.Pause(ctx) },
		"remove": func() error { return s.RemoveContainer(made) },
		"rename": func() error { return s.RenameContainer(ctx, made, "x") },
	} {
		if err := do(); !errors.Is(err, datastore.ErrUnavailable) {
			t.Errorf("%s: %v, want %v", name, err, datastore.ErrUnavailable)
		}
	}
	if err := s.sim.Return(); err != nil {
		t.Fatal(err)
	}
	s.until("it is found again", func() bool { return s.Available() == nil })
	select {
	case <-m.Done():
		t.Error("a VM has ended that has not")
	default:
	}
	if err := m.Kill(); err != nil {
		t.Fatal(err)
	}
	s.wait(m)
	if err := s.RemoveContainer(made); err != nil {
		t.Error(err)
	}
}

// TestDropped has vCenter end the session, once while nothing happens and once while it is away and much does. The driver is told by
// whoever finds out, the keep-alive at the latest, and sees what it has missed.
func TestDropped(t *testing.T) {
	s := newSite(t, vcsim.Options{})
	ctx := t.Context()
	var ms []*machine
	for i := range 4 {
		ms = append(ms, s.start(s.spec(s.create(i))))
	}
	collectors := func() int { return s.sim.Calls()["CreatePropertyCollector"] }
	before, login := collectors(), s.o.Session.Login()
	if err := s.sim.DropSessions(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := methods.GetCurrentTime(ctx, s.o.Session.Client()); err != nil { // what a keep-alive asks
		t.Fatal(err)
	}
	<-login.Done()
	s.until("it watches anew", func() bool { return collectors() > before }) // while nothing has changed of which it would be told
	if err := s.Available(); err != nil {
		t.Errorf("lost by the end of a session: %v", err)
	}
	off := func(m *machine) { s.must(s.vm(m.vm.ID).PowerOff(ctx)) }
	off(ms[0])
	s.wait(ms[0])

	if err := s.sim.Away(); err != nil {
		t.Fatal(err)
	}
	s.until("it is lost", func() bool { return s.Available() != nil })
	off(ms[1])
	off(ms[2])
	s.must(s.vm(ms[2].vm.ID).Destroy(ctx))
	if err := s.sim.DropSessions(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.sim.Return(); err != nil {
		t.Fatal(err)
	}
	s.until("it is found again", func() bool { return s.Available() == nil })
	s.wait(ms[1])
	s.wait(ms[2])
	select {
	case <-ms[3].Done():
		t.Error("a VM has ended that has not")
	default:
	}
}

// TestRefused asks for what cannot be had.
func TestRefused(t *testing.T) {
	s := newSite(t, vcsim.Options{})
	id := s.create(1)
	for name, x := range map[string]struct {
		edit func(*containervm.VM)
		kind error
		text string
	}{
		"folder":       {func(v *containervm.VM) { v.Shares = []containervm.Share{{Path: "/"}} }, containervm.ErrInvalid, "folders of the host"},
		"CPUs":         {func(v *containervm.VM) { v.CPUSet = []int{0} }, containervm.ErrInvalid, "vSphere chooses"},
		"local volume": {func(v *containervm.VM) { v.Disks = []containervm.Disk{{Path: "/store/volumes/a/disk.vmdk"}} }, containervm.ErrNotImplemented, "not on a datastore"},
		"network":      {func(v *containervm.VM) { v.NICs[0].Network = "nowhere" }, nil, "find network nowhere"},
	} {
		t.Run(name, func(t *testing.T) {
			vm := s.spec(id)
			x.edit(&vm)
			_, err := s.Start(t.Context(), vm)
			if err == nil || x.kind != nil && !errors.Is(err, x.kind) || !strings.Contains(err.Error(), x.text) {
				t.Errorf("error %v, want one of %v with %q", err, x.kind, x.text)
			}
		})
	}
}

// TestNICs plugs interfaces, and dials them.
func TestNICs(t *testing.T) { onBoth(t, testNICs) }

func testNICs(t *testing.T, o vcsim.Options) {
	s := newSite(t, o)
	ctx := t.Context()
	id := s.create(1)
	spec := s.spec(id)
	m := s.start(spec)
	has := func(want ...string) {
		t.Helper()
		var got []string
		for _, c := range devices[*types.VirtualVmxnet3](s.config(id).Config.Hardware.Device) {
			got = append(got, c.MacAddress)
		}
		if strings.Join(got, " ") != strings.Join(want, " ") {
			t.Errorf("cards %v, want %v", got, want)
		}
	}
	const first, second, third = "02:42:ac:11:00:02", "02:42:ac:12:00:03", "02:42:ac:12:00:04"
	go func() {
		if c, err := m.Dial(ctx, "net0"); err == nil {
			c.Close()
		}
	}()
	s.take(first)
	if err := m.AddNIC(ctx, containervm.NIC{End: "net1", MAC: second, Network: "public"}); err != nil {
		t.Fatal(err)
	}
	has(first, second)
	if _, err := m.Dial(ctx, "net1"); err == nil || !strings.Contains(err.Error(), "not the container host's") {
		t.Errorf("dial net1: %v", err)
	}
	if err := m.AddNIC(ctx, containervm.NIC{End: "net1", MAC: third}); err != nil {
		t.Fatal(err)
	}
	has(first, third)
	m.Close()
	found, err := s.Find(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	defer found.Close()
	for range 2 {
		if err := found.RemoveNIC(ctx, "net1"); err != nil {
			t.Fatal(err)
		}
		has(first)
	}
}

// TestWriteStopped writes into the disk of a VM that does not run. Others' programs judge what is on the datastore.
func TestWriteStopped(t *testing.T) {
	t.Run("files", func(t *testing.T) { testWriteStopped(t, newSite(t, vcsim.Options{}), "disk-delta.vmdk") })
	t.Run("objects", func(t *testing.T) {
		s := newSite(t, objects)
		s.appliance(nil)
		testWriteStopped(t, s, "")
	})
}

// TestReadAndStart starts a VM whose disk is attached to the appliance, by who reads it and by one that crashed.
func TestReadAndStart(t *testing.T) {
	s, late := newSite(t, objects), make(chan struct{})
	vm := s.appliance(late)
	attached := func() int { // beside its own
		t.Helper()
		all, err := vm.Device(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		disks := all.SelectByType((*types.VirtualDisk)(nil))
		if len(disks) == 0 || disks[0].GetVirtualDevice().Backing.(*types.VirtualDiskFlatVer2BackingInfo).FileName != s.o.Containers.Path("state.vmdk") {
			t.Fatal("the appliance has lost its own disk")
		}
		return len(disks) - 1
	}
	id := s.create(1)
	m := s.start(s.spec(id))
	if err := m.Kill(); err != nil {
		t.Fatal(err)
	}
	s.wait(m)
	m.Close()
	ctx, cancel := context.WithCancel(t.Context())
	read, started := make(chan error), make(chan error)
	go func() {
		_, err := s.ContainerFS(ctx, id)
		read <- err
	}()
	<-late
	if attached() != 1 {
		t.Errorf("%d disks are attached", attached())
	}
	spec := s.spec(id)
	go func() {
		m, err := s.Start(t.Context(), spec)
		if err == nil {
			err = m.Close()
		}
		started <- err
	}()
	select { // it is not on before the disk is free
	case err := <-started:
		t.Fatalf("started: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	cancel() // as containervm does before it starts one
	if err := <-read; !errors.Is(err, context.Canceled) {
		t.Errorf("read: %v", err)
	}
	if err := <-started; err != nil || attached() != 0 {
		t.Errorf("start: %v; %d disks are attached", err, attached())
	}
	s.must(s.vm(id).PowerOff(t.Context()))

	// Of what the server does not detach, the next start does.
	ctx, cancel = context.WithCancel(t.Context())
	go func() {
		_, err := s.ContainerFS(ctx, id)
		read <- err
	}()
	<-late
	s.sim.FailTask(vcsim.TaskFault{Task: "VirtualMachine.reconfigVm"})
	cancel()
	if err := <-read; err == nil || !strings.Contains(err.Error(), "detach disk") || attached() != 1 {
		t.Errorf("read: %v; %d disks are attached", err, attached())
	}
	if m := s.start(spec); m.state() != on || attached() != 0 {
		t.Errorf("it is %s; %d disks are attached", m.state(), attached())
	}
	s.must(s.vm(id).PowerOff(t.Context()))

	attach(t, vm, s.o.Containers.Path(id+"/"+diskName), 1)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s.open()
	if attached() != 0 {
		t.Error("what a crash left attached stays")
	}
}

// testWriteStopped is TestWriteStopped where the disk has an extent file that may be written to, or where that is "" none.
func testWriteStopped(t *testing.T, s *site, extent string) {
	qemuImg, debugfs := oracle.Find(t, "qemu-img"), oracle.Find(t, "debugfs")
	id := s.create(1)
	s.start(s.spec(id)).Kill() // a run, after which the disk is brought
	s.until("it is off", func() bool { return s.watch.lookUp(UUID(id)).power == off })
	if err := s.ApplyToContainer(t.Context(), id, bytes.NewReader(pack(t, map[string][]byte{"added": []byte("by docker cp")}))); err != nil {
		t.Fatal(err)
	}
	judge := func() {
		t.Helper()
		raw := filepath.Join(t.TempDir(), "raw")
		if out, err := exec.Command(qemuImg, "convert", "-f", "vmdk", "-O", "raw", s.file(id, diskName), raw).CombinedOutput(); err != nil {
			t.Fatalf("qemu-img: %v: %s", err, out)
		}
		if out, err := exec.Command(oracle.Find(t, "e2fsck"), "-fn", raw).CombinedOutput(); err != nil {
			t.Errorf("e2fsck: %v: %s", err, out)
		}
		if out, err := exec.Command(debugfs, "-R", "cat /added", raw).Output(); err != nil || string(out) != "by docker cp" {
			t.Errorf("debugfs: %v: %q", err, out)
		}
	}
	judge()
	// A crash after the local disk was written and before the VM's was: the next start, or read, brings it.
	if err := containervm.WriteFile(filepath.Join(s.folderOf(id), changedFile), []byte("{}")); err != nil {
		t.Fatal(err)
	}
	if extent != "" {
		if err := os.WriteFile(s.file(id, extent), []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	} else { // blocks of zeros, of what was to be written
		dev, err := s.sim.OpenDevice(t.Context(), s.o.Containers.Path(id+"/"+diskName))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := dev.WriteAt(make([]byte, 256<<10), 0); err != nil {
			t.Fatal(err)
		}
		if err := dev.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.SettleContainer(id); err != nil {
		t.Fatal(err)
	}
	judge()
	changes, err := s.OpenChanges(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if err := changes.Close(); err != nil {
		t.Fatal(err)
	}
	if m := s.start(s.spec(id)); m.state() != on {
		t.Errorf("the VM is %s", m.state())
	}
	if err := s.ApplyToContainer(t.Context(), id, bytes.NewReader(pack(t, map[string][]byte{"x": nil}))); err == nil || !strings.Contains(err.Error(), "it runs") {
		t.Errorf("write into a VM that runs: %v", err)
	}
}
