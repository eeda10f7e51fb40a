// Command demo shows the whole path: it makes an image available, starts a virtual
// container host, and drives it with the plain docker client, printing each command,
// its output and the time it took. It leaves nothing running.
//
//	IMAGE      a reference to pull from a public registry instead of the image made here
//	VIC_STORE  the image store; ./demo-store if unset
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"vic/bench/testimage"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Getenv, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, getenv func(string) string, out io.Writer) (err error) {
	store := getenv("VIC_STORE")
	if store == "" {
		store = "demo-store"
	}
	if store, err = filepath.Abs(store); err != nil {
		return err
	}
	sockets, err := os.MkdirTemp("", "vic-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(sockets)

	image := getenv("IMAGE")
	if image == "" {
		var registry *testimage.Registry
		if image, registry, err = makeImage(ctx, out); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, registry.Stop()) }()
	}
	host, err := serve(ctx, store, filepath.Join(sockets, "vic.sock"), out)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, host.stop()) }()
	d := docker{ctx: ctx, out: out, env: append(os.Environ(), "DOCKER_HOST=unix://"+host.socket)}
	return d.tour(image)
}

// makeImage builds a Debian image with layers on top and pushes it to a registry on
// loopback.
func makeImage(ctx context.Context, out io.Writer) (string, *testimage.Registry, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", nil, err
	}
	cache = filepath.Join(cache, "vic")
	fmt.Fprintf(out, "# making a Debian image (debootstrap, kept in %s) and pushing it to a registry on loopback\n", cache)
	begin := time.Now()
	base, err := testimage.Debian(ctx, cache)
	if err != nil {
		return "", nil, err
	}
	img, err := testimage.Build(v1.Config{
		Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		Cmd: []string{"bash"},
	}, append([]testimage.Layer{base}, testimage.Edits()...)...)
	if err != nil {
		return "", nil, err
	}
	registry, err := testimage.StartRegistry(ctx, filepath.Join(cache, "registry"))
	if err != nil {
		return "", nil, err
	}
	ref, err := registry.Push(ctx, "demo/debian:bookworm", img)
	if err != nil {
		return "", nil, errors.Join(err, registry.Stop())
	}
	fmt.Fprintf(out, "# %s, %.1f s\n\n", ref, time.Since(begin).Seconds())
	return ref, registry, nil
}

// A host is a running "vic serve".
type host struct {
	socket string
	cmd    *exec.Cmd
	done   chan error
}

func serve(ctx context.Context, store, socket string, out io.Writer) (*host, error) {
	args := []string{"serve", "--store", store, "--listen", "unix://" + socket}
	fmt.Fprintf(out, "$ bin/vic %s &\n", strings.Join(args, " "))
	log, err := os.Create(filepath.Join(filepath.Dir(socket), "serve.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	h := &host{socket: socket, cmd: exec.Command("bin/vic", args...), done: make(chan error, 1)}
	h.cmd.Stdout, h.cmd.Stderr = log, log
	begin := time.Now()
	if err := h.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start vic serve: %w", err)
	}
	go func() { h.done <- h.cmd.Wait() }()
	for {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			conn.Close()
			fmt.Fprintf(out, "# ready after %.2f s\n\n", time.Since(begin).Seconds())
			return h, nil
		}
		select {
		case err := <-h.done:
			said, _ := os.ReadFile(log.Name())
			return nil, fmt.Errorf("vic serve ended: %v\n%s", err, said)
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), h.stop())
		case <-time.After(10 * time.Millisecond): // sockets cannot be waited for
		}
	}
}

func (h *host) stop() error {
	if err := h.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return <-h.done
}

// docker runs the docker client.
type docker struct {
	ctx context.Context
	out io.Writer
	env []string
}

// tour is what a user would type.
func (d *docker) tour(image string) (err error) {
	const name = "vic-demo"
	quiet := &docker{ctx: context.WithoutCancel(d.ctx), out: io.Discard, env: d.env}
	if err := quiet.run("rm", "-f", name); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			quiet.run("rm", "-f", name) // nothing stays running after a failure
		}
	}()
	for _, args := range [][]string{
		{"pull", image},
		{"images"},
		{"history", image},
		{"run", "--rm", image, "sh", "-c", "uname -a; cat /etc/os-release; ls -l /"},
		{"run", "-d", "--name", name, image, "sh", "-c", "for i in 1 2 3; do echo tick $i; sleep 1; done; exec sleep 600"},
		{"ps"},
		{"exec", name, "sh", "-c", "echo hello from $(hostname); ps ax 2>/dev/null | head -3; df -h /"},
	} {
		if err := d.run(args...); err != nil {
			return err
		}
	}
	// The log is followed until the container has stopped; what stop prints comes after it.
	logs := make(chan error, 1)
	follow := docker{ctx: d.ctx, out: d.out, env: d.env}
	go func() { logs <- follow.run("logs", "-f", name) }()
	if err := quiet.run("exec", name, "sleep", "3"); err != nil {
		return errors.Join(err, <-logs)
	}
	var stopped strings.Builder
	stop := docker{ctx: d.ctx, out: &stopped, env: d.env}
	err = stop.run("stop", "-t", "2", name)
	if err = errors.Join(err, <-logs); err != nil {
		return err
	}
	io.WriteString(d.out, stopped.String())
	for _, args := range [][]string{{"ps", "-a"}, {"rm", name}, {"ps", "-a"}} {
		if err := d.run(args...); err != nil {
			return err
		}
	}
	return nil
}

func (d *docker) run(args ...string) error {
	fmt.Fprintf(d.out, "$ docker %s\n", quote(args))
	begin := time.Now()
	cmd := exec.CommandContext(d.ctx, "docker", args...)
	cmd.Stdout, cmd.Stderr, cmd.Env = d.out, d.out, d.env
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("docker %s: %w", quote(args), err)
	}
	fmt.Fprintf(d.out, "# %.2f s\n\n", time.Since(begin).Seconds())
	return nil
}

func quote(args []string) string {
	var b strings.Builder
	for i, a := range args {
		if i > 0 {
			b.WriteByte(' ')
		}
		if strings.ContainsAny(a, " ;$|&<>*") {
			a = "'" + a + "'"
		}
		b.WriteString(a)
	}
	return b.String()
}
