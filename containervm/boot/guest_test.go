package boot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"vic/bench/oracle"
	"vic/tether/wire"
)

// shared are files that tests only read, made by the first that needs them.
var shared struct {
	dir    string
	mu     sync.Mutex
	medium *Medium
}

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "vic-boot-")
	if err != nil {
		panic(err)
	}
	shared.dir = dir
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// guestMedium is what guests boot: with the tether as it is.
func guestMedium(t *testing.T) *Medium {
	t.Helper()
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.medium == nil {
		bin := filepath.Join(shared.dir, "tether")
		cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", bin, "vic/cmd/tether")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("go build: %v\n%s", err, out)
		}
		shared.medium = build(t, filepath.Join(shared.dir, "medium"), bin)
	}
	return shared.medium
}

// busyboxRoot is a raw ext4 disk with busybox on it.
func busyboxRoot(t *testing.T) string {
	t.Helper()
	shared.mu.Lock()
	defer shared.mu.Unlock()
	disk := filepath.Join(shared.dir, "disk.raw")
	if _, err := os.Stat(disk); errors.Is(err, fs.ErrNotExist) {
		if err := os.Rename(newRoot(t), disk); err != nil {
			t.Fatal(err)
		}
	}
	return disk
}

// newRoot makes a raw ext4 disk with busybox on it, and other programs.
func newRoot(t *testing.T, programs ...string) string {
	t.Helper()
	oracle.Need(t, "mke2fs", "busybox", "qemu-system-x86_64")
	dir := t.TempDir()
	script := `cd "$1"; shift; mkdir -p root/bin root/etc root/home/app root/tmp; cp "$(command -v busybox)" root/bin/busybox
		root/bin/busybox --install root/bin
		for a; do cp "$a" root/bin; done
		echo 'root:x:0:0:root:/root:/bin/sh' >root/etc/passwd; echo 'app:x:1000:1000::/home/app:/bin/sh' >>root/etc/passwd
		echo 'root:x:0:' >root/etc/group; echo 'extra:x:1001:app' >>root/etc/group
		echo data >root/etc/plain; echo '#!/nope' >root/etc/script; chmod 755 root/etc/script; mke2fs -q -t ext4 -d root disk.raw 128m`
	if out, err := exec.Command("sh", append([]string{"-ec", script, "sh", dir}, programs...)...).CombinedOutput(); err != nil {
		t.Fatalf("make root disk: %v\n%s", err, out)
	}
	return filepath.Join(dir, "disk.raw")
}

// patience is how long a guest is waited for. It is no measure of anything: what hangs shall fail.
const patience = 3 * time.Minute

// A vm is a booted guest.
type vm struct {
	t    *testing.T
	conf wire.Config
	dir  string
	cmd  *exec.Cmd
	done chan error

	window int // of control sessions; 0 is the default
}

// bootGuest starts QEMU with the medium (directly, or by the ISO if iso is not "") and
// extra arguments.
func bootGuest(t *testing.T, m *Medium, iso, disk string, conf wire.Config, extra ...string) *vm {
	t.Helper()
	v := newVM(t, conf)
	v.boot(m, iso, append([]string{
		"-drive", "if=none,id=root,format=raw,snapshot=on,file=" + disk, "-device", "virtio-blk-pci,drive=root,serial=root",
		"-device", "virtio-serial-pci,id=ports",
		"-chardev", "socket,id=control,server=on,wait=off,path=" + v.path("control"),
		"-device", "virtserialport,bus=ports.0,nr=1,chardev=control,name=" + wire.ControlPort,
		"-chardev", "file,id=log,append=on,path=" + v.path("log"),
		"-device", "virtserialport,bus=ports.0,nr=2,chardev=log,name=" + wire.LogPort}, extra...))
	return v
}

func newVM(t *testing.T, conf wire.Config) *vm {
	t.Helper()
	v := &vm{t: t, conf: conf, dir: t.TempDir(), done: make(chan error, 1)}
	v.conf.ID, v.conf.Token, v.conf.Seed = strings.Repeat("ab", 32), "secret", bytes.Repeat([]byte{7}, 64)
	return v
}

// boot starts QEMU with the medium and devices.
func (v *vm) boot(m *Medium, iso string, devices []string) {
	t := v.t
	t.Helper()
	args := []string{"-accel", "tcg", "-cpu", "qemu64,+rdrand", "-M", "pc-q35-7.2,smbus=off,hpet=off", "-m", "256", "-nodefaults", "-no-user-config",
		"-display", "none", "-no-reboot", "-serial", "file:" + v.path("console")}
	if iso != "" {
		args = append(args, "-drive", "if=none,id=cd,format=raw,readonly=on,media=cdrom,file="+iso, "-device", "ide-cd,bus=ide.1,drive=cd,bootindex=1")
	} else {
		args = append(args, "-kernel", m.Kernel, "-initrd", m.Initrd, "-append", m.Cmdline)
	}
	strs, err := v.conf.Strings()
	if err != nil {
		t.Fatal(err)
	}
	for i, s := range strs {
		p := v.path(fmt.Sprintf("config%d", i))
		if err := os.WriteFile(p, []byte(s), 0600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "-smbios", "type=11,path="+p)
	}
	v.cmd = exec.Command("qemu-system-x86_64", append(args, devices...)...)
	v.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // a test program that is killed leaves none
	var said bytes.Buffer
	v.cmd.Stderr = &said
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // whose end would be taken for the program's
		err := v.cmd.Start()
		started <- err
		if err != nil {
			return
		}
		if err = v.cmd.Wait(); err != nil {
			err = fmt.Errorf("%w: %s", err, said.Bytes())
		}
		v.done <- err
		close(v.done)
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		v.cmd.Process.Kill()
		<-v.done
		if t.Failed() {
			p, _ := os.ReadFile(v.path("console"))
			t.Logf("console:\n%s", p)
		}
	})
}

func (v *vm) path(name string) string { return filepath.Join(v.dir, name) }

// end waits for the VM to power off and returns what it logged.
func (v *vm) end() (stdout, stderr []byte, exit wire.Exit) {
	v.t.Helper()
	select {
	case err := <-v.done:
		if err != nil {
			v.t.Fatal(err)
		}
	case <-time.After(patience):
		v.t.Fatal("VM does not end")
	}
	f, err := os.Open(v.path("log"))
	if err != nil {
		v.t.Fatal(err)
	}
	defer f.Close()
	r := wire.NewLogReader(f, 0)
	ended := false
	for {
		rec, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			v.t.Fatal(err)
		}
		switch rec.Type {
		case wire.Stdout:
			stdout = append(stdout, rec.Data...)
		case wire.Stderr:
			stderr = append(stderr, rec.Data...)
		case wire.Diagnostic:
			v.t.Errorf("diagnostic: %s", rec.Data)
		case wire.RecExit:
			if exit, err = rec.Exit(); err != nil {
				v.t.Fatal(err)
			}
			ended = true
		}
	}
	if !ended {
		v.t.Fatal("log holds no exit")
	}
	return stdout, stderr, exit
}

// connect opens a control session, as soon as the guest answers.
func (v *vm) connect() *wire.Conn {
	v.t.Helper()
	ctx, cancel := context.WithTimeout(v.t.Context(), patience)
	defer cancel()
	for {
		var d net.Dialer
		c, err := d.DialContext(ctx, "unix", v.path("control"))
		if err == nil {
			var conn *wire.Conn
			if conn, err = wire.Connect(ctx, c, wire.ConnectOptions{Token: v.conf.Token, Window: v.window}); err == nil {
				v.t.Cleanup(func() { conn.Close() })
				return conn
			}
		}
		select {
		case <-ctx.Done():
			v.t.Fatalf("connect: %v", err)
		case <-time.After(20 * time.Millisecond): // QEMU may not have made its socket yet
		}
	}
}

func TestGuest(t *testing.T) {
	disk := busyboxRoot(t)
	m := guestMedium(t)
	sh := func(script string) []string { return []string{"/bin/sh", "-c", script} }
	for name, x := range map[string]struct {
		conf   wire.Config
		stdout string
		exit   wire.Exit
	}{
		"output and code": {wire.Config{Args: sh("echo out; echo err >&2; exit 3")}, "out\n", wire.Exit{Code: 3}},
		"killed":          {wire.Config{Args: sh("kill -9 $$"), Init: true}, "", wire.Exit{Code: 137, Signal: 9}},
		"not found":       {wire.Config{Args: []string{"nope"}}, "", wire.Exit{Code: 127, Error: `exec: "nope": executable file not found in $PATH`}},
		"not executable":  {wire.Config{Args: []string{"/etc/plain"}}, "", wire.Exit{Code: 126, Error: `exec: "/etc/plain": permission denied`}},
		"directory":       {wire.Config{Args: []string{"/etc"}}, "", wire.Exit{Code: 126, Error: `exec: "/etc": is a directory`}},
		"no such user":    {wire.Config{Args: sh("id"), User: "nobody-knows"}, "", wire.Exit{Code: 126, Error: "unable to find user nobody-knows: no matching entries in passwd file"}},
		"user and names and environment": {wire.Config{Args: sh("id -u; id -G; pwd; echo $HOME; hostname; cat /etc/hostname; grep -c localhost /etc/hosts; echo $A $PATH"),
			User: "app", Dir: "/home/app", Hostname: "box", Env: []string{"A=b", "PATH=/bin"}}, "1000\n1000 1001\n/home/app\n/home/app\nbox\nbox\n2\nb /bin\n", wire.Exit{}},
		"terminal":        {wire.Config{Args: sh("tty; stty size"), TTY: true, Size: wire.Size{Rows: 33, Cols: 77}}, "/dev/pts/0\r\n33 77\r\n", wire.Exit{}},
		"orphans":         {wire.Config{Args: sh("(sleep 1000 &) ; sleep 1000 & exit 5")}, "", wire.Exit{Code: 5}},
		"new working dir": {wire.Config{Args: sh("pwd"), Dir: "/not/there/yet"}, "/not/there/yet\n", wire.Exit{}},
		"read-only":       {wire.Config{Args: sh("touch /x 2>/dev/null || echo refused"), Root: wire.Root{Serial: "root", ReadOnly: true}}, "refused\n", wire.Exit{}},
		"namespaces": {wire.Config{Args: sh("echo $$; ls -d /proc/[0-9]*; cat /proc/self/cgroup; cat /sys/fs/cgroup/pids.max /sys/fs/cgroup/cpu.max; umask"),
			Limits: wire.Limits{Pids: 50, CPUQuota: 30000, CPUPeriod: 100000}, Umask: new(uint32(0o77))},
			"1\n/proc/1\n0::/\n50\n30000 100000\n0077\n", wire.Exit{}},
		"an init": {wire.Config{Args: sh("[ $$ != 1 ] && (sleep 0.1 &) ; sleep 0.3; ps -o stat | grep -c Z"), Init: true}, "0\n", wire.Exit{Code: 1}},
		"privileges": {wire.Config{Args: sh("grep -E 'Cap(Bnd|Eff|Inh|Amb)|NoNew' /proc/self/status; cat /proc/self/oom_score_adj; mount -t tmpfs x /tmp 2>&1; chown 1 /tmp"),
			Privileges: wire.Privileges{Capabilities: new(uint64(1)), NoNew: true, OOMScoreAdj: 100}},
			"CapInh:\t0000000000000000\nCapEff:\t0000000000000001\nCapBnd:\t0000000000000001\nCapAmb:\t0000000000000000\nNoNewPrivs:\t1\n100\nmount: permission denied (are you root?)\n", wire.Exit{}},
		"masked": {wire.Config{Args: sh("wc -c </proc/kallsyms; ls /sys/firmware; echo 1 >/proc/sys/net/ipv4/ip_forward; touch /sys/fs/cgroup/x; mount | grep -c 'on /sys type sysfs (ro,nosuid,nodev,noexec'"),
			Masked: []string{"/proc/kallsyms", "/sys/firmware", "/sys/nope"}, ReadOnly: []string{"/sys/fs/cgroup", "/sys", "/proc/sys", "/proc/nope"}},
			"0\n1\n", wire.Exit{}},
		"16 MiB of output": {wire.Config{Args: sh("dd if=/dev/zero bs=1M count=16 2>/dev/null | tr '\\0' x")}, strings.Repeat("x", 16<<20), wire.Exit{}},
	} {
		t.Run(name, func(t *testing.T) {
			v := bootGuest(t, m, "", disk, x.conf)
			stdout, stderr, exit := v.end()
			if string(stdout) != x.stdout {
				t.Errorf("stdout %.200q (%d bytes), want %.200q (%d)", stdout, len(stdout), x.stdout, len(x.stdout))
			}
			if exit != x.exit {
				t.Errorf("exit %+v, want %+v", exit, x.exit)
			}
			if name == "output and code" && string(stderr) != "err\n" {
				t.Errorf("stderr %q", stderr)
			}
		})
	}
}

// TestBootISO boots the ISO instead of kernel and initramfs.
func TestBootISO(t *testing.T) {
	disk := busyboxRoot(t)
	m := guestMedium(t)
	for _, p := range []string{debianISOLINUX, debianLDLINUX} {
		if _, err := os.Stat(p); err != nil {
			oracle.Missing(t, err)
		}
	}
	iso := filepath.Join(t.TempDir(), "vic.iso")
	if err := WriteISO(iso, m, Options{}); err != nil {
		t.Fatal(err)
	}
	v := bootGuest(t, m, iso, disk, wire.Config{Args: []string{"/bin/echo", "from the ISO"}})
	stdout, _, exit := v.end()
	if string(stdout) != "from the ISO\n" || exit.Code != 0 {
		t.Errorf("stdout %q, exit %+v", stdout, exit)
	}
}

// TestControl types into a guest, runs further processes, hangs up and comes back.
func TestControl(t *testing.T) {
	disk := busyboxRoot(t)
	m := guestMedium(t)
	v := bootGuest(t, m, "", disk, wire.Config{Args: []string{"/bin/cat"}, OpenStdin: true})
	conn := v.connect()
	v.await(`"pid"`) // of the start record: there is no exec before
	if _, err := conn.Stdin().Write([]byte("first\n")); err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		p, err := conn.Exec(t.Context(), wire.Exec{ID: fmt.Sprint("e", i), Args: []string{"sh", "-c", "cat; echo err >&2; exit 7"}, Stdin: true, Stdout: true, Stderr: true})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Stdin().Write([]byte("typed")); err != nil {
			t.Fatal(err)
		}
		if err := p.Stdin().CloseWrite(); err != nil {
			t.Fatal(err)
		}
		out, err := io.ReadAll(p.Stdout())
		if err != nil || string(out) != "typed" {
			t.Errorf("exec's stdout %q, %v", out, err)
		}
		if out, err = io.ReadAll(p.Stderr()); err != nil || string(out) != "err\n" {
			t.Errorf("exec's stderr %q, %v", out, err)
		}
		if exit, err := p.Wait(t.Context()); err != nil || exit.Code != 7 {
			t.Errorf("exec ended %+v, %v", exit, err)
		}
		p.Close()
	}
	if _, err := conn.Exec(t.Context(), wire.Exec{ID: "x", Args: []string{"nope"}}); err == nil || !strings.Contains(err.Error(), "executable file not found in $PATH") {
		t.Errorf("exec of nothing: %v", err)
	}
	conn.Close()
	time.Sleep(time.Second) // away for so long that the guest notices
	conn = v.connect()
	if _, err := conn.Stdin().Write([]byte("second\n")); err != nil {
		t.Fatal(err)
	}
	if err := conn.Stdin().CloseWrite(); err != nil {
		t.Fatal(err)
	}
	stdout, _, exit := v.end()
	if string(stdout) != "first\nsecond\n" || exit.Code != 0 {
		t.Errorf("stdout %q, exit %+v", stdout, exit)
	}
}

// TestReconnect comes back to a container without an open stdin.
func TestReconnect(t *testing.T) {
	disk := busyboxRoot(t)
	m := guestMedium(t)
	v := bootGuest(t, m, "", disk, wire.Config{Args: []string{"/bin/sleep", "1000"}})
	v.await(`"pid"`)
	for range 3 {
		conn := v.connect()
		if err := conn.Ping(t.Context()); err != nil {
			t.Error(err)
		}
		conn.Close()
	}
	if err := v.connect().Signal(t.Context(), "", 9); err != nil {
		t.Fatal(err)
	}
	if _, _, exit := v.end(); exit.Code != 137 {
		t.Errorf("exit %+v", exit)
	}
}

// TestShutdown ends processes that mind the signal and such that do not.
func TestShutdown(t *testing.T) {
	disk := busyboxRoot(t)
	m := guestMedium(t)
	for name, x := range map[string]struct {
		script string
		init   bool
		code   int
	}{
		"minds":                   {"trap 'echo bye; exit 4' TERM; echo up; while :; do sleep 0.1; done", false, 4},
		"minds not":               {"trap '' TERM; echo up; while :; do sleep 0.1; done", false, 137},
		"no handler":              {"echo up; exec sleep 1000", true, 143},
		"no handler and is PID 1": {"echo up; exec sleep 1000", false, 137},
	} {
		t.Run(name, func(t *testing.T) {
			v := bootGuest(t, m, "", disk, wire.Config{Args: []string{"/bin/sh", "-c", x.script}, Init: x.init})
			conn := v.connect()
			v.await("up\n")
			if err := conn.Shutdown(t.Context(), 500*time.Millisecond); err != nil {
				t.Fatal(err)
			}
			if _, _, exit := v.end(); exit.Code != x.code {
				t.Errorf("exit %+v, want code %d", exit, x.code)
			}
		})
	}
}

// await waits until the log holds some output.
func (v *vm) await(text string) {
	v.t.Helper()
	for over := time.After(patience); ; {
		p, err := os.ReadFile(v.path("log"))
		if err == nil && bytes.Contains(p, []byte(text)) {
			return
		}
		select {
		case err := <-v.done:
			v.t.Fatalf("VM ended: %v", err)
		case <-over:
			v.t.Fatalf("the guest does not print %q but %q", text, p)
		case <-time.After(10 * time.Millisecond): // a file that QEMU writes
		}
	}
}

// TestStarvedTimer boots on a host that has little time for its guest: the kernel must not take the timer's
// interrupts for lost ones, which ends in a panic.
func TestStarvedTimer(t *testing.T) {
	disk := busyboxRoot(t)
	m := guestMedium(t)
	m.Cmdline = strings.Replace(m.Cmdline, " quiet", "", 1)
	v := bootGuest(t, m, "", disk, wire.Config{Args: []string{"/bin/true"}})
	over := time.Now().Add(patience)
	for past := false; !past; { // the calibration comes after the timer's setup
		for _, s := range []struct {
			signal syscall.Signal
			lasts  time.Duration
		}{{syscall.SIGSTOP, 100 * time.Millisecond}, {syscall.SIGCONT, 10 * time.Millisecond}} {
			if err := v.cmd.Process.Signal(s.signal); err != nil {
				t.Fatal(err)
			}
			time.Sleep(s.lasts) // the load
		}
		console, err := os.ReadFile(v.path("console"))
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		if bytes.Contains(console, []byte("timer not connected")) {
			t.Fatal("the kernel believes that its timer does not work")
		}
		past = bytes.Contains(console, []byte("Calibrating delay loop"))
		if time.Now().After(over) {
			t.Fatalf("the kernel does not come to its calibration:\n%s", console)
		}
	}
}
