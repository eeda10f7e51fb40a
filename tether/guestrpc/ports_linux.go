package guestrpc

import (
	"encoding/binary"
	"runtime"
)

const (
	magic    = 0x564D5868
	port     = 0x5658 // and the three behind it, for a double word
	bulkPort = 0x5659
	ports    = 4
)

// registers are what an IN shows the VMX and what the VMX makes of them.
type registers struct {
	ax, bx, cx, dx, si, di, bp uint32
}

// Present says whether this machine is a VMware VM. It touches no port.
func Present() bool {
	const (
		features   = 1
		hypervisor = 0x40000000
		isVM       = 1 << 31 // in ecx: there are leaves of a hypervisor
	)
	if _, _, c, _ := cpuid(features); c&isVM == 0 {
		return false
	}
	_, b, c, d := cpuid(hypervisor)
	name := binary.LittleEndian.AppendUint32(nil, b)
	name = binary.LittleEndian.AppendUint32(name, c)
	return string(binary.LittleEndian.AppendUint32(name, d)) == "VMwareVMware"
}

// withPorts calls f on a thread that may use the ports. The kernel keeps who may by thread, and lets each new thread
// or process have what the one has that makes it; so the thread is f's alone, and gives them up before it is
// anybody else's.
func withPorts(f func() error) error {
	runtime.LockOSThread()
	granted := grant(true) == nil // else the VMX may let us nevertheless
	defer func() {
		if granted && grant(false) != nil {
			return // the thread ends with this goroutine
		}
		runtime.UnlockOSThread()
	}()
	return f()
}
