//go:build linux

package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"vic/bench/oracle"
	"vic/containervm/appliance"
	"vic/tether/wire"
)

// configuration is the guestinfo of an appliance that is all right but for what change does to it.
func configuration(t *testing.T, k appliance.Key, change func(*appliance.Config)) map[string]string {
	t.Helper()
	c := &appliance.Config{
		Version: "test", Name: "VCH 1", Args: []string{"--listen", "0.0.0.0:2375"}, Env: []string{"X=y"},
		NICs: []appliance.NIC{
			{NIC: wire.NIC{Name: "client", MAC: macs[0], DHCP: true}},
			{NIC: wire.NIC{Name: "management", MAC: macs[1], Addresses: []netip.Prefix{netip.MustParsePrefix("10.9.0.9/24")}},
				Routes: []appliance.Route{{To: netip.MustParsePrefix("10.8.0.0/16"), Via: netip.MustParseAddr("10.9.0.2")}}},
			{NIC: wire.NIC{Name: "bridge", MAC: macs[2]}},
		},
		DNS:     wire.DNS{Servers: []netip.Addr{netip.MustParseAddr("10.9.0.3")}, Search: []string{"example.org"}},
		Files:   []appliance.File{{Path: "/etc/ssl/certs/registry.pem", Content: []byte("a CA")}},
		Secrets: []appliance.File{{Path: "/etc/vic/tls/key.pem", Content: []byte("a key")}},
	}
	if change != nil {
		change(c)
	}
	info, err := c.GuestInfo(k)
	if err != nil {
		t.Fatal(err)
	}
	return info
}

// standin builds the program that the tests boot in vic's place.
func standin(t *testing.T) string { return compile(t, "vic/cmd/appliance/testdata/standin") }

// checkState has e2fsck judge a state disk that nobody uses.
func checkState(t *testing.T, disk string) {
	t.Helper()
	oracle.Need(t, "e2fsck", "debugfs")
	if out, err := exec.Command("e2fsck", "-fn", disk).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v\n%s", err, out)
	}
}

// stateFile reads a file of a state disk that nobody uses.
func stateFile(t *testing.T, disk, path string) string {
	t.Helper()
	oracle.Need(t, "debugfs")
	out, err := exec.Command("debugfs", "-R", "cat "+path, disk).Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// TestAppliance boots an appliance from its ISO, looks at what vic serve would see, and shuts it down.
func TestAppliance(t *testing.T) {
	k := appliance.NewKey()
	iso, state := disc(t, standin(t), k, "v1"), stateDisk(t, 4<<30)
	logs := logServer(t)
	v := powerOn(t, iso, state, configuration(t, k, func(c *appliance.Config) { c.Syslog = fmt.Sprintf("tcp://10.0.2.2:%d", logs.port) }))
	v.await("msg=serving", 1)
	t.Logf("serves %v after power on", time.Since(v.began).Round(100*time.Millisecond))

	t.Run("what it sees", func(t *testing.T) { v.looksAround(t) })
	t.Run("started again", func(t *testing.T) {
		if _, err := v.call("POST", "/exit", ""); err == nil {
			t.Error("it answered")
		}
		v.await("msg=serving", 2)
		if want := `error="vic serve: exit code 3: the last words"`; !strings.Contains(v.console(), want) {
			t.Errorf("the console does not say %s", want)
		}
		if _, err := v.call("GET", "/seen", ""); err != nil {
			t.Error(err)
		}
	})
	if _, err := v.call("PUT", "/store/state", "kept"); err != nil {
		t.Fatal(err)
	}
	v.hit("system_powerdown")
	v.off()
	for _, want := range []string{"stand-in ends cleanly", `msg=end from=appliance how="power off"`} {
		if !strings.Contains(v.console(), want) {
			t.Errorf("the console does not say %s", want)
		}
	}
	checkState(t, state)
	if got := stateFile(t, state, "/store/state"); got != "kept" {
		t.Errorf("on the disk is %q", got)
	}
	kept, sent := stateFile(t, state, "/log/vic.log"), logs.all()
	for _, line := range []string{"msg=start", "msg=serving", "stand-in runs", "the last words", "stand-in ends cleanly", "msg=end"} {
		if !strings.Contains(kept, line) {
			t.Errorf("%s is not in the log:\n%s", line, kept)
		}
		if !strings.Contains(sent, line) && line != "msg=start" { // there was no network
			t.Errorf("%s was not sent to the log server:\n%s", line, sent)
		}
	}
}

// looksAround looks at what the stand-in sees.
func (v *vm) looksAround(t *testing.T) {
	text, err := v.call("GET", "/seen", "")
	if err != nil {
		t.Fatal(err)
	}
	var seen struct {
		Args, Env  []string
		Interfaces map[string][]string
		Modes      map[string]string
		Files      int
		Hostname   string
	}
	if err := json.Unmarshal([]byte(text), &seen); err != nil {
		t.Fatal(err)
	}
	if want := []string{"/bin/vic", "serve", "--store", "/var/lib/vic/store", "--listen", "0.0.0.0:2375"}; !slices.Equal(seen.Args, want) {
		t.Errorf("arguments %q", seen.Args)
	}
	if !slices.Contains(seen.Env, "X=y") || !slices.Contains(seen.Env, "TMPDIR=/var/lib/vic/tmp") {
		t.Errorf("environment %q", seen.Env)
	}
	if seen.Hostname != "VCH-1" || seen.Files != maxFiles {
		t.Errorf("host name %q, %d open files", seen.Hostname, seen.Files)
	}
	for name, want := range map[string]string{"client": "10.0.2.15/24", "management": "10.9.0.9/24", "bridge": ""} {
		got := slices.DeleteFunc(seen.Interfaces[name], func(a string) bool { return strings.Contains(a, ":") }) // IPv6 comes by itself, if a router tells
		if strings.Join(got, " ") != want {
			t.Errorf("interface %s has %q", name, got)
		}
	}
	for path, want := range map[string]string{
		"/etc/vic/tls/key.pem": "-rw-------", "/bin/tether": "-rwxr-xr-x", "/bin/kernel/vmlinuz": "-rw-r--r--", "/var/lib/vic/store": "drwx------",
	} {
		if seen.Modes[path] != want {
			t.Errorf("%s has mode %q", path, seen.Modes[path])
		}
	}
	for path := range seen.Modes {
		if strings.HasSuffix(path, "/sh") || strings.Contains(path, "busybox") {
			t.Errorf("there is a shell, %s", path)
		}
	}
	for path, want := range map[string]string{
		"/etc/vic/tls/key.pem": "^a key$", "/etc/ssl/certs/registry.pem": "^a CA$", "/etc/ssl/certs/ca-certificates.crt": "BEGIN CERTIFICATE",
		"/etc/resolv.conf": "^nameserver 10.9.0.3\nnameserver 10.0.2.3\nsearch example.org\n$",
		"/proc/net/route":  "(?s)client\t00000000\t0202000A.*management\t0000080A\t0200090A",
		"/proc/mounts":     "(?m)^/dev/sda /var/lib/vic ext4 rw,nosuid,nodev,noexec",
	} {
		if got, err := v.call("GET", "/file"+path, ""); err != nil || !regexp.MustCompile(want).MatchString(got) {
			t.Errorf("%s is %q, %v", path, got, err)
		}
	}
	if _, err := v.call("GET", "/file"+keyFile, ""); err == nil {
		t.Error("the key is still there")
	}
	memory, err := v.call("GET", "/file/proc/meminfo", "")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s", strings.Join(strings.Split(memory, "\n")[:3], ", "))
}

// A syslogd is a server that one client sends its log to.
type syslogd struct {
	t    *testing.T
	port int
	done chan string
}

// logServer takes the messages of one connection, RFC 6587 section 3.4.1.
func logServer(t *testing.T) *syslogd {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	s := &syslogd{t: t, port: l.Addr().(*net.TCPAddr).Port, done: make(chan string, 1)}
	go func() {
		var all strings.Builder
		defer func() { s.done <- all.String() }()
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		for r := bufio.NewReader(conn); ; {
			var n int
			if _, err := fmt.Fscanf(r, "%d ", &n); err != nil || n > 1<<20 {
				return
			}
			p := make([]byte, n)
			if _, err := io.ReadFull(r, p); err != nil {
				return
			}
			all.Write(append(p, '\n'))
		}
	}()
	return s
}

// all is what came until the client was gone, each of it a message of RFC 5424.
func (s *syslogd) all() string {
	s.t.Helper()
	select {
	case text := <-s.done:
		form := regexp.MustCompile(`^<(27|28|30|31)>1 \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z VCH-1 vic \d+ - - `)
		for line := range strings.Lines(text) {
			if !form.MatchString(line) {
				s.t.Errorf("message %q", line)
			}
		}
		return text
	case <-time.After(patience):
		s.t.Fatal("the log does not end")
		return ""
	}
}

// nightly skips a test that boots several machines, unless it is make nightly.
func nightly(t *testing.T) {
	t.Helper()
	if os.Getenv("NIGHTLY") != "1" {
		t.Skip("boots several machines: make nightly")
	}
}

// TestPowerCut cuts the power while the state is written, boots the next release on the same disk, which has grown, and finds
// all that was synced.
func TestPowerCut(t *testing.T) {
	nightly(t)
	k := appliance.NewKey()
	vic := standin(t)
	state := stateDisk(t, 1<<30)
	info := configuration(t, k, nil)
	v := powerOn(t, disc(t, vic, k, "v1"), state, info)
	v.await("msg=serving", 1)
	var written int
	cut := time.AfterFunc(2*time.Second, v.kill)
	defer cut.Stop()
	for ; ; written++ {
		name := fmt.Sprintf("/store/file%d", written)
		if _, err := v.call("PUT", name, strings.Repeat(name, 1000)); err != nil {
			break
		}
	}
	v.kill()
	if written == 0 {
		t.Fatal("nothing was written before the power was cut")
	}
	if err := os.Truncate(state, 3<<30); err != nil {
		t.Fatal(err)
	}
	v = powerOn(t, disc(t, vic, k, "v2"), state, info)
	v.await("msg=serving", 1)
	if !strings.Contains(v.console(), "version=v2") {
		t.Error("the console does not name the release")
	}
	for i := range written {
		name := fmt.Sprintf("/store/file%d", i)
		if got, err := v.call("GET", "/file"+appliance.StateFolder+name, ""); err != nil || got != strings.Repeat(name, 1000) {
			t.Errorf("%s of %d: %d bytes, %v", name, written, len(got), err)
		}
	}
	v.hit("system_powerdown")
	v.off()
	checkState(t, state)
	if out := command(t, "dumpe2fs", "-h", state); !strings.Contains(out, fmt.Sprint(3<<30/4096)) {
		t.Errorf("the file system has not grown:\n%s", out)
	}
	log := stateFile(t, state, "/log/vic.log")
	if !strings.Contains(log, "version=v1") || !strings.Contains(log, "version=v2") {
		t.Errorf("the log is not that of both boots:\n%s", log)
	}
}

// TestRefused boots appliances that cannot be set up. They say why, and stay until they are shut down.
func TestRefused(t *testing.T) {
	nightly(t)
	oracle.Need(t, "mke2fs")
	k := appliance.NewKey()
	iso := disc(t, standin(t), k, "v1")
	foreign := stateDisk(t, 1<<30)
	command(t, "mke2fs", "-q", "-t", "ext4", foreign)
	before, err := os.ReadFile(foreign)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, state string
		info        map[string]string
		want        string
	}{
		{"foreign state disk", foreign, configuration(t, k, nil), errForeign.Error()},
		{"sealed by another key", stateDisk(t, 1<<30), configuration(t, appliance.NewKey(), nil), appliance.ErrKey.Error()},
		{"no configuration", stateDisk(t, 1<<30), nil, "guestrpc: no value"},
		{"small state disk", stateDisk(t, 8<<20), configuration(t, k, nil), "format a disk of 8388608 bytes"},
		{"an interface that is not there", stateDisk(t, 1<<30), configuration(t, k, func(c *appliance.Config) { c.NICs[2].MAC = "52:54:00:00:00:99" }), "all of 3 network interfaces"},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := powerOn(t, iso, c.state, c.info)
			v.await(c.want, 1)
			v.hit("system_powerdown")
			v.off()
		})
	}
	after, err := os.ReadFile(foreign)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(before, after) {
		t.Error("the foreign disk was written to")
	}
}
