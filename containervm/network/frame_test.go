package network

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"
	"time"

	"vic/containervm"
)

// Frames of the guest 172.30.0.2, 02:42:ac:1e:00:02, as tcpdump showed them; spaces are for people.
const (
	pingGateway = "0242ac1e0001 0242ac1e0002 0800 4500001c000040004001e2a1 ac1e0002 ac1e0001 0800f7ff00000000"
	arpGateway  = "ffffffffffff 0242ac1e0002 0806 0001 0800 06 04 0001 0242ac1e0002 ac1e0002 000000000000 ac1e0001"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestCheck(t *testing.T) {
	mac, ip := hardwareAddr{0x02, 0x42, 0xac, 0x1e, 0, 2}, netip.MustParseAddr("172.30.0.2")
	for _, c := range []struct {
		name, frame, old, new string
		want                  bool
	}{
		{"ping", pingGateway, "", "", true},
		{"ARP", arpGateway, "", "", true},
		{"ARP probe", arpGateway, "0002 ac1e0002 ", "0002 00000000 ", true},
		{"another's hardware address", pingGateway, " 0242ac1e0002 0800", " 0242ac1e0003 0800", false},
		{"the gateway's", pingGateway, " 0242ac1e0002 0800", " 0242ac1e0001 0800", false},
		{"another's IP address", pingGateway, " ac1e0002 ", " ac1e0003 ", false},
		{"IP version 6 inside", pingGateway, " 4500", " 6500", false},
		{"half an IP header", pingGateway, " ac1e0002 ac1e0001 0800f7ff00000000", "", false},
		{"ARP for another", arpGateway, "0002 ac1e0002 ", "0002 ac1e0001 ", false},
		{"ARP with another's hardware address", arpGateway, "0001 0242ac1e0002 ac", "0001 0242ac1e0001 ac", false},
		{"ARP of another hardware", arpGateway, "0806 0001", "0806 0006", false},
		{"short ARP", arpGateway, " ac1e0001", "", false},
		{"IPv6", pingGateway, " 0800 ", " 86dd ", false},
		{"VLAN", pingGateway, " 0800 ", " 8100 ", false},
		{"header only", pingGateway[:30], "", "", false},
		{"short", "0242", "", "", false},
		{"nothing", "", "", "", false},
	} {
		if !strings.Contains(c.frame, c.old) {
			t.Fatalf("%s: nothing to replace", c.name)
		}
		frame := unhex(t, strings.Replace(c.frame, c.old, c.new, 1))
		if got := (&Endpoint{mac: mac, ip: ip}).check(frame); got != c.want {
			t.Errorf("%s: check gives %v", c.name, got)
		}
	}
}

// TestGatewayAnswers sends single frames, and wants those answered that are for the gateway.
func TestGatewayAnswers(t *testing.T) {
	n := open(t, Options{})
	e := join(t, n, containervm.JoinOptions{})
	c := plugIn(t, e)
	c.SetDeadline(time.Now().Add(patience))
	send := func(frame string) {
		if _, err := c.Write(appendFrame(nil, unhex(t, frame))); err != nil {
			t.Fatal(err)
		}
	}
	// An address of which the gateway must not say that it has it, and pings it must not answer
	// in the name of others.
	send(strings.Replace(arpGateway, "000000000000 ac1e0001", "000000000000 ac1e0009", 1))
	send(strings.Replace(pingGateway, " ac1e0001 ", " ac1e0009 ", 1))
	send(strings.Replace(pingGateway, "e2a1 ac1e0002 ac1e0001 ", "7eb1 ac1e0002 08080808 ", 1))
	send(arpGateway)
	frame, err := readFrame(c)
	if err != nil {
		t.Fatal(err)
	}
	if want := unhex(t, "0242ac1e0002 0242ac1e0001 0806 0001 0800 06 04 0002 0242ac1e0001 ac1e0001 0242ac1e0002 ac1e0002"); !bytes.Equal(frame, want) {
		t.Errorf("answer to ARP is\n%x, want\n%x", frame, want)
	}
	send(pingGateway)
	if frame, err = readFrame(c); err != nil {
		t.Fatal(err)
	}
	if len(frame) < 42 || frameType(frame) != etherIPv4 || ipv4Proto(frame) != protoICMP || frame[34] != 0 {
		t.Errorf("answer to ping is %x", frame)
	}
}

func TestFrameTooLong(t *testing.T) {
	n := open(t, Options{})
	e := join(t, n, containervm.JoinOptions{})
	c := plugIn(t, e)
	c.SetDeadline(time.Now().Add(patience))
	c.Write(binary.BigEndian.AppendUint32(nil, 1<<32-1))
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("connection goes on after a frame of 4 GiB was announced")
	}
}

// FuzzFrames feeds a network what a guest's side of the socket could send.
func FuzzFrames(f *testing.F) {
	for _, s := range []string{pingGateway, arpGateway} {
		b := unhex(f, s)
		f.Add(appendFrame(nil, b))
		f.Add(appendFrame(appendFrame(nil, b), b)[:2*len(b)])
		f.Add(b)
	}
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 1, 7})
	n, err := New(Options{Resolv: "/nonexistent"}).Open(containervm.NetworkConfig{
		Subnet: netip.MustParsePrefix("172.30.0.0/16"), Gateway: netip.MustParseAddr("172.30.0.1"),
		IPv6: true, Subnet6: netip.MustParsePrefix("fd00::/64"), Gateway6: netip.MustParseAddr("fd00::1"),
	})
	if err != nil {
		f.Fatal(err)
	}
	defer n.Close()
	e, err := n.(*Network).join(containervm.JoinOptions{})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := e.readFrames(bytes.NewReader(b)); err == nil {
			t.Error("stream has no end")
		}
	})
}
