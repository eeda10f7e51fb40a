// Package qemu runs container VMs in QEMU.
//
// Each VM is one qemu-system-x86_64 process in a session of its own, which outlives
// the VCH. It may start no other process and gain no privilege (-sandbox; -daemonize would need both). In the VM's RuntimeDir are
//
//	pid        QEMU's process ID; QEMU holds a lock on it, so a second VM cannot start
//	stderr     what QEMU has to complain about
//	qmp        UNIX socket: QEMU's monitor
//	control    UNIX socket: the guest's virtio-serial port "vic.control"
//	net0 …     UNIX socket: frames of the i-th NIC, each after its length (4 bytes, big-endian)
//	share      empty; folders of the host are put together on it, where nobody sees it
//	config0 …  OEM strings; removed when QEMU has read them, for they may hold secrets
//
// QEMU listens on all of them, since that is what lets another VCH connect when the
// first has gone. The port "vic.log" and the console are files.
//
// The hardware is a trimmed q35 of a fixed version: root disk on virtio-blk, one
// virtio-serial controller, a virtio-net for each NIC, a few empty PCI Express slots. The kernel is booted directly.
//
// Under emulation a VM begins as a copy of a template where there is one, see template, or becomes one that
// runs already, see spare.
//
// That a VM has ended is known from a pidfd (Linux 5.3), which needs no polling, works for
// a process that is not our child, and cannot mean another process. A service manager that runs
// the VCH must not kill the VMs with it (systemd: KillMode=process).
package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vic/containervm"
	"vic/containervm/qemu/qmp"
)

// A Driver is a containervm.Hypervisor. The zero value works.
type Driver struct {
	// Binary is QEMU's name or path; "" means qemu-system-x86_64.
	Binary string
	// Accel is KVM or TCG; "" means KVM where a VM was seen to boot with it, else TCG.
	Accel string
	// Cache is a file that keeps what was found out about KVM until the host boots anew; ""
	// for none.
	Cache string
	// Virtiofsd is the program that shares folders of the host with guests; "" looks where distributions have it.
	Virtiofsd string
	// Templates is a folder for guests that have booted, of which others are made; "" for none.
	Templates string
	// Spare has one VM kept running that the next to start can become, if it is like the last one.
	Spare bool
	// Log is told what no caller is; nil is silent.
	Log *slog.Logger

	mu    sync.Mutex
	found *Platform

	templates templates
}

const (
	startTimeout   = 30 * time.Second // of QEMU until it answers
	monitorTimeout = 10 * time.Second // until it greets
	maxStderr      = 4 << 10
	// maxSocketPath is what fits into a sockaddr_un.
	maxSocketPath = 107
)

func (d *Driver) binary() string {
	if d.Binary == "" {
		return "qemu-system-x86_64"
	}
	return d.Binary
}

func (d *Driver) log() *slog.Logger {
	if d.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return d.Log
}

// Platform tells what VMs of that kernel run on. The first call may take some
// seconds, if KVM has to be tried.
func (d *Driver) Platform(ctx context.Context, kernel string) (Platform, error) {
	if d.Accel == "" {
		return d.platform(ctx, kernel)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.found == nil {
		p, err := d.ask(ctx, d.Accel)
		if err != nil {
			return Platform{}, err
		}
		d.found = &p
	}
	return *d.found, nil
}

// Start implements containervm.Hypervisor.
func (d *Driver) Start(ctx context.Context, vm containervm.VM) (containervm.Machine, error) {
	if len(socket(vm, "control")) > maxSocketPath {
		return nil, fmt.Errorf("start VM: runtime folder %s is too long for a socket", vm.RuntimeDir)
	}
	if vm.Memory <= 0 || vm.CPUs <= 0 {
		return nil, fmt.Errorf("start VM with %d bytes and %d CPUs", vm.Memory, vm.CPUs)
	}
	for _, nic := range vm.NICs {
		if err := carried(nic); err != nil {
			return nil, err
		}
	}
	p, err := d.Platform(ctx, vm.Boot.Kernel)
	if err != nil {
		return nil, fmt.Errorf("start VM: %w", err)
	}
	if m := d.startCopy(ctx, vm, p); m != nil {
		return m, nil
	}
	m, err := d.boot(ctx, vm, p)
	if err != nil {
		return nil, fmt.Errorf("start VM: %w", err)
	}
	return m, nil
}

// boot starts a VM from its kernel.
func (d *Driver) boot(ctx context.Context, vm containervm.VM, p Platform) (*machine, error) {
	a, err := args(vm, p, origin{})
	if err != nil {
		return nil, err
	}
	defer removeConfig(vm)
	for i, s := range vm.Config {
		if err := os.WriteFile(configPath(vm, i), []byte(s), 0o600); err != nil {
			return nil, err
		}
	}
	return d.run(ctx, vm, command{args: a})
}

// A command is how QEMU is called.
type command struct {
	args  []string
	files []*os.File // it gets them as descriptors from firstFile on
	// bound has it end with the thread that calls run, and lets everything else go first.
	bound bool
}

// firstFile is the number of a command's first file. VMs with shares have none.
const firstFile = firstShareFD

// run starts QEMU in a session of its own and returns when it answers, which is when the VM exists. The
// monitor's socket is made here and handed down: whoever connects to it waits for QEMU, and is hung up
// on if QEMU ends.
func (d *Driver) run(ctx context.Context, vm containervm.VM, c command) (*machine, error) {
	if pid, process, err := openProcess(vm); err == nil {
		process.Close()
		return nil, fmt.Errorf("it runs already, as process %d", pid)
	} else if !errors.Is(err, containervm.ErrNoMachine) {
		return nil, err
	}
	stderr, err := os.OpenFile(socket(vm, stderrFile), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	defer stderr.Close()
	listener, err := listen(socket(vm, monitorFile))
	if err != nil {
		return nil, err
	}
	shares, err := d.share(vm, stderr)
	if err != nil {
		listener.Close()
		return nil, err
	}
	cmd := exec.Command(d.binary(), c.args...)
	cmd.Stdout, cmd.Stderr = stderr, stderr
	cmd.ExtraFiles = slices.Concat([]*os.File{listener}, shares.sockets, c.files)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if c.bound {
		cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	}
	err = startOn(vm.CPUSet, cmd)
	listener.Close()
	shares.handOver()
	if err != nil {
		shares.end()
		return nil, err
	}
	if c.bound {
		_ = syscall.Setpriority(syscall.PRIO_PGRP, cmd.Process.Pid, 19) // it only makes room
	} else {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, startTimeout)
		defer cancel()
	}
	m, err := d.open(ctx, vm)
	if err == nil {
		m.reap(cmd.Process)
		for _, p := range shares.servers {
			m.reap(p)
		}
		return m, nil
	}
	defer shares.end()
	_ = cmd.Process.Kill() // it can but have ended
	_ = cmd.Wait()         // its exit code is not of interest
	if complaint := said(vm); complaint != nil && ctx.Err() == nil {
		return nil, complaint
	}
	return nil, err
}

// startOn starts a process that may use these CPUs only, or all if there are none. It inherits them from
// the thread that starts it, which ends then.
func startOn(cpus []int, cmd *exec.Cmd) error {
	if len(cpus) == 0 {
		return cmd.Start()
	}
	var set unix.CPUSet
	for _, n := range cpus {
		set.Set(n)
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := unix.SchedSetaffinity(0, &set); err != nil {
			done <- fmt.Errorf("set CPUs %v: %w", cpus, err)
			return
		}
		done <- cmd.Start()
	}()
	return <-done
}

// said is what QEMU had to complain about, nil for nothing.
func said(vm containervm.VM) error {
	f, err := os.Open(socket(vm, stderrFile))
	if err != nil {
		return nil // what cannot be read is not told
	}
	defer f.Close()
	text := make([]byte, maxStderr)
	n, _ := f.ReadAt(text, 0) // likewise
	if text = bytes.TrimSpace(text[:n]); len(text) == 0 {
		return nil
	}
	return fmt.Errorf("%s", text)
}

// listen makes a UNIX socket that another process is to accept from.
func listen(path string) (*os.File, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	defer l.Close()
	return l.File()
}

// open connects to the VM that was just started.
func (d *Driver) open(ctx context.Context, vm containervm.VM) (*machine, error) {
	mon, err := qmp.Dial(ctx, socket(vm, monitorFile))
	if err != nil {
		return nil, err
	}
	pid, process, err := openProcess(vm)
	if errors.Is(err, containervm.ErrNoMachine) {
		err = errors.New("it ended at once")
	}
	if err != nil {
		mon.Close()
		return nil, err
	}
	return newMachine(vm, infoOf(pid), process, mon), nil
}

// Find implements containervm.Hypervisor.
func (d *Driver) Find(ctx context.Context, vm containervm.VM) (containervm.Machine, error) {
	pid, process, err := openProcess(vm)
	if errors.Is(err, containervm.ErrNoMachine) {
		return nil, err
	} else if err != nil {
		return nil, fmt.Errorf("find VM: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, monitorTimeout)
	defer cancel()
	mon, err := qmp.Dial(ctx, socket(vm, monitorFile))
	if err != nil {
		// It can still be killed, and be seen to end.
		d.log().Warn("VM does not answer", "container", vm.ID, "pid", pid, "error", err)
		mon = nil
	}
	m := newMachine(vm, infoOf(pid), process, mon)
	if err := m.learnPaused(ctx); err != nil {
		d.log().Warn("VM does not say whether it is paused", "container", vm.ID, "pid", pid, "error", err)
	}
	if err := m.unblock(ctx); err != nil {
		d.log().Warn("free the VM's network interfaces", "container", vm.ID, "pid", pid, "error", err)
	}
	return m, nil
}

// infoOf reads from a QEMU's command line what it runs.
func infoOf(pid int) containervm.MachineInfo {
	i := containervm.MachineInfo{PID: pid}
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return i // it has just ended
	}
	_, after, _ := bytes.Cut(line, []byte("\x00-accel\x00"))
	name, _, _ := bytes.Cut(after, []byte{0})
	i.Accel = string(name)
	i.Template = bytes.Contains(line, []byte("\x00-incoming\x00"))
	return i
}

func removeConfig(vm containervm.VM) {
	for i := range vm.Config {
		_ = os.Remove(configPath(vm, i)) // it is in a folder of the VCH's own, and written anew at the next start
	}
}
