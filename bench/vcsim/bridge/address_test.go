package bridge

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"
)

var testMAC = net.HardwareAddr{0, 12, 41, 1, 2, 3}

// capture is a capture file of frames.
func capture(frames ...[]byte) []byte {
	b := make([]byte, 24)
	for _, f := range frames {
		b = append(b, make([]byte, 8)...)
		b = binary.NativeEndian.AppendUint32(b, uint32(len(f)))
		b = binary.NativeEndian.AppendUint32(b, uint32(len(f)))
		b = append(b, f...)
	}
	return b
}

// frame is one of that type with an address where that type has it.
func frame(mac net.HardwareAddr, kind uint16, at int, ip ...byte) []byte {
	f := make([]byte, arp)
	copy(f[6:], mac)
	binary.BigEndian.PutUint16(f[12:], kind)
	copy(f[at:], ip)
	return f
}

// acknowledgement is a DHCP server's message of a kind for an interface, after some other options.
func acknowledgement(mac net.HardwareAddr, kind byte, ip ...byte) []byte {
	f := append(frame(net.HardwareAddr{2, 2, 2, 2, 2, 2}, 0x0800, 26, 10, 0, 2, 2), make([]byte, options-arp)...)
	f[ethernet], f[ethernet+9] = 0x45, 17
	binary.BigEndian.PutUint16(f[dhcp-8:], 67)
	binary.BigEndian.PutUint16(f[dhcp-6:], 68)
	copy(f[dhcp+16:], ip)
	copy(f[dhcp+28:], mac)
	binary.BigEndian.PutUint32(f[options-4:], 0x63825363)
	return append(f, 0, 54, 4, 10, 0, 2, 2, 53, 1, kind, 255)
}

func TestAddressIn(t *testing.T) {
	for name, x := range map[string]struct {
		frame []byte
		want  string
	}{
		"ARP":               {frame(testMAC, 0x0806, 28, 10, 0, 0, 1), "10.0.0.1"},
		"IPv4":              {frame(testMAC, 0x0800, 26, 10, 0, 0, 2), "10.0.0.2"},
		"DHCP":              {frame(testMAC, 0x0800, 26), ""},
		"IPv6":              {frame(testMAC, 0x86dd, 26, 10, 0, 0, 2), ""},
		"another interface": {frame(net.HardwareAddr{1, 2, 3, 4, 5, 6}, 0x0806, 28, 10, 0, 0, 1), ""},
		"DHCPACK":           {acknowledgement(testMAC, 5, 10, 0, 2, 15), "10.0.2.15"},
		"DHCPOFFER":         {acknowledgement(testMAC, 2, 10, 0, 2, 15), ""},
		"DHCPACK cut":       {acknowledgement(testMAC, 5, 10, 0, 2, 15)[:options+5], ""},
		"another's DHCPACK": {acknowledgement(net.HardwareAddr{1, 2, 3, 4, 5, 6}, 5, 10, 0, 2, 15), ""},
		"short":             {frame(testMAC, 0x0806, 28, 10, 0, 0, 1)[:30], ""},
	} {
		t.Run(name, func(t *testing.T) {
			got := ""
			if a, ok := addressIn(x.frame, testMAC); ok {
				got = a.String()
			}
			if got != x.want {
				t.Errorf("got %q, want %q", got, x.want)
			}
		})
	}
}

func FuzzFrames(f *testing.F) {
	f.Add(capture(frame(testMAC, 0x0806, 28, 10, 0, 0, 1), frame(testMAC, 0x0800, 26, 10, 0, 0, 2)))
	f.Add(capture(acknowledgement(testMAC, 5, 10, 0, 2, 15)))
	f.Add(capture(nil, make([]byte, 1<<16)))
	f.Add(capture()[:20])
	f.Add(capture(make([]byte, 60))[:40])
	f.Fuzz(func(t *testing.T, file []byte) {
		var frames [][]byte
		err := eachFrame(bytes.NewReader(file), func(p []byte) {
			frames = append(frames, bytes.Clone(p))
			addressIn(p, testMAC)
		})
		if err == nil {
			t.Fatal("a file has no end")
		}
		if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return
		}
		if again := capture(frames...); errors.Is(err, io.EOF) && len(file) >= 24 && len(again) != len(file) {
			t.Errorf("%d bytes are of frames, the file has %d", len(again), len(file))
		}
	})
}
