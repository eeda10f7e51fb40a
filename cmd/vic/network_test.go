package main

import (
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// hostAddr is an IPv4 address of this machine that is not a loopback's.
func hostAddr(t *testing.T) string {
	t.Helper()
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && !n.IP.IsLoopback() {
			return n.IP.String()
		}
	}
	t.Skip("this machine has no address but loopback's")
	return ""
}

// testNetworks drives networks of the user's with few guests: what runs is connected and disconnected.
func testNetworks(t *testing.T, s *suite) {
	ok := func(args ...string) string { t.Helper(); return s.docker(t, "", args...).ok() }
	front := ok("network", "create", "--label", "k=v", "front")
	ok("network", "create", "--subnet", "10.91.0.0/24", "--ip-range", "10.91.0.64/26", "--gateway", "10.91.0.9", "--opt", "com.docker.network.bridge.name=br9", "back")
	ok("network", "create", "--internal", "zone")
	if len(front) != 64 {
		t.Errorf("ID %q", front)
	}
	t.Run("refused", func(t *testing.T) {
		for text, args := range map[string]string{
			"network with name front already exists":                                           "front",
			"Pool overlaps with other one on this address space":                               "--subnet 10.91.0.0/16 x",
			"operation is not permitted on predefined bridge network":                          "bridge",
			"--driver overlay is not supported":                                                "-d overlay x",
			"plugin nope":                                                                      "-d nope x",
			"--opt a=b is not supported":                                                       "-o a=b x",
			"enable_icc=false is not supported":                                                "-o com.docker.network.bridge.enable_icc=false x",
			"bridge driver doesn't support multiple subnets":                                   "--subnet 10.92.0.0/16 --subnet 10.93.0.0/16 x",
			"invalid subnet 10.92.0.1/16: it should be 10.92.0.0/16":                           "--subnet 10.92.0.1/16 x",
			"--ipam-driver x is not supported":                                                 "--ipam-driver x y",
			"--ipv4=false is not supported":                                                    "--ipv4=false x",
			"--config-only and --config-from are not supported: say what the network is to be": "--config-only x",
		} {
			s.docker(t, "", append([]string{"network", "create"}, strings.Fields(args)...)...).wantError(1, text)
		}
		s.docker(t, "", "run", "--network", "container:x", "bb").wantError(125, "--network is not supported: a container is a virtual machine with a network of its own")
		s.docker(t, "", "run", "--ip", "10.91.0.5", "bb").wantError(125, "user specified IP address is supported on user defined networks only")
		s.docker(t, "", "run", "--network", "front", "--ip", "10.91.0.5", "bb").wantError(125, "user specified IP address is supported only when connecting to networks with user configured subnets")
		s.docker(t, "", "run", "--rm", "--network", "nope", "bb").wantError(125, "network nope not found")
	})
	t.Run("list", func(t *testing.T) {
		for filter, want := range map[string]string{
			"name=ront": "front\n", "label=k=v": "front\n", "type=builtin": "bridge\nnone\n", "type=custom": "back\nfront\nzone\n",
			"id=" + front[:9]: "front\n", "driver=null": "none\n", "scope=swarm": "", "dangling=true": "back\nfront\nzone\n",
		} {
			s.docker(t, "", "network", "ls", "--filter", filter, "--format", "{{.Name}}").want(0, want)
		}
		s.docker(t, "", "network", "inspect", "back", "--format", "{{json .IPAM.Config}} {{.Internal}} {{.Options}}").
			want(0, `[{"Subnet":"10.91.0.0/24","IPRange":"10.91.0.64/26","Gateway":"10.91.0.9"}] false map[com.docker.network.bridge.name:br9]`+"\n")
	})

	ok("run", "-d", "--name", "nweb", "-h", "webhost", "--network", "name=front,alias=w,gw-priority=1", "--network", "name=back,ip=10.91.0.7,mac-address=02:42:00:00:00:77",
		"-p", "127.0.0.1:20100-20120:80", "-p", "127.0.0.1::53/udp", "bb", "sh", "-c", "mkdir /www; echo served >/www/index.html; httpd -p 80 -h /www; echo listening; exec sleep 1000")
	ok("run", "-d", "--name", "ncli", "--network", "front", "--link", "nweb:linked", "bb", "sleep", "1000")
	s.waitFor(t, "nweb", "listening\n")
	cli := func(script string) result { return s.docker(t, "", "exec", "ncli", "sh", "-c", script) }
	fetch := func(name string) result { return cli("wget -q -O - http://" + name) }
	t.Run("inspect", func(t *testing.T) {
		s.docker(t, "", "inspect", "nweb", "--format", "{{range $n, $e := .NetworkSettings.Networks}}{{$n}} {{$e.IPAddress}} {{$e.MacAddress}} {{$e.DNSNames}}\n{{end}}").
			has("back 10.91.0.7 02:42:00:00:00:77 [nweb ", "front 172.", " [nweb w ", " webhost]")
		s.docker(t, "", "network", "inspect", "back", "--format", "{{range .Containers}}{{.Name}} {{.IPv4Address}}{{end}}").want(0, "nweb 10.91.0.7/24\n")
		s.docker(t, "", "ps", "--filter", "network=back", "--format", "{{.Names}}").want(0, "nweb\n")
		s.docker(t, "", "network", "rm", "front").wantError(1, "network front has active endpoints (name:")
	})
	t.Run("names", func(t *testing.T) {
		id := ok("inspect", "nweb", "--format", "{{slice .Id 0 12}}")
		for _, name := range []string{"nweb", "w", "webhost", id, "linked", "nweb.front"} {
			fetch(name).want(0, "served\n")
		}
		s.docker(t, "", "exec", "nweb", "nslookup", "linked").wantError(1, "")
		ok("rename", "nweb", "nweb2")
		fetch("nweb2").want(0, "served\n")
		cli("nslookup nweb").wantError(1, "")
		ok("rename", "nweb2", "nweb")
		cli(`nslookup $(nslookup w | tail -n 3 | sed -n 's/^Address: //p')`).has("nweb")
	})
	port := ok("port", "nweb", "80/tcp")
	fromHost := func(t *testing.T) {
		t.Helper()
		if out, err := exec.Command("busybox", "wget", "-q", "-O", "-", "http://"+port).CombinedOutput(); string(out) != "served\n" {
			t.Errorf("from the host: %q, %v", out, err)
		}
	}
	fromHost(t)
	t.Run("isolation", func(t *testing.T) {
		cli("ping -c 1 -W 1 10.91.0.7").wantError(1, "")
		cli("wget -q -O - http://10.91.0.7").wantError(1, "")
	})
	t.Run("connect", func(t *testing.T) {
		ok("network", "connect", "--alias", "c", "--ip", "10.91.0.8", "back", "ncli")
		cli("ping -c 1 -W 5 10.91.0.7 >/dev/null && ip -4 -o addr show eth1 | awk '{print $4}'").want(0, "10.91.0.8/24\n")
		s.docker(t, "", "exec", "nweb", "ping", "-c", "1", "-W", "5", "c").has("(10.91.0.8)")
		s.docker(t, "", "network", "connect", "back", "ncli").wantError(1, "endpoint with name ncli already exists in network back")
		s.docker(t, "", "network", "connect", "--ip", "10.91.0.7", "back", "ncli").wantError(1, "")
		ok("network", "disconnect", "front", "ncli")
		cli("ls /sys/class/net; ip route | grep default; grep nameserver /etc/resolv.conf").want(0, "eth1\nlo\ndefault via 10.91.0.9 dev eth1 onlink \nnameserver 10.91.0.9\n")
		fetch("nweb").want(0, "served\n")
		// The web server loses what its ports go through.
		ok("network", "disconnect", "front", "nweb")
		fromHost(t)
		ok("network", "connect", "--alias", "w", "front", "nweb")
		fromHost(t)
		ok("network", "connect", "front", "ncli")
		fetch("w").want(0, "served\n")
	})
	t.Run("IPv6", func(t *testing.T) {
		ok("network", "create", "--ipv6", "--subnet", "10.93.0.0/24", "--subnet", "fd00:91::/64", "six")
		ok("network", "connect", "--ip6", "fd00:91::77", "six", "nweb")
		ok("network", "connect", "six", "ncli")
		s.docker(t, "", "inspect", "nweb", "--format", "{{with .NetworkSettings.Networks.six}}{{.GlobalIPv6Address}}/{{.GlobalIPv6PrefixLen}} {{.IPv6Gateway}} {{.IPAMConfig.IPv6Address}}{{end}}").
			want(0, "fd00:91::77/64 fd00:91::1 fd00:91::77\n")
		cli("nslookup -type=aaaa nweb.six").has("fd00:91::77")
		cli("ping -6 -c 1 -W 5 fd00:91::77").has("1 packets received")
		cli("ping -6 -c 1 -W 5 fd00:91::1").has("1 packets received")
		cli("wget -q -O - http://[fd00:91::77]").want(0, "served\n")
		ok("network", "disconnect", "six", "nweb")
		ok("network", "disconnect", "-f", "six", "ncli")
		ok("network", "rm", "six")
	})
	t.Run("hairpin", func(t *testing.T) {
		host := hostAddr(t)
		ok("run", "-d", "--name", "npub", "-p", host+"::80", "-p", "[::1]::80", "--expose", "7000-7002", "-P", "bb", "sh", "-c", "mkdir /www; echo mine >/www/index.html; httpd -p 80 -h /www; echo listening; exec sleep 1000")
		defer s.docker(t, "", "rm", "-f", "npub")
		s.waitFor(t, "npub", "listening\n")
		own := ok("inspect", "npub", "--format", `{{with index .NetworkSettings.Ports "80/tcp" 0}}{{.HostIp}}:{{.HostPort}}{{end}}`)
		s.docker(t, "", "exec", "npub", "wget", "-q", "-O", "-", "http://"+own).want(0, "mine\n")
		cli("wget -q -O - http://"+own).want(0, "mine\n")
		if out, err := exec.Command("busybox", "wget", "-q", "-O", "-", "http://"+ok("inspect", "npub", "--format", `[::1]:{{with index .NetworkSettings.Ports "80/tcp" 1}}{{.HostPort}}{{end}}`)).CombinedOutput(); string(out) != "mine\n" {
			t.Errorf("by IPv6: %q, %v", out, err)
		}
		s.docker(t, "", "port", "npub").has("7000/tcp -> 0.0.0.0:", "7002/tcp -> 0.0.0.0:")
		s.docker(t, "", "run", "--rm", "-p", own+":80", "bb").wantError(125, "Bind for "+own+" failed: port is already allocated")
	})
	t.Run("internal", func(t *testing.T) {
		ok("network", "connect", "zone", "nweb")
		ok("network", "connect", "zone", "ncli")
		ok("network", "disconnect", "front", "ncli")
		ok("network", "disconnect", "back", "ncli")
		fetch("nweb").want(0, "served\n")
		cli("ping -c 1 -W 1 8.8.8.8").wantError(1, "Network is unreachable")
		ok("network", "connect", "front", "ncli")
	})
	t.Run("restart", func(t *testing.T) {
		// A connection through the gateway ends with the server, and the guest learns of it.
		silent, err := net.Listen("tcp", hostAddr(t)+":0")
		if err != nil {
			t.Fatal(err)
		}
		defer silent.Close()
		ok("exec", "-d", "ncli", "sh", "-c", "wget -q -O - http://"+silent.Addr().String()+" 2>/tmp/why; echo ended >>/tmp/why")
		if err := silent.(*net.TCPListener).SetDeadline(time.Now().Add(commandTimeout)); err != nil {
			t.Fatal(err)
		}
		waiting, err := silent.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer waiting.Close()
		before := ok("inspect", "nweb", "ncli", "--format", "{{json .NetworkSettings}}")
		networks := ok("network", "inspect", "front", "back", "zone", "bridge")
		s.end(t)
		s.serve(t)
		if after := ok("inspect", "nweb", "ncli", "--format", "{{json .NetworkSettings}}"); after != before {
			t.Errorf("network settings were\n%s\nand are after a restart\n%s", before, after)
		}
		if after := ok("network", "inspect", "front", "back", "zone", "bridge"); after != networks {
			t.Errorf("networks were\n%s\nand are after a restart\n%s", networks, after)
		}
		fromHost(t)
		fetch("w").want(0, "served\n")
		cli("until grep ended /tmp/why; do usleep 100000; done").want(0, "ended\n")
		ok("network", "connect", "back", "ncli")
		fetch("10.91.0.7").want(0, "served\n")
	})
	ok("rm", "-f", "nweb", "ncli")
	s.docker(t, "", "network", "rm", "back").want(0, "back\n")
	s.docker(t, "", "network", "prune", "-f").has("front", "zone")
	s.docker(t, "", "network", "ls", "--format", "{{.Name}}").want(0, "bridge\nnone\n")
}
