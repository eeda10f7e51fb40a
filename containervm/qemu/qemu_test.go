package qemu

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cavaliergopher/cpio"

	"vic/bench/oracle"
	"vic/bench/testimage"
	"vic/containervm"
)

var _ containervm.Hypervisor = (*Driver)(nil)

// needKernel returns the newest kernel installed on the host.
func needKernel(t *testing.T) string {
	t.Helper()
	names, err := filepath.Glob("/boot/vmlinuz-*")
	if err != nil {
		t.Fatal(err)
	}
	if len(names) == 0 {
		oracle.Missing(t, "/boot/vmlinuz-*")
	}
	return names[len(names)-1]
}

// initrd makes an initramfs of busybox and a script for PID 1.
func initrd(t *testing.T, script string) string {
	t.Helper()
	busybox, err := os.ReadFile(oracle.Find(t, "busybox"))
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w := cpio.NewWriter(&b)
	for _, f := range []struct {
		name string
		mode cpio.FileMode
		data []byte
	}{
		{"bin", cpio.TypeDir | 0o755, nil},
		{"dev", cpio.TypeDir | 0o755, nil},
		{"sys", cpio.TypeDir | 0o755, nil},
		{"bin/busybox", cpio.TypeReg | 0o755, busybox},
		{"bin/sh", cpio.TypeSymlink | 0o777, []byte("busybox")},
		{"init", cpio.TypeReg | 0o755, []byte("#!/bin/sh\nexec >/dev/console 2>&1\n" + script)},
	} {
		h := &cpio.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.data))}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(f.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "initrd")
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// runtimeDir makes a folder for sockets. What is started in it ends with the test program.
func runtimeDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "vic") // t.TempDir's path is too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	release, err := testimage.Guard(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { release() })
	return dir
}

// vm describes a VM that runs the script.
func vm(t *testing.T, script string) containervm.VM {
	t.Helper()
	oracle.Need(t, "qemu-system-x86_64")
	kernel := needKernel(t)
	dir, run := t.TempDir(), runtimeDir(t)
	disk := filepath.Join(dir, "disk,with comma.vmdk")
	if out, err := exec.Command(oracle.Find(t, "qemu-img"), "create", "-q", "-f", "vmdk", "-o", "subformat=twoGbMaxExtentSparse", disk, "64M").CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v: %s", err, out)
	}
	return containervm.VM{
		ID: "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", Dir: dir, RuntimeDir: run,
		Boot:   containervm.Boot{Kernel: kernel, Initrd: initrd(t, script), Cmdline: "console=ttyS0 quiet panic=-1"},
		Memory: 128 << 20, CPUs: 1,
		Disk: disk, DiskSerial: "root", NICs: []containervm.NIC{{End: "net0", MAC: "02:42:ac:11:00:02"}},
		Log: filepath.Join(dir, "output.vlog"), Console: filepath.Join(dir, "console.log"),
	}
}

func driver(t *testing.T) *Driver {
	return &Driver{Accel: TCG, Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
}

// start starts a VM that does not outlive the test.
func start(t *testing.T, d *Driver, v containervm.VM) containervm.Machine {
	t.Helper()
	m, err := d.Start(t.Context(), v)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Kill(); err != nil {
			t.Error(err)
		}
		<-m.Done()
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func wait(t *testing.T, m containervm.Machine, v containervm.VM) {
	t.Helper()
	select {
	case <-m.Done():
	case <-time.After(2 * time.Minute):
		console, _ := os.ReadFile(v.Console)
		t.Fatalf("VM did not end; its console:\n%s", console)
	}
}

func TestVMEnds(t *testing.T) {
	for _, c := range []struct{ name, script, reason string }{
		{"power off", "busybox poweroff -f", "guest-shutdown"},
		{"panic", "exit 1", "guest-reset"},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := vm(t, c.script)
			m := start(t, driver(t), v)
			if i := m.Info(); i.PID <= 1 || i.Accel != TCG {
				t.Errorf("machine is %+v", i)
			}
			wait(t, m, v)
			if got := m.Info().Reason; got != c.reason {
				t.Errorf("VM ended for %q, want %q", got, c.reason)
			}
			if err := m.Kill(); err != nil {
				t.Errorf("kill a VM that has ended: %v", err)
			}
			if _, err := driver(t).Find(t.Context(), v); !errors.Is(err, containervm.ErrNoMachine) {
				t.Errorf("find a VM that has ended: %v", err)
			}
		})
	}
}

func TestConfigReachesGuest(t *testing.T) {
	v := vm(t, "busybox mount -t sysfs s /sys; for f in /sys/firmware/dmi/entries/11-*/raw; do busybox strings $f; done; busybox poweroff -f")
	v.Config = []string{"vic:first,with=commas", "vic:second"}
	m := start(t, driver(t), v)
	wait(t, m, v)
	console, err := os.ReadFile(v.Console)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range v.Config {
		if !bytes.Contains(console, []byte(want)) {
			t.Errorf("guest does not see %q; its console:\n%s", want, console)
		}
	}
	for i := range v.Config {
		if _, err := os.Stat(configPath(v, i)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there: %v", configPath(v, i), err)
		}
	}
}

// TestVMOutlivesDriver starts a VM, lets go of it, and takes it over in another Driver.
func TestVMOutlivesDriver(t *testing.T) {
	v := vm(t, "while :; do busybox sleep 1000; done")
	first, err := driver(t).Start(t.Context(), v)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // should the test end early
		if m, err := driver(t).Find(context.Background(), v); err == nil {
			m.Kill()
			m.Close()
		}
	})
	if _, err := driver(t).Start(t.Context(), v); err == nil {
		t.Error("a second VM started in the same folders")
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-first.Done():
		t.Error("VM is done when it was let go of")
	default:
	}
	second, err := driver(t).Find(t.Context(), v)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if got, want := second.Info(), first.Info(); got != want {
		t.Errorf("found %+v, want %+v", got, want)
	}
	for _, end := range []string{"control", "net0"} {
		for range 2 { // one connection after another
			c, err := second.Dial(t.Context(), end)
			if err != nil {
				t.Fatal(err)
			}
			c.Close()
		}
	}
	if err := second.Kill(); err != nil {
		t.Fatal(err)
	}
	wait(t, second, v)
	if got := second.Info().Reason; got != "host-qmp-quit" {
		t.Errorf("VM ended for %q", got)
	}
}

// TestKillStopped kills a QEMU that no longer answers.
func TestKillStopped(t *testing.T) {
	v := vm(t, "while :; do busybox sleep 1000; done")
	m := start(t, driver(t), v)
	if err := m.(*machine).signal(19); err != nil { // SIGSTOP
		t.Fatal(err)
	}
	if err := m.Kill(); err != nil {
		t.Fatal(err)
	}
	wait(t, m, v)
}

func TestStaleFiles(t *testing.T) {
	v := vm(t, "busybox poweroff -f")
	for _, c := range []struct{ name, pid string }{
		{"not a number", "x"},
		{"no such process", "4194304000"},
		{"another process", "1"},
		{"this process", strconv.Itoa(os.Getpid())},
	} {
		if err := os.WriteFile(socket(v, pidFile), []byte(c.pid+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := driver(t).Find(t.Context(), v); !errors.Is(err, containervm.ErrNoMachine) {
			t.Errorf("%s: find gives %v", c.name, err)
		}
	}
	for _, name := range []string{monitorFile, "control", "net0"} {
		if err := os.WriteFile(socket(v, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	wait(t, start(t, driver(t), v), v)
}

func TestStartFails(t *testing.T) {
	v := vm(t, "")
	for _, c := range []struct {
		name   string
		change func(*containervm.VM)
		want   string
	}{
		{"no disk", func(v *containervm.VM) { v.Disk += "x" }, "No such file"},
		{"no kernel", func(v *containervm.VM) { v.Boot.Kernel += "x" }, "could not open kernel file"},
		{"no memory", func(v *containervm.VM) { v.Memory = 0 }, "0 bytes"},
		{"long path", func(v *containervm.VM) { v.RuntimeDir += strings.Repeat("x", 100) }, "too long"},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := v
			c.change(&v)
			m, err := driver(t).Start(t.Context(), v)
			if err == nil {
				m.Kill()
				m.Close()
				t.Fatal("VM started")
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("error is %q, want it to have %q", err, c.want)
			}
		})
	}
}

// TestPlatform takes whatever the host has, and wants it to be found once only.
func TestPlatform(t *testing.T) {
	oracle.Need(t, "qemu-system-x86_64")
	kernel := needKernel(t)
	cache := filepath.Join(t.TempDir(), "platform")
	p, err := (&Driver{Cache: cache}).Platform(t.Context(), kernel)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("this host: %+v", p)
	if !strings.HasPrefix(p.Machine, "pc-q35-") || p.Accel != KVM && p.Accel != TCG {
		t.Errorf("platform is %+v", p)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel() // no process can be run with it
	again, err := (&Driver{Cache: cache}).Platform(ended, kernel)
	if err != nil || again != p {
		t.Errorf("second time: %+v, %v; want %+v", again, err, p)
	}
}
