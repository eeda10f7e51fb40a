package network

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// shut drops what comes in by an interface after packet sockets have seen it, so that the kernel neither answers nor
// forwards. Without that a guest reached services of this machine under any of its addresses, past the gateway and what that forbids.
// What is returned undoes it. A crash leaves the interface shut; shutting it again does no harm.
func shut(link netlink.Link) (open func() error, err error) {
	program, err := dropAll()
	if err != nil {
		return nil, err
	}
	defer unix.Close(program) // the filter holds it
	index := link.Attrs().Index
	queue := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}
	if err := netlink.QdiscReplace(queue); err != nil {
		return nil, fmt.Errorf("make filter of what comes in: %w", err)
	}
	filter := &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: index, Parent: netlink.HANDLE_MIN_INGRESS, Handle: 1, Protocol: unix.ETH_P_ALL, Priority: 1},
		Fd:          program, Name: "vic-drop", DirectAction: true,
	}
	open = func() error {
		if err := netlink.QdiscDel(queue); err != nil && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove filter of what comes in: %w", err)
		}
		return nil
	}
	if err := netlink.FilterReplace(filter); err != nil {
		return nil, errors.Join(fmt.Errorf("set filter of what comes in: %w", err), open())
	}
	return open, nil
}

// dropAll loads a program for the kernel's packet filter that drops every packet: "return TC_ACT_SHOT".
func dropAll() (fd int, err error) {
	const drop = 2 // TC_ACT_SHOT
	// struct bpf_insn: code, registers, offset, immediate
	type instruction struct {
		code, regs uint8
		off        int16
		imm        int32
	}
	code := &[2]instruction{
		{code: unix.BPF_ALU64 | unix.BPF_MOV | unix.BPF_K, imm: drop}, // r0 = drop
		{code: unix.BPF_JMP | unix.BPF_EXIT},
	}
	license := new([1]byte)
	var pinner runtime.Pinner // the kernel is told where they are by number
	defer pinner.Unpin()
	pinner.Pin(code)
	pinner.Pin(license)
	// union bpf_attr for BPF_PROG_LOAD, as far as it matters
	attr := struct {
		progType, insnCount uint32
		insns, license      uint64
	}{
		unix.BPF_PROG_TYPE_SCHED_CLS, uint32(len(code)),
		uint64(uintptr(unsafe.Pointer(code))), uint64(uintptr(unsafe.Pointer(license))),
	}
	n, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_LOAD, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	if errno != 0 {
		return 0, fmt.Errorf("load filter of what comes in: %w", os.NewSyscallError("bpf", errno))
	}
	return int(n), nil
}
