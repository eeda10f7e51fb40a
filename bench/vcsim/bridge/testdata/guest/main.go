// Command guest is PID 1 of the VM that the bridge's test boots. It shows on its first serial port what it finds, and obeys there.
package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

func main() {
	if err := live(); err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
	}
	off()
}

func live() error {
	for _, m := range [][3]string{{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}} {
		if err := unix.Mount(m[0], m[1], m[0], 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m[1], err)
		}
	}
	for _, name := range []string{"vmw_pvscsi", "sd_mod", "ext4", "vmxnet3"} {
		if err := load(name); err != nil {
			return err
		}
	}
	port, err := os.OpenFile("/dev/ttyS0", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	if err := raw(int(port.Fd())); err != nil {
		return err
	}
	second, err := os.OpenFile("/dev/ttyS1", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	if _, err := second.WriteString("to the file\n"); err != nil {
		return err
	}
	oem, err := os.ReadFile("/sys/firmware/dmi/entries/11-0/raw")
	if err != nil {
		return err
	}
	for s := range strings.SplitSeq(string(oem[oem[1]:]), "\x00") {
		if strings.HasPrefix(s, "guestinfo.") {
			fmt.Fprintf(port, "oem %s\n", s)
		}
	}
	serial, err := os.ReadFile("/sys/class/dmi/id/product_serial")
	if err != nil {
		return err
	}
	fmt.Fprintf(port, "serial %s\n", bytes.TrimSpace(serial))
	if err := os.Mkdir("/disk", 0700); err != nil {
		return err
	}
	if err := unix.Mount("/dev/sda", "/disk", "ext4", 0, ""); err != nil {
		return fmt.Errorf("mount root: %w", err)
	}
	for _, name := range []string{"/disk/lower", "/disk/upper"} {
		p, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		fmt.Fprintf(port, "file %s %s\n", name, p)
	}
	if err := os.WriteFile("/disk/written", []byte("by the guest"), 0600); err != nil {
		return err
	}
	if err := announce(net.IPv4(10, 9, 8, 7)); err != nil {
		return err
	}
	fmt.Fprintln(port, "ready")
	for in := bufio.NewScanner(port); in.Scan(); {
		switch in.Text() {
		case "list":
			disks, _ := filepath.Glob("/sys/block/sd*")
			nics, _ := filepath.Glob("/sys/class/net/eth*")
			fmt.Fprintln(port, "has", len(disks), "disks", len(nics), "interfaces")
		case "disks":
			if err := describe(port); err != nil {
				return err
			}
		case "off":
			if err := unix.Unmount("/disk", 0); err != nil {
				return err
			}
			return nil
		}
	}
	return nil
}

// describe tells of each disk the address on its bus, the serial number and the size.
func describe(to io.Writer) error {
	disks, err := filepath.Glob("/sys/block/sd*")
	if err != nil {
		return err
	}
	for _, d := range disks {
		address, err := filepath.EvalSymlinks(d + "/device") // .../HOST:CHANNEL:TARGET:LUN
		if err != nil {
			return err
		}
		page, err := os.ReadFile(d + "/device/vpd_pg80")
		if err != nil {
			return err
		}
		sectors, err := os.ReadFile(d + "/size")
		if err != nil {
			return err
		}
		fmt.Fprintf(to, "disk at %s serial %s sectors %s\n", strings.Split(filepath.Base(address), ":")[2], page[4:], bytes.TrimSpace(sectors))
	}
	fmt.Fprintln(to, "that is all")
	return nil
}

// load loads a module after those that it needs: a line of the index is NAME DEPENDENCIES ALIASES.
func load(name string) error {
	index, err := os.ReadFile("/modules/index")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(index)) {
		f := strings.Fields(line)
		if f[0] != name {
			continue
		}
		for _, m := range append(strings.Split(f[1], ","), name) {
			if m == "-" {
				continue
			}
			file, err := os.Open("/modules/" + m + ".ko")
			if err != nil {
				return err
			}
			if err := unix.FinitModule(int(file.Fd()), "", 0); err != nil && err != unix.EEXIST {
				return fmt.Errorf("load %s: %w", m, err)
			}
			file.Close()
		}
	}
	return nil
}

// raw has the port neither echo nor translate.
func raw(fd int) error {
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return err
	}
	t.Lflag &^= unix.ECHO | unix.ICANON | unix.ISIG
	t.Oflag &^= unix.OPOST
	return unix.IoctlSetTermios(fd, unix.TCSETS, t)
}

// announce tells the network an address, by ARP.
func announce(ip net.IP) error {
	i, err := net.InterfaceByName("eth0")
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	if err != nil {
		return err
	}
	ctl, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	up, err := unix.NewIfreq("eth0")
	if err != nil {
		return err
	}
	up.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(ctl, unix.SIOCSIFFLAGS, up); err != nil {
		return err
	}
	frame := append([]byte{255, 255, 255, 255, 255, 255}, i.HardwareAddr...)
	frame = append(frame, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1)
	frame = append(append(frame, i.HardwareAddr...), ip.To4()...)
	frame = append(append(frame, 0, 0, 0, 0, 0, 0), ip.To4()...)
	frame = append(frame, make([]byte, 18)...) // to the least length
	proto := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ARP))
	return unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Protocol: proto, Ifindex: i.Index})
}

func off() {
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	select {}
}
