package tether

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vic/tether/wire"
)

// drainTime is how long an exec's output is waited for once it has ended, if some
// process that it left behind still holds it. Docker waits as long.
const drainTime = 2 * time.Second

// A reaper starts processes and learns of the end of them and of all orphans.
type reaper struct {
	// mu is held to start, to reap and to signal, so that a process is in the table
	// before it can be reaped and is not signalled after.
	mu       sync.Mutex
	children map[int]chan syscall.WaitStatus
	closed   bool // killAll has been called: nothing more is started
}

func newReaper() *reaper {
	r := &reaper{children: map[int]chan syscall.WaitStatus{}}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, unix.SIGCHLD)
	go func() { // for the life of the VM
		for range ended {
			r.reap()
		}
	}()
	return r
}

func (r *reaper) reap() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		if c := r.children[pid]; c != nil {
			delete(r.children, pid)
			c <- ws // has room for one
		}
	}
}

// killAll kills every process, waits until there are none and lets none be started.
func (r *reaper) killAll() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	for {
		// Again and again: a process that forks may outrun one kill. All orphans are
		// children of this process, so none is left when it has none.
		if err := unix.Kill(-1, unix.SIGKILL); err != nil && err != unix.ESRCH {
			printk("kill all: %v", err)
		}
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, 0, nil)
		if err == syscall.ECHILD {
			return
		}
		if c := r.children[pid]; c != nil {
			delete(r.children, pid)
			c <- ws
		}
	}
}

// reopen lets processes be started again after killAll.
func (r *reaper) reopen() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = false
}

// signal sends a signal to a child that has not been reaped.
func (r *reaper) signal(pid int, sig syscall.Signal) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.children[pid] == nil {
		return &wire.Error{Kind: wire.NotRunning, Message: "process has ended"}
	}
	if err := unix.Kill(pid, sig); err != nil {
		return fmt.Errorf("send signal %d: %w", int(sig), err)
	}
	return nil
}

// streams are what a process is connected to. Nil is /dev/null. With a terminal
// stdout is all its output.
type streams struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	// started is called with the process, which runs, before any output is passed on;
	// it may be nil.
	started func(*process)
}

// A process is one that was started.
type process struct {
	pid      int
	began    time.Time
	terminal *os.File // its master, or nil
	status   <-chan syscall.WaitStatus
	outputs  []*os.File
	copies   sync.WaitGroup // of outputs
}

// start starts cmd and copies its streams.
func (r *reaper) start(cmd *command, s streams, size wire.Size) (_ *process, err error) {
	p := new(process)
	var theirs [3]*os.File
	var input *os.File
	defer func() {
		for _, f := range theirs {
			if f != nil {
				f.Close()
			}
		}
		if err != nil {
			for _, f := range append(p.outputs, input) {
				if f != nil {
					f.Close()
				}
			}
		}
	}()
	writers := []io.Writer{s.stdout}
	if cmd.tty {
		if p.terminal, theirs[0], err = openTerminal(cmd.cred.Uid, size); err != nil {
			return nil, err
		}
		p.outputs, input = []*os.File{p.terminal}, p.terminal
	} else {
		if theirs[0], input, err = inputPipe(s.stdin, cmd.cred.Uid); err != nil {
			return nil, err
		}
		writers = append(writers, s.stderr)
		for i, w := range writers {
			var out *os.File
			if out, theirs[i+1], err = outputPipe(w, cmd.cred.Uid); err != nil {
				return nil, err
			}
			p.outputs = append(p.outputs, out)
		}
	}
	fds := make([]uintptr, 3)
	for i, f := range theirs {
		if f == nil { // of a terminal
			f = theirs[0]
		}
		fds[i] = f.Fd()
	}
	if p.pid, p.status, err = r.fork(cmd, fds); err != nil {
		return nil, err
	}
	p.began = time.Now()
	if s.started != nil {
		s.started(p)
	}
	for i, f := range p.outputs {
		if f != nil {
			p.copies.Go(func() { copyOutput(writers[i], f) })
		}
	}
	if s.stdin != nil && input != nil {
		// Not waited for: it may wait for a host that never sends, and what comes
		// after the process is nobody's.
		go copyInput(input, s.stdin, cmd.tty)
	}
	return p, nil
}

// wait waits for the end of the process, not of its output.
func (p *process) wait() wire.Exit {
	ws := <-p.status
	if ws.Signaled() {
		return wire.Exit{Code: 128 + int(ws.Signal()), Signal: int(ws.Signal())}
	}
	return wire.Exit{Code: ws.ExitStatus()}
}

// drained waits until all output was passed on, when no process is left that
// could write more.
func (p *process) drained() { p.copies.Wait() }

// drainedSoon is drained, but gives processes that hold the output open no longer
// than drainTime.
func (p *process) drainedSoon() {
	for _, f := range p.outputs {
		if f != nil {
			_ = f.SetReadDeadline(time.Now().Add(drainTime)) // pipes and terminals can
		}
	}
	p.copies.Wait()
}

// resize sets the size of the process's terminal.
func (p *process) resize(size wire.Size) error {
	if p.terminal == nil {
		return &wire.Error{Kind: wire.Invalid, Message: "process has no terminal"}
	}
	return setSize(p.terminal, size)
}

// inputPipe is stdin: the process's end, and the one to write to.
func inputPipe(from io.Reader, uid uint32) (theirs, ours *os.File, err error) {
	if from == nil {
		theirs, err = os.Open(os.DevNull)
		return theirs, nil, err
	}
	theirs, ours, err = os.Pipe()
	if err == nil {
		err = theirs.Chown(int(uid), -1) // so that it can open /dev/stdin
	}
	return theirs, ours, err
}

// pipeSize is what an output pipe holds, in bytes: the process and the tether take turns on a CPU, each time that
// one has filled it or emptied it.
const pipeSize = 1 << 20

// outputPipe is stdout or stderr: the end to read from, and the process's.
func outputPipe(to io.Writer, uid uint32) (ours, theirs *os.File, err error) {
	if to == nil {
		theirs, err = os.OpenFile(os.DevNull, os.O_WRONLY, 0)
		return nil, theirs, err
	}
	ours, theirs, err = os.Pipe()
	if err == nil {
		err = theirs.Chown(int(uid), -1) // so that it can open /dev/stdout
	}
	if err == nil {
		_, err = unix.FcntlInt(theirs.Fd(), unix.F_SETPIPE_SZ, pipeSize)
	}
	return ours, theirs, err
}

// copyInput feeds a process until the source ends or the process does not read. A
// source that ends closes a pipe; a terminal stays.
func copyInput(to *os.File, from io.Reader, tty bool) {
	more := false
	if s, ok := from.(*stdin); ok {
		more = s.feed(to)
	} else {
		_, _ = io.Copy(to, struct{ io.Reader }{from}) // either end may be gone, at any time
	}
	if c, ok := from.(interface{ CloseRead() error }); ok && !more {
		_ = c.CloseRead() // tells the host; if that has gone it needs no telling
	}
	if !tty {
		_ = to.Close() // nothing was cached
	}
}

// How much output is read at once: some records of the log, which go to the host together, and of what writes more
// than that, as many as make the way to the host cheap.
const (
	outputSize     = 2 * (wire.MaxPayload - wire.Overhead) // which the port takes in one write
	muchOutputSize = 16 * wire.MaxPayload
)

// copyOutput passes output on until its end. If it cannot be passed on it is thrown
// away, for the process must not wait for what does not come.
func copyOutput(to io.Writer, from *os.File) {
	defer from.Close()
	buf := make([]byte, outputSize)
	pass := func(p []byte) {
		if to == nil || len(p) == 0 {
			return
		}
		if _, err := to.Write(p); err != nil {
			to = nil
		}
	}
	for {
		n, err := from.Read(buf)
		pass(buf[:n])
		if n == len(buf) && n == outputSize {
			buf = make([]byte, muchOutputSize)
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			drain(from, buf, pass)
			return
		}
		if err != nil { // a terminal's end is EIO
			return
		}
	}
}

// drain passes on what is in the pipe now, at most what a pipe holds.
func drain(from *os.File, buf []byte, pass func([]byte)) {
	if from.SetReadDeadline(time.Time{}) != nil {
		return
	}
	conn, err := from.SyscallConn()
	if err != nil {
		return
	}
	for total := 0; total < pipeSize; {
		n := 0
		err := conn.Read(func(fd uintptr) bool {
			n, _ = unix.Read(int(fd), buf)
			return true // do not wait
		})
		if err != nil || n <= 0 {
			return
		}
		pass(buf[:n])
		total += n
	}
}
