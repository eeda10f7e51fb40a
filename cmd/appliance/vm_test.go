//go:build linux

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"vic/bench/oracle"
	"vic/containervm/appliance"
	"vic/containervm/boot"
)

func command(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// compile builds a program of the module, static and without symbols.
func compile(t testing.TB, pkg string) string {
	t.Helper()
	return compileVersion(t, pkg, "unknown")
}

// compileVersion builds one that says which version it is.
func compileVersion(t testing.TB, pkg, version string) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), filepath.Base(pkg))
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w -X main.version="+version, "-o", bin, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build %s: %v\n%s", pkg, err, out)
	}
	return bin
}

// disc builds the ISO of an appliance with a program in vic's place, which has a key.
func disc(t testing.TB, vic string, k appliance.Key, release string) string {
	t.Helper()
	oracle.Need(t, "qemu-system-x86_64")
	for _, p := range []string{"/usr/lib/ISOLINUX/isolinux.bin", "/usr/lib/syslinux/modules/bios/ldlinux.c32", "/etc/ssl/certs/ca-certificates.crt"} {
		if _, err := os.Stat(p); err != nil {
			oracle.Missing(t, err)
		}
	}
	dir := t.TempDir()
	o := boot.Options{Tether: compile(t, "vic/cmd/tether")}
	m, err := boot.BuildAppliance(t.Context(), dir, o, boot.Appliance{Init: compile(t, "vic/cmd/appliance"), VIC: vic, Release: release, Key: appliance.EmptyKey()})
	if err != nil {
		t.Fatal(err)
	}
	plain := filepath.Join(dir, "plain.iso")
	if err := boot.WriteISO(plain, m, o); err != nil {
		t.Fatal(err)
	}
	return keyedDisc(t, plain, k)
}

// keyedDisc makes a copy of an ISO with a key.
func keyedDisc(t testing.TB, plain string, k appliance.Key) string {
	t.Helper()
	in, err := os.Open(plain)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	fi, err := in.Stat()
	if err != nil {
		t.Fatal(err)
	}
	keyed, err := appliance.WithKey(in, k)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "appliance.iso")
	out, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(out, io.NewSectionReader(keyed, 0, fi.Size())); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

// stateDisk makes a blank disk.
func stateDisk(t testing.TB, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "state.raw")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return path
}

// patience is how long a VM is waited for. It is no measure of anything: what hangs shall fail.
const patience = 5 * time.Minute

// A vm is an appliance that has been powered on.
type vm struct {
	t     *testing.T
	dir   string
	cmd   *exec.Cmd
	port  int // of this machine, which leads to the VM's 2375
	began time.Time
	done  chan struct{}
}

// MACs of the VM's interfaces: one with QEMU's DHCP server and the way in, one with another, and one that leads nowhere.
var macs = []string{"52:54:00:00:00:01", "52:54:00:00:00:02", "52:54:00:00:00:03"}

// powerOn boots a VM of the shape that vic-machine gives an appliance. Further ports may lead to it.
func powerOn(t *testing.T, iso, state string, guestInfo map[string]string, forward ...string) *vm {
	t.Helper()
	v := &vm{t: t, dir: t.TempDir(), done: make(chan struct{}), port: freePort(t)}
	args := []string{"-accel", "tcg", "-cpu", "qemu64,+rdrand", "-M", "pc-q35-7.2,smbus=off,hpet=off", "-m", "2048", "-nodefaults", "-no-user-config",
		"-display", "none", "-serial", "file:" + v.path("console"), "-monitor", "unix:" + v.path("monitor") + ",server=on,wait=off",
		"-drive", "if=none,id=cd,format=raw,readonly=on,media=cdrom,file=" + iso, "-device", "ide-cd,bus=ide.1,drive=cd,bootindex=1",
		"-device", "pvscsi,id=scsi", "-drive", "if=none,id=state,format=raw,cache=unsafe,file=" + state, "-device", "scsi-hd,bus=scsi.0,scsi-id=0,drive=state",
		"-netdev", strings.Join(append([]string{fmt.Sprintf("user,id=n0,hostfwd=tcp:127.0.0.1:%d-:2375", v.port)}, forward...), ",hostfwd="), "-netdev", "user,id=n1,net=10.9.0.0/24", "-netdev", "user,id=n2,restrict=on"}
	for i, mac := range macs {
		args = append(args, "-device", fmt.Sprintf("vmxnet3,netdev=n%d,romfile=,mac=%s", i, mac))
	}
	i := 0
	for key, value := range guestInfo {
		if err := os.WriteFile(v.path(fmt.Sprint("info", i)), []byte(key+"="+value), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "-smbios", "type=11,path="+v.path(fmt.Sprint("info", i)))
		i++
	}
	v.cmd = exec.Command("qemu-system-x86_64", args...)
	var said bytes.Buffer
	v.cmd.Stderr = &said
	v.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	v.began = time.Now()
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // whose end would be taken for the program's, and end QEMU
		err := v.cmd.Start()
		started <- err
		if err == nil {
			_ = v.cmd.Wait()
			close(v.done)
		}
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		v.kill()
		if t.Failed() {
			t.Logf("console:\n%s\nQEMU: %s", v.console(), said.String())
		}
	})
	return v
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func (v *vm) path(name string) string { return filepath.Join(v.dir, name) }

func (v *vm) console() string {
	p, err := os.ReadFile(v.path("console"))
	if err != nil {
		return err.Error()
	}
	return string(p)
}

// await waits for text on the console, so many times.
func (v *vm) await(text string, times int) {
	v.t.Helper()
	for end := time.Now().Add(patience); strings.Count(v.console(), text) < times; time.Sleep(20 * time.Millisecond) {
		select {
		case <-v.done:
			if strings.Count(v.console(), text) >= times {
				return
			}
			v.t.Fatalf("the VM ended before %q was on its console", text)
		default:
		}
		if time.Now().After(end) {
			v.t.Fatalf("%q is not on the console", text)
		}
	}
}

// hit executes a command of QEMU's monitor.
func (v *vm) hit(command string) {
	v.t.Helper()
	conn, err := net.Dial("unix", v.path("monitor"))
	if err != nil {
		v.t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte(command + "\n")); err != nil {
		v.t.Fatal(err)
	}
	for said, b := "", make([]byte, 4096); strings.Count(said, "(qemu)") < 2; { // one before the command and one behind it
		n, err := conn.Read(b)
		if err != nil {
			v.t.Fatalf("%s: %v after %q", command, err, said)
		}
		said += string(b[:n])
	}
}

// off waits for the VM to power itself off.
func (v *vm) off() {
	v.t.Helper()
	select {
	case <-v.done:
	case <-time.After(patience):
		v.t.Fatal("the VM does not power off")
	}
}

// kill is what a power cut does.
func (v *vm) kill() {
	if err := v.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		v.t.Error(err)
	}
	<-v.done
}

// call asks the stand-in.
func (v *vm) call(method, path, body string) (string, error) {
	req, err := http.NewRequestWithContext(v.t.Context(), method, fmt.Sprintf("http://127.0.0.1:%d%s", v.port, path), strings.NewReader(body))
	if err != nil {
		return "", err
	}
	req.Close = true
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	p, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", res.Status, p)
	}
	return string(p), err
}
