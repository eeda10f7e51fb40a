package tether

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"vic/tether/wire"
)

// openTerminal makes a pseudo terminal (pty(7)) whose slave belongs to the user.
func openTerminal(uid uint32, size wire.Size) (master, slave *os.File, err error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("open /dev/ptmx: %w", err)
	}
	master = os.NewFile(uintptr(fd), "/dev/ptmx")
	if slave, err = openSlave(fd, uid); err == nil && size != (wire.Size{}) {
		err = setSize(master, size)
	}
	if err != nil {
		master.Close()
		if slave != nil {
			slave.Close()
		}
		return nil, nil, err
	}
	return master, slave, nil
}

func openSlave(master int, uid uint32) (*os.File, error) {
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return nil, fmt.Errorf("unlock terminal: %w", err)
	}
	n, err := unix.IoctlGetUint32(master, unix.TIOCGPTN)
	if err != nil {
		return nil, fmt.Errorf("number terminal: %w", err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	return slave, slave.Chown(int(uid), -1)
}

// setSize sets the size and lets the foreground processes know (SIGWINCH).
func setSize(master *os.File, size wire.Size) error {
	conn, err := master.SyscallConn()
	if err != nil {
		return err
	}
	var ioctlErr error
	err = conn.Control(func(fd uintptr) {
		ioctlErr = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: size.Rows, Col: size.Cols})
	})
	if err == nil {
		err = ioctlErr
	}
	if err != nil {
		return fmt.Errorf("set terminal to %d rows and %d columns: %w", size.Rows, size.Cols, err)
	}
	return nil
}

// bindConsole makes the terminal /dev/console too, as docker does.
func bindConsole(master *os.File) error {
	conn, err := master.SyscallConn()
	if err != nil {
		return err
	}
	var n uint32
	var ioctlErr error
	if err := conn.Control(func(fd uintptr) { n, ioctlErr = unix.IoctlGetUint32(int(fd), unix.TIOCGPTN) }); err != nil {
		return err
	}
	if ioctlErr != nil {
		return fmt.Errorf("number terminal: %w", ioctlErr)
	}
	if err := unix.Mount(fmt.Sprintf("/dev/pts/%d", n), "/dev/console", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount terminal on /dev/console: %w", err)
	}
	return nil
}
