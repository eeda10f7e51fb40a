package bridge

import (
	"cmp"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"vic/tether/wire"
)

// hardware is what a VM has, in QEMU's words.
type hardware struct {
	name, uuid       string
	instance         string // UUID
	memoryMB, cpus   int
	strings          []string // SMBIOS OEM strings
	controllers, cds []part
	plugged          map[int32]part // disks and interfaces, by the device's key: they come and go while the VM runs
	serials          []backend
}

// A part is a device and what is behind it, as QMP takes them: arguments of blockdev-add, netdev_add and device_add.
type part struct {
	block, net, device map[string]any
	bridge             string // of this machine's, for a tap
}

// maxSerials is how many ports a PC has.
const maxSerials = 4

// hardware reads a VM's configuration, whose lock the caller holds.
func (b *Bridge) hardware(vm *simulator.VirtualMachine) (*hardware, error) {
	c := vm.Config
	if c.Firmware == string(types.GuestOsDescriptorFirmwareTypeEfi) {
		return nil, errors.New("the bridge has no EFI firmware")
	}
	h := &hardware{name: vm.Name, uuid: c.Uuid, instance: c.InstanceUuid, memoryMB: int(c.Hardware.MemoryMB), cpus: int(c.Hardware.NumCPU), plugged: map[int32]part{}}
	var err error
	if h.strings, err = oemStrings(c.ExtraConfig); err != nil {
		return nil, err
	}
	// By keys, which grow: an edited device is the last of the simulator's list, and yet the serial port that it was.
	devices := slices.SortedFunc(slices.Values(c.Hardware.Device), func(a, b types.BaseVirtualDevice) int {
		return cmp.Compare(a.GetVirtualDevice().Key, b.GetVirtualDevice().Key)
	})
	for _, d := range devices {
		if err := b.device(h, d); err != nil {
			return nil, fmt.Errorf("device %d (%T): %w", d.GetVirtualDevice().Key, d, err)
		}
	}
	return h, nil
}

// oemStrings are a VM's guestinfo as QEMU's guests find it: as KEY=VALUE, but for a tether's configuration, which is as a tether
// reads it there.
func oemStrings(extra []types.BaseOptionValue) ([]string, error) {
	info := map[string]string{}
	var all []string
	for _, o := range extra {
		v := o.GetOptionValue()
		if !strings.HasPrefix(v.Key, "guestinfo.") {
			continue
		}
		info[v.Key] = fmt.Sprint(v.Value)
		if !strings.HasPrefix(v.Key, wire.GuestInfoKey) {
			all = append(all, v.Key+"="+info[v.Key])
		}
	}
	if info[wire.GuestInfoKey+"0"] == "" {
		return all, nil
	}
	config, err := wire.ReadGuestInfo(func(key string) (string, error) { return info[key], nil })
	return append(all, config...), err
}

func (b *Bridge) device(h *hardware, device types.BaseVirtualDevice) error {
	v := device.GetVirtualDevice()
	connected := v.Connectable == nil || v.Connectable.StartConnected
	switch d := device.(type) {
	case *types.ParaVirtualSCSIController:
		h.controllers = append(h.controllers, part{device: map[string]any{"driver": "pvscsi", "id": scsiID(v.Key)}})
	case *types.VirtualDisk:
		p, err := b.disk(d)
		h.plugged[v.Key] = p
		return err
	case *types.VirtualCdrom:
		p, err := b.cd(d, connected, len(h.cds))
		h.cds = append(h.cds, p)
		return err
	case *types.VirtualVmxnet3:
		if !connected {
			return errors.New("an interface that is not connected has no counterpart")
		}
		p, err := b.nic(d)
		h.plugged[v.Key] = p
		return err
	case *types.VirtualSerialPort:
		if v.Connectable != nil && v.Connectable.Connected {
			connected = true // by an edit while it runs
		}
		if len(h.serials) == maxSerials {
			return fmt.Errorf("a PC has %d serial ports", maxSerials)
		}
		s, err := b.serial(h, d, connected)
		h.serials = append(h.serials, s)
		return err
	case *types.VirtualIDEController, *types.VirtualPS2Controller, *types.VirtualPCIController, *types.VirtualSIOController,
		*types.VirtualKeyboard, *types.VirtualPointingDevice, *types.VirtualMachineVideoCard, *types.VirtualMachineVMCIDevice,
		*types.VirtualAHCIController:
		// A PC has it, or a guest does without.
	default:
		return errors.New("it has no counterpart in QEMU")
	}
	return nil
}

func scsiID(key int32) string { return fmt.Sprintf("scsi%d", key) }

// disk is the chain as it lies on the datastore: QEMU follows the hints.
func (b *Bridge) disk(d *types.VirtualDisk) (part, error) {
	f, ok := d.Backing.(*types.VirtualDiskFlatVer2BackingInfo)
	if !ok {
		return part{}, fmt.Errorf("backing %T has no counterpart", d.Backing)
	}
	path, err := b.s.Path(f.FileName)
	if err != nil {
		return part{}, err
	}
	format := "vmdk"
	switch types.VirtualDiskMode(f.DiskMode) {
	case "", types.VirtualDiskModePersistent, types.VirtualDiskModeIndependent_persistent:
	case types.VirtualDiskModeIndependent_nonpersistent: // what is written goes to a disk above, which nobody opens again
		if path, err = b.redo(path); err != nil {
			return part{}, err
		}
		format = "qcow2"
	default:
		return part{}, fmt.Errorf("disk mode %s has no counterpart", f.DiskMode)
	}
	if d.UnitNumber == nil {
		return part{}, errors.New("it has no unit number")
	}
	node := fmt.Sprintf("block%d", d.Key)
	cache := map[string]any{"no-flush": true}
	device := map[string]any{"driver": "scsi-hd", "id": fmt.Sprintf("disk%d", d.Key), "bus": scsiID(d.ControllerKey) + ".0",
		"scsi-id": *d.UnitNumber, "drive": node}
	if f.Uuid != "" {
		device["serial"] = strings.ReplaceAll(f.Uuid, "-", "")
	}
	return part{
		block: map[string]any{"driver": format, "node-name": node, "cache": cache,
			"file": map[string]any{"driver": "file", "filename": path, "cache": cache}},
		device: device,
	}, nil
}

// redo makes an empty disk above another, in the bridge's folder.
func (b *Bridge) redo(below string) (string, error) {
	dir, err := os.MkdirTemp(b.temp, "redo-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "redo.qcow2")
	if out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", "-b", below, "-F", "vmdk", path).CombinedOutput(); err != nil {
		return "", fmt.Errorf("qemu-img create: %w: %s", err, out)
	}
	return path, nil
}

func (b *Bridge) cd(d *types.VirtualCdrom, connected bool, n int) (part, error) {
	p := part{device: map[string]any{"driver": "ide-cd", "id": fmt.Sprintf("cd%d", d.Key), "bus": fmt.Sprintf("ide.%d", n), "bootindex": n + 1}}
	iso, ok := d.Backing.(*types.VirtualCdromIsoBackingInfo)
	if !ok || !connected {
		return p, nil // a drive without a disc
	}
	path, err := b.s.Path(iso.FileName)
	if err != nil {
		return p, err
	}
	node := fmt.Sprintf("iso%d", d.Key)
	p.block = map[string]any{"driver": "raw", "node-name": node, "read-only": true,
		"file": map[string]any{"driver": "file", "filename": path, "read-only": true}}
	p.device["drive"] = node
	return p, nil
}

func (b *Bridge) nic(d *types.VirtualVmxnet3) (part, error) {
	network, err := b.networkOf(d.Backing)
	if err != nil {
		return part{}, err
	}
	id := fmt.Sprintf("net%d", d.Key)
	net := map[string]any{"type": "user", "id": id}
	bridge := b.o.Bridges[network]
	if bridge != "" {
		net = map[string]any{"type": "tap", "id": id, "ifname": tapName(bridge, d.MacAddress), "script": "no", "downscript": "no"}
	}
	if socket := b.o.Networks[network]; socket != "" {
		net = map[string]any{"type": "stream", "id": id, "server": false, "addr": map[string]any{"type": "unix", "path": socket}}
	}
	return part{net: net, bridge: bridge, device: map[string]any{"driver": "vmxnet3", "id": fmt.Sprintf("nic%d", d.Key), "netdev": id, "mac": d.MacAddress, "romfile": "", "bus": slots}}, nil
}

// networkOf is the name of the network that an interface is on.
func (b *Bridge) networkOf(backing types.BaseVirtualDeviceBackingInfo) (string, error) {
	switch n := backing.(type) {
	case *types.VirtualEthernetCardNetworkBackingInfo:
		return n.DeviceName, nil
	case *types.VirtualEthernetCardDistributedVirtualPortBackingInfo:
		ref := types.ManagedObjectReference{Type: "DistributedVirtualPortgroup", Value: n.Port.PortgroupKey}
		pg, ok := b.s.Service.Context.Map.Get(ref).(mo.Entity)
		if !ok {
			return "", fmt.Errorf("there is no port group %s", n.Port.PortgroupKey)
		}
		return pg.Entity().Name, nil
	}
	return "", fmt.Errorf("backing %T has no counterpart", backing)
}

// A backend is where a serial port leads: as QMP's chardev-change takes it, or a proxy.
type backend struct {
	chardev map[string]any
	proxy   *proxy
}

func newBackend(kind string, data map[string]any) backend {
	return backend{chardev: map[string]any{"type": kind, "data": data}}
}

// nowhere is where a port leads that is not connected.
func nowhere() backend { return newBackend("null", map[string]any{}) }

func (b *Bridge) serial(h *hardware, d *types.VirtualSerialPort, connected bool) (backend, error) {
	if !connected {
		return nowhere(), nil
	}
	switch s := d.Backing.(type) {
	case *types.VirtualSerialPortFileBackingInfo:
		path, err := b.s.Path(s.FileName)
		return newBackend("file", map[string]any{"out": path, "append": true}), err
	case *types.VirtualSerialPortURIBackingInfo:
		if s.ProxyURI != "" {
			return b.proxy(h, s)
		}
		host, port, telnet, err := parseURI(s.ServiceURI)
		if err != nil {
			return backend{}, err
		}
		socket := map[string]any{"addr": map[string]any{"type": "inet", "data": map[string]any{"host": host, "port": port}},
			"nodelay": true, "telnet": telnet}
		if s.Direction == string(types.VirtualDeviceURIBackingOptionDirectionServer) {
			socket["server"], socket["wait"] = true, false
		} else {
			socket["server"], socket["reconnect"] = false, 1
		}
		return newBackend("socket", socket), nil
	}
	return backend{}, fmt.Errorf("backing %T has no counterpart", d.Backing)
}

func (b *Bridge) proxy(h *hardware, s *types.VirtualSerialPortURIBackingInfo) (backend, error) {
	address, thumbprint, err := parseProxyURI(s.ProxyURI)
	if err != nil {
		return backend{}, err
	}
	p := &proxy{address: address, thumbprint: thumbprint, direction: 'C', service: s.ServiceURI, name: h.name}
	if s.Direction == string(types.VirtualDeviceURIBackingOptionDirectionServer) {
		p.direction = 'S'
	}
	if p.bios, err = vmwareUUID(h.uuid); err == nil {
		p.instance, err = vmwareUUID(h.instance)
	}
	return backend{proxy: p}, err
}

// parseURI reads tcp://HOST:PORT or telnet://HOST:PORT. Those with TLS are none of the bridge's.
func parseURI(text string) (host, port string, telnet bool, err error) {
	u, err := url.Parse(text)
	if err != nil {
		return "", "", false, err
	}
	if u.Scheme != "tcp" && u.Scheme != "telnet" || u.Port() == "" {
		return "", "", false, fmt.Errorf("%q is not tcp://HOST:PORT or telnet://HOST:PORT", text)
	}
	return u.Hostname(), u.Port(), u.Scheme == "telnet", nil
}

// parseProxyURI reads telnet://HOST:PORT, or with TLS telnets://HOST:PORT#thumbprint=SHA1. Other authentication parameters, and TLS
// without any, are none of the bridge's.
func parseProxyURI(text string) (address, thumbprint string, err error) {
	u, err := url.Parse(text)
	if err != nil {
		return "", "", err
	}
	thumbprint, secure := strings.CutPrefix(u.Fragment, "thumbprint=")
	thumbprint = strings.ToLower(strings.ReplaceAll(thumbprint, ":", ""))
	switch {
	case u.Port() == "":
	case u.Scheme == "telnet" && u.Fragment == "":
		return u.Host, "", nil
	case u.Scheme == "telnets" && secure && len(thumbprint) == hex.EncodedLen(sha1.Size):
		return u.Host, thumbprint, nil
	}
	return "", "", fmt.Errorf("%q is not telnet://HOST:PORT or telnets://HOST:PORT#thumbprint=SHA1", text)
}
