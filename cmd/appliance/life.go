//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vic/containervm/appliance"
	"vic/tether"
	"vic/tether/wire"
)

const (
	keyFile     = "/key"     // beside the initramfs, see appliance.WithKey
	versionFile = "/version" // of the ISO

	logFolder  = appliance.StateFolder + "/log"
	tempFolder = appliance.StateFolder + "/tmp"
)

// A host is this VM.
type host struct {
	machine *tether.Machine
	conf    *appliance.Config
	out     *output
	log     *slog.Logger
	status  status

	ctx context.Context // ends when the VM is to end, with errReboot if it is to boot again
	end context.CancelCauseFunc
}

var (
	errPowerOff = errors.New("power off")
	errReboot   = errors.New("reboot")
)

// run lives the life of the VM. It returns only if there is no machine to live in.
func run() error {
	h := &host{out: newOutput(os.Stderr)}
	h.log = slog.New(slog.NewTextHandler(h.out, nil)).With("from", "appliance")
	h.ctx, h.end = context.WithCancelCause(context.Background())
	var err error
	if h.machine, err = tether.NewMachine(h.diagnose); err != nil {
		return err
	}
	h.status.tell = h.tell
	h.watchEnd()
	if err := h.live(); err != nil && h.ctx.Err() == nil {
		h.log.Error("set up: the VM stays as it is until it is powered off", "error", err)
		h.status.fail(err)
		<-h.ctx.Done()
	}
	h.log.Info("end", "how", context.Cause(h.ctx))
	h.status.end()
	h.out.close()
	h.machine.End(context.Cause(h.ctx) == errReboot)
	return nil
}

// diagnose tells about a failure that the appliance lives with.
func (h *host) diagnose(err error) { h.log.Warn(err.Error()) }

// tell tells vSphere how the appliance is.
func (h *host) tell(value string) {
	if err := h.machine.Tell(appliance.StatusKey, value); err != nil {
		h.diagnose(err)
	}
}

// watchEnd has the power button, vSphere and signals end the VM.
func (h *host) watchEnd() {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT)
	go func() {
		for s := range signals {
			h.shutdown(s == unix.SIGINT)
		}
	}()
	if n := watchButtons(func() { h.shutdown(false) }); n == 0 {
		h.log.Warn("there is no power button: only vSphere can shut this VM down cleanly")
	}
	h.machine.ServeVMware(func(reboot bool) error {
		h.shutdown(reboot)
		return nil
	}, h.addressesChanged)
}

func (h *host) shutdown(reboot bool) {
	if reboot {
		h.end(errReboot)
	} else {
		h.end(errPowerOff)
	}
}

func (h *host) addressesChanged() {
	all, err := h.machine.Addresses()
	if err != nil {
		h.diagnose(err)
		return
	}
	h.status.setAddresses(all)
}

// live sets everything up and runs vic serve until the end.
func (h *host) live() error {
	version, err := os.ReadFile(versionFile)
	if err != nil {
		return err
	}
	h.status.start(string(bytes.TrimSpace(version)))
	if h.conf, err = h.configure(); err != nil {
		return err
	}
	h.log.Info("start", "name", h.conf.Name, "version", h.status.now().Version, "configured by", h.conf.Version)
	if err := h.machine.KeepClock(h.ctx); err != nil {
		h.diagnose(err) // the hardware's is there
	}
	if err := h.openState(); err != nil {
		return err
	}
	if err := h.connect(); err != nil {
		return err
	}
	if err := h.startSyslog(); err != nil {
		return err
	}
	if err := h.writeFiles(); err != nil {
		return err
	}
	return h.serve()
}

func (h *host) configure() (*appliance.Config, error) {
	p, err := os.ReadFile(keyFile)
	if err != nil {
		return nil, fmt.Errorf("read key: %w", err)
	}
	var k appliance.Key
	if copy(k[:], p) != len(p) || len(p) != len(k) {
		return nil, fmt.Errorf("key of %d bytes", len(p))
	}
	if err := os.Remove(keyFile); err != nil { // nobody else needs it
		return nil, err
	}
	return appliance.ReadSealed(h.machine.Info, k)
}

// openState mounts the state disk and begins the log on it.
func (h *host) openState() error {
	var device string
	if err := h.unlessEnded(func() (err error) {
		device, err = findState(h.machine)
		return err
	}); err != nil {
		return err
	}
	if err := prepareDevice(device); err != nil {
		return fmt.Errorf("state disk %s: %w", device, err)
	}
	if err := h.machine.MountDisk(device, appliance.StateFolder); err != nil {
		return err
	}
	if err := os.RemoveAll(tempFolder); err != nil {
		return err
	}
	for _, dir := range []string{appliance.Store, logFolder, tempFolder} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	return h.out.openFile(filepath.Join(logFolder, "vic.log"))
}

// unlessEnded does something that waits for hardware, which is no longer waited for when the VM is to end.
func (h *host) unlessEnded(f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-h.ctx.Done():
		return context.Cause(h.ctx)
	}
}

// How long to wait before what a network refused is tried again.
const (
	minNetworkPause = time.Second
	maxNetworkPause = 30 * time.Second
)

// connect sets the network up, however long its DHCP servers are away.
func (h *host) connect() error {
	n := wire.Network{DNS: h.conf.DNS}
	for _, nic := range h.conf.NICs {
		n.NICs = append(n.NICs, nic.NIC)
	}
	for pause := minNetworkPause; ; pause = min(2*pause, maxNetworkPause) {
		err := h.unlessEnded(func() error { return h.machine.Connect(h.ctx, h.conf.HostName(), n) })
		if err == nil {
			break
		}
		if h.ctx.Err() != nil {
			return context.Cause(h.ctx)
		}
		h.log.Error("set up network: it is tried again", "error", err)
		h.status.fail(err)
		select {
		case <-h.ctx.Done():
			return context.Cause(h.ctx)
		case <-time.After(pause):
		}
	}
	for _, nic := range h.conf.NICs {
		for _, r := range nic.Routes {
			if err := h.machine.AddRoute(nic.Name, r.To, r.Via); err != nil {
				return err
			}
		}
	}
	return nil
}

// writeFiles writes what the configuration has of files, into memory.
func (h *host) writeFiles() error {
	for _, f := range slices.Concat(h.conf.Files, h.conf.Secrets) {
		if err := os.MkdirAll(filepath.Dir(f.Path), 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(f.Path, f.Content, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// startSyslog has the log go to a server as well.
func (h *host) startSyslog() error {
	network, address, err := h.conf.SyslogAddress()
	if err != nil || network == "" {
		return err
	}
	h.out.addSyslog(h.ctx, newSyslog(network, address, h.conf.HostName(), h.diagnose))
	return nil
}

// maxFiles is how many files vic serve may have open.
const maxFiles = 1 << 20

func raiseLimits() error {
	// By package syscall, which else gives programs that it starts the limit of before.
	return syscall.Setrlimit(unix.RLIMIT_NOFILE, &syscall.Rlimit{Cur: maxFiles, Max: maxFiles})
}
