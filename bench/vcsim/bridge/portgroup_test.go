package bridge

import (
	"context"
	"crypto/md5"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"

	"vic/bench/oracle"
	"vic/containervm"
	"vic/containervm/network"
	"vic/tether/wire"
)

func ip(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// kernelBridge makes a bridge of this machine's, with a name that no other test has.
func kernelBridge(t *testing.T, kind string) string {
	t.Helper()
	name := fmt.Sprintf("vic%s%d", kind, os.Getpid())
	ip(t, "link", "add", "name", name, "type", "bridge", "mcast_snooping", "0")
	t.Cleanup(func() { ip(t, "link", "del", name) })
	ip(t, "link", "set", name, "up")
	return name
}

// openSegment gives the VCH, which is this process, an interface on a bridge.
func openSegment(t *testing.T, bridge string) *network.Segment {
	t.Helper()
	iface, port := fmt.Sprintf("vics%d", os.Getpid()), fmt.Sprintf("vicp%d", os.Getpid())
	ip(t, "link", "add", "name", iface, "type", "veth", "peer", "name", port)
	t.Cleanup(func() { ip(t, "link", "del", iface) })
	ip(t, "link", "set", port, "master", bridge, "up")
	s, err := network.OpenSegment(iface, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// A resident is a container's VM on port groups.
type resident struct {
	*object.VirtualMachine
	name     string
	endpoint containervm.Endpoint
	info     containervm.EndpointInfo
}

// resident makes one on the bridge network, and on the container network if filter is given; nothing runs yet.
func (l *lab) resident(n containervm.Network, s *network.Segment, name, top, script string, lan ...wire.NIC) *resident {
	t := l.t
	t.Helper()
	e, err := n.Join(containervm.JoinOptions{Container: name, Names: []string{name}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	i := e.Info()
	conn, err := s.Dial(t.Context(), i.MAC)
	if err != nil {
		t.Fatal(err)
	}
	var served sync.WaitGroup
	served.Go(func() { _ = e.Serve(conn) })
	t.Cleanup(func() {
		conn.Close()
		served.Wait()
	})
	nics := append([]wire.NIC{{Name: "eth0", MAC: i.MAC, Addresses: []netip.Prefix{i.IP}, Gateways: []netip.Addr{i.Gateway}, MTU: i.MTU,
		Neighbours: []wire.Neighbour{{Addr: i.Gateway, MAC: i.GatewayMAC}}}}, lan...)
	conf := wire.Config{ID: strings.Repeat("ab", 32), Token: rand.Text(), Hostname: name, Args: []string{"/busybox", "sh", "-c", script}, Env: []string{"PATH=/"},
		Network: wire.Network{NICs: nics, DNS: wire.DNS{Servers: []netip.Addr{i.Gateway}}}}
	info, err := conf.GuestInfo()
	if err != nil {
		t.Fatal(err)
	}
	vm := l.createVM(name, top, "vic/tether.iso", info, l.fileBacking(name+"/console"), uriBacking(listen(t).uri()), l.fileBacking(name+"/log"))
	l.place(vm, nics)
	return &resident{vm, name, e, i}
}

// place gives a VM's interfaces the addresses that its guest knows them by, and plugs in the second.
func (l *lab) place(vm *object.VirtualMachine, nics []wire.NIC) {
	t := l.t
	t.Helper()
	devices := l.devices(vm)
	first := devices.SelectByType((*types.VirtualVmxnet3)(nil))[0].(*types.VirtualVmxnet3)
	first.MacAddress, first.AddressType = nics[0].MAC, string(types.VirtualEthernetCardMacTypeManual)
	l.change(vm, types.VirtualDeviceConfigSpecOperationEdit, first)
	if len(nics) == 1 {
		return
	}
	f := find.NewFinder(l.Client)
	f.SetDatacenter(l.dc)
	lan, err := f.Network(t.Context(), "lan")
	if err != nil {
		t.Fatal(err)
	}
	backing, err := lan.EthernetCardBackingInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	second, err := devices.CreateEthernetCard("vmxnet3", backing)
	if err != nil {
		t.Fatal(err)
	}
	card := second.(*types.VirtualVmxnet3)
	card.MacAddress, card.AddressType = nics[1].MAC, string(types.VirtualEthernetCardMacTypeManual)
	l.change(vm, types.VirtualDeviceConfigSpecOperationAdd, card)
}

// TestPortGroups has two containers' VMs on the port group for bridge networks, where this process is the VCH, and one of them on a
// container network as well, where its own filter is all that there is between it and the world.
func TestPortGroups(t *testing.T) {
	oracle.Need(t, "qemu-system-x86_64", "ip", "ping")
	oracle.Root(t)
	wireBridge, lanBridge := kernelBridge(t, "b"), kernelBridge(t, "l")
	ip(t, "addr", "add", "10.93.0.1/24", "dev", lanBridge) // this machine is the container network's router
	s := openSegment(t, wireBridge)
	fabric := network.New(network.Options{Segment: s})
	n, err := fabric.Open(containervm.NetworkConfig{Name: "net", Subnet: netip.MustParsePrefix("172.31.7.0/24"), Gateway: netip.MustParseAddr("172.31.7.1")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })

	l := newLab(t, Options{Bridges: map[string]string{"bridge": wireBridge, "lan": lanBridge}})
	ctx := t.Context()
	top := l.uploadImage()
	l.upload(bootISO(t, "vic/cmd/tether"), "vic/tether.iso")

	server := l.resident(n, s, "beta", top, `echo up; exec /busybox httpd -f -h / -p 80`, wire.NIC{Name: "eth1", MAC: "02:42:0a:5d:00:02",
		Addresses: []netip.Prefix{netip.MustParsePrefix("10.93.0.2/24")},
		Filter:    &wire.Filter{Trust: wire.Published, Ports: []wire.FilterPort{{Proto: "tcp", Port: 8080, To: 80}}}})
	if err := server.endpoint.Publish([]containervm.PortBinding{{Proto: "tcp", Port: 80, HostIP: netip.MustParseAddr("127.0.0.1")}}); err != nil {
		t.Fatal(err)
	}
	outside := outsideServer(t)
	l.must(server.PowerOn(ctx))
	l.saysUp(server)

	client := l.resident(n, s, "alpha", top, fmt.Sprintf(`set -e
/busybox ping -c 2 -W 60 %[1]s >/dev/null; echo gateway
/busybox arp -n %[1]s | /busybox grep -q PERM; echo known
/busybox nslookup beta | /busybox grep -q %[2]s; echo named
/busybox wget -q -O - http://%[2]s/upper; echo
/busybox wget -q -O - http://%[3]s/ | /busybox md5sum`, server.info.Gateway, server.info.IP.Addr(), outside.address))
	l.must(client.PowerOn(ctx))
	l.await(client.VirtualMachine, "runtime.powerState", func(v any) bool { return v == types.VirtualMachinePowerStatePoweredOff })
	stdout, exit := output(t, l.s.Folder("datastore1")+"/alpha/log")
	if want := "gateway\nknown\nnamed\nfrom the second\n" + outside.sum + "  -\n"; stdout != want || exit.Code != 0 {
		console, _ := os.ReadFile(l.s.Folder("datastore1") + "/alpha/console")
		t.Errorf("stdout %q, want %q; exit %+v; console:\n%s", stdout, want, exit, console)
	}

	port := server.endpoint.Info().Ports[0].HostPort
	for _, c := range []struct{ what, from string }{
		{"published by the VCH", fmt.Sprintf("127.0.0.1:%d", port)},
		{"published by the guest's filter", "10.93.0.2:8080"},
	} {
		if got, err := get(ctx, c.from, patience); got != "from the second" {
			t.Errorf("%s: %q, %v", c.what, got, err)
		}
	}
	if got, err := get(ctx, "10.93.0.2:80", time.Second); err == nil {
		t.Errorf("the port behind the published one says %q", got)
	}
	if out, err := exec.Command("ping", "-nc", "1", "10.93.0.2").CombinedOutput(); err != nil {
		t.Errorf("ping on the container network: %v\n%s", err, out)
	}
	l.must(server.PowerOff(ctx))
	for _, r := range []*resident{server, client} {
		l.must(r.Destroy(ctx))
	}
}

// saysUp waits until a container has written that it is up.
func (l *lab) saysUp(r *resident) {
	l.t.Helper()
	for over := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		stdout, exit := output(l.t, l.s.Folder("datastore1")+"/"+r.name+"/log")
		if stdout == "up\n" {
			return
		}
		if exit != (wire.Exit{}) || time.Now().After(over) {
			console, _ := os.ReadFile(l.s.Folder("datastore1") + "/" + r.name + "/console")
			l.t.Fatalf("%s is not up: %q, %+v; console:\n%s", r.name, stdout, exit, console)
		}
	}
}

// get gets the file "upper" of a guest's server.
func get(ctx context.Context, from string, patience time.Duration) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", "http://"+from+"/upper", nil)
	if err != nil {
		return "", err
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return string(b), err
}

type outsider struct{ address, sum string }

// outsideServer is a server on an address of this machine's that is not loopback's.
func outsideServer(t *testing.T) outsider {
	t.Helper()
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	at := slices.IndexFunc(addrs, func(a net.Addr) bool {
		p, err := netip.ParsePrefix(a.String())
		return err == nil && p.Addr().Is4() && !p.Addr().IsLoopback() && p.Addr() != netip.MustParseAddr("10.93.0.1")
	})
	if at < 0 {
		oracle.Missing(t, errors.New("an address that is not loopback's"))
	}
	own := netip.MustParsePrefix(addrs[at].String()).Addr()
	l, err := net.Listen("tcp", netip.AddrPortFrom(own, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	data := make([]byte, 4<<20)
	rand.Read(data)
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write(data) })}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	return outsider{l.Addr().String(), fmt.Sprintf("%x", md5.Sum(data))}
}
