package tether

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"vic/tether/wire"
)

// An enclosure is what keeps the container's processes apart from the tether.
type enclosure struct {
	group *cgroup // nil leaves them in the tether's
	// pids is the PID namespace of the container's process; nil before it runs, and for ever if it has none
	// of its own.
	pids *os.File
}

// fork starts cmd with files as its streams. The channel gets its status.
//
// What a process may not have it must not inherit, so that each is started on a thread of its own, which
// gives that up first and ends after.
func (r *reaper) fork(cmd *command, files []uintptr) (pid int, status <-chan syscall.WaitStatus, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		r.mu.Lock()
		defer r.mu.Unlock()
		pid, status, err = r.spawn(cmd, files)
	}()
	<-done
	return pid, status, err
}

func (r *reaper) spawn(cmd *command, files []uintptr) (int, <-chan syscall.WaitStatus, error) {
	if r.closed {
		return 0, nil, &wire.Error{Kind: wire.NotRunning, Message: "container is not running"}
	}
	if err := cmd.giveUp(); err != nil {
		return 0, nil, err
	}
	sys := &syscall.SysProcAttr{
		Credential: cmd.cred, Setsid: true, Setctty: cmd.tty,
		// It then stops before its first instruction.
		Ptrace: len(cmd.limits) > 0 || cmd.privileges.OOMScoreAdj != 0 || cmd.stopped != nil,
	}
	if g := cmd.in.group; g != nil {
		sys.UseCgroupFD, sys.CgroupFD, sys.Unshareflags = true, int(g.dir.Fd()), unix.CLONE_NEWCGROUP
	}
	if cmd.newPIDs {
		sys.Cloneflags = unix.CLONE_NEWPID
	}
	pid, err := syscall.ForkExec(cmd.path, cmd.args, &syscall.ProcAttr{Dir: cmd.dir, Env: cmd.env, Files: files, Sys: sys})
	if err != nil {
		return 0, nil, notStarted(cmd.path, err)
	}
	if sys.Ptrace {
		if err := r.prepare(pid, cmd); err != nil {
			return 0, nil, err
		}
	}
	status := make(chan syscall.WaitStatus, 1)
	r.children[pid] = status
	return pid, status, nil
}

// notStarted words what execve(2) said as runc does.
func notStarted(path string, err error) error {
	code := 126
	if errors.Is(err, syscall.ENOENT) { // of an interpreter
		code = 127
	}
	return &wire.Error{Kind: wire.NotStarted, ExitCode: code, Message: fmt.Sprintf("exec %s: %v", path, err)}
}

// giveUp takes from this thread what the process is not to inherit.
func (cmd *command) giveUp() error {
	if err := takeTurns(); err != nil {
		return err
	}
	if ns := cmd.in.pids; ns != nil && !cmd.newPIDs {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWPID); err != nil {
			return fmt.Errorf("enter PID namespace: %w", err)
		}
	}
	if caps := cmd.privileges.Capabilities; caps != nil {
		// The bounding set is enough: an exec as root has what is in it, one as anybody else nothing, and no
		// file gives more (capabilities(7)). The inheritable and ambient sets of PID 1 are empty.
		for n := range 64 {
			if *caps&(1<<n) != 0 {
				continue
			}
			err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(n), 0, 0, 0)
			if err == unix.EINVAL {
				break // the kernel has no such capability, nor any above
			}
			if err != nil {
				return fmt.Errorf("drop capability %d: %w", n, err)
			}
		}
	}
	if cmd.umask != nil {
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("set umask: %w", err)
		}
		unix.Umask(int(*cmd.umask & 0o777))
	}
	if cmd.privileges.NoNew {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("set no new privileges: %w", err)
		}
	}
	return nil
}

// prepare completes a process that has stopped in exec, and lets it go. If it cannot, it kills and
// reaps the process.
func (r *reaper) prepare(pid int, cmd *command) (err error) {
	var ws syscall.WaitStatus
	for {
		_, err = syscall.Wait4(pid, &ws, 0, nil)
		if err != syscall.EINTR {
			break
		}
	}
	if err != nil || !ws.Stopped() {
		return fmt.Errorf("stop process before its limits: status %#x, %w", ws, err)
	}
	for _, l := range cmd.limits {
		err = unix.Prlimit(pid, l.Resource, &unix.Rlimit{Cur: l.Soft, Max: l.Hard}, nil)
		if err != nil {
			err = &wire.Error{Kind: wire.NotStarted, ExitCode: 126, Message: fmt.Sprintf("error setting rlimit %d: %v", l.Resource, err)}
			break
		}
	}
	if adj := cmd.privileges.OOMScoreAdj; err == nil && adj != 0 {
		err = os.WriteFile(ownProc(fmt.Sprintf("%d/oom_score_adj", pid)), []byte(strconv.Itoa(adj)), 0)
	}
	if err == nil && cmd.stopped != nil {
		err = cmd.stopped(pid)
	}
	if err == nil {
		if err = unix.PtraceDetach(pid); err == nil {
			return nil
		}
	}
	_ = unix.Kill(pid, unix.SIGKILL) // it is a child and not reaped, so it is there
	_, _ = syscall.Wait4(pid, &ws, 0, nil)
	return err
}
