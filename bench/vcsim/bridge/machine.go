package bridge

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/vmware/govmomi/vim25/types"
	"golang.org/x/sys/unix"

	"vic/containervm/qemu/qmp"
)

const (
	// slots is the PCI bridge that interfaces are plugged into: ACPI plugs there.
	slots = "slots"
	// answerTimeout is how long QEMU may take for a command, and quitTimeout to write its buffers and end.
	answerTimeout = 30 * time.Second
	quitTimeout   = 5 * time.Second
)

// A machine is a QEMU process.
type machine struct {
	ref    types.ManagedObjectReference
	name   string
	dir    string // its files other than those on a datastore
	log    *slog.Logger
	report func(m *machine, nic int32, address string)

	cmd    *exec.Cmd
	said   bytes.Buffer  // its standard error, whole when done
	mon    *qmp.Monitor  // nil before QEMU has answered
	done   chan struct{} // closed when the process has ended
	ending atomic.Bool   // the API ends it
	wg     sync.WaitGroup

	// What it has. The lock is taken after the VM's.
	mu        sync.Mutex
	plugged   map[int32]part
	serials   []backend
	proxied   [maxSerials]*proxied // of the ports, those with a proxy
	listeners map[int32]*listener  // to the interfaces
}

// start starts QEMU with the hardware and returns when the guest runs.
func (m *machine) start(ctx context.Context, program string, h *hardware) error {
	args, err := m.args(h)
	if err != nil {
		return err
	}
	ours, theirs, err := monitorPair()
	if err != nil {
		return err
	}
	m.cmd = exec.Command(program, args...)
	m.cmd.ExtraFiles = []*os.File{theirs} // descriptor 3
	m.cmd.Stderr = &m.said
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	m.done = make(chan struct{})
	m.plugged, m.listeners = map[int32]part{}, map[int32]*listener{}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // whose end would be taken for the program's, and end QEMU
		err := m.cmd.Start()
		started <- err
		if err == nil {
			_ = m.cmd.Wait() // the guest's end and a kill say nothing by it
			close(m.done)
		}
	}()
	err = <-started
	err = errors.Join(err, theirs.Close())
	if m.cmd.Process == nil {
		return errors.Join(err, ours.Close())
	}
	if err = errors.Join(err, m.greet(ctx, ours)); err == nil {
		err = m.equip(ctx, h)
	}
	if err == nil {
		return nil
	}
	_ = m.cmd.Process.Kill() // it may have ended
	<-m.done
	err = errors.Join(err, m.close())
	if said := strings.TrimSpace(m.said.String()); said != "" {
		err = fmt.Errorf("%w: %s", err, said)
	}
	return err
}

// greet makes the monitor, of a connection that is then its own.
func (m *machine) greet(ctx context.Context, conn net.Conn) (err error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	m.mon, err = qmp.New(ctx, conn)
	return err
}

// equip plugs in what may come and go, connects serial ports, and lets the guest begin.
func (m *machine) equip(ctx context.Context, h *hardware) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, s := range h.serials {
		if err := m.connect(ctx, i, s); err != nil {
			return err
		}
		m.serials = append(m.serials, s)
	}
	for key, p := range h.plugged {
		if err := m.plug(ctx, key, p); err != nil {
			return err
		}
	}
	return m.execute(ctx, "cont", nil)
}

// args are QEMU's, for all that stays as long as it runs. The guest waits.
func (m *machine) args(h *hardware) ([]string, error) {
	serial, err := vmwareUUID(h.uuid)
	if err != nil {
		return nil, err
	}
	a := []string{"-name", strings.ReplaceAll(h.name, ",", ",,"), "-uuid", h.uuid, "-smbios", "type=1,serial=VMware-" + serial, "-accel", "tcg",
		"-cpu", "qemu64,+rdrand", // without RDRAND a guest waits for entropy
		"-machine", "pc-q35-7.2,usb=off,smbus=off,hpet=off,vmport=off,dump-guest-core=off",
		"-nodefaults", "-no-user-config", "-display", "none", "-S",
		"-m", strconv.Itoa(h.memoryMB), "-smp", strconv.Itoa(h.cpus),
		"-chardev", "socket,id=monitor,fd=3", "-mon", "chardev=monitor,mode=control",
		"-device", "pci-bridge,id=" + slots + ",chassis_nr=1,shpc=off,msi=off",
	}
	for i := range h.serials {
		a = append(a, "-chardev", fmt.Sprintf("null,id=serial%d", i), "-device", fmt.Sprintf("isa-serial,index=%d,chardev=serial%d", i, i))
	}
	for i, s := range h.strings { // by files, so that nothing of it shows in process arguments
		path := filepath.Join(m.dir, fmt.Sprintf("string%d", i))
		if err := os.WriteFile(path, []byte(s), 0600); err != nil {
			return nil, err
		}
		a = append(a, "-smbios", "type=11,path="+strings.ReplaceAll(path, ",", ",,"))
	}
	for _, p := range append(h.controllers, h.cds...) {
		if p.block != nil {
			text, err := json.Marshal(p.block)
			if err != nil {
				return nil, err
			}
			a = append(a, "-blockdev", string(text))
		}
		text, err := json.Marshal(p.device)
		if err != nil {
			return nil, err
		}
		a = append(a, "-device", string(text))
	}
	return a, nil
}

// monitorPair makes the two ends of the monitor's connection.
func monitorPair() (ours net.Conn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make monitor: %w", err)
	}
	mine := os.NewFile(uintptr(fds[0]), "monitor")
	theirs = os.NewFile(uintptr(fds[1]), "monitor")
	ours, err = net.FileConn(mine)
	if err = errors.Join(err, mine.Close()); err != nil {
		return nil, nil, errors.Join(err, theirs.Close())
	}
	return ours, theirs, nil
}

// execute runs a command of QMP's, for so long as one may take.
func (m *machine) execute(ctx context.Context, name string, args any) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	_, err := m.mon.Execute(ctx, name, args)
	return err
}

// end has QEMU write its buffers and end, and if it does not kills it. It returns when there is none any more.
func (m *machine) end() {
	m.ending.Store(true)
	ctx, cancel := context.WithTimeout(context.Background(), quitTimeout)
	defer cancel()
	if _, err := m.mon.Execute(ctx, "quit", nil); err == nil || errors.Is(err, qmp.ErrGone) {
		select {
		case <-m.done:
		case <-ctx.Done():
		}
	}
	_ = m.cmd.Process.Kill() // it can but have ended
	<-m.done
}

// close gives back what the process left. It has ended.
func (m *machine) close() error {
	m.mu.Lock()
	if m.mon != nil {
		m.mon.Close()
	}
	var err error
	for _, l := range m.listeners {
		err = errors.Join(err, l.close())
	}
	for _, x := range m.proxied {
		if x != nil {
			err = errors.Join(err, x.close())
		}
	}
	m.mu.Unlock()
	m.wg.Wait()
	return err
}
