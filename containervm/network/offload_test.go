package network

import (
	"bytes"
	"net/netip"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"vic/containervm"
)

// soundFrames have all their sums made: a kernel's ping, and TCP of both IPs.
func soundFrames(t testing.TB) map[string][]byte {
	t.Helper()
	n := openOn(t, fabric(t, Options{}), containervm.NetworkConfig{IPv6: true, Subnet6: netip.MustParsePrefix("fd00::/64")})
	e := join(t, n, containervm.JoinOptions{})
	port := func(a netip.Addr) netip.AddrPort { return netip.AddrPortFrom(a, 80) }
	return map[string][]byte{
		"ICMP": unhex(t, pingGateway),
		"TCP":  e.probe(port(n.gateway), port(e.ip)),
		"TCP6": e.probe(port(n.gateway6), port(e.ip6)),
		"NDP":  e.announceNeighbour(),
	}
}

func TestSound(t *testing.T) {
	for name, frame := range soundFrames(t) {
		if !sound(frame) {
			t.Errorf("%s: not sound: %x", name, frame)
		}
		from := headerSize
		if frameType(frame) == etherIPv6 {
			from += 8 // its header has no sum of its own, but the addresses are in TCP's
		}
		for at := from; at < len(frame); at++ {
			damaged := bytes.Clone(frame)
			damaged[at] ^= 0x10
			if sound(damaged) {
				t.Errorf("%s: sound with another byte %d", name, at)
			}
		}
	}
}

// TestOffload leaves the sums of TCP to a software adapter, and wants what the stack would have made.
func TestOffload(t *testing.T) {
	for name, frame := range soundFrames(t) {
		got := bytes.Clone(frame)
		o := parseOffload(offloadOf(got, 1500).marshal())
		if o.flags == needsChecksum {
			at := got[o.checksumAt:]
			sum := ^checksum.Checksum(at, 0)
			at[o.checksum], at[o.checksum+1] = byte(sum>>8), byte(sum)
		}
		if !bytes.Equal(got, frame) {
			t.Errorf("%s: goes out as\n%x, want\n%x", name, got, frame)
		}
	}
	long := append(bytes.Clone(soundFrames(t)["TCP"]), make([]byte, 5000)...)
	header.IPv4(long[headerSize:]).SetTotalLength(uint16(len(long) - headerSize))
	o := offloadOf(long, 1500)
	if o.segment != segmentTCPv4 || o.size != 1460 || o.headers != 54 {
		t.Errorf("a packet of 5040 bytes is cut by %+v", o)
	}
}

// FuzzOffload has the wire bring anything.
func FuzzOffload(f *testing.F) {
	for _, frame := range soundFrames(f) {
		f.Add(frame)
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		if len(frame) < headerSize {
			return
		}
		sound(frame)
		o := offloadOf(bytes.Clone(frame), 1500)
		if o.flags == needsChecksum && int(o.checksumAt)+int(o.checksum)+2 > len(frame) {
			t.Errorf("the sum of a frame of %d bytes goes to %+v", len(frame), o)
		}
	})
}
