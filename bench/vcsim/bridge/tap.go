package bridge

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"github.com/vishvananda/netlink"
)

// tapName is what this machine's end of an interface is called. A bridge has one of each hardware address, and others that
// run on this machine have bridges of their own.
func tapName(bridge, mac string) string {
	sum := sha256.Sum256([]byte(bridge + " " + mac))
	return "vt" + hex.EncodeToString(sum[:6])
}

// attach makes a tap of QEMU's, which goes with it, a port of a bridge.
func attach(tap, bridge string) error {
	port, err := netlink.LinkByName(tap)
	if err != nil {
		return fmt.Errorf("find %s: %w", tap, err)
	}
	to, err := netlink.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("find bridge %s: %w", bridge, err)
	}
	if err := netlink.LinkSetMaster(port, to); err != nil {
		return fmt.Errorf("make %s a port of %s: %w", tap, bridge, err)
	}
	if err := netlink.LinkSetUp(port); err != nil {
		return fmt.Errorf("bring %s up: %w", tap, err)
	}
	return nil
}
