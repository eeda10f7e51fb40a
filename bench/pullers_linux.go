package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// vic is vic pull.
type vic struct{ title, bin, root string }

func (v *vic) name() string   { return v.title }
func (v *vic) does() string   { return "pulls into VMDKs with ext4" }
func (v *vic) release() error { return nil }

func (v *vic) check(ctx context.Context) (string, error) { return firstLine(ctx, v.bin, "version") }

func (v *vic) prepare(_ context.Context, dir string) error {
	v.root = filepath.Join(dir, "store")
	return nil
}

func (v *vic) pull(ctx context.Context, img *image) (time.Duration, error) {
	return command(ctx, v.bin, "pull", "--store", v.root, img.server.Ref)
}

// podman is podman pull, into a store of its own.
type podman struct {
	root string
	run  string // what it keeps of running containers, in a path of at most 50 bytes; "" before prepare
}

func (p *podman) name() string { return "podman" }
func (p *podman) does() string { return "pulls into folders for overlayfs" }

func (p *podman) release() error {
	if p.run == "" {
		return nil
	}
	run := p.run
	p.run = ""
	return removeMounted(run)
}

func (p *podman) check(ctx context.Context) (string, error) {
	if _, err := find("", "podman"); err != nil {
		return "", err
	}
	return firstLine(ctx, "podman", "--version")
}

func (p *podman) prepare(_ context.Context, dir string) (err error) {
	p.root = filepath.Join(dir, "root")
	p.run, err = os.MkdirTemp("/tmp", "vic-bench-")
	return err
}

func (p *podman) pull(ctx context.Context, img *image) (time.Duration, error) {
	return command(ctx, "podman", "--root", p.root, "--runroot", p.run, "--storage-driver", "overlay",
		"pull", "-q", "--tls-verify=false", img.server.Ref)
}

// containerd is a daemon of our own with the overlay snapshotter, at its best: pulls go
// through its transfer service, which unpacks layers side by side from 2.2 on.
type containerd struct {
	peers string // folder to look for containerd and ctr in
	bin   string // of containerd
	ctr   string
	root  string
	run   string        // its socket and state, in a path short enough for a socket; "" before prepare
	cmd   *exec.Cmd     // nil if it does not run
	done  chan struct{} // closed when it has ended
	log   bytes.Buffer  // read only after that
}

func (c *containerd) name() string { return "containerd" }
func (c *containerd) does() string { return "pulls into folders for overlayfs" }

func (c *containerd) check(ctx context.Context) (version string, err error) {
	if c.bin, err = find(c.peers, "containerd"); err != nil {
		return "", err
	}
	if c.ctr, err = find(c.peers, "ctr"); err != nil {
		return "", err
	}
	if os.Geteuid() != 0 {
		return "", fmt.Errorf("containerd needs root")
	}
	return firstLine(ctx, c.bin, "--version")
}

func (c *containerd) prepare(ctx context.Context, dir string) (err error) {
	c.root = filepath.Join(dir, "root")
	if c.run, err = os.MkdirTemp("/tmp", "vic-bench-"); err != nil {
		return err
	}
	config := filepath.Join(c.run, "config.toml")
	text := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = %q\n"+
		"[plugins.\"io.containerd.transfer.v1.local\"]\nmax_concurrent_downloads = 6\nmax_concurrent_unpacks = 6\n",
		c.root, filepath.Join(c.run, "state"), c.socket())
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return err
	}
	c.log.Reset()
	cmd := exec.Command(c.bin, "-c", config)
	cmd.Stdout, cmd.Stderr = &c.log, &c.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		return err
	}
	c.cmd, c.done = cmd, make(chan struct{})
	go func() {
		defer close(c.done)
		cmd.Wait() // ends by a signal as a rule, which is no error
	}()
	for {
		_, err := command(ctx, c.ctr, "-a", c.socket(), "version")
		if err == nil || ctx.Err() != nil {
			return err
		}
		select {
		case <-c.done:
			return fmt.Errorf("containerd ended at once: %s", lastLine(c.log.String()))
		case <-time.After(50 * time.Millisecond): // it offers no event for being ready
		case <-ctx.Done():
		}
	}
}

func (c *containerd) socket() string { return filepath.Join(c.run, "sock") }

func (c *containerd) pull(ctx context.Context, img *image) (time.Duration, error) {
	before, err := cpuOf(c.cmd.Process.Pid)
	if err != nil {
		return 0, err
	}
	client, err := command(ctx, c.ctr, "-a", c.socket(), "images", "pull", "--plain-http", img.server.Ref)
	if err != nil {
		return 0, err
	}
	after, err := cpuOf(c.cmd.Process.Pid)
	return client + after - before, err
}

func (c *containerd) release() error {
	if c.run == "" {
		return nil
	}
	if c.cmd != nil {
		if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return fmt.Errorf("end containerd: %w", err)
		}
		<-c.done
	}
	run := c.run
	c.cmd, c.run = nil, ""
	return removeMounted(run)
}

// cpuOf reads what a process and its dead children have used, proc(5).
func cpuOf(pid int) (time.Duration, error) {
	p, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	fields := bytes.Fields(p[bytes.LastIndexByte(p, ')')+1:])
	if len(fields) < 15 {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	var ticks int64
	for _, f := range fields[11:15] { // utime, stime, cutime, cstime
		n, err := strconv.ParseInt(string(f), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/%d/stat: %w", pid, err)
		}
		ticks += n
	}
	const hz = 100 // USER_HZ on every Linux architecture that Go supports
	return time.Duration(ticks) * time.Second / hz, nil
}
