package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// A host is a vic serve that the suites are run against.
type host struct {
	socket, config string
	cmd            *exec.Cmd
	ended          chan error
	client         string
}

// serve starts one on an empty store.
func (w workshop) serve(ctx context.Context) (_ *host, err error) {
	sockets, err := os.MkdirTemp("", "vic-suites-") // a socket's path has to be short
	if err != nil {
		return nil, err
	}
	store := filepath.Join(w.dir, "store")
	if err := os.RemoveAll(store); err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(w.dir, "serve.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	h := &host{socket: filepath.Join(sockets, "s"), config: filepath.Join(w.dir, "config"), client: w.client(), ended: make(chan error, 1)}
	h.cmd = exec.Command(filepath.Join(w.bin, "vic"), "serve", "--store", store, "-H", "unix://"+h.socket, "--tether", filepath.Join(w.bin, "tether"), "--log-level", "debug")
	h.cmd.Stdout, h.cmd.Stderr = log, log
	if err := h.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { h.ended <- h.cmd.Wait() }()
	for {
		c, err := net.Dial("unix", h.socket)
		if err == nil {
			return h, c.Close()
		}
		select {
		case err := <-h.ended:
			return nil, fmt.Errorf("vic serve ended: %v; it wrote %s", err, log.Name())
		case <-ctx.Done():
			h.ended <- nil
			return nil, errors.Join(ctx.Err(), h.close())
		case <-time.After(20 * time.Millisecond): // a socket appears without telling anybody
		}
	}
}

// docker is a command of a docker client.
func (h *host) docker(ctx context.Context, client string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, client, args...)
	cmd.Env, cmd.WaitDelay = append(os.Environ(), "DOCKER_HOST=unix://"+h.socket, "DOCKER_CONFIG="+h.config), 10*time.Second
	return cmd
}

// clean removes containers that a test left behind.
func (h *host) clean(ctx context.Context) error {
	ids, err := h.docker(ctx, h.client, "ps", "-aq").Output()
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	for _, id := range strings.Fields(string(ids)) {
		if text, err := h.docker(ctx, h.client, "rm", "-fv", id).CombinedOutput(); err != nil {
			return fmt.Errorf("remove a container: %w\n%s", err, text)
		}
	}
	return nil
}

// close removes all containers, whose VMs would outlive the daemon, and ends it.
func (h *host) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	err := h.clean(ctx)
	h.cmd.Process.Signal(syscall.SIGTERM)
	return errors.Join(err, <-h.ended, os.RemoveAll(filepath.Dir(h.socket)))
}
