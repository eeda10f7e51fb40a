package tether

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"

	"vic/tether/wire"
)

// configure returns the configuration: what the host has written into the machine, or if that says that the VM is a
// template from the control port, when one of its copies has come to life.
func (g *guest) configure() (*wire.Config, error) {
	written, err := hostStrings()
	if err != nil {
		return nil, err
	}
	if !slices.Contains(written, wire.Template) {
		return wire.ParseConfig(written)
	}
	held, err := g.devices.hold()
	if err != nil {
		return nil, err
	}
	g.devices.loadFor("virtio_net") // one may be plugged later
	if err := g.devices.close(); err != nil {
		return nil, err
	}
	debug.FreeOSMemory()
	prepared := false
	prepare := func() error {
		prepared = true
		return g.prepare(held)
	}
	for {
		conf, sent, err := wire.AwaitConfig(g.control, prepare)
		if err == io.EOF && prepared {
			return nil, errors.New("the host went away before it said what to run")
		}
		if err == io.EOF {
			if err := g.control.awaitHost(); err != nil {
				return nil, err
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		since, err := sinceBoot()
		if err != nil {
			return nil, err
		}
		conf.Time = sent.UnixNano() - since
		if prepared {
			return conf, readdress(conf.NICs)
		}
		return conf, held.release()
	}
}

// prepare does as much as can be done before the configuration is there. Some of it is done for nothing
// but its being faster the second time, which it is by far under emulation.
func (g *guest) prepare(h held) error {
	if err := h.release(); err != nil {
		return err
	}
	if _, err := g.devices.disk(""); err != nil {
		return err
	}
	if err := loopbackUp(); err != nil {
		return err
	}
	_, err := hardwareLinks()
	return err
}

// readdress gives the interfaces, which are down, the addresses of nics.
func readdress(nics []wire.NIC) error {
	links, err := hardwareLinks()
	if err != nil {
		return err
	}
	for i, nic := range nics {
		if nic.MAC == "" || i >= len(links) {
			continue
		}
		mac, err := net.ParseMAC(nic.MAC)
		if err == nil {
			err = netlink.LinkSetHardwareAddr(links[i], mac)
		}
		if err != nil {
			return fmt.Errorf("give interface %d address %s: %w", i, nic.MAC, err)
		}
	}
	return nil
}

// oemStrings reads the machine's OEM strings.
func oemStrings() ([]string, error) {
	files, err := filepath.Glob("/sys/firmware/dmi/entries/11-*/raw")
	if err != nil {
		return nil, err
	}
	var oem []string
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		ss, err := wire.ParseOEMStrings(raw)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", f, err)
		}
		oem = append(oem, ss...)
	}
	return oem, nil
}

// held are PCI devices, by address, that no driver has.
type held []string

const pciDriver = "/sys/bus/pci/drivers/virtio-pci"

// hold loads the modules for all devices, and then takes its driver away from every device but the one
// with the ports and the root disk, which is of the same size in all machines. (It has a serial number; a
// template's other disks have none.) What a driver finds out when it gets a device, a disk's size or an interface's
// address, is found out after release, and is then another machine's.
func (d *devices) hold() (held, error) {
	for d.probe() {
	}
	devs, err := filepath.Glob(pciDriver + "/*:*")
	if err != nil {
		return nil, err
	}
	var h held
	for _, dev := range devs {
		stays, err := isSame(dev)
		if err != nil {
			return nil, err
		}
		if stays {
			continue
		}
		address := filepath.Base(dev)
		if err := os.WriteFile(pciDriver+"/unbind", []byte(address), 0); err != nil {
			return nil, fmt.Errorf("take driver from device %s: %w", address, err)
		}
		h = append(h, address)
	}
	return h, nil
}

// isSame says whether a PCI device of a template is the same in every copy of it.
func isSame(dev string) (bool, error) {
	ports, err := filepath.Glob(dev + "/virtio*/virtio-ports")
	if err != nil || len(ports) > 0 {
		return true, err
	}
	disks, err := filepath.Glob(dev + "/virtio*/block/*")
	return len(disks) > 0 && diskSerial(filepath.Base(disks[0])) != "", err
}

// release gives the devices back to their drivers, side by side, since most of it is waiting.
func (h held) release() error {
	errs := make([]error, len(h))
	var wg sync.WaitGroup
	for i, address := range h {
		wg.Go(func() {
			if err := os.WriteFile(pciDriver+"/bind", []byte(address), 0); err != nil {
				errs[i] = fmt.Errorf("give device %s to its driver: %w", address, err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}
