package vcsim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A Device is what a machine sees of a disk that it has: a file of qemu-storage-daemon, by FUSE.
type Device struct {
	*os.File
	dir    string
	daemon *os.File // pidfd
}

// OpenDevice makes a device of a disk as it lies on its datastore, by the datastore path of its descriptor. The disk is nobody else's meanwhile.
func (s *Server) OpenDevice(ctx context.Context, disk string) (_ *Device, err error) {
	path, err := s.Path(disk)
	if err != nil {
		return nil, err
	}
	d := &Device{}
	if d.dir, err = os.MkdirTemp("", "vcsim-device-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(d.dir))
		}
	}()
	device, pid := filepath.Join(d.dir, "device"), filepath.Join(d.dir, "pid")
	if err := os.WriteFile(device, nil, 0o600); err != nil {
		return nil, err
	}
	out, err := exec.CommandContext(ctx, "qemu-storage-daemon", "--daemonize", "--pidfile", pid, "--blockdev", "driver=file,node-name=f,filename="+path,
		"--blockdev", "driver=vmdk,node-name=d,file=f", "--export", "type=fuse,id=e,node-name=d,writable=on,mountpoint="+device).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("qemu-storage-daemon: %w: %s", err, out)
	}
	text, err := os.ReadFile(pid)
	if err != nil {
		return nil, err
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return nil, err
	}
	fd, err := unix.PidfdOpen(n, 0)
	if err != nil {
		return nil, err
	}
	d.daemon = os.NewFile(uintptr(fd), "daemon")
	if d.File, err = os.OpenFile(device, os.O_RDWR, 0); err != nil {
		return nil, errors.Join(err, d.end())
	}
	return d, nil
}

// Close ends the daemon, and waits for that: what it has open nobody else may open.
func (d *Device) Close() error {
	return errors.Join(d.File.Close(), d.end(), os.RemoveAll(d.dir))
}

func (d *Device) end() error {
	fd := int(d.daemon.Fd())
	err := unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0)
	for {
		_, pollErr := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
		if !errors.Is(pollErr, unix.EINTR) {
			return errors.Join(err, pollErr, d.daemon.Close())
		}
	}
}
