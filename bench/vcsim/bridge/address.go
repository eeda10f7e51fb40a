package bridge

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
	"golang.org/x/sys/unix"
)

// A listener sees the beginning of each frame of an interface, by QEMU's filter-dump, for the addresses that the guest has: there is no
// VMware Tools to tell them.
type listener struct {
	filter string
	fifo   *os.File // open for both ways, so that nobody waits for the other
}

// Offsets in a frame, and how much of one is heard: to the first options of a DHCP message, which say what it is.
const (
	ethernet = 14
	arp      = ethernet + 28
	dhcp     = ethernet + 20 + 8 // without IP options
	options  = dhcp + 240
	heard    = options + 64
)

// listen begins to listen to the interface that a netdev is for.
func (m *machine) listen(ctx context.Context, key int32, p part) error {
	path := filepath.Join(m.dir, fmt.Sprintf("frames%d", key))
	if err := unix.Mkfifo(path, 0600); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make pipe: %w", err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	l := &listener{filter: fmt.Sprintf("frames%d", key), fifo: f}
	err = m.execute(ctx, "object-add", map[string]any{"qom-type": "filter-dump", "id": l.filter, "netdev": p.net["id"], "file": path, "maxlen": heard})
	if err != nil {
		return errors.Join(err, f.Close())
	}
	mac, err := net.ParseMAC(p.device["mac"].(string))
	if err != nil {
		return errors.Join(err, f.Close())
	}
	m.listeners[key] = l
	m.wg.Go(func() {
		var known netip.Addr
		err := eachFrame(f, func(frame []byte) {
			if a, ok := addressIn(frame, mac); ok && a != known {
				known = a
				m.report(m, key, a.String())
			}
		})
		if !errors.Is(err, os.ErrClosed) {
			m.log.Error("listen to interface", "vm", m.name, "error", err)
		}
	})
	return nil
}

// unlisten ends it.
func (m *machine) unlisten(ctx context.Context, key int32) error {
	l := m.listeners[key]
	delete(m.listeners, key)
	return errors.Join(m.execute(ctx, "object-del", map[string]any{"id": l.filter}), l.close())
}

func (l *listener) close() error { return l.fifo.Close() }

// eachFrame reads a capture file (pcap-savefile(5), in this machine's byte order) until there is no more, which is io.EOF between two
// frames.
func eachFrame(r io.Reader, fn func([]byte)) error {
	const header, record, limit = 24, 16, 1 << 16
	b := make([]byte, limit)
	if _, err := io.ReadFull(r, b[:header]); err != nil {
		return err
	}
	for {
		if _, err := io.ReadFull(r, b[:record]); err != nil {
			return err
		}
		n := binary.NativeEndian.Uint32(b[8:])
		if n > limit {
			return fmt.Errorf("frame of %d bytes", n)
		}
		if _, err := io.ReadFull(r, b[:n]); errors.Is(err, io.EOF) {
			return io.ErrUnexpectedEOF
		} else if err != nil {
			return err
		}
		fn(b[:n])
	}
}

// addressIn is the IPv4 address that a frame shows the interface to have: one that it sends from, or one that a DHCP server has
// acknowledged, which it may not use for long.
func addressIn(frame []byte, mac net.HardwareAddr) (netip.Addr, bool) {
	if len(frame) < arp {
		return netip.Addr{}, false
	}
	kind, own := binary.BigEndian.Uint16(frame[12:]), slices.Equal(frame[6:12], mac)
	at := 0
	switch {
	case kind == 0x0800 && own:
		at = ethernet + 12
	case kind == 0x0806 && own:
		at = ethernet + 14
	case kind == 0x0800 && acknowledges(frame, mac):
		at = dhcp + 16
	default:
		return netip.Addr{}, false
	}
	a := netip.AddrFrom4([4]byte(frame[at:]))
	return a, !a.IsUnspecified()
}

// acknowledges tells whether a frame is a DHCPACK for the interface (RFC 2131, 2132).
func acknowledges(frame []byte, mac net.HardwareAddr) bool {
	const udp, server, client = 17, 67, 68
	if len(frame) < options || frame[ethernet] != 0x45 || frame[ethernet+9] != udp ||
		binary.BigEndian.Uint16(frame[dhcp-8:]) != server || binary.BigEndian.Uint16(frame[dhcp-6:]) != client ||
		!slices.Equal(frame[dhcp+28:dhcp+34], mac) || binary.BigEndian.Uint32(frame[options-4:]) != 0x63825363 {
		return false
	}
	for o := frame[options:]; len(o) > 2; {
		if o[0] == 53 {
			return o[1] == 1 && o[2] == 5
		}
		n := 2 + int(o[1])
		if o[0] == 0 {
			n = 1
		}
		o = o[min(n, len(o)):]
	}
	return false
}

// report tells the API which address an interface has.
func (b *Bridge) report(m *machine, nic int32, address string) {
	ctx := b.context()
	vm, ok := ctx.Map.Get(m.ref).(*simulator.VirtualMachine)
	if !ok {
		return // gone meanwhile
	}
	ctx.WithLock(vm, func() {
		nets := slices.Clone(vm.Guest.Net)
		for i, n := range nets {
			if n.DeviceConfigId != nic {
				continue
			}
			nets[i].IpAddress, nets[i].Connected = []string{address}, true
			changes := []types.PropertyChange{{Name: "guest.net", Val: nets}}
			if i == 0 {
				changes = append(changes, types.PropertyChange{Name: "guest.ipAddress", Val: address}, types.PropertyChange{Name: "summary.guest.ipAddress", Val: address})
			}
			ctx.Update(vm, changes)
			b.o.Log.Info("address", "vm", m.name, "interface", nic, "address", address)
		}
	})
}
