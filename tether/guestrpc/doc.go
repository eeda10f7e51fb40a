// Package guestrpc speaks, from inside a VMware VM, with the process that runs the VM (the VMX): it reads and
// writes the VM's guestinfo, and stands in for VMware Tools as far as vSphere needs them to show the guest as
// running, with its addresses, to shut it down, and to set its clock when it was suspended.
//
// # Ports
//
// There is no device to open. A VM talks to its VMX by an IN from port 0x5658 with the magic 0x564D5868 in eax: the
// VMX takes the registers, and sets them. On any other machine such an IN is a fault, so Present asks the CPU first
// whose it is (CPUID leaf 0x40000000, "VMwareVMware"), and nothing here is to be called where it says no. The
// VMX takes the IN from any process, or, if the VM has monitor_control.restrict_backdoor = TRUE, only from those
// that the kernel has given the ports to, which are none of a container's; the thread gives itself the ports
// (ioperm(2)) for as long as it needs them, and where the kernel gives them to nobody (kernel_lockdown(7)) goes on
// without.
//
// # Messages
//
// In ecx is 30 for messages and in its upper half what is asked for; the upper half of ecx comes back as the status:
//
//	ask          ebx              status  1 done, 2 a message waits, 0x10 checkpoint: begin again,
//	0 open       protocol | flag          0x80 a payload may go at once
//	1 send size  size
//	2 send       4 bytes
//	3 receive size                ebx: size, edx >> 16: 1
//	4 receive    1 (as expected)  ebx: 4 bytes, edx >> 16: 2
//	5 received   1
//	6 close
//
// Open gives the channel's number in the upper half of edx, and a cookie in esi and edi, which all that follows
// repeats. With status 0x80 the payload goes in one instruction, REP OUTSB or REP INSB on port 0x5659: ebx is the status
// 1 in its upper half, ecx the size, the cookie in ebp and in that of esi and edi that does not hold the address.
//
// The host's time comes in one exchange, see HostTime.
//
// There are two protocols. On RPCI the guest asks and the VMX answers "1 RESULT" or "0 ERROR" (Call). On TCLO the
// VMX asks; the guest finds out by sending its last answer, which may be empty, again and again (Tools). That poll is
// also the guest's heartbeat, and by it alone vSphere knows that it lives. A message to the VMX is at most 64 KiB, one
// from it some 1 MiB.
//
// The numbers, the names of requests and what follows what are those of open-vm-tools (lib/message, lib/rpcIn,
// services/vmtoolsd, services/plugins/powerOps, lib/guestRpc/nicinfo.x).
package guestrpc
