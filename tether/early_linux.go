package tether

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The kernel throws away a signal for the first process of a PID namespace that has no handler for it
// (pid_namespaces(7)), as a shell has none before its trap, or a server before it is set up. On an emulated CPU that
// takes long enough for docker run -d and docker stop to be faster. So a signal for a process that began less than
// youth ago waits until it has said what it does with it. Nobody tells when it says so: it is looked at every glance.
const (
	youth  = 3 * time.Second
	glance = 20 * time.Millisecond
)

// early takes over a signal for the container's process if it would be thrown away now, and delivers it when it is not
// or the process is not young any more.
func (g *guest) early(p *process, sig syscall.Signal) bool {
	if g.conf.Init {
		return false // it is no such first process
	}
	switch sig {
	case unix.SIGKILL, unix.SIGSTOP, unix.SIGCONT, unix.SIGCHLD, unix.SIGURG, unix.SIGWINCH:
		return false // nobody needs a handler for these
	}
	wait := func() bool { return time.Since(p.began) < youth && !decided(p.pid, sig) }
	if !wait() {
		return false
	}
	go func() {
		for wait() {
			time.Sleep(glance)
		}
		_ = g.reaper.signal(p.pid, sig) // it may have ended
	}()
	return true
}

// decided says whether a process catches or ignores a signal, or is gone.
func decided(pid int, sig syscall.Signal) bool {
	f, err := os.Open(ownProc(fmt.Sprintf("%d/status", pid)))
	if err != nil {
		return true
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), ":")
		if name != "SigCgt" && name != "SigIgn" {
			continue
		}
		mask, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		if err != nil || mask&(1<<(uint(sig)-1)) != 0 {
			return true
		}
	}
	return lines.Err() != nil
}
