package vsphere

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// BIOSUUID is that of the virtual machine in which this program runs. It is an error where it runs in none of VMware's.
func BIOSUUID() (string, error) {
	serial, err := os.ReadFile("/sys/class/dmi/id/product_serial") // for root only
	if err != nil {
		return "", fmt.Errorf("read the machine's serial number: %w", err)
	}
	return parseSerial(string(serial))
}

// LinuxDevices are the SCSI disks of this machine, as the kernel shows them. The virtual machine must have disk.EnableUUID=TRUE, or
// its disks do not tell their UUIDs. Udev is not needed.
type LinuxDevices struct {
	Root string // where /sys and /dev are; "" is /
}

// Open implements Devices. The error is of ctx if the device does not come.
func (l LinuxDevices) Open(ctx context.Context, d AttachedDisk) (dev Device, err error) {
	err = l.until(ctx, func() (bool, error) {
		name, err := l.find(d)
		if err == nil {
			dev, err = l.open(name, d)
		}
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENXIO) { // or of one before it, that is going
			return false, nil
		}
		return true, err
	})
	if err != nil && ctx.Err() != nil {
		return nil, fmt.Errorf("no disk of UUID %s came at SCSI target %d, or disk.EnableUUID is not TRUE for this machine: %w", d.UUID, d.Target, ctx.Err())
	}
	if err != nil {
		return nil, err
	}
	return dev, nil
}

// Gone implements Devices. The error is of ctx if the device stays.
func (l LinuxDevices) Gone(ctx context.Context, d AttachedDisk) error {
	err := l.until(ctx, func() (bool, error) {
		_, err := l.find(d)
		return errors.Is(err, fs.ErrNotExist), nil // whatever else is there stays for now
	})
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("the disk of UUID %s stays at SCSI target %d: %w", d.UUID, d.Target, ctx.Err())
	}
	return err
}

// until looks at once, and then whenever a device comes or goes, until there is what was looked for, or an error.
func (l LinuxDevices) until(ctx context.Context, look func() (bool, error)) error {
	events, err := listen()
	if err != nil {
		return err
	}
	defer events.Close()
	stop := context.AfterFunc(ctx, func() { events.SetReadDeadline(time.Unix(1, 0)) }) // ends a read
	defer stop()
	for {
		if done, err := look(); done || err != nil {
			return err
		}
		// Each message is about one change; whatever it is, it may be what is waited for.
		if _, err := events.Read(make([]byte, 64<<10)); err != nil && !errors.Is(err, unix.ENOBUFS) { // of which some were lost
			return err
		}
	}
}

// listen hears of devices that come and go, from the kernel.
func listen() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("listen to the kernel's events: %w", err)
	}
	f := os.NewFile(uintptr(fd), "uevents")
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		return nil, errors.Join(fmt.Errorf("listen to the kernel's events: %w", err), f.Close())
	}
	return f, nil
}

// find returns the kernel's name of the device of a disk. The error is fs.ErrNotExist if it is not there yet.
func (l LinuxDevices) find(d AttachedDisk) (string, error) {
	blocks := filepath.Join("/", l.Root, "sys/block")
	list, err := os.ReadDir(blocks)
	if err != nil {
		return "", err
	}
	var found []string
	for _, e := range list {
		dev := filepath.Join(blocks, e.Name(), "device")
		if !hasUUID(dev, d.UUID) {
			continue
		}
		address, err := filepath.EvalSymlinks(dev) // .../HOST:CHANNEL:TARGET:LUN
		if err != nil {
			continue
		}
		at := strings.Split(filepath.Base(address), ":")
		if len(at) == 4 && at[2] == strconv.Itoa(d.Target) {
			found = append(found, e.Name())
		}
	}
	switch len(found) {
	case 0:
		return "", fs.ErrNotExist
	case 1:
		return found[0], nil
	}
	return "", fmt.Errorf("%s all have the UUID %s and are SCSI target %d", strings.Join(found, ", "), d.UUID, d.Target)
}

// hasUUID compares what the kernel says of a device, its name naa.6000c29... or its serial number, with what the server says,
// 6000C29x-xxxx-.... A UUID that was not chosen by VMware, as those of volumes, is no name of the kind that begins with naa.
func hasUUID(dev, uuid string) bool {
	uuid = strings.NewReplacer("-", "", " ", "").Replace(uuid)
	if uuid == "" {
		return false
	}
	wwid, err := os.ReadFile(filepath.Join(dev, "wwid"))
	if err == nil && strings.EqualFold(strings.TrimSpace(string(wwid)), "naa."+uuid) {
		return true
	}
	const header = 4 // of SPC's page of the unit's serial number
	page, err := os.ReadFile(filepath.Join(dev, "vpd_pg80"))
	return err == nil && len(page) > header && strings.EqualFold(strings.Trim(string(page[header:]), " \x00"), uuid)
}

// open opens a device that nobody else uses, not even by a mount.
func (l LinuxDevices) open(name string, d AttachedDisk) (Device, error) {
	text, err := os.ReadFile(filepath.Join("/", l.Root, "sys/block", name, "size"))
	if err != nil {
		return nil, err
	}
	if sectors, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err != nil || sectors != d.Capacity/512 {
		return nil, fmt.Errorf("%s has %s sectors, want %d", name, strings.TrimSpace(string(text)), d.Capacity/512)
	}
	f, err := os.OpenFile(filepath.Join("/", l.Root, "dev", name), os.O_RDWR|os.O_EXCL, 0)
	if err != nil {
		return nil, err
	}
	return f, nil
}
