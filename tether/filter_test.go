//go:build linux

package tether

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	osexec "os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vic/bench/oracle"
	"vic/tether/wire"
)

func try(t *testing.T, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	out, err := osexec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
	return string(out), err
}

func tool(t *testing.T, args ...string) string {
	t.Helper()
	out, err := try(t, args...)
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// within does fn in a network namespace.
func within(ns string, fn func() error) (err error) {
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer home.Close()
	away, err := os.Open("/var/run/netns/" + ns)
	if err != nil {
		return err
	}
	defer away.Close()
	runtime.LockOSThread()
	if err := unix.Setns(int(away.Fd()), unix.CLONE_NEWNET); err != nil {
		return err
	}
	defer func() {
		if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
			err = errors.Join(err, back) // the thread stays locked, and ends with the goroutine
			return
		}
		runtime.UnlockOSThread()
	}()
	return fn()
}

// greet has a port of a namespace say its number to whoever connects, or sends it anything.
func greet(t *testing.T, ns, proto string, port int) {
	t.Helper()
	var closer io.Closer
	err := within(ns, func() error {
		at, said := fmt.Sprintf("[::]:%d", port), fmt.Appendf(nil, "%d", port)
		if proto == "udp" {
			pc, err := net.ListenPacket("udp", at)
			if err != nil {
				return err
			}
			closer = pc
			go func() {
				for {
					_, from, err := pc.ReadFrom(make([]byte, 16))
					if err != nil {
						return
					}
					pc.WriteTo(said, from)
				}
			}()
			return nil
		}
		l, err := net.Listen("tcp", at)
		if err != nil {
			return err
		}
		closer = l
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				c.Write(said)
				c.Close()
			}
		}()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closer.Close() })
}

// hear is what a port says, or "" if it says nothing for so long.
func hear(t *testing.T, patience time.Duration, ns, from, proto, to string) string {
	t.Helper()
	heard := ""
	err := within(ns, func() error {
		d := net.Dialer{Timeout: patience}
		if proto == "udp" {
			d.LocalAddr = &net.UDPAddr{IP: net.ParseIP(from)}
		} else {
			d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
		}
		c, err := d.Dial(proto, to)
		if err != nil {
			return nil
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		if proto == "udp" {
			c.Write([]byte("?"))
		}
		b := make([]byte, 16)
		n, _ := c.Read(b)
		heard = string(b[:n])
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	return heard
}

// TestFilter has two kernels talk with each other at each trust level: acceptance scenario 42. The one of the guest filters.
func TestFilter(t *testing.T) {
	oracle.Root(t)
	oracle.Need(t, "ip")
	oracle.Need(t, "ping")
	guest, other := fmt.Sprintf("vicfg%d", os.Getpid()), fmt.Sprintf("vicfo%d", os.Getpid())
	for _, ns := range []string{guest, other} {
		tool(t, "ip", "netns", "add", ns)
		tool(t, "ip", "-n", ns, "link", "set", "lo", "up")
		t.Cleanup(func() { osexec.Command("ip", "netns", "del", ns).Run() })
	}
	// eth1 is the container network's, eth0 another network of the guest's, which stays as it is.
	for i, net := range []string{"10.91.0", "10.92.0"} {
		eth := fmt.Sprintf("eth%d", i)
		tool(t, "ip", "-n", guest, "link", "add", "name", eth, "type", "veth", "peer", "name", eth, "netns", other)
		for ns, host := range map[string]string{guest: "2", other: "7"} {
			tool(t, "ip", "-n", ns, "addr", "add", net+"."+host+"/24", "dev", eth)
			tool(t, "ip", "-n", ns, "link", "set", eth, "up")
		}
	}
	tool(t, "ip", "-n", other, "addr", "add", "10.92.0.70/24", "dev", "eth1") // beyond the range
	tool(t, "ip", "-n", guest, "addr", "add", "fd92::2/64", "dev", "eth1", "nodad")
	tool(t, "ip", "-n", other, "addr", "add", "fd92::7/64", "dev", "eth1", "nodad")
	for _, port := range []int{80, 81, 82} {
		greet(t, guest, "tcp", port)
	}
	greet(t, guest, "udp", 53)
	greet(t, other, "tcp", 90)
	greet(t, other, "udp", 90)

	const peer, stranger = "10.92.0.7", "10.92.0.70"
	pings := func(p time.Duration, args ...string) string {
		if _, err := try(t, append([]string{"ip", "netns", "exec"}, append(args, "-nc", "1", "-W", fmt.Sprint(p.Seconds()))...)...); err != nil {
			return ""
		}
		return "pong"
	}
	probes := map[string]func(time.Duration) string{
		"ping in":           func(p time.Duration) string { return pings(p, other, "ping", "10.92.0.2") },
		"ping in, IPv6":     func(p time.Duration) string { return pings(p, other, "ping", "fd92::2") },
		"ping out":          func(p time.Duration) string { return pings(p, guest, "ping", peer) },
		"tcp out":           func(p time.Duration) string { return hear(t, p, guest, "10.92.0.2", "tcp", peer+":90") },
		"udp out":           func(p time.Duration) string { return hear(t, p, guest, "10.92.0.2", "udp", peer+":90") },
		"tcp out, IPv6":     func(p time.Duration) string { return hear(t, p, guest, "fd92::2", "tcp", "[fd92::7]:90") },
		"published":         func(p time.Duration) string { return hear(t, p, other, peer, "tcp", "10.92.0.2:80") },
		"published, IPv6":   func(p time.Duration) string { return hear(t, p, other, "fd92::7", "tcp", "[fd92::2]:80") },
		"published, led":    func(p time.Duration) string { return hear(t, p, other, peer, "tcp", "10.92.0.2:8081") },
		"led from a peer's": func(p time.Duration) string { return hear(t, p, other, stranger, "tcp", "10.92.0.2:8081") },
		"published udp":     func(p time.Duration) string { return hear(t, p, other, peer, "udp", "10.92.0.2:53") },
		"not published":     func(p time.Duration) string { return hear(t, p, other, peer, "tcp", "10.92.0.2:82") },
		"behind the led":    func(p time.Duration) string { return hear(t, p, other, stranger, "tcp", "10.92.0.2:81") },
		"stranger":          func(p time.Duration) string { return hear(t, p, other, stranger, "tcp", "10.92.0.2:82") },
		"another network":   func(p time.Duration) string { return hear(t, p, other, "10.91.0.7", "tcp", "10.91.0.2:82") },
		"out there":         func(p time.Duration) string { return pings(p, guest, "ping", "10.91.0.7") },
	}
	out := []string{"ping out", "tcp out", "udp out", "tcp out, IPv6", "another network", "out there"}
	ports := []wire.FilterPort{{Proto: "tcp", Port: 80, To: 80}, {Proto: "tcp", Port: 8081, To: 81}, {Proto: "udp", Port: 53, To: 53}}
	for _, c := range []struct {
		trust wire.Trust
		ports []wire.FilterPort
		lets  []string
	}{
		{wire.Closed, nil, []string{"another network", "out there"}},
		{wire.Outbound, nil, out},
		{wire.Peers, ports, append(slices.Clone(out), "ping in", "published", "published, led", "published udp", "not published")},
		{wire.Published, ports, append(slices.Clone(out), "ping in", "ping in, IPv6", "published", "published, IPv6", "published, led", "led from a peer's", "published udp")},
		{wire.Published, nil, append(slices.Clone(out), "ping in", "ping in, IPv6")},
		{wire.Open, ports, nil}, // all
	} {
		t.Run(fmt.Sprintf("%s with %d ports", c.trust, len(c.ports)), func(t *testing.T) {
			f := &wire.Filter{Trust: c.trust, Ports: c.ports}
			if c.trust == wire.Peers {
				f.First, f.Last = netip.MustParseAddr("10.92.0.3"), netip.MustParseAddr("10.92.0.63")
			}
			if err := within(guest, func() error { return applyFilters([]wire.NIC{{Name: "eth0"}, {Name: "eth1", Filter: f}}) }); err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			var mu sync.Mutex
			heard := map[string]string{}
			for name, probe := range probes {
				patience := 300 * time.Millisecond
				if c.lets == nil || slices.Contains(c.lets, name) {
					patience = 20 * time.Second
				}
				wg.Go(func() {
					got := probe(patience)
					mu.Lock()
					defer mu.Unlock()
					heard[name] = got
				})
			}
			wg.Wait()
			for name, got := range heard {
				if want := c.lets == nil || slices.Contains(c.lets, name); (got != "") != want {
					t.Errorf("%s: heard %q, want it let through: %v", name, got, want)
				}
				if strings.HasPrefix(name, "published, led") && got != "" && got != "81" {
					t.Errorf("%s leads to %s", name, got)
				}
			}
			if t.Failed() {
				rules, _ := try(t, "ip", "netns", "exec", guest, "nft", "list", "ruleset")
				t.Log(rules)
			}
		})
	}
	t.Run("not known", func(t *testing.T) {
		err := within(guest, func() error {
			for name, f := range map[string]*wire.Filter{
				"level": {Trust: "friends"}, "peers of nobody": {Trust: wire.Peers}, "port": {Trust: wire.Published, Ports: []wire.FilterPort{{Proto: "sctp", Port: 1, To: 1}}},
			} {
				if err := applyFilters([]wire.NIC{{Name: "eth1", Filter: f}}); err == nil {
					t.Errorf("%s: no error", name)
				}
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
}
