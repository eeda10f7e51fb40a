//go:build linux

// Appliance is PID 1 of an appliance, the VM in which a VCH runs on vSphere. It takes no arguments: what it runs is in the VM's
// guestinfo, see package containervm/appliance. It
//
//	reads the configuration and the key that its secrets are sealed with
//	mounts the state disk, which it formats if that is blank
//	sets the clock, the interfaces and the names up, and writes the files
//	runs vic serve, and again when that ends; says how it is in guestinfo and on the console
//	ends vic serve, syncs and powers off when the power button is pressed or vSphere shuts the guest down
//
// What cannot be set up leaves the VM running, so that the reason can be read. There is no shell, and nobody can log in.
package main

import (
	"fmt"
	"os"
)

func main() {
	if len(os.Args) > 1 {
		fmt.Fprintln(os.Stderr, "usage: appliance (as PID 1)")
		os.Exit(2)
	}
	if err := run(); err != nil { // there is no machine
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
