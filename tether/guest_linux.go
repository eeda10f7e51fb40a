package tether

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vic/tether/wire"
)

// deviceTimeout is how long a disk, port or interface may take to appear.
const deviceTimeout = 30 * time.Second

// A guest is the one container of this VM.
type guest struct {
	devices *devices
	log     *logPort
	control *controlPort
	conf    *wire.Config
	reaper  *reaper
	stdin   *stdin
	health  health
	freezer freezer
	terms   terms
	in      enclosure

	network *network // nil until it is set up, as is files; both guarded by netMu
	files   *netFiles
	netMu   sync.Mutex

	mu      sync.Mutex
	main    *process // nil until it runs, and once it has ended
	execs   []*execution
	restart wire.Restart
	final   chan struct{}  // closed when the process is not to be started again
	reboot  bool           // the VM is to boot again then
	late    syscall.Signal // for a process that was being started when the signal came
}

// Run boots the container, waits for its end and powers the VM off, or boots it again. It returns only
// if this process is not PID 1 of a VM.
func Run() error {
	if os.Getpid() != 1 {
		return errors.New("tether: runs only as PID 1 of a container VM")
	}
	g := &guest{reaper: newReaper(), stdin: newStdin(), final: make(chan struct{})}
	exit, err := g.live()
	if err != nil {
		exit = setupFailure(err)
	}
	g.mu.Lock()
	reboot := g.reboot
	g.mu.Unlock()
	if reboot {
		exit.Again = 1 // at the earliest
	}
	g.record(exit)
	endMachine(reboot)
	panic("unreachable")
}

// live brings the container up and returns how its process ended.
func (g *guest) live() (wire.Exit, error) {
	syscall.Umask(022)
	if err := mountSystem(); err != nil {
		return wire.Exit{}, err
	}
	if err := giveWay(); err != nil {
		return wire.Exit{}, err
	}
	var err error
	if g.devices, err = newDevices("/modules"); err != nil {
		return wire.Exit{}, err
	}
	if g.log, err = openLog(g.devices); err != nil {
		return wire.Exit{}, err
	}
	if g.control, err = openControl(g.devices); err != nil {
		return wire.Exit{}, err
	}
	if g.in.group, err = g.reaper.newCgroup(); err != nil {
		return wire.Exit{}, err
	}
	if g.conf, err = g.configure(); err != nil {
		return wire.Exit{}, err
	}
	if err := seedRandom(g.conf.Seed); err != nil {
		return wire.Exit{}, err
	}
	if err := setClock(g.conf.Time); err != nil {
		return wire.Exit{}, err
	}
	if err := setNames(g.conf.Hostname, g.conf.Domain); err != nil {
		return wire.Exit{}, err
	}
	g.restart, g.terms.limits = g.conf.Restart, g.conf.Limits
	g.serveControl()
	g.serveVMware()
	addresses, err := g.dress()
	if err != nil {
		return wire.Exit{}, err
	}
	return g.runs(addresses)
}

// runOnce runs the container's process to its end, and that of all others.
func (g *guest) runOnce(addresses [][]string) (wire.Exit, error) {
	ooms := oomKills()
	cmd, err := g.mainCommand()
	if err != nil {
		return wire.Exit{}, err
	}
	p, err := g.startMain(cmd, addresses)
	if err != nil {
		return wire.Exit{}, err
	}
	ended := make(chan struct{})
	var probes sync.WaitGroup
	probes.Go(func() { g.watchHealth(ended) })
	exit := p.wait()
	g.mu.Lock()
	g.main = nil
	g.mu.Unlock()
	close(ended)
	_ = g.freezer.release(nil) // mostly there is nothing to thaw
	g.reaper.killAll()
	probes.Wait()
	p.drained()
	exit.OOM = oomKills() > ooms
	return exit, nil
}

// dress gives the container its network and its file systems. The addresses are
// those of each interface.
func (g *guest) dress() ([][]string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), networkTimeout)
	defer cancel()
	var n *network
	var netErr error
	var wg sync.WaitGroup
	wg.Go(func() { n, netErr = setUpNetwork(ctx, g.devices, g.conf) })
	err := g.mountRoot()
	wg.Wait()
	if err := errors.Join(err, netErr); err != nil {
		return nil, err
	}
	memory, err := g.switchRoot()
	if err != nil {
		return nil, err
	}
	defer memory.Close()
	if err := resizeShm(g.conf.ShmSize); err != nil {
		return nil, err
	}
	if err := g.terms.enforce(g.in.group); err != nil {
		return nil, err
	}
	if err := g.mountFurther(); err != nil {
		return nil, err
	}
	files, err := writeFiles(memory, g.conf, n)
	if err != nil {
		return nil, err
	}
	if err := writeSysctls(g.conf.Sysctls); err != nil {
		return nil, err
	}
	if err := g.cover(false); err != nil {
		return nil, err
	}
	n.keep(g.diagnose)
	g.netMu.Lock()
	defer g.netMu.Unlock()
	g.network, g.files = n, files
	return n.addresses(), nil
}

// connect sets the interfaces up as a host says that they are to be now, and what the container is told of them.
func (g *guest) connect(n *wire.Network) ([][]string, error) {
	g.netMu.Lock()
	defer g.netMu.Unlock()
	if g.network == nil {
		return nil, &wire.Error{Kind: wire.NotRunning, Message: "the container is still being set up"}
	}
	ctx, cancel := context.WithTimeout(context.Background(), networkTimeout)
	defer cancel()
	if err := g.network.set(ctx, n.NICs); err != nil {
		return nil, err
	}
	conf := *g.conf
	conf.Network = *n
	return g.network.addresses(), g.files.write(&conf, g.network)
}

// mainCommand resolves the container's command and seals a read-only root.
func (g *guest) mainCommand() (*command, error) {
	if err := makeDir(g.conf.Dir); err != nil {
		return nil, err
	}
	if g.conf.Root.ReadOnly {
		if err := unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			return nil, fmt.Errorf("make root read-only: %w", err)
		}
	}
	cmd, err := resolve(g.conf, wire.Exec{Args: g.conf.Args, TTY: g.conf.TTY, Groups: g.conf.Groups})
	if err != nil {
		return nil, err
	}
	cmd.in = g.in
	if g.conf.Init {
		// A second one, so that what covers it is not in the tether's way.
		if err := mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
			return nil, err
		}
		return cmd, g.cover(true)
	}
	cmd.newPIDs, cmd.stopped = true, g.isolate
	return cmd, nil
}

// isolate gives the container its own view of /proc, when its process has begun a PID namespace and has
// not run yet. It is called on the thread that started it, with the reaper's lock held.
func (g *guest) isolate(pid int) error {
	ns, err := os.Open(ownProc(fmt.Sprintf("%d/ns/pid", pid)))
	if err != nil {
		return err
	}
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWPID); err != nil {
		return errors.Join(fmt.Errorf("enter PID namespace: %w", err), ns.Close())
	}
	h, err := newHelper("proc", "/proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	if err == nil {
		err = h.run(nil)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("mount /proc: %w", err), ns.Close())
	}
	old := g.in.pids
	g.in.pids = ns
	if old != nil {
		_ = old.Close() // of a process that has ended
	}
	return g.cover(true)
}

// startMain starts the container's process. Its start is in the log before its output, and who
// reads of it there can send it signals and start execs.
func (g *guest) startMain(cmd *command, addresses [][]string) (*process, error) {
	s := streams{stdout: g.log.stream(wire.Stdout), stderr: g.log.stream(wire.Stderr), started: func(p *process) {
		g.mu.Lock()
		g.main = p
		late := g.late
		g.mu.Unlock()
		if late != 0 && !g.early(p, late) {
			_ = g.reaper.signal(p.pid, late) // it may have ended
		}
		if err := g.log.json(wire.RecStarted, wire.Started{PID: p.pid, Kernel: kernelRelease(), Addresses: addresses}); err != nil {
			g.diagnose(err)
		}
	}}
	if g.conf.OpenStdin {
		s.stdin = g.stdin
		g.mu.Lock()
		kept := g.restart.Any()
		g.mu.Unlock()
		g.stdin.keep(kept)
	} else {
		g.stdin.refuse()
	}
	p, err := g.reaper.start(cmd, s, g.conf.Size)
	if err != nil {
		return nil, err
	}
	if p.terminal != nil {
		if err := bindConsole(p.terminal); err != nil {
			g.diagnose(err)
		}
	}
	return p, nil
}

// setupFailure is the exit of a container whose process was never started.
func setupFailure(err error) wire.Exit {
	var start *wire.Error
	if errors.As(err, &start) {
		return wire.Exit{Code: start.ExitCode, Error: start.Message}
	}
	return wire.Exit{Code: 128, Error: err.Error()}
}

// maxReason bounds what an exit says about a failure: it quotes names as long as the
// caller likes, and a record has an end.
const maxReason = 2 << 10

// record writes the exit into the log, or where there is none to the console.
func (g *guest) record(e wire.Exit) {
	if len(e.Error) > maxReason {
		e.Error = strings.ToValidUTF8(e.Error[:maxReason], "") + "..."
	}
	err := errors.New("no log port")
	if g.log != nil {
		if err = g.log.json(wire.RecExit, e); err == nil {
			err = g.log.drain()
		}
	}
	if err != nil {
		printk("exit code %d %s: not recorded: %v", e.Code, e.Error, err)
	}
}

// diagnose tells people about a failure that the container lives with.
func (g *guest) diagnose(err error) {
	if logErr := g.log.write(wire.Diagnostic, []byte(err.Error())); logErr != nil {
		printk("%v", err)
	}
}

// printk writes a line to the kernel's console.
func printk(format string, args ...any) {
	f, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0)
	if err != nil {
		return // there is no place left to tell
	}
	defer f.Close()
	fmt.Fprintf(f, "<3>tether: "+format+"\n", args...)
}

func kernelRelease() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// oomKills is how many processes the kernel has killed for lack of memory.
func oomKills() int {
	text, err := os.ReadFile(ownProc("vmstat"))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if v, ok := strings.CutPrefix(line, "oom_kill "); ok {
			n := 0
			fmt.Sscan(v, &n)
			return n
		}
	}
	return 0
}
