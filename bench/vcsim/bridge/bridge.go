// Package bridge lets the VMs of a simulated vSphere run: it boots each VM that is powered on with QEMU, from the files that lie on
// its datastore, and mirrors what happens between the two.
//
//	vSphere API                          QEMU
//	disk                                 the chain as it lies on the datastore, scsi-hd on pvscsi, at the disk's unit number; its UUID is the
//	                                     serial number: QEMU's disks have no name of 128 bits
//	BIOS UUID                            also the system's serial number, as VMware's firmware writes it
//	CD-ROM with an ISO                   ide-cd, booted from
//	vmxnet3                              vmxnet3, on the user network, on a switch behind a unix socket (Options.Networks), or on a
//	                                     bridge of this machine's (Options.Bridges)
//	serial port, by URI                  isa-serial on a TCP connection, made or awaited, plain or telnet
//	serial port, by proxy                isa-serial on a connection as an ESXi host makes it, to a virtual serial port concentrator
//	serial port, on a file               isa-serial on the file of the datastore
//	extraConfig guestinfo.KEY            an SMBIOS OEM string "guestinfo.KEY=VALUE"
//	a tether's configuration in it       the OEM strings that a tether reads on QEMU
//	power on, off, reset                 a QEMU begins, ends
//	suspend, power on                    the guest stands still, goes on
//	relocate                             the guest stands still while its proxies are told of a vMotion
//	shut down guest                      the ACPI power button
//	reconfigure                          disks and vmxnet3 are plugged and unplugged, serial ports connected elsewhere
//	powered off                          QEMU has ended
//	guest.net, guest.ipAddress           the addresses that the guest's packets come from
//
// What it cannot do it refuses, as the fault of the task: power on fails for a device that has no counterpart.
//
// A guest finds the strings of its configuration in /sys/firmware/dmi/entries/11-*/raw, a table of type 11 of the SMBIOS
// specification, which takes no module. All of them together have at most 64 KiB. It reads them only: there is no way to
// set a guestinfo.
//
// QEMU emulates (TCG). A VM ends with the process that the bridge is in, even if that is killed.
package bridge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"

	"vic/bench/vcsim"
)

// Options say how VMs run.
type Options struct {
	// QEMU is the program; "" means qemu-system-x86_64.
	QEMU string
	// Networks says for names of networks the unix socket of the switch that is each: QEMU connects and sends frames, each
	// after its length as 4 bytes, big-endian. VMs on other networks have each a network of its own with DHCP and a way out.
	Networks map[string]string
	// Bridges says for names of networks the bridge of this machine's kernel that is each: VMs on it see each other, and whoever else
	// has a port there. That takes CAP_NET_ADMIN.
	Bridges map[string]string
	// Log is told of VMs that begin, end and fail; nil is silent.
	Log *slog.Logger
}

// A Bridge runs the VMs of a simulated vSphere.
type Bridge struct {
	s    *vcsim.Server
	o    Options
	temp string

	ctx    context.Context // ends with the bridge
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu       sync.Mutex
	machines map[types.ManagedObjectReference]*machine
	closed   bool
}

// Attach has the VMs run that are powered on from now on.
func Attach(s *vcsim.Server, o Options) (*Bridge, error) {
	if o.QEMU == "" {
		o.QEMU = "qemu-system-x86_64"
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	b := &Bridge{s: s, o: o, machines: map[types.ManagedObjectReference]*machine{}}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	var err error
	if b.temp, err = os.MkdirTemp("", "vcsim-vms-"); err != nil {
		return nil, err
	}
	s.OnTask(b.around)
	return b, nil
}

// Close ends all VMs. They stay powered on for the API, whose tasks no bridge minds any more.
func (b *Bridge) Close() error {
	b.mu.Lock()
	b.closed = true
	for _, m := range b.machines {
		b.wg.Go(m.end)
	}
	b.mu.Unlock()
	b.cancel()
	b.wg.Wait()
	return os.RemoveAll(b.temp)
}

// Running tells whether there is a QEMU for a VM.
func (b *Bridge) Running(vm types.ManagedObjectReference) bool { return b.machine(vm) != nil }

func (b *Bridge) machine(ref types.ManagedObjectReference) *machine {
	b.mu.Lock()
	defer b.mu.Unlock()
	m := b.machines[ref]
	if m != nil {
		select {
		case <-m.done:
			return nil
		default:
		}
	}
	return m
}

// around stands around each task of the API.
func (b *Bridge) around(t *simulator.Task, run func() vcsim.Outcome) vcsim.Outcome {
	b.mu.Lock()
	closed := b.closed
	b.mu.Unlock()
	if closed || t.Info.Entity == nil {
		return run()
	}
	vm, ok := b.s.Service.Context.Map.Get(*t.Info.Entity).(*simulator.VirtualMachine)
	if !ok {
		return run()
	}
	m := b.machine(vm.Self)
	var err error
	switch t.Info.DescriptionId {
	case "VirtualMachine.powerOn":
		return b.powerOn(vm, m, run)
	case "VirtualMachine.powerOff":
		if m != nil {
			m.end()
		}
	case "VirtualMachine.suspend", "VirtualMachine.standbyGuest":
		if m != nil {
			err = m.suspend(b.ctx)
		}
	case "VirtualMachine.shutdownGuest":
		if m != nil { // it is off when the guest has done so
			return outcome(m.execute(b.ctx, "system_powerdown", nil))
		}
	case "VirtualMachine.relocateVm":
		if m != nil && vm.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOn {
			return m.relocate(b.ctx, run)
		}
	case "VirtualMachine.destroy":
		o := run()
		if o.Fault == nil && m != nil { // it was suspended
			m.end()
		}
		return o
	case "VirtualMachine.reconfigVm":
		o := run()
		if o.Fault == nil && m != nil {
			o = outcome(b.replug(vm, m))
		}
		return o
	}
	if err != nil {
		return outcome(err)
	}
	return run()
}

// outcome is that of a task that QEMU does or does not what it is for.
func outcome(err error) vcsim.Outcome {
	if err == nil {
		return vcsim.Outcome{}
	}
	return vcsim.Outcome{Fault: &types.GenericVmConfigFault{Reason: err.Error()}}
}

func (b *Bridge) powerOn(vm *simulator.VirtualMachine, m *machine, run func() vcsim.Outcome) vcsim.Outcome {
	switch {
	case vm.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOn:
		return run() // refuses
	case m != nil: // suspended
		if err := m.resume(b.ctx); err != nil {
			return outcome(err)
		}
		return run()
	}
	m, err := b.boot(vm)
	if err != nil {
		b.o.Log.Error("power on", "vm", vm.Name, "error", err)
		return outcome(fmt.Errorf("power on %s: %w", vm.Name, err))
	}
	b.o.Log.Info("powered on", "vm", vm.Name, "pid", m.cmd.Process.Pid)
	o := run()
	if o.Fault != nil {
		m.end()
	}
	return o
}

// boot starts a QEMU and watches over it.
func (b *Bridge) boot(vm *simulator.VirtualMachine) (*machine, error) {
	h, err := b.hardware(vm)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(b.temp, "")
	if err != nil {
		return nil, err
	}
	m := &machine{ref: vm.Self, name: vm.Name, dir: dir, log: b.o.Log, report: b.report}
	if err := m.start(b.ctx, b.o.QEMU, h); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		b.wg.Go(m.end)
	}
	b.machines[vm.Self] = m
	b.wg.Go(func() { b.watch(m) })
	return m, nil
}

// watch waits for the end of a QEMU and, if it was not the API that ended it, powers the VM off.
func (b *Bridge) watch(m *machine) {
	<-m.done
	if err := errors.Join(m.close(), os.RemoveAll(m.dir)); err != nil {
		b.o.Log.Error("clean up", "vm", m.name, "error", err)
	}
	ctx := b.context()
	vm, ok := ctx.Map.Get(m.ref).(*simulator.VirtualMachine)
	if !ok {
		b.forget(m)
		return
	}
	ctx.WithLock(vm, func() {
		if again := !b.forget(m); again || m.ending.Load() || vm.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOff {
			return
		}
		b.o.Log.Info("powered off by its guest", "vm", m.name, "said", m.said.String())
		// As the simulator's own reset does it: the task shares the lock.
		res, ok := vm.PowerOffVMTask(ctx, &types.PowerOffVM_Task{This: vm.Self}).(*methods.PowerOffVM_TaskBody)
		if !ok || res.Res == nil {
			return
		}
		if t, ok := ctx.Map.Get(res.Res.Returnval).(*simulator.Task); ok {
			t.Wait()
		}
	})
}

// forget takes a machine out of the list, unless its VM runs again already.
func (b *Bridge) forget(m *machine) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.machines[m.ref] != m {
		return false
	}
	delete(b.machines, m.ref)
	return true
}

// context is one to hold locks of the simulator's with, and to do something as nobody who is logged in.
func (b *Bridge) context() *simulator.Context {
	all := b.s.Service.Context.Map
	s := &simulator.Session{UserSession: types.UserSession{UserName: "bridge"}, Registry: simulator.NewRegistry(), Map: all}
	return &simulator.Context{Context: b.ctx, Session: s, Map: all}
}
