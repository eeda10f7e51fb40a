package network

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"vic/bench/oracle"
	"vic/containervm"
)

// run runs a program and returns what it says.
func run(t testing.TB, args ...string) string {
	t.Helper()
	out, err := try(t, args...)
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func try(t testing.TB, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
	return string(out), err
}

// A port group is a bridge of the kernel's in a network namespace of its own. Each station on it is a namespace with an
// interface, so that the guests are real kernels, with their checksum and segmentation offloads.
type portGroup struct {
	t     testing.TB
	ns    string
	ports int
}

func newPortGroup(t testing.TB) *portGroup {
	t.Helper()
	oracle.Need(t, "ip")
	oracle.Root(t)
	g := &portGroup{t: t, ns: fmt.Sprintf("vicpg%d", os.Getpid())}
	g.namespace(g.ns)
	run(t, "ip", "-n", g.ns, "link", "add", "name", "switch", "type", "bridge", "mcast_snooping", "0")
	run(t, "ip", "-n", g.ns, "link", "set", "switch", "up")
	return g
}

func (g *portGroup) namespace(name string) {
	g.t.Helper()
	run(g.t, "ip", "netns", "add", name)
	g.t.Cleanup(func() { run(g.t, "ip", "netns", "del", name) })
}

// plug makes an interface in a namespace, "" for this one.
func (g *portGroup) plug(ns, name, mac string) {
	g.t.Helper()
	g.ports++
	peer := fmt.Sprintf("p%d", g.ports)
	add := []string{"ip", "link", "add", "name", name, "address", mac, "type", "veth", "peer", "name", peer, "netns", g.ns}
	if ns != "" {
		add = append([]string{"ip", "-n", ns}, add[1:]...)
	}
	run(g.t, add...)
	run(g.t, "ip", "-n", g.ns, "link", "set", peer, "master", "switch", "up")
}

// segment is this machine's interface on the port group.
func (g *portGroup) segment(log *slog.Logger) *Segment {
	g.t.Helper()
	iface := fmt.Sprintf("vic%d", os.Getpid()%1000000)
	g.plug("", iface, "00:50:56:9a:00:01")
	g.t.Cleanup(func() { run(g.t, "ip", "link", "del", iface) })
	s, err := OpenSegment(iface, log)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() {
		if err := s.Close(); err != nil {
			g.t.Error(err)
		}
	})
	return s
}

// station is a guest of an endpoint's, with its addresses, its frames served.
func (g *portGroup) station(name string, e *Endpoint, s *Segment) string {
	g.t.Helper()
	ns := g.ns + name
	i := e.Info()
	g.namespace(ns)
	g.plug(ns, "eth0", i.MAC)
	run(g.t, "ip", "-n", ns, "addr", "add", i.IP.String(), "dev", "eth0")
	run(g.t, "ip", "-n", ns, "link", "set", "lo", "up")
	run(g.t, "ip", "-n", ns, "link", "set", "eth0", "up")
	run(g.t, "ip", "-n", ns, "route", "add", "default", "via", i.Gateway.String())
	if i.IP6.IsValid() {
		run(g.t, "ip", "-n", ns, "addr", "add", i.IP6.String(), "dev", "eth0", "nodad")
		run(g.t, "ip", "-n", ns, "route", "add", "default", "via", i.Gateway6.String())
	}
	g.serve(e, s)
	return ns
}

// serve carries an endpoint's frames, as a Machine's connection does.
func (g *portGroup) serve(e *Endpoint, s *Segment) {
	g.t.Helper()
	conn, err := s.Dial(g.t.Context(), e.mac.String())
	if err != nil {
		g.t.Fatal(err)
	}
	var served sync.WaitGroup
	served.Go(func() { _ = e.Serve(conn) })
	g.t.Cleanup(func() {
		conn.Close()
		served.Wait()
	})
}

func in(ns string, args ...string) []string {
	return append([]string{"ip", "netns", "exec", ns}, args...)
}

// locked is a buffer of several.
type locked struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *locked) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *locked) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// TestSegment has kernels talk with each other and with the gateways of two networks over one port group.
func TestSegment(t *testing.T) {
	g := newPortGroup(t)
	oracle.Need(t, "ping", "curl", "dig", "tcpdump")
	s := g.segment(nil)
	logged := &locked{}
	f := New(Options{Segment: s, Resolv: filepath.Join(t.TempDir(), "none"), Log: slog.New(slog.NewTextHandler(logged, nil))})
	n := openOn(t, f, containervm.NetworkConfig{Name: "one", IPv6: true, Subnet6: netip.MustParsePrefix("fd00:1::/64")})
	other := openOn(t, f, containervm.NetworkConfig{Name: "two", Subnet: netip.MustParsePrefix("172.29.0.0/16")})
	a := join(t, n, containervm.JoinOptions{Container: "a", Names: []string{"alpha"}})
	b := join(t, n, containervm.JoinOptions{Container: "b", Names: []string{"beta"}})
	c := join(t, other, containervm.JoinOptions{Container: "c", Names: []string{"gamma"}})
	nsA, nsB, nsC := g.station("a", a, s), g.station("b", b, s), g.station("c", c, s)

	if n.mtu != 1500 || a.Info().MTU != 1500 {
		t.Errorf("MTU %d and %d, want the interface's 1500", n.mtu, a.Info().MTU)
	}
	if _, err := other.join(containervm.JoinOptions{Container: "d", MAC: a.Info().MAC}); err == nil {
		t.Error("a hardware address that is in use on the wire was given to another network's endpoint")
	}
	if _, err := f.Open(containervm.NetworkConfig{Name: "jumbo", Subnet: netip.MustParsePrefix("172.28.0.0/16"), Gateway: netip.MustParseAddr("172.28.0.1"), MTU: 9000}); !errors.Is(err, containervm.ErrInvalid) {
		t.Errorf("an MTU beyond the interface's gives %v", err)
	}

	t.Run("once", func(t *testing.T) {
		dump := exec.Command("ip", in(nsB, "tcpdump", "-lnni", "eth0", "-c", "8", "icmp or arp")[1:]...)
		text := &bytes.Buffer{}
		dump.Stdout = text
		said, err := dump.StderrPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := dump.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := said.Read(make([]byte, 256)); err != nil { // it listens
			t.Fatal(err)
		}
		// An answer that comes twice is one that ping calls a DUP.
		if out := run(t, in(nsA, "ping", "-nc", "3", "-i", "0.2", b.ip.String())...); !strings.Contains(out, " 3 received") || strings.Contains(out, "DUP") {
			t.Error(out)
		}
		stop := time.AfterFunc(patience, func() { dump.Process.Kill() })
		io.Copy(io.Discard, said)
		dump.Wait() // it ends with the last frame
		stop.Stop()
		if got := strings.Count(text.String(), "echo request"); got != 3 {
			t.Errorf("3 pings came as %d:\n%s", got, text)
		}
		if got := strings.Count(text.String(), fmt.Sprintf("who-has %s tell %s", b.ip, a.ip)); got != 1 {
			t.Errorf("one question came as %d:\n%s", got, text)
		}
	})
	t.Run("gateway", func(t *testing.T) {
		for ns, to := range map[string][]netip.Addr{nsA: {n.gateway, n.gateway6}, nsC: {other.gateway}} {
			for _, to := range to {
				if out, err := try(t, in(ns, "ping", "-nc", "2", "-i", "0.2", to.String())...); err != nil {
					t.Errorf("%v\n%s", err, out)
				}
			}
		}
		if out := run(t, in(nsC, "ip", "neigh", "show", other.gateway.String())...); !strings.Contains(out, s.mac.String()) {
			t.Errorf("the gateway is not the interface: %s", out)
		}
	})
	t.Run("names", func(t *testing.T) {
		for _, transport := range []string{"+notcp", "+tcp"} {
			if got := run(t, in(nsA, "dig", "+short", "+tries=1", transport, "@"+n.gateway.String(), "beta", "A")...); strings.TrimSpace(got) != b.ip.String() {
				t.Errorf("%s: beta is %q", transport, got)
			}
		}
	})
	t.Run("outside", func(t *testing.T) { g.download(t, nsA) })
	t.Run("outside without offloads", func(t *testing.T) {
		oracle.Need(t, "ethtool")
		run(t, in(nsB, "ethtool", "-K", "eth0", "tx", "off", "tso", "off", "gso", "off", "gro", "off")...)
		g.download(t, nsB)
	})
	t.Run("published", func(t *testing.T) {
		host := hostAddr(t)
		if err := a.Publish([]containervm.PortBinding{{Proto: "tcp", Port: 8000, HostIP: host}}); err != nil {
			t.Fatal(err)
		}
		out := publishedEcho(t, nsA, a)
		if out != "hello" {
			t.Errorf("the published port says %q", out)
		}
	})
	t.Run("isolated", func(t *testing.T) {
		for ns, to := range map[string]netip.Addr{nsA: c.ip, nsC: a.ip} {
			if out, err := try(t, in(ns, "ping", "-nc", "1", "-W", "0.5", to.String())...); err == nil {
				t.Errorf("another network's guest answered:\n%s", out)
			}
		}
	})
	t.Run("spoofed", func(t *testing.T) {
		// b takes a's address: the gateway must not talk to it.
		run(t, in(nsB, "ip", "addr", "add", a.ip.String()+"/32", "dev", "eth0")...)
		defer run(t, in(nsB, "ip", "addr", "del", a.ip.String()+"/32", "dev", "eth0")...)
		if out, err := try(t, in(nsB, "ping", "-nc", "1", "-W", "0.5", "-I", a.ip.String(), n.gateway.String())...); err == nil {
			t.Errorf("the gateway answers who lies:\n%s", out)
		}
	})
	t.Run("strangers", func(t *testing.T) {
		ns := g.ns + "x"
		g.namespace(ns)
		g.plug(ns, "eth0", "00:50:56:9a:00:99")
		run(t, "ip", "-n", ns, "addr", "add", a.ip.String()+"/16", "dev", "eth0")
		run(t, "ip", "-n", ns, "link", "set", "eth0", "up")
		if out, err := try(t, in(ns, "ping", "-nc", "1", "-W", "0.5", n.gateway.String())...); err == nil {
			t.Errorf("the gateway answers a stranger:\n%s", out)
		}
		if !strings.Contains(logged.String(), "00:50:56:9a:00:99") {
			t.Errorf("the log does not tell of a stranger with a guest's address:\n%s", logged.String())
		}
	})
	t.Run("down and up", func(t *testing.T) {
		run(t, "ip", "link", "set", s.name, "down")
		run(t, "ip", "link", "set", s.name, "up")
		if out, err := try(t, in(nsA, "ping", "-nc", "1", "-W", "20", n.gateway.String())...); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	})
	t.Run("opened again", func(t *testing.T) { // as after a crash, which leaves it shut
		again, err := OpenSegment(s.name, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := again.file.Close(); err != nil {
			t.Error(err)
		}
		again.wg.Wait()
	})
	t.Run("with an address", func(t *testing.T) {
		run(t, "ip", "addr", "add", "10.94.0.1/24", "dev", s.name)
		defer run(t, "ip", "addr", "del", "10.94.0.1/24", "dev", s.name)
		if _, err := OpenSegment(s.name, nil); err == nil || !strings.Contains(err.Error(), "it has address 10.94.0.1/24") {
			t.Errorf("an interface that is this machine's was opened: %v", err)
		}
	})
	t.Run("kernel", func(t *testing.T) {
		// This machine's other addresses are behind the interface only by way of the gateway, which does not answer pings for others.
		host := hostAddr(t)
		if out, err := try(t, in(nsA, "ping", "-nc", "1", "-W", "0.5", host.String())...); err == nil {
			t.Errorf("this machine's kernel answers on the wire:\n%s", out)
		}
	})
}

// download has a guest get much from a server of this machine's, and put it, through the gateway.
func (g *portGroup) download(t *testing.T, ns string) {
	t.Helper()
	want := bytes.Repeat([]byte("all that passes the gateway is as it was. "), 1<<18)
	var got []byte
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "PUT" {
			got, _ = io.ReadAll(r.Body)
			return
		}
		w.Write(want)
	})}
	l, err := net.Listen("tcp", hostAddr(t).String()+":0")
	if err != nil {
		t.Fatal(err)
	}
	go srv.Serve(l)
	defer srv.Close()
	url, file := "http://"+l.Addr().String()+"/", filepath.Join(t.TempDir(), "f")
	run(t, in(ns, "curl", "-sSf", "-o", file, url)...)
	if b, err := os.ReadFile(file); err != nil || !bytes.Equal(b, want) {
		t.Errorf("%d bytes came as %d, %v", len(want), len(b), err)
	}
	run(t, in(ns, "curl", "-sSf", "-T", file, url)...)
	if !bytes.Equal(got, want) {
		t.Errorf("%d bytes went as %d", len(want), len(got))
	}
}

// publishedEcho asks the published port of an endpoint's, behind which its guest says hello to one client.
func publishedEcho(t *testing.T, ns string, e *Endpoint) string {
	t.Helper()
	server := exec.Command("ip", in(ns, "python3", "-uc", `
import socket
s = socket.create_server(("0.0.0.0", 8000))
print("ready")
c, _ = s.accept()
c.sendall(b"hello")
c.close()`)[1:]...)
	said, err := server.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	defer server.Wait()
	defer server.Process.Kill()
	if _, err := said.Read(make([]byte, 16)); err != nil {
		t.Fatal(err)
	}
	p := e.Info().Ports[0]
	c, err := net.DialTimeout("tcp", netip.AddrPortFrom(p.HostIP, p.HostPort).String(), patience)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	b, err := io.ReadAll(c)
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

// BenchmarkSegment has a kernel load from a server of this machine's through the gateway, and send to it.
func BenchmarkSegment(b *testing.B) {
	g := newPortGroup(b)
	s := g.segment(nil)
	n := openOn(b, fabric(b, Options{Segment: s}), containervm.NetworkConfig{Name: "one"})
	ns := g.station("a", join(b, n, containervm.JoinOptions{Container: "a"}), s)
	const size = 64 << 20
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "PUT" {
			io.Copy(io.Discard, r.Body)
			return
		}
		io.CopyN(w, zeros{}, size)
	})}
	l, err := net.Listen("tcp", hostAddr(b).String()+":0")
	if err != nil {
		b.Fatal(err)
	}
	go srv.Serve(l)
	defer srv.Close()
	url := "http://" + l.Addr().String()
	file := filepath.Join(b.TempDir(), "f")
	if err := os.WriteFile(file, make([]byte, size), 0o600); err != nil {
		b.Fatal(err)
	}
	for name, args := range map[string][]string{"in": {"-o", "/dev/null"}, "out": {"-T", file}} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(size)
			for b.Loop() {
				run(b, append(in(ns, "curl", "-sSf", url), args...)...)
			}
		})
	}
}

// zeros are without end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
