package tether

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"

	"vic/tether/wire"
)

const (
	clockTick    = int64(time.Second) / 100 // USER_HZ is 100 on every Linux that is not from the museum
	kernelThread = 0x0020_0000              // PF_KTHREAD in a process's flags
	maxArgs      = 64 << 10                 // bytes of a command line that are told
)

// containerProcesses calls fn for each process but this one and the kernel's.
func containerProcesses(fn func(p *wire.ProcessInfo) error) error {
	dir, err := os.Open(ownProc("."))
	if err != nil {
		return err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	up, err := uptime()
	if err != nil {
		return err
	}
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil || pid == 1 {
			continue
		}
		text, err := os.ReadFile(ownProc(name + "/stat"))
		if err != nil {
			continue // it has ended
		}
		p, err := parseProcess(string(text))
		if err != nil {
			return fmt.Errorf("/proc/%d/stat: %w", pid, err)
		}
		if p.Flags&kernelThread != 0 {
			continue
		}
		p.Started += time.Now().UnixNano() - up
		if err := fn(p); err != nil {
			return err
		}
	}
	return nil
}

// uptime is how long the kernel has run, in ns.
func uptime() (int64, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0, fmt.Errorf("read time since boot: %w", err)
	}
	return ts.Nano(), nil
}

// parseProcess reads /proc/PID/stat (proc(5)); the start is counted from the boot.
func parseProcess(text string) (*wire.ProcessInfo, error) {
	head, rest, ok := cutLast(text, ") ")
	number, name, ok2 := strings.Cut(head, " (")
	f := strings.Fields(rest) // from the third field on: f[n-3] is field n
	if !ok || !ok2 || len(f) < 39 {
		return nil, errors.New("has too few fields")
	}
	p := &wire.ProcessInfo{State: f[0], Command: name}
	var bad error
	at := func(n int) int64 {
		v, err := strconv.ParseInt(f[n-3], 10, 64)
		if u, uErr := strconv.ParseUint(f[n-3], 10, 64); err != nil && uErr == nil { // a limit
			v, err = int64(u>>1), nil
		}
		bad = errors.Join(bad, err)
		return v
	}
	pid, err := strconv.Atoi(number)
	bad = errors.Join(bad, err)
	p.PID, p.PPID, p.PGID, p.SID, p.TPGID = pid, int(at(4)), int(at(5)), int(at(6)), int(at(8))
	p.TTY = ttyName(uint64(at(7)))
	p.Flags = uint64(at(9))
	p.CPU = (at(14) + at(15)) * clockTick
	p.Priority, p.Nice, p.Threads = int(at(18)), int(at(19)), int(at(20))
	p.Started = at(22) * clockTick
	p.Virtual, p.Resident = at(23), at(24)*int64(os.Getpagesize())
	p.Processor = int(at(39))
	return p, bad
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// ttyName names a terminal by its device number, which the kernel encodes as new_encode_dev does.
func ttyName(dev uint64) string {
	major, minor := dev>>8&0xfff, dev&0xff|dev>>12&0xfff00
	switch {
	case dev == 0:
		return ""
	case major >= 136 && major <= 143:
		return fmt.Sprintf("pts/%d", (major-136)<<8|minor)
	case major == 4 && minor >= 64:
		return fmt.Sprintf("ttyS%d", minor-64)
	case major == 4:
		return fmt.Sprintf("tty%d", minor)
	case major == 5 && minor == 1:
		return "console"
	}
	return fmt.Sprintf("%d:%d", major, minor)
}

// writeProcesses tells all about the container's processes, in the order of /proc.
func writeProcesses(enc *json.Encoder) error {
	users, groups := names{}, names{}
	// Files that are not there, or that are damaged, name nobody.
	list, _ := user.ParsePasswdFile("/etc/passwd")
	for _, u := range list {
		users.add(u.Uid, u.Name)
	}
	all, _ := user.ParseGroupFile("/etc/group")
	for _, g := range all {
		groups.add(g.Gid, g.Name)
	}
	return containerProcesses(func(p *wire.ProcessInfo) error {
		dir := ownProc(fmt.Sprintf("%d/", p.PID))
		status, err := os.ReadFile(dir + "status")
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			return nil // it has ended
		}
		if err != nil {
			return err
		}
		p.UID, p.GID = uint32(statusNumber(status, "Uid:", 1)), uint32(statusNumber(status, "Gid:", 1))
		p.Locked = statusNumber(status, "VmLck:", 0) > 0
		p.User, p.Group = users.of(p.UID), groups.of(p.GID)
		p.Args = commandLine(dir + "cmdline")
		if wchan, err := os.ReadFile(dir + "wchan"); err == nil && string(wchan) != "0" {
			p.WaitChannel = string(wchan)
		}
		return enc.Encode(p)
	})
}

// names are those of users or groups, by number; the first one of a number counts.
type names map[uint32]string

func (n names) add(id int, name string) {
	if _, ok := n[uint32(id)]; !ok && name != "" {
		n[uint32(id)] = name
	}
}

func (n names) of(id uint32) string {
	if name, ok := n[id]; ok {
		return name
	}
	return strconv.FormatUint(uint64(id), 10)
}

// statusNumber reads a number of /proc/PID/status: "Uid:\t0\t0\t0\t0" has four.
func statusNumber(status []byte, key string, nth int) int64 {
	for line := range bytes.Lines(status) {
		if rest, ok := bytes.CutPrefix(line, []byte(key)); ok {
			if f := bytes.Fields(rest); nth < len(f) {
				n, _ := strconv.ParseInt(string(f[nth]), 10, 64)
				return n
			}
		}
	}
	return 0
}

// commandLine reads the arguments of a process, as many as are told.
func commandLine(file string) []string {
	f, err := os.Open(file)
	if err != nil {
		return nil
	}
	defer f.Close()
	text, _ := io.ReadAll(io.LimitReader(f, maxArgs)) // a process that ends has none
	if len(text) == 0 {
		return nil
	}
	return strings.Split(strings.TrimRight(string(text), "\x00"), "\x00")
}
