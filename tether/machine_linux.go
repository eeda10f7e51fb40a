package tether

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vic/tether/guestrpc"
	"vic/tether/wire"
)

// A Machine is a VM whose PID 1 is another program than a container's tether. Such a program has from here what the tether
// does for itself: modules and devices, disks, networks, processes, vSphere and the end.
type Machine struct {
	diagnose func(error)
	devices  *devices
	reaper   *reaper
	network  *network
	oem      []string // of a machine that is not VMware's
}

// NewMachine takes over a VM that has just booted: it mounts /proc, /sys and /dev, and loads the modules of the initramfs that the
// hardware asks for. What fails later beside the caller is told to diagnose. Call it once.
func NewMachine(diagnose func(error)) (*Machine, error) {
	if os.Getpid() != 1 {
		return nil, errors.New("tether: only PID 1 has a machine")
	}
	syscall.Umask(022)
	m := &Machine{diagnose: diagnose, reaper: newReaper()}
	if err := mountSystem(); err != nil {
		return nil, err
	}
	var err error
	if m.devices, err = newDevices("/modules"); err != nil {
		return nil, err
	}
	m.devices.probe()
	if !guestrpc.Present() {
		m.oem, err = oemStrings()
	}
	return m, err
}

// Info returns the guestinfo of a key. A machine that is not VMware's has it in an OEM string, KEY=VALUE. The error is
// guestrpc.ErrNoValue if there is none.
func (m *Machine) Info(key string) (string, error) {
	if guestrpc.Present() {
		return guestrpc.Info(key)
	}
	for _, s := range m.oem {
		if value, ok := strings.CutPrefix(s, key+"="); ok {
			return value, nil
		}
	}
	return "", fmt.Errorf("read %s: %w", key, guestrpc.ErrNoValue)
}

// Tell sets the guestinfo of a key. Only a VMware VM has a place for that.
func (m *Machine) Tell(key, value string) error {
	if !guestrpc.Present() {
		return nil
	}
	return guestrpc.SetInfo(key, value)
}

// Await looks the hardware over until found reports true, for half a minute.
func (m *Machine) Await(what string, found func() (bool, error)) error {
	return m.devices.await(what, found)
}

// MountDisk mounts the ext4 of a device that is there, and has it take all of that.
func (m *Machine) MountDisk(device, dir string) error {
	if err := mount(device, dir, "ext4", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return err
	}
	if err := (&volume{device: device, writable: true}).enlarge(); err != nil {
		return fmt.Errorf("enlarge file system of %s: %w", device, err)
	}
	return nil
}

// Connect names the machine and sets its interfaces up, /etc/hosts and /etc/resolv.conf. It may be called again with the same
// until it succeeds, and goes on where it failed.
func (m *Machine) Connect(ctx context.Context, hostname string, n wire.Network) error {
	conf := &wire.Config{Hostname: hostname, Network: n}
	if err := setNames(hostname, ""); err != nil {
		return err
	}
	if m.network == nil {
		if err := loopbackUp(); err != nil {
			return err
		}
		m.network = &network{devices: m.devices, hostname: hostname}
	}
	ctx, cancel := context.WithTimeout(ctx, networkTimeout)
	defer cancel()
	if err := m.network.set(ctx, n.NICs); err != nil {
		return err
	}
	for file, text := range map[string]string{
		"/etc/hostname": hostname + "\n", "/etc/hosts": hosts(conf, m.network.first()), "/etc/resolv.conf": resolvConf(n.DNS, m.network),
	} {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			return err
		}
	}
	m.network.keep(m.diagnose)
	return nil
}

// AddRoute routes a destination by a gateway of an interface.
func (m *Machine) AddRoute(name string, to netip.Prefix, via netip.Addr) error {
	link, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(to.Masked()), Gw: via.AsSlice(), Flags: int(netlink.FLAG_ONLINK)})
	}
	if err != nil {
		return fmt.Errorf("route %v by %v on %s: %w", to, via, name, err)
	}
	return nil
}

// Addresses are those of all interfaces now, by the names of these.
func (m *Machine) Addresses() (map[string][]netip.Prefix, error) {
	links, err := hardwareLinks()
	if err != nil {
		return nil, err
	}
	all := map[string][]netip.Prefix{}
	for _, l := range links {
		nic, err := reportedNIC(l)
		if err != nil {
			return nil, err
		}
		all[l.Attrs().Name] = nic.Addresses
	}
	return all, nil
}

// ServeVMware stands in for VMware Tools for the life of a VMware VM: vSphere shows the guest as running, with its addresses, and
// its "Shut Down Guest OS" comes to shutdown. On any machine changed is called whenever an address has changed.
func (m *Machine) ServeVMware(shutdown func(reboot bool) error, changed func()) {
	report := func([]guestrpc.NIC) error { return nil }
	if guestrpc.Present() {
		tools := &guestrpc.Tools{Shutdown: shutdown, SetClock: stepClock, Diagnose: m.diagnose}
		go tools.Run(context.Background())
		report = func(nics []guestrpc.NIC) error {
			name, err := os.Hostname()
			return errors.Join(err, tools.Report(guestrpc.Guest{Hostname: name, NICs: nics}))
		}
	}
	go func() {
		if err := watchAddresses(m.diagnose, func(nics []guestrpc.NIC) error {
			err := report(nics)
			changed()
			return err
		}); err != nil {
			m.diagnose(err)
		}
	}()
}

// How far the clock may be off before it is set, and how often it is looked at. Below that it is slewed, as NTP daemons do.
const (
	maxSlew    = 500 * time.Millisecond
	clockPause = 5 * time.Minute
)

// KeepClock sets the clock of a VMware VM by its host's, and keeps it so until ctx ends. Other machines have a clock of their own.
func (m *Machine) KeepClock(ctx context.Context) error {
	if !guestrpc.Present() {
		return nil
	}
	if err := followHost(); err != nil {
		return err
	}
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(clockPause):
			}
			if err := followHost(); err != nil {
				m.diagnose(fmt.Errorf("set clock by the host's: %w", err))
			}
		}
	}()
	return nil
}

// followHost brings the clock to the host's: at once if it is far off, or else without a jump.
func followHost() error {
	now, err := guestrpc.HostTime()
	if err != nil {
		return err
	}
	off := time.Until(now)
	if off.Abs() > maxSlew {
		return stepClock(now)
	}
	_, err = unix.Adjtimex(&unix.Timex{Modes: unix.ADJ_OFFSET_SINGLESHOT, Offset: off.Microseconds()})
	return err
}

// A Process is one that a Machine has started.
type Process struct {
	*process
	reaper *reaper
}

// Start runs a program in "/" with these arguments, the first of which is its file, and environment. All its output goes to out.
func (m *Machine) Start(args, env []string, out io.Writer) (*Process, error) {
	cmd := &command{path: args[0], args: args, env: env, dir: "/", cred: new(syscall.Credential)}
	p, err := m.reaper.start(cmd, streams{stdout: out, stderr: out}, wire.Size{})
	if err != nil {
		return nil, err
	}
	return &Process{p, m.reaper}, nil
}

// Wait waits for the process to end, and for its output.
func (p *Process) Wait() wire.Exit {
	exit := p.wait()
	p.drainedSoon()
	return exit
}

// Signal sends the process a signal. The error is a *wire.Error if it has ended.
func (p *Process) Signal(sig syscall.Signal) error { return p.reaper.signal(p.pid, sig) }

// End ends all processes, syncs and unmounts the disks and powers the machine off, or has it boot again. It does not return.
func (m *Machine) End(reboot bool) {
	m.reaper.killAll()
	endMachine(reboot)
}
