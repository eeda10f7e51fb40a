package bench

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// An engine turns an image into something that a container can run from, in a store that it makes new each
// time.
type engine interface {
	// name tells engines apart, for people.
	name() string
	// does says in a few words what comes in and what goes out.
	does() string
	// check returns the version of the engine's program, or why it cannot be measured here.
	check(ctx context.Context) (version string, err error)
	// prepare makes an empty store in dir, which is empty, and starts what has to run; before the clock starts.
	prepare(ctx context.Context, dir string) error
	// pull does the work and returns the CPU time that it took.
	pull(ctx context.Context, img *image) (cpu time.Duration, err error)
	// release ends what prepare and pull have started. It is called even if they failed; what they mounted below
	// dir is unmounted afterwards.
	release() error
}

// A sample is one run of an engine.
type sample struct {
	wall, cpu time.Duration
	stored    int64 // bytes that its store takes
}

// measure runs an engine once, in a folder of work, an absolute path without symlinks, that is gone afterwards.
func measure(ctx context.Context, e engine, img *image, work string) (s sample, err error) {
	dir, err := os.MkdirTemp(work, "engine-")
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, e.release(), removeMounted(dir)) }()
	if err := e.prepare(ctx, dir); err != nil {
		return s, err
	}
	if err := syncAll(work); err != nil {
		return s, err
	}
	begin := time.Now()
	if s.cpu, err = e.pull(ctx, img); err != nil {
		return s, err
	}
	if err := syncAll(work); err != nil {
		return s, err
	}
	s.wall = time.Since(begin)
	s.stored, err = allocated(dir)
	return s, err
}

// syncAll makes everything durable on the file system that a folder is on.
func syncAll(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Syncfs(int(f.Fd()))
}

// allocated sums the bytes that files below dir occupy.
func allocated(dir string) (int64, error) {
	type inode struct{ dev, ino uint64 }
	seen := make(map[inode]bool)
	var n int64
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok && !seen[inode{st.Dev, st.Ino}] {
			n += st.Blocks * 512
			if st.Nlink > 1 && !d.IsDir() {
				seen[inode{st.Dev, st.Ino}] = true
			}
		}
		return nil
	})
	return n, err
}

// command runs a program to its end and returns the CPU time of it and its children. If ctx ends it gets the time
// to tidy up.
func command(ctx context.Context, name string, args ...string) (time.Duration, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	if err != nil {
		return 0, fmt.Errorf("%s: %w: %s", filepath.Base(name), err, lastLine(string(out)))
	}
	return cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), nil
}

// lastLine is the line of what a program said that tells why it failed.
func lastLine(said string) string {
	said = strings.TrimSpace(said)
	return said[strings.LastIndexByte(said, '\n')+1:]
}

// firstLine returns the first line that a program prints, to tell its version.
func firstLine(ctx context.Context, name string, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %w", filepath.Base(name), err)
	}
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	return strings.Join(strings.Fields(line), " "), nil
}

// find returns the path of a program: in dir if that has it, else in $PATH.
func find(dir, name string) (string, error) {
	if dir != "" {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return filepath.Abs(path)
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("%s is not installed", name)
	}
	return path, nil
}

// removeMounted removes a folder, of which dir is the whole path, after unmounting what is mounted below it.
func removeMounted(dir string) error {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		if len(f) < 2 || !strings.HasPrefix(f[1], filepath.Clean(dir)+"/") {
			continue
		}
		if err := unix.Unmount(f[1], unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", f[1], err)
		}
	}
	return os.RemoveAll(dir)
}
