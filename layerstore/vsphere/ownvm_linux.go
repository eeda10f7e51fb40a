package vsphere

import (
	"fmt"
	"os"
)

// BIOSUUID is that of the virtual machine in which this program runs. It is an error where it runs in none of VMware's.
func BIOSUUID() (string, error) {
	serial, err := os.ReadFile("/sys/class/dmi/id/product_serial") // for root only
	if err != nil {
		return "", fmt.Errorf("read the machine's serial number: %w", err)
	}
	return parseSerial(string(serial))
}
