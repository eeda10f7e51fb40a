package tether

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A helper is a process that mounts one file system and ends. What proc and cgroup2 show depends on the
// namespaces of who mounts them, and a process cannot go over into all of them.
type helper struct {
	unshare uintptr // namespaces to leave first
	fs, dir *byte
	flags   uintptr
	data    *byte
}

func newHelper(fs, dir string, flags uintptr, data string) (*helper, error) {
	h := &helper{flags: flags}
	var err [3]error
	h.fs, err[0] = unix.BytePtrFromString(fs)
	h.dir, err[1] = unix.BytePtrFromString(dir)
	h.data, err[2] = unix.BytePtrFromString(data)
	return h, errors.Join(err[:]...)
}

// cloneArgs is struct clone_args of clone3(2), as of Linux 5.7.
type cloneArgs struct {
	flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls, setTID, setTIDSize, cgroup uint64
}

// run carries the mount out in a child of this thread, in a control group if that is not nil. Call it
// with the reaper's lock held.
func (h *helper) run(group *os.File) error {
	args := &cloneArgs{exitSignal: uint64(unix.SIGCHLD)}
	if group != nil {
		args.flags, args.cgroup = unix.CLONE_INTO_CGROUP, uint64(group.Fd())
	}
	pid, errno := h.fork(args)
	if errno != 0 {
		return fmt.Errorf("fork: %w", errno)
	}
	for {
		var ws syscall.WaitStatus
		_, err := syscall.Wait4(int(pid), &ws, 0, nil)
		switch {
		case err == syscall.EINTR:
			continue
		case err != nil:
			return err
		case !ws.Exited():
			return fmt.Errorf("helper ended with status %#x", ws)
		case ws.ExitStatus() != 0:
			return syscall.Errno(ws.ExitStatus())
		}
		return nil
	}
}

// fork makes the child. It is a copy of a runtime that has lost all threads but one, so it may do nothing
// but system calls: no allocation, no growth of its stack.
//
//go:norace
//go:nosplit
func (h *helper) fork(args *cloneArgs) (uintptr, syscall.Errno) {
	pid, _, errno := unix.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(args)), unsafe.Sizeof(*args), 0)
	if errno != 0 || pid != 0 {
		return pid, errno
	}
	if h.unshare != 0 {
		_, _, errno = unix.RawSyscall(unix.SYS_UNSHARE, h.unshare, 0, 0)
	}
	if errno == 0 {
		_, _, errno = unix.RawSyscall6(unix.SYS_MOUNT, uintptr(unsafe.Pointer(h.fs)), uintptr(unsafe.Pointer(h.dir)),
			uintptr(unsafe.Pointer(h.fs)), h.flags, uintptr(unsafe.Pointer(h.data)), 0)
	}
	for {
		unix.RawSyscall(unix.SYS_EXIT_GROUP, uintptr(errno), 0, 0)
	}
}
