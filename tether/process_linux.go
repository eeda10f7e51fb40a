package tether

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"vic/tether/wire"
)

// A reaper starts all processes of the VM and is the only one to wait for any.
type reaper struct {
	mu       sync.Mutex
	children map[int]*process // running, by PID
	begun    *sync.Cond       // on mu: a child was started
}

func newReaper() *reaper {
	r := &reaper{children: make(map[int]*process)}
	r.begun = sync.NewCond(&r.mu)
	go r.reap() // for the life of the VM
	return r
}

// reap waits for every child, those that were inherited from dead parents too.
func (r *reaper) reap() {
	for {
		var info unix.Siginfo
		err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOWAIT, nil)
		if err == unix.EINTR {
			continue
		}
		r.mu.Lock()
		if err == unix.ECHILD {
			if len(r.children) == 0 {
				r.begun.Wait()
			}
			r.mu.Unlock()
			continue
		}
		for {
			var status unix.WaitStatus
			pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
			if err != nil || pid <= 0 {
				break
			}
			if p := r.children[pid]; p != nil {
				delete(r.children, pid)
				p.exit = exitOf(status)
				close(p.ended)
			}
		}
		r.mu.Unlock()
	}
}

func exitOf(s unix.WaitStatus) wire.Exit {
	if s.Signaled() {
		return wire.Exit{Code: 128 + int(s.Signal()), Signal: int(s.Signal())}
	}
	return wire.Exit{Code: s.ExitStatus()}
}

// streams are where a process's standard streams go. What is nil is /dev/null.
type streams struct {
	stdin          io.Reader
	stdout, stderr io.Writer
}

// A process is a child of the tether.
type process struct {
	pid      int
	terminal *os.File // the master; nil if it has none
	ended    chan struct{}
	exit     wire.Exit // once ended is closed
	output   sync.WaitGroup
	input    io.Closer // this side of stdin, nil if there is none
	reaper   *reaper
}

// start runs the command. With a terminal all output goes to s.stdout.
func (r *reaper) start(cmd *command, s streams, size wire.Size) (*process, error) {
	p := &process{ended: make(chan struct{}), reaper: r}
	var theirs []*os.File
	defer func() {
		for _, f := range theirs {
			f.Close()
		}
	}()
	attr := &syscall.SysProcAttr{Setsid: true, Credential: cmd.credential}
	if cmd.tty {
		master, slave, err := pty.Open()
		if err != nil {
			return nil, fmt.Errorf("open terminal: %w", err)
		}
		p.terminal, p.input, theirs = master, nil, []*os.File{slave, slave, slave}
		if err := prepareTerminal(master, slave, size, cmd.credential.Uid); err != nil {
			return nil, errors.Join(err, master.Close())
		}
		attr.Setctty, attr.Ctty = true, 0
		if err := r.fork(p, cmd, attr, theirs); err != nil {
			return nil, errors.Join(err, master.Close())
		}
		p.pump(s.stdout, master, false)
		p.feed(master, s.stdin, false)
		return p, nil
	}
	pipes, err := openPipes(s)
	if err != nil {
		return nil, err
	}
	theirs = pipes.theirs[:]
	if err := r.fork(p, cmd, attr, theirs); err != nil {
		return nil, errors.Join(err, pipes.close())
	}
	if pipes.stdin != nil {
		p.feed(pipes.stdin, s.stdin, true)
	}
	if pipes.stdout != nil {
		p.pump(s.stdout, pipes.stdout, true)
	}
	if pipes.stderr != nil {
		p.pump(s.stderr, pipes.stderr, true)
	}
	return p, nil
}

// fork starts the process under the lock, so that it is known before it can be reaped.
func (r *reaper) fork(p *process, cmd *command, attr *syscall.SysProcAttr, files []*os.File) error {
	fds := make([]uintptr, len(files))
	for i, f := range files {
		fds[i] = f.Fd()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	restore, err := setLimits(cmd.limits)
	if err != nil {
		return err
	}
	pid, err := syscall.ForkExec(cmd.path, cmd.args, &syscall.ProcAttr{Dir: cmd.dir, Env: cmd.env, Files: fds, Sys: attr})
	restore()
	if err != nil {
		return cmd.startError(err)
	}
	p.pid = pid
	r.children[pid] = p
	r.begun.Signal()
	return nil
}

// setLimits sets the tether's own limits, for a child to inherit, until restore.
func setLimits(limits []wire.Rlimit) (restore func(), err error) {
	var old []func()
	restore = func() {
		for _, f := range old {
			f()
		}
	}
	for _, l := range limits {
		var was unix.Rlimit
		if err := unix.Getrlimit(l.Resource, &was); err != nil {
			restore()
			return nil, fmt.Errorf("resource limit %d: %w", l.Resource, err)
		}
		if err := unix.Setrlimit(l.Resource, &unix.Rlimit{Cur: l.Soft, Max: l.Hard}); err != nil {
			restore()
			return nil, fmt.Errorf("resource limit %d: %w", l.Resource, err)
		}
		old = append(old, func() { _ = unix.Setrlimit(l.Resource, &was) }) // was valid before
	}
	return restore, nil
}

// pipePair are the two ends of the standard streams of a process without a terminal.
type pipePair struct {
	theirs                [3]*os.File
	stdin, stdout, stderr *os.File // ours; nil for /dev/null
}

func openPipes(s streams) (*pipePair, error) {
	p := &pipePair{}
	fail := func(err error) (*pipePair, error) {
		for _, f := range p.theirs {
			f.Close()
		}
		return nil, errors.Join(fmt.Errorf("open standard streams: %w", err), p.close())
	}
	var err error
	for i, x := range []struct {
		wanted bool
		ours   **os.File
	}{{s.stdin != nil, &p.stdin}, {s.stdout != nil, &p.stdout}, {s.stderr != nil, &p.stderr}} {
		switch {
		case !x.wanted:
			p.theirs[i], err = os.OpenFile(os.DevNull, os.O_RDWR, 0)
		case i == 0:
			p.theirs[i], *x.ours, err = os.Pipe()
		default:
			*x.ours, p.theirs[i], err = os.Pipe()
		}
		if err != nil {
			return fail(err)
		}
	}
	return p, nil
}

func (p *pipePair) close() error {
	var errs []error
	for _, f := range []*os.File{p.stdin, p.stdout, p.stderr} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

func prepareTerminal(master, slave *os.File, size wire.Size, uid uint32) error {
	if size != (wire.Size{}) {
		if err := setSize(master, size); err != nil {
			return err
		}
	}
	if err := slave.Chown(int(uid), -1); err != nil {
		return fmt.Errorf("give terminal to user %d: %w", uid, err)
	}
	return nil
}

func setSize(master *os.File, size wire.Size) error {
	if err := pty.Setsize(master, &pty.Winsize{Rows: size.Rows, Cols: size.Cols}); err != nil {
		return fmt.Errorf("set terminal size: %w", err)
	}
	return nil
}

// bindConsole makes /dev/console the terminal of the container's process.
func bindConsole(master *os.File) error {
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		return fmt.Errorf("terminal's number: %w", err)
	}
	if err := unix.Mount(fmt.Sprintf("/dev/pts/%d", n), "/dev/console", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind console: %w", err)
	}
	return nil
}

// pump copies output until all who could write it are gone. A failure to write is the
// writer's affair: the process must not notice.
func (p *process) pump(w io.Writer, r *os.File, closes bool) {
	p.output.Add(1)
	go func() {
		defer p.output.Done()
		buf := make([]byte, wire.MaxPayload)
		for {
			n, err := r.Read(buf)
			if n > 0 && w != nil {
				_, _ = w.Write(buf[:n])
			}
			if err != nil { // io.EOF of a pipe, EIO of a terminal
				break
			}
		}
		if closes {
			r.Close()
		}
	}()
}

// feed copies input until either side ends. A pipe is closed then; a terminal knows no
// end but the control character.
func (p *process) feed(w *os.File, r io.Reader, closes bool) {
	if r == nil {
		return
	}
	go func() { // ends with the source or the process
		_, _ = io.Copy(w, r)
		if s, ok := r.(*stdin); ok {
			s.refuse()
		}
		if closes {
			w.Close()
		} else if eof := byte(4); r != nil {
			_, _ = w.Write([]byte{eof}) // ^D: what closing a terminal's input amounts to
		}
	}()
}

// wait returns how the process ended. Its output may not be complete yet.
func (p *process) wait() wire.Exit {
	<-p.ended
	return p.exit
}

// drained returns when all output has been copied.
func (p *process) drained() {
	p.output.Wait()
	if p.terminal != nil {
		p.terminal.Close()
	}
}

// signal sends a signal to the process, never to another that got its number.
func (p *process) signal(sig syscall.Signal) error {
	p.reaper.mu.Lock()
	defer p.reaper.mu.Unlock()
	if p.reaper.children[p.pid] != p {
		return &wire.Error{Kind: wire.NotRunning, Message: "process has ended"}
	}
	return syscall.Kill(p.pid, sig)
}

// killAll kills every process but the tether, and returns when none is left.
func (r *reaper) killAll() {
	for {
		_ = syscall.Kill(-1, syscall.SIGKILL) // ESRCH: there is none
		err := unix.Waitid(unix.P_ALL, 0, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if err == unix.ECHILD {
			return
		}
	}
}
