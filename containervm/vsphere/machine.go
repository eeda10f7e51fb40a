package vsphere

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"

	"vic/containervm"
	"vic/tether/wire"
)

// A machine is the VM of a container in one of its runs.
type machine struct {
	d    *Driver
	vm   containervm.VM // of which ID, Dir, Log and Console count
	uuid string
	ref  types.ManagedObjectReference

	mu      sync.Mutex // guards what follows; comes after the watcher's
	power   power
	asks    string // what it stands still for
	ran     bool   // it was seen to be on
	reason  string
	moved   chan struct{} // closed, and replaced, when the above changes
	changed chan struct{} // has one when the VM was paused, or let go on, or asks something else

	// hardware is held while the VM is reconfigured, and guards rec from there on.
	hardware sync.Mutex
	rec      record

	mirroring sync.Mutex // held while the log is mirrored
	part      part       // of the log; set before the machine lives

	done   chan struct{}
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup
	kills  sync.WaitGroup
}

const (
	// seenTime is how long the watcher may be behind a task that has ended, before vSphere is asked.
	seenTime = 10 * time.Second
	// killTime bounds what Kill does.
	killTime = time.Minute
)

// newMachine looks for a container's VM and is told of it from then on.
func (d *Driver) newMachine(ctx context.Context, vm containervm.VM) (*machine, error) {
	rec, err := readRecord(vm.Dir)
	if err != nil {
		return nil, err
	}
	m := &machine{d: d, vm: vm, uuid: UUID(vm.ID), rec: rec, part: rec.part(), moved: make(chan struct{}), changed: make(chan struct{}, 1), done: make(chan struct{})}
	m.vm.Config, m.vm.Disks = nil, nil // may hold secrets, and are of no use any more
	v := d.watch.subscribe(m)
	if v.power == gone {
		v, err = d.lookUp(ctx, vm.ID)
		if err == nil && v.power != gone {
			err = d.watch.adopt(ctx, v)
		}
		if err != nil {
			d.watch.unsubscribe(m)
			return nil, err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ref = v.ref
	if m.power == gone { // else there is later news
		m.power, m.asks = v.power, v.question()
	}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	return m, nil
}

// live begins to look after a VM that runs.
func (m *machine) live() {
	m.wg.Go(m.follow)
	m.wg.Go(m.listen)
}

// observe takes in what the watcher has seen.
func (m *machine) observe(p power, asks string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if (m.power == suspended) != (p == suspended) || m.asks != asks {
		select {
		case m.changed <- struct{}{}:
		default:
		}
	}
	m.power, m.asks, m.ran = p, asks, m.ran || p == on
	close(m.moved)
	m.moved = make(chan struct{})
}

func (m *machine) state() power {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.power
}

// await waits until the VM is seen to be as wanted. It reports whether it was within seenTime.
func (m *machine) await(ctx context.Context, wanted func() bool) (bool, error) {
	t := time.NewTimer(seenTime)
	defer t.Stop()
	for {
		m.mu.Lock()
		ok, moved := wanted(), m.moved
		m.mu.Unlock()
		if ok {
			return true, nil
		}
		select {
		case <-moved:
		case <-t.C:
			return false, nil
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
}

// awaitOn waits until the watcher has seen a VM that was powered on. One that was off again before anybody looked has ended.
func (m *machine) awaitOn(ctx context.Context) error {
	ok, err := m.await(ctx, func() bool { return m.ran || m.power == gone })
	if err != nil || ok {
		return err
	}
	return m.ask(ctx)
}

// ask asks for the VM's power state, past the watcher.
func (m *machine) ask(ctx context.Context) error {
	var p power
	err := m.d.o.Session.Call(ctx, func() (err error) {
		p, err = object.NewVirtualMachine(m.d.client, m.ref).PowerState(ctx)
		return err
	})
	if isGone(err) {
		p, err = gone, nil
	}
	if err != nil {
		return err
	}
	asks := ""
	if p == on { // what it asks only the watcher knows
		m.mu.Lock()
		asks = m.asks
		m.mu.Unlock()
	}
	m.observe(p, asks)
	return nil
}

// follow waits for the VM's end, and for the end of its log.
func (m *machine) follow() {
	for {
		m.mu.Lock()
		p, moved := m.power, m.moved
		m.mu.Unlock()
		if p == off || p == gone {
			break
		}
		select {
		case <-moved:
		case <-m.ctx.Done():
			return
		}
	}
	if err := m.end(m.ctx); err != nil {
		if m.ctx.Err() != nil {
			return // somebody else will find it
		}
		m.d.log.Error("what a container has written last is lost", "container", m.vm.ID, "error", err)
	}
	close(m.done)
}

// Info implements containervm.Machine.
func (m *machine) Info() containervm.MachineInfo {
	m.mu.Lock()
	defer m.mu.Unlock()
	return containervm.MachineInfo{Accel: "vsphere", Paused: m.power == suspended, Reason: m.reason, Question: m.asks, Window: wire.SerialWindow}
}

// Changed implements containervm.Observed.
func (m *machine) Changed() <-chan struct{} { return m.changed }

// Done implements containervm.Machine.
func (m *machine) Done() <-chan struct{} { return m.done }

// Dial implements containervm.Machine.
func (m *machine) Dial(ctx context.Context, end string) (net.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(m.ctx, cancel)
	defer stop()
	go func() { // ends with this call
		select {
		case <-m.done:
			cancel()
		case <-ctx.Done():
		}
	}()
	conn, err := m.dial(ctx, end)
	if err != nil {
		return nil, fmt.Errorf("connect to %s of VM: %w", end, err)
	}
	return conn, nil
}

func (m *machine) dial(ctx context.Context, end string) (net.Conn, error) {
	if end == "control" {
		return m.d.o.Ports.Dial(ctx, m.uuid, ControlService)
	}
	n, ok := m.nic(end)
	switch {
	case !ok:
		return nil, errors.New("there is no such interface")
	case n.Network != "":
		return nil, fmt.Errorf("it is on network %s, which is not the container host's", n.Network)
	case m.d.o.Segment == nil:
		return nil, errors.New("the container host is not on the bridge port group")
	}
	return m.d.o.Segment.Dial(ctx, n.MAC)
}

func (m *machine) nic(end string) (nic, bool) {
	m.hardware.Lock()
	defer m.hardware.Unlock()
	for _, n := range m.rec.NICs {
		if n.End == end {
			return n, true
		}
	}
	return nic{}, false
}

// Pause implements containervm.Machine: it suspends the VM, which takes as long as its memory takes to be written. The guest's
// connections to the proxy break, and are made again when it goes on.
func (m *machine) Pause(ctx context.Context) error {
	return m.set(ctx, suspended, func(vm *object.VirtualMachine) error {
		return m.d.o.Session.Do(ctx, func() (*object.Task, error) { return vm.Suspend(ctx) })
	})
}

// Resume implements containervm.Machine.
func (m *machine) Resume(ctx context.Context) error {
	return m.set(ctx, on, func(*object.VirtualMachine) error { return m.d.powerOn(ctx, m.ref) })
}

// set brings the VM into a power state, and waits until the watcher has seen it.
func (m *machine) set(ctx context.Context, p power, do func(*object.VirtualMachine) error) error {
	if err := m.d.Available(); err != nil {
		return err
	}
	if err := do(object.NewVirtualMachine(m.d.client, m.ref)); err != nil && !isIn(err, p) {
		return err
	}
	ok, err := m.await(ctx, func() bool { return m.power == p || m.power == off || m.power == gone })
	if err != nil || ok {
		return err
	}
	return m.ask(ctx)
}

// Kill implements containervm.Machine.
func (m *machine) Kill() error {
	select {
	case <-m.done:
		return nil
	default:
	}
	if err := m.d.Available(); err != nil {
		return err
	}
	m.kills.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), killTime)
		defer cancel()
		if err := m.d.powerOff(ctx, m.ref); err != nil {
			m.d.log.Error("power off VM", "container", m.vm.ID, "error", err)
			return
		}
		m.d.watch.settle(m.ref)
	})
	return nil
}

// AddNIC implements containervm.Machine.
func (m *machine) AddNIC(ctx context.Context, n containervm.NIC) error {
	m.hardware.Lock()
	defer m.hardware.Unlock()
	var changes []types.BaseVirtualDeviceConfigSpec
	at := m.place(n.End)
	if at >= 0 {
		old, err := m.pull(ctx, m.rec.NICs[at])
		if err != nil {
			return err
		}
		changes = append(changes, old...)
	} else if len(m.rec.NICs) >= mostNICs {
		return refuse(containervm.ErrInvalid, "a virtual machine on vSphere has at most %d network interfaces", mostNICs)
	}
	c, err := m.d.card(ctx, nextKey, nic(n))
	if err != nil {
		return err
	}
	rec := m.rec
	rec.NICs = append(slices.DeleteFunc(slices.Clone(rec.NICs), func(o nic) bool { return o.End == n.End }), nic(n))
	if err := rec.write(m.vm.Dir); err != nil {
		return err
	}
	m.rec = rec
	return m.d.reconfigure(ctx, m.ref, types.VirtualMachineConfigSpec{DeviceChange: append(changes, c)})
}

// RemoveNIC implements containervm.Machine.
func (m *machine) RemoveNIC(ctx context.Context, end string) error {
	m.hardware.Lock()
	defer m.hardware.Unlock()
	at := m.place(end)
	if at < 0 {
		return nil
	}
	changes, err := m.pull(ctx, m.rec.NICs[at])
	if isGone(err) {
		return nil // with the whole VM
	}
	if err != nil {
		return err
	}
	if len(changes) > 0 {
		if err := m.d.reconfigure(ctx, m.ref, types.VirtualMachineConfigSpec{DeviceChange: changes}); err != nil {
			return err
		}
	}
	rec := m.rec
	rec.NICs = slices.Delete(slices.Clone(rec.NICs), at, at+1)
	if err := rec.write(m.vm.Dir); err != nil {
		return err
	}
	m.rec = rec
	return nil
}

// place is the index of the interface at an end, -1 if there is none.
func (m *machine) place(end string) int {
	return slices.IndexFunc(m.rec.NICs, func(n nic) bool { return n.End == end })
}

// pull is the change that pulls an interface out, none if it is not there.
func (m *machine) pull(ctx context.Context, n nic) ([]types.BaseVirtualDeviceConfigSpec, error) {
	all, err := m.d.devices(ctx, m.ref)
	if err != nil {
		return nil, err
	}
	for _, c := range devices[*types.VirtualVmxnet3](all) {
		if c.MacAddress == n.MAC {
			return []types.BaseVirtualDeviceConfigSpec{remove(c)}, nil
		}
	}
	return nil, nil
}

// Close implements containervm.Machine.
func (m *machine) Close() error {
	m.kills.Wait()
	m.shut()
	return nil
}

// shut ends what looks after the VM.
func (m *machine) shut() {
	m.d.watch.unsubscribe(m)
	m.cancel()
	m.wg.Wait()
}
