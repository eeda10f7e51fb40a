package tether

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// devices finds hardware, and loads the modules that it needs.
type devices struct {
	dir   string // with index and modules; gone once the root is switched
	index []module

	mu     sync.Mutex
	loaded map[string]bool // by name; also what could not be loaded
	failed error           // of modules
}

type module struct {
	name    string
	deps    []string
	aliases []string
}

// newDevices reads dir/index, see the package comment.
func newDevices(dir string) (*devices, error) {
	text, err := os.ReadFile(filepath.Join(dir, "index"))
	if err != nil {
		return nil, err
	}
	index, err := parseIndex(string(text))
	if err != nil {
		return nil, fmt.Errorf("%s/index: %w", dir, err)
	}
	return &devices{dir: dir, index: index, loaded: map[string]bool{}}, nil
}

func parseIndex(text string) ([]module, error) {
	var index []module
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 2 {
			return nil, fmt.Errorf("line %q is not NAME DEPENDENCIES ALIASES", strings.TrimSpace(line))
		}
		m := module{name: f[0], aliases: f[2:]}
		if f[1] != "-" {
			m.deps = strings.Split(f[1], ",")
		}
		index = append(index, m)
	}
	return index, nil
}

// probe loads the modules for all devices that are there, and for those that
// come with them. It reports whether there were any.
func (d *devices) probe() (any bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for again := d.index != nil; again; any = any || again {
		again = false
		present := modaliases()
		for _, m := range d.index {
			if !d.loaded[m.name] && m.wanted(present) {
				for _, dep := range m.deps {
					d.load(dep)
				}
				d.load(m.name)
				again = true
			}
		}
	}
	return any
}

func (m module) wanted(present []string) bool {
	return slices.ContainsFunc(m.aliases, func(pattern string) bool {
		if pattern == "*" {
			return true
		}
		return slices.ContainsFunc(present, func(alias string) bool {
			ok, err := path.Match(pattern, alias)
			return ok && err == nil
		})
	})
}

// close gives the memory of the modules back; from then on none is loaded.
func (d *devices) close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.index = nil
	return os.RemoveAll(d.dir)
}

// modaliases are those of the devices on the buses that container VMs have.
func modaliases() []string {
	var out []string
	for _, bus := range []string{"pci", "virtio", "scsi"} {
		devs, err := os.ReadDir("/sys/bus/" + bus + "/devices")
		if err != nil {
			continue // there is no such bus, yet
		}
		for _, dev := range devs {
			if b, err := os.ReadFile("/sys/bus/" + bus + "/devices/" + dev.Name() + "/modalias"); err == nil {
				out = append(out, strings.TrimSpace(string(b)))
			}
		}
	}
	return out
}

func (d *devices) load(name string) {
	if d.loaded[name] {
		return
	}
	d.loaded[name] = true
	f, err := os.Open(filepath.Join(d.dir, name+".ko"))
	if err == nil {
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
	}
	if err != nil && err != unix.EEXIST {
		d.failed = errors.Join(d.failed, fmt.Errorf("load module %s: %w", name, err))
	}
}

// loadFor loads a module, with what it needs, for devices that are yet to come.
func (d *devices) loadFor(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, m := range d.index {
		if m.name == name {
			for _, dep := range m.deps {
				d.load(dep)
			}
			d.load(name)
		}
	}
}

// await looks the hardware over until found reports true. What is waited for comes
// by itself within milliseconds, if it comes.
func (d *devices) await(what string, found func() (bool, error)) error {
	pause := time.Millisecond
	for end := time.Now().Add(deviceTimeout); ; {
		ok, err := found()
		if err != nil {
			return fmt.Errorf("find %s: %w", what, err)
		}
		if ok {
			return nil
		}
		if d.probe() {
			continue
		}
		if time.Now().After(end) {
			d.mu.Lock()
			defer d.mu.Unlock()
			return errors.Join(fmt.Errorf("no %s was found in %v", what, deviceTimeout), d.failed)
		}
		time.Sleep(pause)
		pause = min(2*pause, 20*time.Millisecond)
	}
}

// disk returns the device file of the disk with that serial number, or with "" of
// the first disk.
func (d *devices) disk(serial string) (string, error) {
	what := "disk"
	if serial != "" {
		what = fmt.Sprintf("disk with serial number %q", serial)
	}
	var dev string
	err := d.await(what, func() (bool, error) {
		names, err := diskNames()
		for _, name := range names {
			if serial == "" || diskSerial(name) == serial {
				dev = "/dev/" + name
				return true, nil
			}
		}
		return false, err
	})
	return dev, err
}

// diskNames lists the block devices that can hold a root, in the order in which
// the first is to be found: vda before sda, sda before sdaa.
func diskNames() ([]string, error) {
	entries, err := os.ReadDir("/sys/block")
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		for _, prefix := range []string{"vd", "sd", "nvme"} {
			if strings.HasPrefix(e.Name(), prefix) {
				names = append(names, e.Name())
			}
		}
	}
	slices.SortFunc(names, func(a, b string) int {
		if a[0] != b[0] {
			return strings.IndexByte("vsn", a[0]) - strings.IndexByte("vsn", b[0])
		}
		if len(a) != len(b) {
			return len(a) - len(b)
		}
		return strings.Compare(a, b)
	})
	return names, nil
}

// diskSerial is a disk's serial number, "" if it has none. Virtio disks and NVMe
// show it as text, SCSI disks as their vital product data page 0x80 (SPC-4 section 7.8.14):
// 4 bytes of header, the last two the length of what follows, big-endian.
func diskSerial(name string) string {
	for _, f := range []string{"/serial", "/device/serial"} {
		if b, err := os.ReadFile("/sys/block/" + name + f); err == nil {
			return strings.TrimSpace(string(b))
		}
	}
	b, err := os.ReadFile("/sys/block/" + name + "/device/vpd_pg80")
	if err != nil || len(b) < 4 {
		return ""
	}
	n := int(b[2])<<8 | int(b[3])
	return strings.TrimSpace(string(b[4:min(4+n, len(b))]))
}

// A place is where a port is found.
type place struct {
	dev  string // of virtio-serial; "" if it is a UART
	uart int
}

// port finds a port: by its name on virtio-serial, or in a machine without that, the UART of that number.
func (d *devices) port(name string, uart int) (place, error) {
	p := place{uart: uart}
	looks, none := 0, false
	err := d.await("port "+name, func() (bool, error) {
		var err error
		if p.dev, err = virtioPort(name); err != nil || p.dev != "" {
			return p.dev != "", err
		}
		if looks++; looks == 2 { // at the first one virtio-serial's driver is not loaded
			none = !slices.ContainsFunc(modaliases(), isVirtioSerial)
		}
		if !none {
			return false, nil
		}
		return uartThere(uart)
	})
	return p, err
}

// virtioPort returns the device file of a virtio-serial port, or "".
func virtioPort(name string) (string, error) {
	files, err := filepath.Glob("/sys/class/virtio-ports/*/name")
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && strings.TrimSpace(string(b)) == name {
			return "/dev/" + filepath.Base(filepath.Dir(f)), nil
		}
	}
	return "", err
}

// isVirtioSerial says whether a device is a virtio console (virtio 1.2 section 5), of either generation on PCI.
func isVirtioSerial(alias string) bool {
	for _, prefix := range []string{"pci:v00001AF4d00001003", "pci:v00001AF4d00001043", "virtio:d00000003"} {
		if strings.HasPrefix(alias, prefix) {
			return true
		}
	}
	return false
}
