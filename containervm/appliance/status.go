package appliance

import (
	"encoding/json"
	"fmt"
	"net/netip"
)

// StatusKey is the guestinfo in which the appliance says how it is, as JSON. It lasts until the VM is powered off.
const StatusKey = "guestinfo.vic.status"

// A State is what the appliance is at.
type State string

const (
	Starting State = "starting" // setting itself up, or vic serve is not ready yet
	Serving  State = "serving"  // vic serve answers
	Failed   State = "failed"   // it cannot be set up, or vic serve has ended and is started again in a while
	Ending   State = "ending"   // powering off
)

// Status is how an appliance is.
type Status struct {
	State   State  `json:"state"`
	Error   string `json:"error,omitempty"` // the last one; at Serving, the one before
	Version string `json:"version"`         // of the ISO
	// Addresses of the interfaces, by their names.
	Addresses map[string][]netip.Prefix `json:"addresses,omitempty"`
	// Restarts of vic serve since the boot.
	Restarts int `json:"restarts,omitempty"`
}

// ParseStatus decodes the value of StatusKey.
func ParseStatus(value string) (*Status, error) {
	s := new(Status)
	if err := json.Unmarshal([]byte(value), s); err != nil {
		return nil, fmt.Errorf("parse status of appliance: %w", err)
	}
	return s, nil
}
