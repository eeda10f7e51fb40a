package vsphere

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/vmware/govmomi/object"
)

// An OwnVM is the virtual machine in which this program runs: disks that are attached to it are devices here.
type OwnVM struct {
	s       *Session
	uuid    string
	devices Devices
	vm      *object.VirtualMachine
}

// Devices finds the devices of disks that were attached to the own virtual machine. LinuxDevices is those of this machine.
type Devices interface {
	// Open waits until the device of a disk is there, and opens it for this program alone.
	Open(ctx context.Context, d AttachedDisk) (Device, error)
}

// A Device is an attached disk, open for writing. *os.File is one.
type Device interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Sync() error
}

// An AttachedDisk is what the server says of a disk on a SCSI controller of the own virtual machine.
type AttachedDisk struct {
	Path     string // datastore path of its descriptor
	UUID     string // of the disk, 32 hex digits; children have their parent's
	Target   int    // on its controller: the unit number
	Capacity int64  // bytes
}

// FindOwnVM finds the virtual machine in which this program runs, by its BIOS UUID, which BIOSUUID reads.
func (s *Session) FindOwnVM(ctx context.Context, uuid string, devices Devices) (*OwnVM, error) {
	v := &OwnVM{s: s, uuid: uuid, devices: devices}
	if err := v.find(ctx); err != nil {
		return nil, err
	}
	return v, nil
}

// find looks it up: it has another reference when it was registered anew.
func (v *OwnVM) find(ctx context.Context) error {
	all, err := object.NewSearchIndex(v.s.client).FindAllByUuid(ctx, nil, v.uuid, true, nil)
	if err != nil {
		return fmt.Errorf("find the virtual machine in which this runs: %w", unavailable(err))
	}
	if len(all) != 1 {
		return fmt.Errorf("%d virtual machines of %s have the BIOS UUID %s, that of the one in which this runs", len(all), v.s.client.URL().Host, v.uuid)
	}
	v.vm = object.NewVirtualMachine(v.s.client, all[0].Reference())
	return nil
}

// parseSerial is the BIOS UUID in the serial number of a virtual machine's system: "VMware-56 4d 8a 9c 3b 1e 6f 42-9a ...". The
// UUID that firmware shows beside it has some bytes in another order in some versions of virtual hardware.
func parseSerial(serial string) (string, error) {
	digits, ok := strings.CutPrefix(strings.TrimSpace(serial), "VMware-")
	digits = strings.NewReplacer(" ", "", "-", "").Replace(strings.ToLower(digits))
	if !ok || len(digits) != 32 || strings.Trim(digits, "0123456789abcdef") != "" {
		return "", fmt.Errorf("%q is no serial number of a VMware virtual machine", serial)
	}
	return digits[:8] + "-" + digits[8:12] + "-" + digits[12:16] + "-" + digits[16:20] + "-" + digits[20:], nil
}
