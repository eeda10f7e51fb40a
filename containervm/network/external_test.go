package network

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"vic/containervm"
	"vic/tether/wire"
)

var _ containervm.Network = (*external)(nil)

// openExternal opens a container network as a Manager does.
func openExternal(t *testing.T, trust containervm.Trust, subnet, first, last string) *external {
	t.Helper()
	conf := containervm.NetworkConfig{ID: strings.Repeat("e", 64), Name: "lan", External: &containervm.ContainerNetwork{PortGroup: "VM Network", Name: "lan", Trust: trust}}
	if subnet != "" {
		conf.Subnet = netip.MustParsePrefix(subnet)
		conf.Gateway = conf.Subnet.Addr().Next()
		conf.External.First, conf.External.Last = netip.MustParseAddr(first), netip.MustParseAddr(last)
	}
	n, err := fabric(t, Options{}).Open(conf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n.(*external)
}

func TestExternalAddresses(t *testing.T) {
	n := openExternal(t, wire.Open, "10.9.0.0/24", "10.9.0.1", "10.9.0.3")
	var got []string
	var ends []containervm.Endpoint
	for {
		e, err := n.Join(containervm.JoinOptions{Container: "c"})
		if err != nil {
			if !errors.Is(err, errPoolEmpty) {
				t.Error(err)
			}
			break
		}
		i := e.Info()
		got, ends = append(got, i.IP.String()+" "+i.MAC+" "+i.Gateway.String()), append(ends, e)
	}
	// The gateway's own address is in the range, and nobody else's.
	if want := []string{"10.9.0.2/24 02:42:0a:09:00:02 10.9.0.1", "10.9.0.3/24 02:42:0a:09:00:03 10.9.0.1"}; !slices.Equal(got, want) {
		t.Errorf("gave out %q, want %q", got, want)
	}
	ends[0].Close()
	ends[0].Close()
	again, err := n.Join(containervm.JoinOptions{IP: netip.MustParseAddr("10.9.0.2"), MAC: "00:50:56:00:00:07"})
	if err != nil || again.Info().MAC != "00:50:56:00:00:07" {
		t.Errorf("the same place again: %+v, %v", again, err)
	}
	for _, o := range []containervm.JoinOptions{{IP: netip.MustParseAddr("10.9.0.3")}, {IP: netip.MustParseAddr("10.9.0.255")}, {IP: netip.MustParseAddr("10.9.0.9"), MAC: "00:50:56:00:00:07"}} {
		if e, err := n.Join(o); err == nil {
			t.Errorf("%+v gives %+v", o, e.Info())
		}
	}
	if e, err := n.Join(containervm.JoinOptions{IP: netip.MustParseAddr("10.9.0.9")}); err != nil { // its address was given back when the other was refused
		t.Errorf("%+v, %v", e, err)
	}
}

func TestExternalDHCP(t *testing.T) {
	n := openExternal(t, wire.Published, "", "", "")
	a, err := n.Join(containervm.JoinOptions{Container: "a"})
	if err != nil {
		t.Fatal(err)
	}
	b, err := n.Join(containervm.JoinOptions{Container: "b"})
	if err != nil {
		t.Fatal(err)
	}
	i := a.Info()
	if i.IP.IsValid() || i.Gateway.IsValid() || i.MAC == b.Info().MAC || i.MAC[:2] != "06" {
		t.Errorf("a is %+v, b %+v", i, b.Info())
	}
	if _, err := n.Join(containervm.JoinOptions{Container: "a"}); err == nil {
		t.Error("a hardware address was given out twice")
	}
	a.Close()
	if a, err = n.Join(containervm.JoinOptions{Container: "a"}); err != nil || a.Info().MAC != i.MAC {
		t.Errorf("a is %+v when it comes again, %v", a, err)
	}
}

func TestExternalPublish(t *testing.T) {
	for name, c := range map[string]struct {
		trust containervm.Trust
		ports []containervm.PortBinding
		want  []containervm.PortBinding
		err   error
	}{
		"same port":   {wire.Published, []containervm.PortBinding{{Port: 80}, {Port: 80}}, []containervm.PortBinding{{Proto: "tcp", Port: 80, HostPort: 80}}, nil},
		"another":     {wire.Peers, []containervm.PortBinding{{Proto: "udp", Port: 53, HostPort: 5353, HostIP: netip.IPv4Unspecified()}}, []containervm.PortBinding{{Proto: "udp", Port: 53, HostPort: 5353}}, nil},
		"of a range":  {wire.Open, []containervm.PortBinding{{Port: 80, HostPort: 8000}, {Port: 81, HostPort: 8000, HostPortEnd: 8002}}, []containervm.PortBinding{{Proto: "tcp", Port: 80, HostPort: 8000}, {Proto: "tcp", Port: 81, HostPort: 8001}}, nil},
		"taken":       {wire.Open, []containervm.PortBinding{{Port: 80, HostPort: 8000}, {Port: 81, HostPort: 8000}}, nil, containervm.ErrPortAllocated},
		"at a host's": {wire.Published, []containervm.PortBinding{{Port: 80, HostIP: netip.MustParseAddr("192.0.2.1")}}, nil, containervm.ErrInvalid},
		"outbound":    {wire.Outbound, []containervm.PortBinding{{Port: 80}}, nil, containervm.ErrInvalid},
		"closed":      {wire.Closed, []containervm.PortBinding{{Port: 80}}, nil, containervm.ErrInvalid},
	} {
		n := openExternal(t, c.trust, "10.9.0.0/24", "10.9.0.5", "10.9.0.9")
		e, err := n.Join(containervm.JoinOptions{Container: "c"})
		if err != nil {
			t.Fatal(err)
		}
		for i := range c.want {
			c.want[i].HostIP = netip.MustParseAddr("10.9.0.5")
		}
		if err := e.Publish(c.ports); !errors.Is(err, c.err) || !slices.Equal(e.Info().Ports, c.want) {
			t.Errorf("%s: %+v, %v, want %+v, %v", name, e.Info().Ports, err, c.want, c.err)
		}
	}
}
