//go:build linux

package main

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vic/containervm/appliance"
	"vic/tether"
	"vic/tether/wire"
)

const (
	program      = "/bin/vic"
	notifySocket = "/run/vic.notify"
	// endGrace is how long vic serve may take to end. It gives its requests 20 s.
	endGrace = 30 * time.Second
)

// serve runs vic serve until the VM is to end, again and again.
func (h *host) serve() error {
	if err := raiseLimits(); err != nil {
		return err
	}
	if err := h.awaitReady(); err != nil {
		return err
	}
	args := append([]string{program, "serve", "--store", appliance.Store}, h.conf.Args...)
	env := append([]string{"PATH=/bin", "HOME=/root", "TMPDIR=" + tempFolder, "NOTIFY_SOCKET=" + notifySocket}, h.conf.Env...)
	for pause := time.Duration(0); h.ctx.Err() == nil; {
		began := time.Now()
		err := h.serveOnce(args, env)
		if h.ctx.Err() != nil {
			break
		}
		pause = wire.BackOff(pause, time.Since(began))
		h.log.Error("vic serve ended: it is started again", "error", err, "in", pause)
		h.status.restart(err)
		select {
		case <-h.ctx.Done():
		case <-time.After(pause):
		}
	}
	return nil
}

// serveOnce runs vic serve to its end, and says how it ended. When the VM is to end, vic serve is asked to as well, and waited
// for so long.
func (h *host) serveOnce(args, env []string) error {
	lines := &lineWriter{line: h.out.line}
	p, err := h.machine.Start(args, env, lines)
	if err != nil {
		return err
	}
	ended := make(chan wire.Exit, 1)
	go func() { ended <- p.Wait() }()
	select {
	case exit := <-ended:
		lines.flush()
		return ending(exit, lines.last)
	case <-h.ctx.Done():
	}
	var gone *wire.Error
	if err := p.Signal(unix.SIGTERM); err != nil && !errors.As(err, &gone) {
		h.diagnose(err)
	}
	select {
	case <-ended:
		lines.flush()
	case <-time.After(endGrace):
		h.log.Warn("vic serve does not end: it is killed", "after", endGrace)
	}
	return nil
}

// ending words how vic serve ended, which its last line mostly says.
func ending(exit wire.Exit, last string) error {
	how := fmt.Sprintf("vic serve: exit code %d", exit.Code)
	if exit.Signal != 0 {
		how = fmt.Sprintf("vic serve: killed by signal %d", exit.Signal)
	}
	if last != "" {
		how += ": " + last
	}
	return errors.New(how)
}

// awaitReady listens for vic serve's saying that it is ready, as systemd does (sd_notify(3)).
func (h *host) awaitReady() error {
	if err := os.MkdirAll("/run", 0o755); err != nil {
		return err
	}
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notifySocket, Net: "unixgram"})
	if err != nil {
		return err
	}
	go func() { // for the life of the VM
		buf := make([]byte, 4096)
		for {
			n, err := l.Read(buf)
			if err != nil {
				h.diagnose(fmt.Errorf("wait for vic serve to be ready: %w", err))
				return
			}
			for line := range strings.Lines(string(buf[:n])) {
				if strings.TrimSpace(line) == "READY=1" {
					h.status.serve()
					h.log.Info("serving", "addresses", addressGroup(h.status.now().Addresses))
				}
			}
		}
	}()
	return nil
}

// addressGroup is what the log shows of addresses.
func addressGroup(all map[string][]netip.Prefix) slog.Value {
	var attrs []slog.Attr
	for _, name := range slices.Sorted(maps.Keys(all)) {
		attrs = append(attrs, slog.Any(name, all[name]))
	}
	return slog.GroupValue(attrs...)
}

// findState returns the device file of the state disk.
func findState(m *tether.Machine) (device string, err error) {
	err = m.Await(fmt.Sprintf("state disk, which is unit %d of the first paravirtual SCSI controller", appliance.StateUnit), func() (bool, error) {
		device, err = scsiDisk("/sys", appliance.StateUnit)
		return device != "", err
	})
	return device, err
}
