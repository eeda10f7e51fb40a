package containervm

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"time"

	"vic/tether/wire"
)

// Start boots the VM and returns when the container's process runs. The error
// is ErrNotModified if it does already, a *StartError if the guest could not execute it
// (the container has then ended with that code), ErrConflict while it is removed.
func (c *Container) Start(ctx context.Context) error {
	if err := c.acquire(ctx); err != nil {
		return err
	}
	defer c.releaseOp()
	c.mu.Lock()
	var err error
	switch {
	case c.removed:
		err = c.notFound()
	case c.removing || c.state.Status == Dead:
		err = refuse(ErrConflict, "container %s is marked for removal and cannot be started", c.id)
	case c.state.Status == Paused:
		err = refuse(ErrConflict, "cannot start a paused container, try unpause instead")
	case c.run != nil || c.state.Status == Restarting:
		err = refuse(ErrNotModified, "container %s is running already", c.id)
	default:
		c.restarts, c.backOff, c.halted = 0, 0, false
	}
	c.mu.Unlock()
	if err == nil {
		err = c.m.Available()
	}
	if err != nil {
		return err
	}
	return c.launch(ctx)
}

// launch boots the VM and returns when the process runs. Call it with op held.
func (c *Container) launch(ctx context.Context) error {
	before, err := c.setStarting()
	if err != nil {
		return err
	}
	r, err := c.begin(ctx)
	c.setStarted()
	if err == nil {
		err = c.awaitStart(r)
	}
	if err != nil && err != ErrClosed { // else the VM is the next Manager's
		c.failStart(r, before, err)
	}
	return err
}

// begin joins the network and starts the VM.
func (c *Container) begin(ctx context.Context) (*run, error) {
	if err := c.m.o.Disks.SettleContainer(c.id); err != nil {
		return nil, err
	}
	boot, err := c.m.o.Boot.Boot(ctx)
	if err != nil {
		return nil, fmt.Errorf("prepare the guest's kernel: %w", err)
	}
	r := newRun()
	if r.connections, err = c.joinAll(); err != nil {
		return nil, err
	}
	disks, err := c.takeVolumes(ctx)
	var vm VM
	var begun time.Time // not later than what the guest writes, however soon it does
	if err == nil {
		err = c.makeBinds()
	}
	if err == nil {
		vm, err = c.vm(boot, r.connections, disks)
	}
	if err == nil {
		if err = os.MkdirAll(vm.RuntimeDir, 0700); err == nil {
			if err = touch(vm.Log); err == nil {
				r.like = c.m.like(vm)
				begun = time.Now()
				r.machine, err = c.m.o.Hypervisor.Start(ctx, vm)
			}
		}
	}
	if err != nil {
		c.releaseVolumes()
		return nil, errors.Join(err, c.leaveAll(r.connections))
	}
	c.mu.Lock()
	c.boot, c.accel = boot, r.machine.Info().Accel
	c.runs++
	r.number = c.runs
	c.run = r
	status := Running
	if c.state.Status == Restarting { // until its process runs
		status = Restarting
	}
	c.state = State{Status: status, PID: r.machine.Info().PID, Started: begun, Health: c.freshHealth()}
	c.endpoints = infos(r.connections)
	c.notifyLocked()
	c.mu.Unlock()
	c.serve(r)
	return r, c.saveState()
}

// rootSerial is the serial number by which the guest knows its root disk.
const rootSerial = "root"

// touch makes a file that can be watched before anybody writes to it.
func touch(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0600)
	if err != nil {
		return err
	}
	return f.Close()
}

// vm describes the container's VM.
func (c *Container) vm(boot Boot, all []*connection, disks []volumeDisk) (VM, error) {
	logPath := filepath.Join(c.dir, logFile)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.logStart = 0
	if st, err := os.Stat(logPath); err == nil {
		c.logStart = st.Size()
	}
	c.logSeen = c.logStart
	conf := c.config(all, disks)
	text, err := conf.Strings()
	if errors.Is(err, wire.ErrConfigTooLarge) {
		return VM{}, refuse(ErrInvalid, "the container's command and environment are too large for a VM: %v", err)
	}
	if err != nil {
		return VM{}, err
	}
	vm := VM{
		ID: c.id, Dir: c.dir, RuntimeDir: c.runtimeDir(), Boot: boot, Config: text,
		Memory: c.spec.Memory, CPUs: c.spec.CPUs, CPUSet: c.spec.CPUSet, Disk: filepath.Join(c.dir, "disk.vmdk"), DiskSerial: rootSerial, DiskSize: c.m.o.Disks.Capacity(),
		Unsafe: c.spec.AutoRemove, Log: logPath, Console: filepath.Join(c.dir, consoleFile),
	}
	if vm.Memory == 0 {
		vm.Memory = DefaultMemory
	}
	if vm.CPUs == 0 {
		vm.CPUs = defaultCPUs
	}
	for _, d := range disks {
		vm.Disks = append(vm.Disks, d.Disk)
	}
	vm.Shares = c.shares()
	for _, k := range all {
		vm.NICs = append(vm.NICs, k.nic())
	}
	return vm, nil
}

func (c *Container) runtimeDir() string { return filepath.Join(c.m.o.RuntimeDir, c.id[:12]) }

// config is what the guest is told. Call it with mu held.
func (c *Container) config(all []*connection, disks []volumeDisk) wire.Config {
	s := &c.spec
	conf := wire.Config{
		ID: c.id, Token: c.token, Hostname: s.Hostname, Domain: s.Domain, Args: s.Args, Env: s.Env, Dir: s.Dir,
		User: s.User, Groups: s.Groups, TTY: s.TTY, Size: s.Size, OpenStdin: s.OpenStdin, StopSignal: int(s.StopSignal),
		Root: wire.Root{Serial: rootSerial, ReadOnly: s.ReadOnlyRoot}, ShmSize: s.ShmSize, Sysctls: withDefaultSysctls(s.Sysctls), Rlimits: s.Rlimits,
		Init: s.Init, Health: s.Health, Restart: s.Restart.wire(c.restarts), Privileges: s.Privileges, Limits: s.Limits, Umask: s.Umask, Masked: s.Masked, ReadOnly: s.ReadOnly,
		Seed: make([]byte, 64), Time: time.Now().UnixNano(),
	}
	rand.Read(conf.Seed)
	if conf.Hostname == "" {
		conf.Hostname = c.id[:12]
	}
	for _, t := range s.Tmpfs {
		conf.Mounts = append(conf.Mounts, wire.Mount{Type: "tmpfs", Target: t.Target, Options: t.Options})
	}
	conf.Mounts = append(conf.Mounts, c.volumeMounts(disks)...)
	conf.Mounts = append(conf.Mounts, c.bindMounts()...)
	sortMounts(conf.Mounts)
	conf.Network = c.guestNetwork(all)
	return conf
}

// withDefaultSysctls adds what docker sets: whoever runs in a container may listen on any port, and ping.
func withDefaultSysctls(own map[string]string) map[string]string {
	all := map[string]string{"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"}
	maps.Copy(all, own)
	return all
}

// awaitStart waits until the guest says that the process runs, or why not.
func (c *Container) awaitStart(r *run) error {
	timeout := time.NewTimer(c.m.o.StartTimeout)
	defer timeout.Stop()
	select {
	case <-r.up:
		return nil
	case <-r.exited:
		select {
		case <-r.ended:
		case <-time.After(killPatience): // it says that it ends, and does not
			if err := r.machine.Kill(); err != nil {
				return err
			}
			select {
			case <-r.ended:
			case <-c.m.closed:
				return ErrClosed
			}
		}
	case <-r.ended:
	case <-timeout.C:
		return errors.Join(fmt.Errorf("the container's process did not run within %v: see %s", c.m.o.StartTimeout, filepath.Join(c.dir, consoleFile)), r.machine.Kill())
	case <-c.m.closed:
		return ErrClosed
	}
	select {
	case <-r.up: // and it has ended since
		return nil
	default:
	}
	exit, _, err := c.exit(r)
	switch {
	case err == nil:
		return &StartError{ExitCode: exit.Code, Message: exit.Error}
	case err != errNoExit:
		return err
	}
	return fmt.Errorf("the VM ended before the container's process ran: %s", c.lastWords(r))
}

// off says whether the VM has ended.
func (r *run) off() bool {
	select {
	case <-r.machine.Done():
		return true
	default:
		return false
	}
}

// failStart records a start that failed, with its VM's end if there is one. Who ran before has still ended then.
func (c *Container) failStart(r *run, before State, err error) {
	if r != nil {
		if !r.off() {
			if killErr := r.machine.Kill(); killErr != nil {
				c.m.o.Log.Warn("kill VM", "container", c.id, "error", killErr)
			}
		}
		select {
		case <-r.ended:
		case <-c.m.closed: // the next Manager learns of it
			return
		}
	}
	code := 128
	var start *StartError
	if errors.As(err, &start) {
		code = start.ExitCode
	}
	c.mu.Lock()
	c.state = State{Status: Created, ExitCode: code, Error: err.Error(), Started: before.Started, Finished: before.Finished, Health: before.Health}
	if !before.Started.IsZero() {
		c.state.Status = Exited
	}
	remove := c.spec.AutoRemove && !c.keep
	c.tellWaiters(NextExit, NotRunning)
	c.notifyLocked()
	c.mu.Unlock()
	c.keepState()
	if remove {
		c.autoRemove()
	}
}
