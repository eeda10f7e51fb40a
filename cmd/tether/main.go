//go:build linux

// Tether is PID 1 of a container VM. It takes no arguments: what it runs is in the
// machine's SMBIOS strings or guestinfo. See package tether.
package main

import (
	"fmt"
	"os"

	"vic/tether"
)

func main() {
	if err := tether.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
