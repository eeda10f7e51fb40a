package qemu

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"vic/containervm"
	"vic/containervm/qemu/qmp"
)

// machine is a QEMU process, ours or one that was found.
type machine struct {
	vm   containervm.VM
	info containervm.MachineInfo // but for the reason
	// process is a pidfd: it names the process even if its number is used again, and is readable once
	// it has ended.
	process *os.File
	mon     *qmp.Monitor // nil if QEMU does not answer
	paused  atomic.Bool

	done    chan struct{}
	watch   sync.WaitGroup // whoever closes done
	kills   sync.WaitGroup
	closing chan struct{}
	close   sync.Once
}

var errNoAnswer = errors.New("qemu: the VM does not answer")

// quitTimeout is how long QEMU may take to write its buffers and end.
const quitTimeout = 3 * time.Second

// openProcess finds the process that wrote a VM's pid file, if it still runs: QEMU holds a lock on the file
// from before it writes to it until it ends.
func openProcess(vm containervm.VM) (int, *os.File, error) {
	f, err := os.Open(socket(vm, pidFile))
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil, containervm.ErrNoMachine
	} else if err != nil {
		return 0, nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 32))
	if err != nil {
		return 0, nil, err
	}
	pid, err := strconv.Atoi(string(bytes.TrimSpace(b)))
	if err != nil || pid <= 1 {
		return 0, nil, containervm.ErrNoMachine // not QEMU's: it writes the file in one go
	}
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) { // EINVAL: no number of a process
		return 0, nil, containervm.ErrNoMachine
	} else if err != nil {
		return 0, nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	process := os.NewFile(uintptr(fd), "pidfd")
	// The number may be somebody else's by now; as long as QEMU has its lock it is QEMU's.
	lock := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lock); err != nil || lock.Type == unix.F_UNLCK {
		process.Close()
		if err == nil {
			err = containervm.ErrNoMachine
		}
		return 0, nil, err
	}
	return pid, process, nil
}

// newMachine watches over a process.
func newMachine(vm containervm.VM, info containervm.MachineInfo, process *os.File, mon *qmp.Monitor) *machine {
	m := &machine{vm: vm, info: info, process: process, mon: mon,
		done: make(chan struct{}), closing: make(chan struct{})}
	m.watch.Go(func() {
		ended := false
		raw, err := process.SyscallConn()
		if err == nil {
			err = raw.Read(func(fd uintptr) bool {
				ended = readable(int(fd))
				return ended
			})
		}
		_ = err // it is process's Close
		if ended {
			close(m.done)
		}
	})
	return m
}

// reap lets the kernel forget the process, our child, when it has ended.
func (m *machine) reap(child *os.Process) {
	m.watch.Go(func() {
		select {
		case <-m.done:
			_ = child.Kill()    // what serves folders to a VM that has ended ends by itself, or so
			_, _ = child.Wait() // the exit code is not of interest: the guest's log has its own
		case <-m.closing:
			_ = child.Release() // init reaps it when we have ended
		}
	})
}

func readable(fd int) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 0)
		if !errors.Is(err, unix.EINTR) {
			return n > 0
		}
	}
}

func (m *machine) Info() containervm.MachineInfo {
	i := m.info
	i.Paused = m.paused.Load()
	if m.mon != nil {
		i.Reason = m.mon.Reason()
	}
	return i
}

func (m *machine) Done() <-chan struct{} { return m.done }

func (m *machine) Dial(ctx context.Context, end string) (net.Conn, error) {
	conn, err := dialUnix(ctx, socket(m.vm, end))
	if err != nil {
		return nil, fmt.Errorf("connect to %s of VM: %w", end, err)
	}
	return conn, nil
}

// dialTurn is how long dialUnix waits in the kernel before it looks at its context.
const dialTurn = 100 * time.Millisecond

// dialUnix waits while the listener's queue is full, where net.Dialer gives up with EAGAIN: QEMU's queue
// has room for one, and QEMU accepts none as long as the connection before is open.
func dialUnix(ctx context.Context, path string) (net.Conn, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	timeout := unix.NsecToTimeval(dialTurn.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &timeout); err != nil {
		return nil, fmt.Errorf("set time to connect: %w", err)
	}
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		err := unix.Connect(fd, &unix.SockaddrUnix{Name: path})
		switch {
		case err == nil:
			return net.FileConn(f)
		case !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR):
			return nil, fmt.Errorf("connect: %w", err)
		}
	}
}

// Pause implements containervm.Machine.
func (m *machine) Pause(ctx context.Context) error { return m.setPaused(ctx, "stop", true) }

// Resume implements containervm.Machine.
func (m *machine) Resume(ctx context.Context) error { return m.setPaused(ctx, "cont", false) }

func (m *machine) setPaused(ctx context.Context, command string, paused bool) error {
	if m.mon == nil {
		return errNoAnswer
	}
	ctx, cancel := context.WithTimeout(ctx, monitorTimeout)
	defer cancel()
	if _, err := m.mon.Execute(ctx, command, nil); err != nil {
		return err
	}
	m.paused.Store(paused)
	return nil
}

// learnPaused asks a QEMU that was found whether its guest stands still.
func (m *machine) learnPaused(ctx context.Context) error {
	if m.mon == nil {
		return nil
	}
	text, err := m.mon.Execute(ctx, "query-status", nil)
	if err != nil {
		return err
	}
	var status struct {
		Status string `json:"status"`
	}
	if err := json.Unmarshal(text, &status); err != nil {
		return fmt.Errorf("parse status: %w", err)
	}
	m.paused.Store(status.Status == "paused")
	return nil
}

// Kill has QEMU write its buffers and end, and if it does not kills the process.
func (m *machine) Kill() error {
	select {
	case <-m.done:
		return nil
	default:
	}
	if m.mon == nil {
		return m.signal(unix.SIGKILL)
	}
	m.kills.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), quitTimeout)
		defer cancel()
		if _, err := m.mon.Execute(ctx, "quit", nil); err == nil || errors.Is(err, qmp.ErrGone) {
			select {
			case <-m.done:
				return
			case <-ctx.Done():
			case <-m.closing:
			}
		}
		_ = m.signal(unix.SIGKILL) // it can but have ended
	})
	return nil
}

func (m *machine) signal(sig unix.Signal) error {
	raw, err := m.process.SyscallConn()
	if err != nil {
		return err
	}
	if e := raw.Control(func(fd uintptr) { err = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); e != nil {
		return e
	}
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

func (m *machine) Close() error {
	var err error
	m.close.Do(func() {
		close(m.closing)
		m.kills.Wait()
		if m.mon != nil {
			m.mon.Close()
		}
		err = m.process.Close()
		m.watch.Wait()
	})
	return err
}
