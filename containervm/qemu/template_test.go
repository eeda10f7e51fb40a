package qemu

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"vic/bench/oracle"
	"vic/containervm"
	"vic/containervm/boot"
	"vic/tether/wire"
)

// guestVM describes a VM that boots the tether, on a disk with busybox.
func guestVM(t *testing.T) containervm.VM {
	t.Helper()
	v := vm(t, "")
	dir := t.TempDir()
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(dir, "tether"), "vic/cmd/tether")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	m, err := boot.Build(t.Context(), filepath.Join(dir, "boot"), boot.Options{Tether: filepath.Join(dir, "tether")})
	if err != nil {
		t.Fatal(err)
	}
	v.Boot = containervm.Boot{Kernel: m.Kernel, Initrd: m.Initrd, Cmdline: m.Cmdline}
	oracle.Need(t, "mke2fs")
	script := `cd "$1"; mkdir -p root/bin; cp "$(command -v busybox)" root/bin/; ln -s busybox root/bin/sh; mke2fs -q -t ext4 -d root disk.raw 64m; qemu-img convert -O vmdk disk.raw base.vmdk`
	if out, err := exec.Command("sh", "-ec", script, "sh", dir).CombinedOutput(); err != nil {
		t.Fatalf("make root disk: %v\n%s", err, out)
	}
	v.Disk, v.DiskSize = filepath.Join(dir, "base.vmdk"), 64<<20
	return v
}

// another is a VM like v, with a disk, folders and a configuration of its own, which runs a script.
func another(t *testing.T, v containervm.VM, i int, script string) containervm.VM {
	t.Helper()
	dir, run := t.TempDir(), runtimeDir(t)
	disk := filepath.Join(dir, "disk.vmdk")
	if out, err := exec.Command("qemu-img", "create", "-q", "-f", "vmdk", "-b", v.Disk, "-F", "vmdk", disk).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v: %s", err, out)
	}
	v.ID, v.Dir, v.RuntimeDir, v.Disk = fmt.Sprintf("%064x", i+1), dir, filepath.Join(run, "vm"), disk
	if err := os.Mkdir(v.RuntimeDir, 0o700); err != nil {
		t.Fatal(err)
	}
	v.Log, v.Console = filepath.Join(dir, "log"), filepath.Join(dir, "console")
	v.NICs = []containervm.NIC{{End: "net0", MAC: fmt.Sprintf("02:42:ac:11:00:%02x", i+2)}}
	conf := wire.Config{ID: v.ID, Token: "secret", Hostname: "box" + strconv.Itoa(i), Args: []string{"/bin/sh", "-c", script},
		Root: wire.Root{Serial: v.DiskSerial}, Network: wire.Network{NICs: []wire.NIC{{MAC: v.NICs[0].MAC}}}, Seed: bytes.Repeat([]byte{byte(i)}, 64), Time: time.Now().UnixNano()}
	var err error
	if v.Config, err = conf.Strings(); err != nil {
		t.Fatal(err)
	}
	return v
}

// output waits for a VM's end and returns what its process wrote.
func output(t *testing.T, m containervm.Machine, v containervm.VM) string {
	t.Helper()
	wait(t, m, v)
	f, err := os.Open(v.Log)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var out strings.Builder
	for r := wire.NewLogReader(f, 0); ; {
		rec, err := r.Next()
		if err != nil {
			return out.String()
		}
		switch rec.Type {
		case wire.Stdout, wire.Diagnostic:
			out.Write(rec.Data)
		case wire.RecExit:
			if e, err := rec.Exit(); err != nil || e.Code != 0 {
				t.Errorf("exit %+v, %v", e, err)
			}
		}
	}
}

// TestTemplate has two VMs begin from one template and finds nothing in them that should be one's own
// and is not; then it damages the template.
func TestTemplate(t *testing.T) {
	d := driver(t)
	d.Templates = filepath.Join(t.TempDir(), "templates")
	t.Cleanup(func() { d.Close() })
	v := guestVM(t)
	if err := d.Prepare(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	d.templates.wg.Wait()
	if d.Ready() != 1 {
		t.Fatal("no template was made")
	}
	checkPrivate(t, d.Templates)

	const script = `export PATH=/bin; for a in cat od hostname sed date ls; do eval "$a() { busybox $a \"\$@\"; }"; done
		echo boot $(cat /proc/sys/kernel/random/boot_id)
		echo uuid $(cat /proc/sys/kernel/random/uuid)
		echo random $(od -An -tx1 -N16 /dev/urandom)
		echo name $(hostname)
		echo mac $(cat /sys/class/net/eth0/address)
		busybox ip link show eth0 | sed -n 's/.*permaddr/permaddr/p'
		for f in product_uuid product_serial board_serial chassis_serial; do id=$(cat /sys/class/dmi/id/$f 2>/dev/null); [ -n "$id" ] && echo $f $id; done
		echo stack $(sed -n 's/-.*\[stack\].*//p' /proc/self/maps)
		echo clock $(date +%s)
		[ "$(cat /proc/self/mountinfo | sed -n '/ \/ \/ .* ext4/p')" ] && echo root ext4`
	facts := make([]map[string]string, 2)
	for i := range facts {
		vm := another(t, v, i, script)
		m := start(t, d, vm)
		if !m.Info().Template {
			t.Errorf("VM %d was booted", i)
		}
		facts[i] = map[string]string{}
		for line := range strings.Lines(output(t, m, vm)) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
			facts[i][key] = value
		}
		if at, err := strconv.ParseInt(facts[i]["clock"], 10, 64); err != nil || time.Since(time.Unix(at, 0)).Abs() > time.Minute {
			t.Errorf("clock of VM %d is at %v", i, time.Unix(at, 0))
		}
		if facts[i]["name"] != "box"+strconv.Itoa(i) || facts[i]["mac"] != vm.NICs[0].MAC || facts[i]["root"] != "ext4" {
			t.Errorf("VM %d is not what it was configured to be: %v", i, facts[i])
		}
		delete(facts[i], "root")
		delete(facts[i], "clock")
	}
	t.Log(facts)
	for key, value := range facts[0] {
		if value == "" || value == facts[1][key] {
			t.Errorf("%s is %q in both", key, value)
		}
	}

	var said bytes.Buffer
	d.Log = slog.New(slog.NewTextHandler(&said, nil))
	saved, err := filepath.Glob(filepath.Join(d.Templates, "*", savedFile))
	if err != nil || len(saved) != 1 {
		t.Fatal(saved, err)
	}
	if f, err := os.OpenFile(saved[0], os.O_WRONLY, 0); err != nil {
		t.Fatal(err)
	} else {
		f.WriteAt(make([]byte, 100<<10), 1000)
		f.Close()
	}
	vm := another(t, v, 2, "echo up")
	m := start(t, d, vm)
	if got := output(t, m, vm); m.Info().Template || got != "up\n" {
		t.Errorf("with a damaged template: %+v, output %q", m.Info(), got)
	}
	d.templates.wg.Wait()
	if got := said.String(); !strings.Contains(got, "a template does not work, booting") || !strings.Contains(got, "made a template") || d.Ready() != 1 {
		t.Errorf("%d templates, log %s", d.Ready(), got)
	}
}

// checkPrivate looks for anything that others could read.
func checkPrivate(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := e.Info()
		if err == nil && fi.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, fi.Mode())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// TestTemplateOf wants one template for VMs that differ in what they run, and others for other hardware.
func TestTemplateOf(t *testing.T) {
	d := driver(t)
	v := vm(t, "")
	p, err := d.Platform(t.Context(), v.Boot.Kernel)
	if err != nil {
		t.Fatal(err)
	}
	key := func(v containervm.VM) string {
		t.Helper()
		tp, err := d.template(v, p)
		if err != nil {
			t.Fatal(err)
		}
		return tp.key
	}
	base := key(v)
	for _, c := range []struct {
		name   string
		change func(*containervm.VM)
		same   bool
	}{
		{"what is its own", func(v *containervm.VM) {
			v.ID, v.Dir, v.RuntimeDir, v.Disk, v.Log, v.Console = "0", "/a", "/b", "/c", "/d", "/e"
			v.NICs, v.Config, v.Unsafe, v.CPUSet = []containervm.NIC{{End: "net5", MAC: "02:00:00:00:00:01"}}, []string{"x"}, true, []int{0}
		}, true},
		{"memory", func(v *containervm.VM) { v.Memory *= 2 }, false},
		{"CPUs", func(v *containervm.VM) { v.CPUs++ }, false},
		{"size of the root disk", func(v *containervm.VM) { v.DiskSize += 512 }, false},
		{"disks", func(v *containervm.VM) { v.Disks = []containervm.Disk{{Path: "/x", Serial: "x"}} }, false},
		{"interfaces", func(v *containervm.VM) { v.NICs = nil }, false},
		{"kernel parameters", func(v *containervm.VM) { v.Boot.Cmdline += " x" }, false},
		{"initramfs", func(v *containervm.VM) { v.Boot.Initrd = initrd(t, "other") }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := v
			c.change(&v)
			if got := key(v); (got == base) != c.same {
				t.Errorf("template %s, was %s", got, base)
			}
		})
	}
}

// TestTemplateDamaged opens templates that are not whole.
func TestTemplateDamaged(t *testing.T) {
	for _, c := range []struct {
		name   string
		damage func(dir string) error
		whole  bool
	}{
		{"whole", func(string) error { return nil }, true},
		{"memory is short", func(dir string) error { return os.Truncate(filepath.Join(dir, ramFile), 1) }, false},
		{"no state", func(dir string) error { return os.Remove(filepath.Join(dir, savedFile)) }, false},
		{"state is long", func(dir string) error { return os.WriteFile(filepath.Join(dir, savedFile), make([]byte, 99), 0o600) }, false},
		{"record is empty", func(dir string) error { return os.WriteFile(filepath.Join(dir, templateFile), nil, 0o600) }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			tp := fakeTemplate(t, t.TempDir(), "a", time.Now())
			if err := c.damage(tp.dir); err != nil {
				t.Fatal(err)
			}
			ram, saved, err := tp.open()
			var broken *brokenError
			switch {
			case c.whole && err != nil, !c.whole && !errors.As(err, &broken):
				t.Errorf("open: %v", err)
			case err == nil:
				ram.Close()
				saved.Close()
			}
		})
	}
	if _, _, err := (template{dir: t.TempDir()}).open(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("open what is not there: %v", err)
	}
}

// fakeTemplate commits a template of a few bytes.
func fakeTemplate(t *testing.T, dir, key string, used time.Time) template {
	t.Helper()
	tmp := filepath.Join(dir, unfinished+key)
	if err := os.Mkdir(tmp, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{ramFile, savedFile} {
		if err := os.WriteFile(filepath.Join(tmp, name), []byte("0123456789"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	tp := template{key, filepath.Join(dir, key)}
	if err := commitTemplate(tmp, tp.dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(filepath.Join(tp.dir, templateFile), used, used); err != nil {
		t.Fatal(err)
	}
	return tp
}

// TestSweep wants the templates that were used last to stay, and nothing else.
func TestSweep(t *testing.T) {
	d := &Driver{Templates: t.TempDir()}
	now := time.Now()
	for i := range maxTemplates + 3 {
		fakeTemplate(t, d.Templates, strconv.Itoa(i), now.Add(time.Duration(i%5)*time.Hour+time.Duration(i)*time.Minute))
	}
	for _, junk := range []string{unfinished + "x", "no-record"} {
		if err := os.Mkdir(filepath.Join(d.Templates, junk), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.sweep(); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(d.Templates)
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, e := range entries {
		left = append(left, e.Name())
	}
	// Used at hours 0 1 2 3 4 0 1 2 3 4 0: of those at hour 1 the later one is the last that has room.
	if got, want := strings.Join(left, " "), "2 3 4 6 7 8 9"; got != want {
		t.Errorf("left are %q, want %q", got, want)
	}
}
