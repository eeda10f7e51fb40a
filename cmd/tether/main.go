// Command tether is PID 1 of a container VM.
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
