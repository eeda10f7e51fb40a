package wire

import "net/netip"

// Trust is how much a guest lets through by an interface.
type Trust string

const (
	// Closed lets nothing in or out.
	Closed Trust = "closed"
	// Outbound lets the guest begin, and what belongs to that.
	Outbound Trust = "outbound"
	// Peers is Outbound and all that comes from a range of addresses.
	Peers Trust = "peers"
	// Published is Outbound, pings, and what is for published ports.
	Published Trust = "published"
	// Open lets everything in and out.
	Open Trust = "open"
)

// A Filter is what the guest's own packet filter does at an interface.
type Filter struct {
	Trust Trust `json:"trust"`
	// First and Last are the first and the last address of Peers, of IPv4.
	First netip.Addr `json:"first,omitzero"`
	Last  netip.Addr `json:"last,omitzero"`
	// Ports lead to those of the container.
	Ports []FilterPort `json:"ports,omitempty"`
}

// FilterPort is a port of an interface that leads to one of the container's.
type FilterPort struct {
	Proto string `json:"proto"` // tcp or udp
	Port  uint16 `json:"port"`
	To    uint16 `json:"to"`
}

// Any says whether there is anything to filter or to redirect.
func (f *Filter) Any() bool {
	return f != nil && (f.Trust != Open || f.redirects())
}

func (f *Filter) redirects() bool {
	for _, p := range f.Ports {
		if p.Port != p.To {
			return true
		}
	}
	return false
}
