package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A host is a vic serve and what was measured of it.
type host struct {
	name  string
	flags []string
	ready string // what docker info says once starts are as fast as they get; "" if they are already

	server *exec.Cmd
	log    bytes.Buffer
	env    []string

	first, whole []float64 // seconds
	attach, logs []float64 // MB/s
}

const (
	startTimeout = time.Minute
	poll         = 50 * time.Millisecond
)

func (h *host) start(ctx context.Context, vic, dir, image string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	socket := filepath.Join(dir, "sock")
	h.server = exec.CommandContext(ctx, vic, append([]string{"serve", "--store", filepath.Join(dir, "store"), "--listen", "unix://" + socket}, h.flags...)...)
	h.server.Stdout, h.server.Stderr = &h.log, &h.log
	h.server.Cancel = func() error { return h.server.Process.Signal(syscall.SIGTERM) }
	h.env = append(os.Environ(), "DOCKER_HOST=unix://"+socket)
	if err := h.server.Start(); err != nil {
		return err
	}
	err := await(ctx, func() bool { _, err := os.Stat(socket); return err == nil })
	if err == nil {
		_, err = h.docker(ctx, "import", image, "bb")
	}
	if err == nil {
		err = h.await(ctx)
	}
	if err != nil {
		return errors.Join(err, h.stop())
	}
	return nil
}

func (h *host) stop() error {
	if err := h.server.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	if err := h.server.Wait(); err != nil {
		return fmt.Errorf("vic serve: %w\n%s", err, h.log.String())
	}
	return nil
}

func (h *host) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "docker", args...)
	cmd.Env = h.env
	return cmd
}

func (h *host) docker(ctx context.Context, args ...string) (string, error) {
	out, err := h.command(ctx, args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("docker %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out)), nil
}

// await waits until the server is ready for a start.
func (h *host) await(ctx context.Context) error {
	var err error
	return errors.Join(await(ctx, func() bool {
		var info []byte
		info, err = h.command(ctx, "info").Output()
		return err != nil || strings.Contains(string(info), h.ready)
	}), err)
}

// await asks again and again, since nobody tells.
func await(ctx context.Context, ok func() bool) error {
	for end := time.Now().Add(startTimeout); !ok(); time.Sleep(poll) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("not ready after %v", startTimeout)
		}
	}
	return nil
}

// turn runs one container.
func (h *host) turn(ctx context.Context) error {
	if err := h.await(ctx); err != nil {
		return err
	}
	begin := time.Now()
	var first time.Duration
	cmd := h.command(ctx, "run", "--rm", "bb", "echo", "up")
	n, err := output(cmd, func() { first = time.Since(begin) })
	if err == nil && n != int64(len("up\n")) {
		err = fmt.Errorf("%d bytes of output", n)
	}
	h.first, h.whole = append(h.first, first.Seconds()), append(h.whole, time.Since(begin).Seconds())
	return err
}

// output runs a command and counts what it writes; begun is called with the first of it.
func output(cmd *exec.Cmd, begun func()) (n int64, err error) {
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	buf := make([]byte, 1<<20)
	for err == nil {
		var got int
		if got, err = pipe.Read(buf); got > 0 && n == 0 {
			begun()
		}
		n += int64(got)
	}
	if err == io.EOF {
		err = nil
	}
	if waitErr := cmd.Wait(); waitErr != nil {
		err = errors.Join(err, fmt.Errorf("%w: %s", waitErr, complaint.Bytes()))
	}
	return n, err
}

// read measures output as it is made, and once more from the log.
func (h *host) read(ctx context.Context, size int64) error {
	const name = "output"
	rate := func(cmd *exec.Cmd) (float64, error) {
		var begin time.Time
		n, err := output(cmd, func() { begin = time.Now() })
		if err == nil && n != size {
			err = fmt.Errorf("%d bytes of output, not %d", n, size)
		}
		return float64(n) / 1e6 / time.Since(begin).Seconds(), err
	}
	a, err := rate(h.command(ctx, "run", "--name", name, "bb", "dd", "if=/dev/zero", "bs=64k", "count="+strconv.FormatInt(size>>16, 10), "status=none"))
	if err != nil {
		return err
	}
	l, err := rate(h.command(ctx, "logs", name))
	if err != nil {
		return err
	}
	h.attach, h.logs = append(h.attach, a), append(h.logs, l)
	_, err = h.docker(ctx, "rm", name)
	return err
}

// A cost is what a container's VM takes of its host.
type cost struct {
	resident, share int64   // bytes; of what is shared, share has its part
	cpu             float64 // of one
}

// sleep measures a container that does nothing.
func (h *host) sleep(ctx context.Context, d time.Duration) (c cost, err error) {
	if err := h.await(ctx); err != nil {
		return c, err
	}
	id, err := h.docker(ctx, "run", "-d", "bb", "sleep", "1000000")
	if err != nil {
		return c, err
	}
	defer func() {
		_, rmErr := h.docker(context.WithoutCancel(ctx), "rm", "-f", id)
		err = errors.Join(err, rmErr)
	}()
	pid, err := h.docker(ctx, "inspect", "-f", "{{.State.Pid}}", id)
	if err != nil {
		return c, err
	}
	var before, after int64
	for _, at := range []*int64{&before, &after} {
		select { // before the first, to let it come to rest
		case <-time.After(d):
		case <-ctx.Done():
			return c, ctx.Err()
		}
		if *at, err = cpuTime(pid); err != nil {
			return c, err
		}
	}
	c.cpu = float64(after-before) / float64(d)
	text, err := os.ReadFile("/proc/" + pid + "/smaps_rollup")
	if err != nil {
		return c, err
	}
	for line := range strings.Lines(string(text)) {
		for key, to := range map[string]*int64{"Rss:": &c.resident, "Pss:": &c.share} {
			if rest, ok := strings.CutPrefix(line, key); ok {
				if _, err := fmt.Sscan(rest, to); err != nil {
					return c, err
				}
				*to <<= 10
			}
		}
	}
	return c, nil
}

// cpuTime is what a process has run, in ns.
func cpuTime(pid string) (sum int64, err error) {
	files, err := filepath.Glob("/proc/" + pid + "/task/*/schedstat")
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			continue // the thread has ended
		}
		var n int64
		if _, err := fmt.Sscan(string(text), &n); err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, err
}
