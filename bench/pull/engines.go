package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

type vicEngine struct{ bin, root string }

func (v *vicEngine) name() string                      { return "vic" }
func (v *vicEngine) dir() string                       { return v.root }
func (v *vicEngine) prepare(ctx context.Context) error { return nil }
func (v *vicEngine) remove(ctx context.Context) error  { return os.RemoveAll(v.root) }
func (v *vicEngine) pull(ctx context.Context, ref string) (time.Duration, error) {
	return command(ctx, v.bin, "pull", "--store", v.root, ref)
}

type podman struct{ root string }

func (p *podman) name() string                      { return "podman" }
func (p *podman) dir() string                       { return p.root }
func (p *podman) prepare(ctx context.Context) error { return os.MkdirAll(p.root, 0700) }
func (p *podman) args(args ...string) []string {
	return append([]string{"--root", p.root + "/root", "--runroot", p.root + "/run", "--storage-driver", "overlay"}, args...)
}
func (p *podman) pull(ctx context.Context, ref string) (time.Duration, error) {
	return command(ctx, "podman", p.args("pull", "-q", "--tls-verify=false", ref)...)
}

func (p *podman) remove(ctx context.Context) error {
	if err := unmountBelow(p.root); err != nil {
		return err
	}
	return os.RemoveAll(p.root)
}

// containerd is a daemon of our own with the overlay snapshotter, at its best: pulls go
// through its transfer service, which unpacks layers side by side from 2.2 on.
type containerd struct {
	bin  string // folder of containerd and ctr, "" for those in $PATH
	root string
	cmd  *exec.Cmd
	log  bytes.Buffer
}

func (c *containerd) name() string   { return "containerd" }
func (c *containerd) dir() string    { return c.root + "/root" }
func (c *containerd) socket() string { return filepath.Join(c.root, "sock") }

func (c *containerd) prepare(ctx context.Context) error {
	if err := os.MkdirAll(c.root, 0700); err != nil {
		return err
	}
	config := filepath.Join(c.root, "config.toml")
	text := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = %q\n"+
		"[plugins.\"io.containerd.transfer.v1.local\"]\nmax_concurrent_downloads = 6\nmax_concurrent_unpacks = 6\n", c.dir(), c.root+"/state", c.socket())
	if err := os.WriteFile(config, []byte(text), 0600); err != nil {
		return err
	}
	c.log.Reset()
	c.cmd = exec.Command(filepath.Join(c.bin, "containerd"), "-c", config)
	c.cmd.Stdout, c.cmd.Stderr = &c.log, &c.log
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := c.cmd.Start(); err != nil {
		return err
	}
	for {
		if _, err := command(ctx, filepath.Join(c.bin, "ctr"), "-a", c.socket(), "version"); err == nil {
			return nil
		} else if ctx.Err() != nil {
			return ctx.Err()
		}
		time.Sleep(50 * time.Millisecond) // before the clock starts
	}
}

func (c *containerd) pull(ctx context.Context, ref string) (time.Duration, error) {
	before, err := cpuOf(c.cmd.Process.Pid)
	if err != nil {
		return 0, err
	}
	client, err := command(ctx, filepath.Join(c.bin, "ctr"), "-a", c.socket(), "images", "pull", "--plain-http", ref)
	if err != nil {
		return 0, err
	}
	after, err := cpuOf(c.cmd.Process.Pid)
	return client + after - before, err
}

func (c *containerd) remove(ctx context.Context) error {
	if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	c.cmd.Wait() // containerd ends by the signal
	if err := unmountBelow(c.root); err != nil {
		return err
	}
	return os.RemoveAll(c.root)
}

// cpuOf reads what a process and its dead children have used, proc(5).
func cpuOf(pid int) (time.Duration, error) {
	p, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	fields := bytes.Fields(p[bytes.LastIndexByte(p, ')')+1:])
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

// unmountBelow detaches what an engine left mounted in its store.
func unmountBelow(dir string) error {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	for _, line := range bytes.Split(mounts, []byte("\n")) {
		if f := bytes.Fields(line); len(f) > 1 && bytes.HasPrefix(f[1], []byte(dir+"/")) {
			if err := syscall.Unmount(string(f[1]), syscall.MNT_DETACH); err != nil {
				return fmt.Errorf("unmount %s: %w", f[1], err)
			}
		}
	}
	return nil
}
