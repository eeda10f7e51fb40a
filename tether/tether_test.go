//go:build linux

package tether

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"vic/tether/wire"
)

func TestRunRefusesToBeAnybodyElse(t *testing.T) {
	if err := Run(); err == nil {
		t.Error("Run came back without an error")
	}
}

func TestEnvironment(t *testing.T) {
	for _, tt := range []struct {
		name  string
		tty   bool
		lists [][]string
		want  []string
	}{
		{"none", false, nil, []string{"PATH=" + defaultPath, "HOSTNAME=h", "HOME=/root"}},
		{"terminal", true, nil, []string{"PATH=" + defaultPath, "HOSTNAME=h", "TERM=xterm", "HOME=/root"}},
		{"the image's", true, [][]string{{"PATH=/x", "TERM=vt100", "HOME=/h", "E="}},
			[]string{"PATH=/x", "HOSTNAME=h", "TERM=vt100", "HOME=/h", "E="}},
		{"an exec's over the container's", false, [][]string{{"A=1", "AB=2"}, {"A=3"}},
			[]string{"PATH=" + defaultPath, "HOSTNAME=h", "A=3", "AB=2", "HOME=/root"}},
		{"no variables", false, [][]string{{"", "=x", "A"}}, []string{"PATH=" + defaultPath, "HOSTNAME=h", "HOME=/root"}},
		{"taken away", true, [][]string{{"HOSTNAME", "A=1", "HOME=", "B=2"}, {"A", "TERM"}}, []string{"PATH=" + defaultPath, "B=2", "HOME=/root"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := environment("h", "/root", tt.tty, tt.lists...); !slices.Equal(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestLookUpExecutable(t *testing.T) {
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"a/run": 0755, "b/run": 0755, "a/plain": 0644, "b/plain": 0755} {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	list := dir + "/none:" + dir + "/a:b"
	for _, tt := range []struct {
		file, want, err string
		code            int
	}{
		{"run", dir + "/a/run", "", 0},
		{"plain", dir + "/b/plain", "", 0},
		{"b/run", dir + "/b/run", "", 0},
		{"./a/run", dir + "/a/run", "", 0},
		{dir + "/b/run", dir + "/b/run", "", 0},
		{"nope", "", `exec: "nope": executable file not found in $PATH`, 127},
		{"", "", `exec: "": executable file not found in $PATH`, 127},
		{"/nope", "", `exec: "/nope": stat /nope: no such file or directory`, 127},
		{"./a/plain", "", `exec: "./a/plain": permission denied`, 126},
		{"./a", "", `exec: "./a": is a directory`, 126},
	} {
		t.Run(tt.file, func(t *testing.T) {
			got, err := lookUpExecutable(tt.file, dir, list)
			var we *wire.Error
			if tt.err == "" && err != nil || got != tt.want {
				t.Errorf("got %q, %v, want %q", got, err, tt.want)
			}
			if tt.err != "" && (!errors.As(err, &we) || we.Message != tt.err || we.ExitCode != tt.code) {
				t.Errorf("got %v, want code %d, %s", err, tt.code, tt.err)
			}
		})
	}
}

func TestHosts(t *testing.T) {
	conf := &wire.Config{Hostname: "web", Domain: "example.org",
		Network: wire.Network{Hosts: []wire.Host{{Addr: netip.MustParseAddr("10.0.0.9"), Names: []string{"db", "db.local"}}}}}
	got := hosts(conf, netip.MustParseAddr("172.18.0.2"))
	for _, want := range []string{"127.0.0.1\tlocalhost\n", "\n10.0.0.9\tdb db.local\n172.18.0.2\tweb.example.org web\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("got %q, without %q", got, want)
		}
	}
	conf = &wire.Config{Hostname: "web.example.org"}
	if got := hosts(conf, netip.MustParseAddr("172.18.0.2")); !strings.HasSuffix(got, "\n172.18.0.2\tweb.example.org web\n") {
		t.Errorf("got %q", got)
	}
	if got := hosts(conf, netip.Addr{}); strings.Contains(got, "web") {
		t.Errorf("a host without an address has a line: %q", got)
	}
}

func TestResolvConf(t *testing.T) {
	a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fe80::1")
	leased := &network{interfaces: []*netInterface{{lease: &lease{dns: []netip.Addr{b}, search: []string{"leased"}}}}}
	for _, tt := range []struct {
		name string
		dns  wire.DNS
		n    *network
		want string
	}{
		{"nothing", wire.DNS{}, &network{}, ""},
		{"configured", wire.DNS{Servers: []netip.Addr{a, b}, Search: []string{"x", "y"}, Options: []string{"ndots:0"}}, &network{},
			"nameserver 10.0.0.1\nnameserver fe80::1\nsearch x y\noptions ndots:0\n"},
		{"leased", wire.DNS{}, leased, "nameserver fe80::1\nsearch leased\n"},
		{"both", wire.DNS{Servers: []netip.Addr{a}, Search: []string{"x"}}, leased, "nameserver 10.0.0.1\nnameserver fe80::1\nsearch x\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := resolvConf(tt.dns, tt.n); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestMountOptions(t *testing.T) {
	flags, data := mountOptions([]string{"rw", "noexec", "size=64m", "nosuid", "exec", "ro", "mode=1777"})
	if flags != unix.MS_NOSUID|unix.MS_RDONLY || data != "size=64m,mode=1777" {
		t.Errorf("got %#x, %q", flags, data)
	}
}

func TestDiskMount(t *testing.T) {
	for _, tt := range []struct {
		line, dir string
		ok        bool
	}{
		{"25 1 254:0 / / rw,relatime - ext4 /dev/vda rw", "/", true},
		{`36 35 98:0 / /a\040b\134c rw shared:1 - ext4 /dev/vdb rw`, `/a b\c`, true},
		{"26 25 0:20 / /proc rw - proc proc rw", "", false},
		{"", "", false},
		{" - ", "", false},
	} {
		if dir, ok := diskMount(tt.line); dir != tt.dir || ok != tt.ok {
			t.Errorf("%q: got %q, %v", tt.line, dir, ok)
		}
	}
}

func TestFollow(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir+"/etc", 0755); err != nil {
		t.Fatal(err)
	}
	for link, target := range map[string]string{"etc/resolv.conf": "../run/stub", "abs": dir + "/etc", "loop": "loop"} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	for p, want := range map[string]string{
		"/etc/resolv.conf":          "/run/stub",
		"/abs/new/file":             "/etc/new/file",
		"/abs/../etc/./resolv.conf": "/run/stub",
		"/none/../x":                "/x",
	} {
		if got, err := follow(dir + p); err != nil || got != dir+want {
			t.Errorf("%s: got %q, %v, want %q", p, got, err, dir+want)
		}
	}
	if _, err := follow(dir + "/loop"); !errors.Is(err, syscall.ELOOP) {
		t.Errorf("loop: %v", err)
	}
	if err := makeDir(dir + "/abs/work"); err != nil {
		t.Error(err)
	}
	if fi, err := os.Stat(dir + "/etc/work"); err != nil || !fi.IsDir() {
		t.Errorf("working directory was not made: %v", err)
	}
	if err := os.WriteFile(dir+"/file", nil, 0644); err != nil {
		t.Fatal(err)
	}
	if err := makeDir(dir + "/file/work"); err == nil {
		t.Error("a directory was made in a file")
	}
}

func TestModulesWanted(t *testing.T) {
	index, err := parseIndex("virtio_blk virtio_ring,virtio virtio:d00000002v*\next4 - *\nvirtio -\n")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range index {
		if m.wanted([]string{"pci:v00001AF4d00001042", "virtio:d00000002v00001AF4"}) {
			got = append(got, m.name)
		}
	}
	if !slices.Equal(got, []string{"virtio_blk", "ext4"}) || !slices.Equal(index[0].deps, []string{"virtio_ring", "virtio"}) {
		t.Errorf("wants %q, dependencies %q", got, index[0].deps)
	}
	if _, err := parseIndex("alone\n"); err == nil {
		t.Error("a line of one word passed")
	}
}

// asMe makes a command of this process's user, which the fork needs.
func asMe(args ...string) *command {
	return &command{path: args[0], args: args, dir: "/", env: []string{"PATH=/usr/bin:/bin"},
		cred: &syscall.Credential{Uid: uint32(os.Getuid()), Gid: uint32(os.Getgid()), NoSetGroups: true}}
}

// start starts a process without the reaper that PID 1 needs: this process has other
// children.
func start(t *testing.T, cmd *command, s streams) (*process, func() syscall.WaitStatus) {
	t.Helper()
	r := &reaper{children: map[int]chan syscall.WaitStatus{}}
	p, err := r.start(cmd, s, wire.Size{Rows: 24, Cols: 80})
	if err != nil {
		t.Fatal(err)
	}
	return p, func() syscall.WaitStatus {
		var ws syscall.WaitStatus
		if _, err := syscall.Wait4(p.pid, &ws, 0, nil); err != nil {
			t.Error(err)
		}
		return ws
	}
}

func TestProcess(t *testing.T) {
	const sh = "/bin/sh"
	t.Run("streams", func(t *testing.T) {
		var out, errs bytes.Buffer
		pid := 0
		s := streams{stdin: strings.NewReader("typed"), stdout: &out, stderr: &errs, started: func(p *process) { pid = p.pid + out.Len() }}
		p, wait := start(t, asMe(sh, "-c", "cat; echo err >&2; exit 3"), s)
		if ws := wait(); ws.ExitStatus() != 3 {
			t.Errorf("status %#x", ws)
		}
		p.drained()
		if out.String() != "typed" || errs.String() != "err\n" || pid != p.pid {
			t.Errorf("stdout %q, stderr %q, started as %d, is %d", out.String(), errs.String(), pid, p.pid)
		}
	})
	t.Run("terminal", func(t *testing.T) {
		var out bytes.Buffer
		cmd := asMe(sh, "-c", "stty size")
		cmd.tty = true
		p, wait := start(t, cmd, streams{stdout: &out})
		wait()
		p.drained()
		if out.String() != "24 80\r\n" {
			t.Errorf("got %q", out.String())
		}
	})
	t.Run("limits", func(t *testing.T) {
		var out bytes.Buffer
		cmd := asMe(sh, "-c", "ulimit -n; ulimit -Hn")
		cmd.limits = []wire.Rlimit{{Resource: unix.RLIMIT_NOFILE, Soft: 77, Hard: 88}}
		p, wait := start(t, cmd, streams{stdout: &out})
		wait()
		p.drained()
		if out.String() != "77\n88\n" {
			t.Errorf("got %q", out.String())
		}
	})
	t.Run("output that nobody takes", func(t *testing.T) {
		p, wait := start(t, asMe(sh, "-c", "head -c 1000000 /dev/zero"), streams{stdout: broken{}})
		if ws := wait(); ws.ExitStatus() != 0 {
			t.Errorf("status %#x", ws)
		}
		p.drained()
	})
	t.Run("output held by one left behind", func(t *testing.T) {
		var out bytes.Buffer
		p, wait := start(t, asMe(sh, "-c", "sleep 100 & echo $!"), streams{stdout: &out})
		wait()
		p.drainedSoon()
		if err := exec(t, "kill", strings.TrimSpace(out.String())); err != nil {
			t.Errorf("output %q: %v", out.String(), err)
		}
	})
	t.Run("no format", func(t *testing.T) {
		p := filepath.Join(t.TempDir(), "x")
		if err := os.WriteFile(p, []byte("#!/nope\n"), 0755); err != nil {
			t.Fatal(err)
		}
		r := &reaper{children: map[int]chan syscall.WaitStatus{}}
		_, err := r.start(asMe(p), streams{}, wire.Size{})
		var we *wire.Error
		if !errors.As(err, &we) || we.ExitCode != 127 || we.Message != "exec "+p+": no such file or directory" {
			t.Errorf("got %v", err)
		}
		r.closed = true
		if _, err := r.start(asMe(sh), streams{}, wire.Size{}); !errors.As(err, &we) || we.Kind != wire.NotRunning {
			t.Errorf("start after the end: %v", err)
		}
	})
}

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, errors.New("broken") }

// exec runs kill with the number of a process.
func exec(t *testing.T, name, pid string) error {
	t.Helper()
	p, err := os.StartProcess("/bin/"+name, []string{name, pid}, &os.ProcAttr{})
	if err != nil {
		return err
	}
	st, err := p.Wait()
	if err == nil && !st.Success() {
		err = errors.New(st.String())
	}
	return err
}

func TestLongReason(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	g := &guest{log: &logPort{f: f}}
	g.record(setupFailure(&wire.Error{Message: strings.Repeat("\x01ü", 100_000), ExitCode: 127}))
	if _, err := f.Seek(0, 0); err != nil {
		t.Fatal(err)
	}
	rec, err := wire.NewLogReader(f, 0).Next()
	if err != nil {
		t.Fatal(err)
	}
	if e, err := rec.Exit(); err != nil || e.Code != 127 || len(e.Error) < maxReason {
		t.Errorf("got %+v, %v", e, err)
	}
}
