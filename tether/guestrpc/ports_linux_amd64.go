package guestrpc

import "golang.org/x/sys/unix"

// cpuid is the instruction, with 0 in ecx.
func cpuid(leaf uint32) (a, b, c, d uint32)

// in is IN: a double word from port r.dx, with all registers given to whoever intercepts it, and taken back.
//
//go:noescape
func in(r *registers)

// outBytes is REP OUTSB: r.cx bytes to port r.dx. Of what comes back only r.bx is kept.
//
//go:noescape
func outBytes(r *registers, from *byte)

// inBytes is REP INSB, likewise.
//
//go:noescape
func inBytes(r *registers, to *byte)

// grant lets this thread use the ports, or no longer.
func grant(on bool) error {
	n := 0
	if on {
		n = 1
	}
	return unix.Ioperm(port, ports, n)
}
