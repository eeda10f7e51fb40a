package tether

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"vic/tether/wire"
)

// cgroupDir is where processes see the control groups.
const cgroupDir = "/sys/fs/cgroup"

// A cgroup is the control group of the container's processes, which is the root of all they
// see. The tether itself is not in it.
type cgroup struct {
	dir *os.File // of the group, in a hierarchy that has no name any more
}

// newCgroup makes the group and mounts it where the container looks for it.
func newCgroup() (*cgroup, error) {
	// nsdelegate: the container may make groups below its own, not change its own limits.
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := mount("cgroup2", cgroupDir, "cgroup2", flags, "nsdelegate"); err != nil {
		return nil, err
	}
	group := path.Join(cgroupDir, "container")
	if err := os.Mkdir(group, 0755); err != nil {
		return nil, err
	}
	names, err := os.ReadFile(path.Join(cgroupDir, "cgroup.controllers"))
	if err != nil {
		return nil, err
	}
	if f := strings.Fields(string(names)); len(f) > 0 {
		err := os.WriteFile(path.Join(cgroupDir, "cgroup.subtree_control"), []byte("+"+strings.Join(f, " +")), 0)
		if err != nil {
			return nil, fmt.Errorf("enable controllers: %w", err)
		}
	}
	dir, err := os.Open(group)
	if err != nil {
		return nil, err
	}
	if err := unix.Unmount(cgroupDir, unix.MNT_DETACH); err != nil {
		return nil, fmt.Errorf("hide control groups: %w", err)
	}
	h, err := newHelper("cgroup2", cgroupDir, flags, "nsdelegate")
	if err != nil {
		return nil, err
	}
	h.unshare = unix.CLONE_NEWCGROUP
	if err := h.run(dir); err != nil {
		return nil, fmt.Errorf("show control group: %w", err)
	}
	return &cgroup{dir}, nil
}

// set sets the group's limits; those that are zero it takes away.
func (c *cgroup) set(l wire.Limits) error {
	period := l.CPUPeriod
	if period == 0 {
		period = 100_000
	}
	for _, f := range []struct {
		name  string
		value int64
		none  string
		tail  string
	}{
		{"cpu.max", l.CPUQuota, "max", " " + strconv.FormatInt(period, 10)},
		{"pids.max", l.Pids, "max", ""},
		{"memory.low", l.MemoryLow, "0", ""},
		{"memory.max", l.Memory, "max", ""},
	} {
		text := f.none
		if f.value > 0 {
			text = strconv.FormatInt(f.value, 10)
		}
		err := c.write(f.name, text+f.tail)
		if errors.Is(err, os.ErrNotExist) && f.value <= 0 {
			continue // the kernel lacks the controller, and nobody asked for it
		}
		if err != nil {
			return fmt.Errorf("set limit %s to %s: %w", f.name, text, err)
		}
	}
	return nil
}

func (c *cgroup) write(name, text string) error {
	fd, err := unix.Openat(int(c.dir.Fd()), name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// newCgroup is newCgroup with nothing being reaped meanwhile.
func (r *reaper) newCgroup() (*cgroup, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return newCgroup()
}
