package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vmware/govmomi/object"
)

// webServer is a container's command that serves a text at port 80.
func webServer(text string) []string {
	return []string{"bb", "sh", "-c", "mkdir /www; echo " + text + " >/www/index.html; httpd -p 80 -h /www; echo listening; exec sleep 1000"}
}

// said is what a web server of a container says to this machine: "" if it is not reached.
func said(ctx context.Context, address, port string) string {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	out, _ := exec.CommandContext(ctx, "busybox", "wget", "-q", "-O", "-", "http://"+net.JoinHostPort(address, port)).Output() // fails where nothing is let in
	return strings.TrimSpace(string(out))
}

// at is a container's address on a network, and the router's.
func (s *suite) at(t *testing.T, name, network string) (address, gateway string) {
	t.Helper()
	text := s.docker(t, "", "inspect", name, "--format", `{{with index .NetworkSettings.Networks "`+network+`"}}{{.IPAddress}} {{.Gateway}}{{end}}`).ok()
	address, gateway, _ = strings.Cut(text, " ")
	return address, gateway
}

// testContainerNetworks has one container on a network of each level of trust. On each there is this machine as well, and on that of peers another container,
// which has its address on its own network from a DHCP server.
func testContainerNetworks(t *testing.T, s *suite, c *cluster) {
	groups := map[string]string{"lan": lanGroup, "peers": peersGroup, "open": openGroup, "closed": closedGroup, switchedGroup: switchedGroup}
	s.docker(t, "", "network", "ls", "--filter", "driver=external", "--format", "{{.Name}}").has("lan\n", switchedGroup+"\n", "closed\n", "dhcp\n")
	s.docker(t, "", "network", "rm", "lan").wantError(1, "lan is a pre-defined network and cannot be removed")
	s.docker(t, "", append([]string{"create", "--name", "there", "--network", "lan", "-p", "8080:80"}, webServer("served")...)...).ok()
	defer s.docker(t, "", "rm", "-f", "there")
	for name := range groups {
		if name != "lan" {
			s.docker(t, "", "network", "connect", name, "there").ok()
		}
	}
	s.docker(t, "", "start", "there").ok()
	s.waitFor(t, "there", "listening\n")
	addresses := map[string]string{}
	for name, group := range groups {
		address, gateway := s.at(t, "there", name)
		router := c.routers[group]
		if addresses[name] = address; gateway != router || !strings.HasPrefix(address, strings.TrimSuffix(router, "1")) || group != switchedGroup && len(address) != len(router)+1 {
			t.Errorf("on %s: address %s, gateway %s, want one of %s0 to 9, and %s", name, address, gateway, router, router)
		}
	}
	s.docker(t, "", "port", "there").want(0, "80/tcp -> "+addresses["lan"]+":8080\n")
	t.Run("levels", func(t *testing.T) { testLevels(t, s, c, groups, addresses) })
	t.Run("DHCP", func(t *testing.T) { testDHCP(t, s, c, addresses["peers"]) })
}

// testLevels tries what each level lets in from this machine, which is no peer, and lets out to it.
func testLevels(t *testing.T, s *suite, c *cluster, groups, addresses map[string]string) {
	in := map[string]struct{ port80, port8080, ping string }{
		"lan":         {"", "served", "pong"}, // published
		switchedGroup: {},                     // outbound
		"peers":       {},
		"open":        {"served", "", "pong"},
		"closed":      {},
	}
	var wg sync.WaitGroup
	for name, want := range in {
		address := addresses[name]
		for port, want := range map[string]string{"80": want.port80, "8080": want.port8080} {
			wg.Go(func() {
				if got := said(t.Context(), address, port); got != want {
					t.Errorf("port %s on %s says %q, want %q", port, name, got, want)
				}
			})
		}
		wg.Go(func() {
			got := ""
			if exec.CommandContext(t.Context(), "ping", "-nc", "1", "-W", "5", address).Run() == nil {
				got = "pong"
			}
			if got != want.ping {
				t.Errorf("ping on %s: %q, want %q", name, got, want.ping)
			}
		})
		wg.Go(func() { // that it is there, whatever it lets in: packets of ARP are not filtered
			if out, err := exec.CommandContext(t.Context(), "busybox", "arping", "-f", "-w", "20", "-I", c.bridges[groups[name]], address).CombinedOutput(); err != nil {
				t.Errorf("%s is not on %s: %v\n%s", address, name, err, out)
			}
		})
	}
	var script, want []string
	for name, group := range groups {
		l, err := net.Listen("tcp", c.routers[group]+":0")
		if err != nil {
			t.Fatal(err)
		}
		srv := http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "out on", name) })}
		go srv.Serve(l)
		defer srv.Close()
		if script = append(script, "timeout 5 wget -q -O - http://"+l.Addr().String()+" &"); name != "closed" {
			want = append(want, "out on "+name)
		}
	}
	out := s.docker(t, "", "exec", "there", "sh", "-c", strings.Join(append(script, "wait"), "\n"))
	got := strings.Split(strings.TrimSpace(out.out), "\n")
	if slices.Sort(want); !slices.Equal(slices.Sorted(slices.Values(got)), want) {
		t.Errorf("what the container reaches: %q, want %q; %s", got, want, out.errOut)
	}
	wg.Wait()
	for _, network := range []string{"closed", switchedGroup} {
		s.docker(t, "", "run", "--rm", "--network", network, "-p", "80", "bb").wantError(125, "port 80 cannot be published on network "+network)
	}
	s.docker(t, "", "ps", "-a", "--filter", "network=closed", "--format", "{{.Names}}").want(0, "there\n")
}

// testDHCP has a container on a network where it asks busybox's server for its address. It is a peer of the other container's.
func testDHCP(t *testing.T, s *suite, c *cluster, peer string) {
	router := c.routers[dhcpGroup]
	startDHCPServer(t, s.dir, c.bridges[dhcpGroup], router)
	s.docker(t, "", append([]string{"run", "-d", "--name", "asks", "--hostname", "asking", "--network", "dhcp", "-p", "8081:80"}, webServer("leased")...)...).ok()
	defer s.docker(t, "", "rm", "-f", "asks")
	s.waitFor(t, "asks", "listening\n")
	leased := regexp.MustCompile("^" + regexp.QuoteMeta(strings.TrimSuffix(router, "1")) + "20[0-9]$")
	address, _ := s.at(t, "asks", "dhcp")
	if !leased.MatchString(address) {
		t.Errorf("address %q, want one from %s00 to %[2]s09", address, strings.TrimSuffix(router, "1")+"2")
	}
	s.docker(t, "", "port", "asks").want(0, "80/tcp -> "+address+":8081\n")
	s.docker(t, "", "exec", "asks", "sh", "-c", "ip route | grep default; cat /etc/resolv.conf").has("default via "+router+" dev eth0", "nameserver 192.0.2.53\n", "search example.org\n")
	var wg sync.WaitGroup
	for port, want := range map[string]string{"80": "", "8081": "leased"} {
		wg.Go(func() {
			if got := said(t.Context(), address, port); got != want {
				t.Errorf("port %s says %q, want %q", port, got, want)
			}
		})
	}

	// It joins the other while it runs, and is of the range.
	s.docker(t, "", "network", "connect", "peers", "asks").ok()
	s.docker(t, "", "exec", "asks", "timeout", "20", "wget", "-q", "-O", "-", "http://"+peer).want(0, "served\n")
	wg.Wait()

	// Without its server it has what it had, and so has the server that comes back.
	s.end(t)
	if got := said(t.Context(), address, "8081"); got != "leased" {
		t.Errorf("without its server it says %q", got)
	}
	s.serve(t)
	await(t, address, func() string { address, _ := s.at(t, "asks", "dhcp"); return address })
	s.docker(t, "", "port", "asks").want(0, "80/tcp -> "+address+":8081\n")

	// The server knows it again.
	s.docker(t, "", "restart", "-t", "0", "asks").ok()
	if again, _ := s.at(t, "asks", "dhcp"); again != address {
		t.Errorf("address %q after another start, before that %q", again, address)
	}
}

// startDHCPServer serves the addresses from 200 to 209 of the router's subnet on a bridge.
func startDHCPServer(t *testing.T, dir, bridge, router string) {
	t.Helper()
	prefix := strings.TrimSuffix(router, "1") + "20"
	conf := filepath.Join(dir, "udhcpd.conf")
	leases := filepath.Join(dir, "udhcpd.leases")
	text := fmt.Sprintf("start %s0\nend %[1]s9\ninterface %s\nlease_file %s\npidfile %s.pid\nauto_time 0\noption subnet 255.255.255.0\noption router %s\noption dns 192.0.2.53\noption domain example.org\noption lease 3600\n",
		prefix, bridge, leases, leases, router)
	if err := errors.Join(os.WriteFile(conf, []byte(text), 0o600), os.WriteFile(leases, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("busybox", "udhcpd", "-f", "-a", "100", conf)
	var log syncBuffer
	cmd.Stdout, cmd.Stderr = io.Discard, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("the DHCP server wrote:\n%s", log.String())
		}
	})
}

// testUserNetwork has two containers on a network of the user's, until somebody takes the power from one.
func testUserNetwork(t *testing.T, s *suite, c *cluster) {
	ok := func(t *testing.T, args ...string) string { t.Helper(); return s.docker(t, "", args...).ok() }
	subnet := []string{"network", "create", "--subnet", "10.91.7.0/24", "own"}
	ok(t, subnet...)
	ok(t, append([]string{"run", "-d", "--name", "first", "--network", "own", "--ip", "10.91.7.77", "-p", "127.0.0.1::80"}, webServer("first")...)...)
	defer s.docker(t, "", "rm", "-f", "first")
	ok(t, "run", "-d", "--name", "client", "--network", "own", "--ip", "10.91.7.78", "bb", "sleep", "1000")
	defer s.docker(t, "", "rm", "-f", "client")
	s.waitFor(t, "first", "listening\n")
	get := func(t *testing.T, name string) result {
		t.Helper()
		return s.docker(t, "", "exec", "client", "timeout", "20", "wget", "-q", "-O", "-", "http://"+name)
	}
	t.Run("static addresses", func(t *testing.T) {
		s.docker(t, "", "create", "--network", "own", "--ip", "10.92.0.7", "bb").wantError(1, "no configured subnet contains IP address 10.92.0.7")
		s.docker(t, "", "run", "--rm", "--network", "own", "--ip", "10.91.7.77", "bb").wantError(125, "Address already in use")
		if address, gateway := s.at(t, "first", "own"); address != "10.91.7.77" || gateway != "10.91.7.1" {
			t.Errorf("address %s, gateway %s", address, gateway)
		}
		s.docker(t, "", "network", "inspect", "own", "--format", "{{range .Containers}}{{.Name}} {{.IPv4Address}} {{end}}").has("first 10.91.7.77/24", "client 10.91.7.78/24")
		s.docker(t, "", "exec", "client", "ip", "-4", "-o", "addr", "show", "eth0").has("inet 10.91.7.78/24")
		get(t, "10.91.7.77").want(0, "first\n")
		s.docker(t, "", "ps", "--filter", "network=own", "--format", "{{.Names}}: {{.Ports}}").has("client: \n", "first: 127.0.0.1:", "->80/tcp\n")
	})
	t.Run("size", func(t *testing.T) { // of what was written, which is in no cache
		ok(t, "exec", "client", "sh", "-c", "dd if=/dev/urandom of=/written bs=1M count=8 2>/dev/null; sync")
		rows := ok(t, "ps", "-s", "--format", "{{.Names}} {{.Size}}")
		var written float64
		if _, err := fmt.Sscanf(rows, "client %fMB (virtual ", &written); err != nil || written < 8 || written > 30 {
			t.Errorf("sizes %q, want the client's to be 8 MB and what its start has written: %v", rows, err)
		}
		var rw, root int64
		text := ok(t, "inspect", "-s", "client", "--format", "{{json .SizeRw}} {{json .SizeRootFs}}")
		if _, err := fmt.Sscan(text, &rw, &root); err != nil || rw < 8e6 || rw > 30e6 || root <= rw {
			t.Errorf("sizes %s: %v", text, err)
		}
	})
	t.Run("renamed while it runs", func(t *testing.T) {
		get(t, "first").want(0, "first\n")
		ok(t, "rename", "first", "renamed")
		get(t, "renamed").want(0, "first\n")
		s.docker(t, "", "exec", "client", "nslookup", "first").wantError(1, "")
		if _, err := c.machine(t.Context(), "renamed-vch1"); err != nil {
			t.Error(err)
		}
		s.end(t)
		s.serve(t)
		get(t, "renamed").want(0, "first\n")
		s.docker(t, "", "exec", "client", "nslookup", "first").wantError(1, "")
		ok(t, "rename", "renamed", "first")
	})
	t.Run("power off", func(t *testing.T) {
		port := ok(t, "port", "first", "80")
		ok(t, append([]string{"create", "--name", "second", "--network", "own", "--ip", "10.91.7.77", "-p", port + ":80"}, webServer("second")...)...)
		defer s.docker(t, "", "rm", "-f", "second")
		s.docker(t, "", "start", "second").wantError(1, "Address already in use")
		c.powerOff(t, "first")
		s.docker(t, "", "wait", "first").want(0, "137\n")
		s.docker(t, "", "ps", "--format", "{{.Names}}").want(0, "client\n")
		ok(t, "start", "second")
		s.waitFor(t, "second", "listening\n")
		host, number, _ := strings.Cut(port, ":")
		if got := said(t.Context(), host, number); got != "second" {
			t.Errorf("the port says %q", got)
		}
		get(t, "10.91.7.77").want(0, "second\n")
		s.docker(t, "", "start", "first").wantError(1, "Address already in use")
	})
	t.Run("power on", func(t *testing.T) {
		c.powerOn(t, "first")
		await(t, "first\n", func() string { return s.docker(t, "", "ps", "--format", "{{.Names}}", "--filter", "name=first").out })
		await(t, "first\n", func() string { return get(t, "first").out })
		s.docker(t, "", "stop", "-t", "0", "first").ok()
		if p := c.power(t, "first"); p != "poweredOff" {
			t.Errorf("after its stop its VM is %s", p)
		}
	})
	t.Run("network in use", func(t *testing.T) {
		s.docker(t, "", "network", "rm", "own").wantError(1, "network own has active endpoints (name:")
		get(t, "client").wantError(1, "") // it is still there: its name leads to it
		ok(t, "rm", "-f", "client")
		s.docker(t, "", "network", "rm", "own").want(0, "own\n")     // of one that does not run, too
		s.docker(t, "", "start", "first").wantError(1, " not found") // as docker does: networks are known by their IDs
		ok(t, subnet...)
		s.docker(t, "", "network", "inspect", "own", "--format", "{{(index .IPAM.Config 0).Subnet}}").want(0, "10.91.7.0/24\n")
		ok(t, "network", "rm", "own")
	})
}

// powerOff takes the power from a container's VM.
func (c *cluster) powerOff(t *testing.T, name string) {
	t.Helper()
	c.administer(t, name, (*object.VirtualMachine).PowerOff)
}

func (c *cluster) powerOn(t *testing.T, name string) {
	t.Helper()
	c.administer(t, name, func(vm *object.VirtualMachine, ctx context.Context) (*object.Task, error) { return vm.PowerOn(ctx) })
}

func (c *cluster) administer(t *testing.T, name string, do func(*object.VirtualMachine, context.Context) (*object.Task, error)) {
	t.Helper()
	vm, err := c.machine(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	task, err := do(vm, t.Context())
	if err == nil {
		err = task.Wait(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (c *cluster) power(t *testing.T, name string) string {
	t.Helper()
	vm, err := c.machine(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	state, err := vm.PowerState(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return string(state)
}
