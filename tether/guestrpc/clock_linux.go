package guestrpc

import (
	"errors"
	"time"
)

// commandTime has the VMX put the host's time into the registers, and leave the magic where it is: seconds since 1970 in
// esi and edx, microseconds in ebx.
const commandTime = 46

// HostTime is what the host's clock says.
func HostTime() (time.Time, error) {
	r := registers{ax: magic, cx: commandTime, dx: port}
	if err := withPorts(func() error {
		in(&r)
		return nil
	}); err != nil {
		return time.Time{}, err
	}
	seconds := int64(r.si)<<32 | int64(r.dx)
	if r.ax != magic || seconds <= 0 {
		return time.Time{}, errors.New("guestrpc: the VMX does not tell the time")
	}
	return time.Unix(seconds, int64(r.bx)*1000), nil
}
