package tether

import (
	"encoding/binary"
	"fmt"
	"os"
	"path"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ownProc is the path of a file of /proc as the tether sees it. What is mounted on /proc later is the
// container's view, in which there is no tether. So the tether's working directory is the /proc of before,
// and nothing else is looked up there.
func ownProc(name string) string { return name }

// seedRandom feeds the kernel's random number generator and credits it, so that no
// process waits for randomness in a machine that has no source of it (random(4)).
func seedRandom(seed []byte) error {
	if len(seed) == 0 {
		return nil
	}
	f, err := os.OpenFile("/dev/urandom", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	// struct rand_pool_info { int entropy_count /* bits */; int buf_size; __u32 buf[]; }
	info := make([]uint32, 2+(len(seed)+3)/4)
	info[0], info[1] = uint32(len(seed)*8), uint32(len(seed))
	padded := append(append([]byte(nil), seed...), 0, 0, 0)
	for i := range info[2:] {
		info[2+i] = binary.NativeEndian.Uint32(padded[4*i:])
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.RNDADDENTROPY, uintptr(unsafe.Pointer(&info[0]))); errno != 0 {
		return fmt.Errorf("seed random numbers: %w", errno)
	}
	// A generator that had been seeded before, as a template's, would go on with its old key for a
	// minute. (ENODATA: it had not been.)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.RNDRESEEDCRNG, 0); errno != 0 && errno != unix.ENODATA {
		return fmt.Errorf("renew random numbers: %w", errno)
	}
	return nil
}

// setClock sets the clock to the time that it was when the VM was started, and what the kernel
// has run since. It lags by what the firmware took.
func setClock(ns int64) error {
	if ns == 0 {
		return nil
	}
	since, err := sinceBoot()
	if err != nil {
		return err
	}
	return stepClock(time.Unix(0, ns+since))
}

func stepClock(now time.Time) error {
	ts := unix.NsecToTimespec(now.UnixNano())
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
		return fmt.Errorf("set clock to %v: %w", now.UTC(), err)
	}
	return nil
}

// sinceBoot is for how long the kernel has run, in ns.
func sinceBoot() (int64, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0, fmt.Errorf("read time since boot: %w", err)
	}
	return ts.Nano(), nil
}

func setNames(host, domain string) error {
	if host != "" {
		if err := unix.Sethostname([]byte(host)); err != nil {
			return fmt.Errorf("set host name %q: %w", host, err)
		}
	}
	if domain != "" {
		if err := unix.Setdomainname([]byte(domain)); err != nil {
			return fmt.Errorf("set domain name %q: %w", domain, err)
		}
	}
	return nil
}

// writeSysctls sets kernel parameters by name, as sysctl(8) takes them.
func writeSysctls(params map[string]string) error {
	for name, value := range params {
		file := path.Join("/proc/sys", strings.ReplaceAll(name, ".", "/"))
		if !strings.HasPrefix(file, "/proc/sys/") {
			return fmt.Errorf("sysctl %q: not a parameter", name)
		}
		if err := os.WriteFile(file, []byte(value), 0); err != nil {
			return fmt.Errorf("sysctl %q: %w", name, err)
		}
	}
	return nil
}

// endMachine powers the VM off, or with reboot has it boot again. All processes but this one are dead by now, or the
// container was never started.
func endMachine(reboot bool) {
	unmountAll()
	how := unix.LINUX_REBOOT_CMD_POWER_OFF
	if reboot {
		how = unix.LINUX_REBOOT_CMD_RESTART
	}
	for {
		err := unix.Reboot(how)
		printk("end: %v", err)
		time.Sleep(time.Second)
	}
}
