package tether

import (
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// uartThere says whether there is a UART behind /dev/ttyS<n>: the kernel has four such devices whatever there is.
func uartThere(n int) (bool, error) {
	kind, err := os.ReadFile(fmt.Sprintf("/sys/class/tty/ttyS%d/type", n))
	if os.IsNotExist(err) {
		return false, nil
	}
	const unknown = "0" // PORT_UNKNOWN (linux/serial_core.h)
	return strings.TrimSpace(string(kind)) != unknown, err
}

// A uart is a stream of bytes through a UART. There is no flow control by wires, since the other end may have none:
// what comes in is bounded by the windows of a control session, and what goes out waits.
type uart struct {
	f    *os.File
	read time.Time // when Read returned last
}

// linger is how long bytes are left to gather before they are read, if some were just read. A UART gives them to the
// kernel eight at a time, and to be woken for each eight costs a multiple of what they do. In this time some 300 come.
const linger = 2 * time.Millisecond

// openUART opens /dev/ttyS<n>, for nobody else. The file is one that blocks its thread: one that is polled would be woken
// while it lingers. The speed is what a virtual UART does not look at.
func openUART(n int) (*uart, error) {
	dev := fmt.Sprintf("/dev/ttyS%d", n)
	fd, err := unix.Open(dev, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", dev, err)
	}
	raw := unix.Termios{Cflag: unix.CS8 | unix.CREAD | unix.CLOCAL | unix.B115200, Ispeed: unix.B115200, Ospeed: unix.B115200}
	raw.Cc[unix.VMIN] = 1
	err = unix.IoctlSetTermios(fd, unix.TCSETS, &raw)
	if err == nil {
		err = unix.IoctlSetInt(fd, unix.TIOCEXCL, 0)
	}
	if err != nil {
		_ = unix.Close(fd) // nothing was written
		return nil, fmt.Errorf("set up %s: %w", dev, err)
	}
	return &uart{f: os.NewFile(uintptr(fd), dev)}, nil
}

// Read reads what has come, and waits for something to come. It is one goroutine's.
func (u *uart) Read(p []byte) (int, error) {
	time.Sleep(time.Until(u.read.Add(linger)))
	n, err := u.f.Read(p)
	u.read = time.Now()
	return n, err
}

func (u *uart) Write(p []byte) (int, error) { return u.f.Write(p) }

// drain waits until all that was written has gone out.
func (u *uart) drain() error {
	return unix.IoctlSetInt(int(u.f.Fd()), unix.TCSBRK, 1)
}
