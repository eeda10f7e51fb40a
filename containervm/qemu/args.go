package qemu

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"vic/containervm"
	"vic/tether/wire"
)

// What a VM has in its RuntimeDir.
const (
	pidFile     = "pid"
	monitorFile = "qmp"
	stderrFile  = "stderr"
	configFile  = "config" // and a number; gone once QEMU has read it
)

// slots is the bus that takes devices while the VM runs: 31 of them, where PCI Express has one a port, and
// a port costs 50 to 70 ms of every boot under emulation.
const slots = "slots"

// rootNode is the block node of the root disk.
const rootNode = "root"

// Open files that QEMU begins with.
const (
	monitorFD    = 3
	firstShareFD = 4
)

// socket is the path of one of a VM's ends on the host.
func socket(vm containervm.VM, end string) string { return filepath.Join(vm.RuntimeDir, end) }

// An origin is where a VM's memory comes from. The zero value is none: it boots.
type origin struct {
	ram string // file of the memory
	// shared is a template in the making, which boots and writes to ram. Without it the VM waits for a
	// state that goes with ram, and has copies of the pages that it writes to.
	shared bool
}

// args is QEMU's command line for vm.
func args(vm containervm.VM, p Platform, o origin) ([]string, error) {
	root, err := blockNode(rootNode, containervm.Disk{Path: vm.Disk}, vm.DiskSize, vm.Unsafe)
	if err != nil {
		return nil, err
	}
	a := platformArgs(p)
	size := strconv.FormatInt((vm.Memory+1<<20-1)>>20, 10)
	a = append(a,
		"-name", "vic-"+vm.ID[:min(12, len(vm.ID))],
		"-m", size,
		"-smp", strconv.Itoa(vm.CPUs),
		"-rtc", "base=utc",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-pidfile", socket(vm, pidFile),
		"-chardev", fmt.Sprintf("socket,id=monitor,server=on,wait=off,fd=%d", monitorFD),
		"-mon", "chardev=monitor,mode=control",
		"-chardev", "file,id=console,path="+escape(vm.Console),
		"-serial", "chardev:console",
		"-kernel", vm.Boot.Kernel,
		"-append", vm.Boot.Cmdline,
	)
	if vm.Boot.Initrd != "" {
		a = append(a, "-initrd", vm.Boot.Initrd)
	}
	switch {
	case o.ram == "":
		for i := range vm.Config {
			a = append(a, "-smbios", "type=11,path="+escape(configPath(vm, i)))
		}
	case o.shared:
		a = append(a, templateArgs(size, o.ram, "on")...)
	default:
		a = append(a, templateArgs(size, o.ram, "off")...)
		a = append(a, "-incoming", "defer")
	}
	a = append(a,
		"-blockdev", root,
		"-device", "virtio-blk-pci,drive="+rootNode+",serial="+escape(vm.DiskSerial),
		// ACPI plugs, as on all of QEMU's bridges: the bridge's own controller would be one more to set up.
		"-device", "pci-bridge,id="+slots+",chassis_nr=1,shpc=off,msi=off",
		"-device", "virtio-serial-pci,id=ports",
		"-chardev", "socket,id=control,server=on,wait=off,path="+escape(socket(vm, "control")),
		"-device", "virtserialport,bus=ports.0,nr=1,chardev=control,name=vic.control",
		"-chardev", "file,id=log,append=on,path="+escape(vm.Log),
		"-device", "virtserialport,bus=ports.0,nr=2,chardev=log,name=vic.log",
	)
	for i, d := range vm.Disks {
		name := fmt.Sprintf("disk%d", i)
		node, err := blockNode(name, d, 1<<20, false)
		if err != nil {
			return nil, err
		}
		a = append(a, "-blockdev", node, "-device", fmt.Sprintf("virtio-blk-pci,id=%s,drive=%s,serial=%s", name, name, escape(d.Serial)))
	}
	if len(vm.Shares) > 0 { // who serves them reads and writes the guest's memory
		a = append(a,
			"-object", fmt.Sprintf("memory-backend-memfd,id=memory,share=on,size=%dM", (vm.Memory+1<<20-1)>>20),
			"-machine", "memory-backend=memory",
		)
	}
	for i, s := range vm.Shares {
		name := fmt.Sprintf("share%d", i)
		a = append(a,
			"-chardev", fmt.Sprintf("socket,id=%s,fd=%d", name, firstShareFD+i),
			"-device", fmt.Sprintf("vhost-user-fs-pci,chardev=%s,tag=%s", name, escape(s.Tag)),
		)
	}
	for _, nic := range vm.NICs {
		a = append(a,
			"-netdev", "stream,id="+nic.End+",server=on,addr.type=unix,addr.path="+escape(socket(vm, nic.End)),
			"-device", "virtio-net-pci,id="+deviceID(nic.End)+",bus="+slots+",netdev="+nic.End+",romfile=,mac="+nic.MAC,
		)
	}
	return a, nil
}

// templateArgs are what a template and its copies have in common.
func templateArgs(size, ram, share string) []string {
	return []string{
		"-object", "memory-backend-file,id=ram,size=" + size + "M,mem-path=" + escape(ram) + ",share=" + share,
		"-machine", "memory-backend=ram",
		"-smbios", "type=11,value=" + wire.Template,
	}
}

// platformArgs is what a VM and the probe for KVM have in common.
func platformArgs(p Platform) []string {
	cpu := "host"
	if p.Accel == TCG {
		// Without RDRAND the guest waits for entropy at its first getrandom(2).
		cpu = "qemu64,+rdrand"
	}
	a := []string{
		"-accel", p.Accel, "-cpu", cpu,
		"-machine", p.Machine + ",usb=off,sata=off,smbus=off,hpet=off,vmport=off,dump-guest-core=off",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
	}
	if p.Firmware != "" {
		a = append(a, "-bios", p.Firmware)
	}
	return a
}

// blockNode describes a disk. Without a path it is empty and has that size, and another node can be put into it
// (insert). QEMU finds the disks below it by the hints in their descriptors,
// and locks all of their files: against every other VM if it may write them, else against those that may.
func blockNode(name string, d containervm.Disk, size int64, unsafe bool) (string, error) {
	if d.Path == "" {
		return fmt.Sprintf(`{"driver":"raw","node-name":"%s","file":{"driver":"null-co","size":%d,"read-zeroes":true}}`, name, size), nil
	}
	b, err := json.Marshal(vmdkNode(name, d, unsafe))
	if err != nil {
		return "", fmt.Errorf("describe disk: %w", err)
	}
	return string(b), nil
}

// vmdkNode is the description of a disk that is a VMDK.
func vmdkNode(name string, d containervm.Disk, unsafe bool) map[string]any {
	cache := map[string]bool{"no-flush": unsafe}
	return map[string]any{
		"driver": "vmdk", "node-name": name, "cache": cache, "read-only": d.ReadOnly,
		"file": map[string]any{"driver": "file", "filename": d.Path, "cache": cache, "read-only": d.ReadOnly},
	}
}

func configPath(vm containervm.VM, i int) string {
	return socket(vm, configFile+strconv.Itoa(i))
}

// escape doubles commas, which separate options.
func escape(s string) string { return strings.ReplaceAll(s, ",", ",,") }
