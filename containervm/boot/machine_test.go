package boot

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"vic/bench/oracle"
	"vic/tether/wire"
)

// TestMachine looks at what the guest made of interfaces, limits and mounts.
func TestMachine(t *testing.T) {
	disk := busyboxRoot(t)
	m := guestMedium(t)
	sh := func(script string) []string { return []string{"/bin/sh", "-c", script} }
	user := func(i int) []string { // QEMU's own network, whose DHCP server gives 10.0.2.15
		return []string{"-netdev", fmt.Sprintf("user,id=n%d,net=10.0.%d.0/24", i, i+2),
			"-device", fmt.Sprintf("virtio-net-pci,netdev=n%d,romfile=,mac=52:54:00:00:00:%02x", i, i)}
	}
	for name, x := range map[string]struct {
		conf  wire.Config
		extra []string
		want  string
		exit  wire.Exit
	}{
		"DHCP": {
			wire.Config{Hostname: "box", Network: wire.Network{NICs: []wire.NIC{{DHCP: true}}}, Args: sh(
				`ip -o -4 addr show eth0 | awk '{print $4}'; ip route | grep default; cat /etc/resolv.conf; tail -n 1 /etc/hosts`)},
			user(0), "10.0.2.15/24\ndefault via 10.0.2.2 dev eth0 onlink \nnameserver 10.0.2.3\n10.0.2.15\tbox\n", wire.Exit{},
		},
		"addresses given by MAC": {
			wire.Config{Hostname: "box", Network: wire.Network{DNS: wire.DNS{Servers: []netip.Addr{netip.MustParseAddr("10.0.3.3")}, Search: []string{"vic"}},
				NICs: []wire.NIC{
					{MAC: "52:54:00:00:00:01", Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.3.9/24"), netip.MustParsePrefix("fd00::9/64")},
						Gateways: []netip.Addr{netip.MustParseAddr("10.0.3.2")}, MTU: 1400},
					{MAC: "52:54:00:00:00:00", Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.2.9/24")}},
				}}, Args: sh(`for i in eth0 eth1; do cat /sys/class/net/$i/address /sys/class/net/$i/mtu; done
					ip -o addr show eth0 scope global | awk '{print $4}'; ip route | grep default; cat /etc/resolv.conf; ping -c 1 -W 5 10.0.3.2 >/dev/null && echo alive`)},
			append(user(0), user(1)...),
			"52:54:00:00:00:01\n1400\n52:54:00:00:00:00\n1500\n10.0.3.9/24\nfd00::9/64\ndefault via 10.0.3.2 dev eth0 onlink \nnameserver 10.0.3.3\nsearch vic\nalive\n", wire.Exit{},
		},
		"limits and sysctls and mounts": {
			wire.Config{Rlimits: []wire.Rlimit{{Resource: syscall.RLIMIT_NOFILE, Soft: 77, Hard: 88}}, ShmSize: 1 << 20,
				Sysctls: map[string]string{"net.ipv4.ip_forward": "1"},
				Mounts:  []wire.Mount{{Type: "tmpfs", Target: "/run/x", Options: []string{"size=64k", "noexec", "mode=700"}}},
				Args: sh(`ulimit -n; cat /proc/sys/net/ipv4/ip_forward; df -k /dev/shm | awk 'NR==2{print $2}'
					grep -c ' /run/x tmpfs rw,noexec,relatime,size=64k,mode=700' /proc/mounts; for f in /dev/fd/0 /dev/ptmx /dev/pts/ptmx /dev/mqueue /sys/fs/cgroup/cgroup.procs /etc/mtab; do [ -e $f ] || echo no $f; done
					echo through the link >/dev/stderr`)},
			nil, "77\n1\n1024\n1\n", wire.Exit{},
		},
		"no interpreter": {
			wire.Config{Args: []string{"/etc/script"}}, nil, "",
			wire.Exit{Code: 127, Error: "exec /etc/script: no such file or directory"},
		},
		"mount of no known type": {
			wire.Config{Args: sh("true"), Mounts: []wire.Mount{{Type: "nfs", Target: "/x"}}}, nil, "",
			wire.Exit{Code: 128, Error: `mount of type "nfs" on /x`},
		},
	} {
		t.Run(name, func(t *testing.T) {
			v := bootGuest(t, m, "", disk, x.conf, x.extra...)
			stdout, stderr, exit := v.end()
			if string(stdout) != x.want || exit != x.exit {
				t.Errorf("stdout %q, exit %+v; want %q, %+v; stderr %q", stdout, exit, x.want, x.exit, stderr)
			}
		})
	}
}

// TestTerminal uses terminals of the container's process and of an exec.
func TestTerminal(t *testing.T) {
	disk := busyboxRoot(t)
	m := guestMedium(t)
	v := bootGuest(t, m, "", disk, wire.Config{Args: []string{"/bin/sh", "-c", `trap 'stty size' WINCH; trap 'echo usr1; exit 9' USR1; while :; do read l && echo "got $l"; done`},
		TTY: true, OpenStdin: true, Size: wire.Size{Rows: 24, Cols: 80}})
	conn := v.connect()
	v.await(`"pid"`)
	if _, err := conn.Stdin().Write([]byte("hello\r")); err != nil {
		t.Fatal(err)
	}
	v.await("got hello")
	if err := conn.Resize(t.Context(), "", wire.Size{Rows: 41, Cols: 132}); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Stdin().Write([]byte("\r")); err != nil { // read returns, the trap runs
		t.Fatal(err)
	}
	v.await("41 132")

	p, err := conn.Exec(t.Context(), wire.Exec{ID: "tty", Args: []string{"sh", "-c", "tty; stty size; echo $TERM; read x; stty size; sleep 1000"}, User: "app",
		TTY: true, Stdin: true, Stdout: true, Size: wire.Size{Rows: 10, Cols: 20}})
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.Resize(t.Context(), "tty", wire.Size{Rows: 11, Cols: 22}); err != nil {
		t.Fatal(err)
	}
	var seen strings.Builder
	until := func(pattern string) {
		t.Helper()
		want := regexp.MustCompile(pattern)
		for b := make([]byte, 100); !want.MatchString(seen.String()); {
			n, err := p.Stdout().Read(b)
			if err != nil {
				exit, waitErr := p.Wait(t.Context())
				t.Fatalf("after %q: %v; exec ended %+v, %v", seen.String(), err, exit, waitErr)
			}
			seen.Write(b[:n])
		}
	}
	until(`^/dev/pts/1\r\n1[01] 2[02]\r\nxterm\r\n`) // before anything is typed, whose echo may come within a line
	if _, err := p.Stdin().Write([]byte("x\r")); err != nil {
		t.Fatal(err)
	}
	until(`x\r\n11 22\r\n`)
	if err := conn.Signal(t.Context(), "tty", int(syscall.SIGHUP)); err != nil {
		t.Fatal(err)
	}
	if exit, err := p.Wait(t.Context()); err != nil || exit.Signal != int(syscall.SIGHUP) {
		t.Errorf("exec ended %+v, %v", exit, err)
	}
	if st, err := conn.State(t.Context()); err != nil || st.PID == 0 || len(st.Execs) != 1 || st.Execs[0].Exit == nil {
		t.Errorf("state %+v, %v", st, err)
	}
	if err := conn.Signal(t.Context(), "", int(syscall.SIGUSR1)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Stdin().Write([]byte("\r")); err != nil {
		t.Log(err) // it may have ended at once
	}
	if stdout, _, exit := v.end(); exit.Code != 9 || !strings.Contains(string(stdout), "usr1") {
		t.Errorf("exit %+v, stdout %q", exit, stdout)
	}
}

// TestCleanEnd has a guest write and end, with a process left behind that holds a file
// open, and e2fsck find nothing to do. What was written in random bytes comes out of the
// log as it was.
func TestCleanEnd(t *testing.T) {
	oracle.Need(t, "e2fsck")
	disk := busyboxRoot(t)
	m := guestMedium(t)
	v := bootGuest(t, m, "", disk+",snapshot=off", wire.Config{Args: []string{"/bin/sh", "-c",
		`sleep 1000 >/left & dd if=/dev/urandom of=/data bs=1M count=16 2>/dev/null; cat /data; sha256sum </data | cut -c1-64 >&2`}})
	stdout, stderr, exit := v.end()
	if got := fmt.Sprintf("%x\n", sha256.Sum256(stdout)); len(stdout) != 16<<20 || got != string(stderr) || exit.Code != 0 {
		t.Errorf("%d bytes, hash %s, want %s; exit %+v", len(stdout), got, stderr, exit)
	}
	if out, err := exec.Command("e2fsck", "-fn", disk).CombinedOutput(); err != nil || strings.Contains(string(out), "recover") {
		t.Errorf("e2fsck: %v\n%s", err, out)
	}
}
