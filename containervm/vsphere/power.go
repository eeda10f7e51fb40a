package vsphere

import (
	"github.com/vmware/govmomi/vim25/types"
)

// A power is a VM's power state, none if it is gone, or unknown.
type power = types.VirtualMachinePowerState

const (
	on        = types.VirtualMachinePowerStatePoweredOn
	off       = types.VirtualMachinePowerStatePoweredOff
	suspended = types.VirtualMachinePowerStateSuspended
	gone      = power("")
	// unknown is that of a VM which was first seen when nobody could say whether it runs.
	unknown = power("unknown")
)

// runtimeProperties are those of a VM that told takes in.
var runtimeProperties = []string{"runtime.powerState", "runtime.connectionState", "runtime.cleanPowerOff", "runtime.dasVmProtection"}

// A told is what vSphere says of how a VM is.
type told struct {
	state      power
	connection types.VirtualMachineConnectionState
	// crashed says that the VM was not powered off by anybody: its host has failed, or its process there.
	crashed bool
	// protected says that vSphere HA would start it on another host.
	protected bool
}

func tellOf(r types.VirtualMachineRuntimeInfo) told {
	t := told{state: r.PowerState, connection: r.ConnectionState, crashed: r.CleanPowerOff != nil && !*r.CleanPowerOff}
	t.protected = r.DasVmProtection != nil && r.DasVmProtection.DasProtected
	return t
}

// set takes in a change of one of the runtimeProperties. One without a value is not set any more.
func (t *told) set(c types.PropertyChange) {
	switch c.Name {
	case "runtime.powerState":
		t.state, _ = c.Val.(power)
	case "runtime.connectionState":
		t.connection, _ = c.Val.(types.VirtualMachineConnectionState)
	case "runtime.cleanPowerOff":
		clean, ok := c.Val.(bool)
		t.crashed = ok && !clean
	case "runtime.dasVmProtection":
		p, _ := c.Val.(types.VirtualMachineRuntimeInfoDasProtectionState)
		t.protected = p.DasProtected
	}
}

// doubt is why a VM that is said to be off may yet run, or be about to; "" if it is off.
func (t told) doubt() string {
	switch {
	case t.state != off:
		return ""
	case t.connection != "" && t.connection != types.VirtualMachineConnectionStateConnected:
		return "it is " + string(t.connection)
	case t.crashed && t.protected:
		return "its host has failed, and vSphere HA will start it on another"
	}
	return ""
}

// power is what a VM's power state is, when it was before as far as anybody knew. A VM that ran, and of which there is doubt that it is
// off, is taken to run on.
func (t told) power(before power) power {
	if t.state == gone { // nothing was told yet
		return before
	}
	if t.doubt() == "" || before == off {
		return t.state
	}
	if before == gone {
		return unknown
	}
	return before
}
