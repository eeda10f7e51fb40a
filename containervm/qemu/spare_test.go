package qemu

import (
	"bytes"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"vic/bench/oracle"
	"vic/containervm"
)

// awaitSpare has d keep a VM like v ready, and returns it.
func awaitSpare(t *testing.T, d *Driver, v containervm.VM) *spare {
	t.Helper()
	if err := d.Prepare(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	d.templates.wg.Wait()
	d.templates.mu.Lock()
	defer d.templates.mu.Unlock()
	if d.templates.spare == nil {
		t.Fatal("no VM is kept ready")
	}
	return d.templates.spare
}

// spareFolders lists what spares have on the host.
func spareFolders(t *testing.T, d *Driver, v containervm.VM) []string {
	t.Helper()
	var all []string
	for _, dir := range []string{d.Templates, filepath.Dir(v.RuntimeDir)} {
		found, err := filepath.Glob(filepath.Join(dir, spareName+"*"))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, found...)
	}
	return all
}

// TestSpare starts VMs in others that ran already, and looks at what such a VM must not have of the other, then at what
// becomes of spares that have no use.
func TestSpare(t *testing.T) {
	var said bytes.Buffer
	d := driver(t)
	d.Log = slog.New(slog.NewTextHandler(&said, nil))
	d.Templates, d.Spare = filepath.Join(t.TempDir(), "templates"), true
	t.Cleanup(func() { d.Close() })
	v := guestVM(t)
	v.RuntimeDir = filepath.Join(v.RuntimeDir, "prepared") // spares are beside it

	kept := awaitSpare(t, d, v)
	checkPrivate(t, d.Templates)
	if fi, err := os.Stat(kept.m.vm.RuntimeDir); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("its sockets are in a folder of mode %v, %v", fi.Mode(), err)
	}
	const script = `export PATH=/bin; for a in cat hostname sed; do eval "$a() { busybox $a \"\$@\"; }"; done
		echo name $(hostname) mac $(cat /sys/class/net/eth0/address) root $(sed -n 's/.* \/ \/ .* \(ext4\) .*/\1/p' /proc/self/mountinfo)
		echo written >/file; busybox sync`
	vm := another(t, v, 3, script)
	m := start(t, d, vm)
	if !m.Info().Template || m.Info().PID != kept.m.info.PID {
		t.Errorf("VM is %+v, was kept ready as %+v", m.Info(), kept.m.info)
	}
	if other, err := driver(t).Find(t.Context(), vm); err != nil {
		t.Errorf("find it: %v", err)
	} else {
		if other.Info().PID != m.Info().PID {
			t.Errorf("found %+v", other.Info())
		}
		other.Close()
	}
	if got, want := output(t, m, vm), "name box3 mac "+vm.NICs[0].MAC+" root ext4\n"; got != want {
		t.Errorf("output %q, want %q", got, want)
	}
	if left := spareFolders(t, d, v); len(left) > 0 {
		t.Errorf("left are %q", left)
	}
	checkWritten(t, vm.Disk)

	kept = awaitSpare(t, d, v)
	for _, c := range []struct {
		name   string
		change func(*testing.T, *containervm.VM)
	}{
		{"has run before", func(t *testing.T, vm *containervm.VM) {
			if err := os.WriteFile(vm.Log, []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
		}},
		{"a CPU of its own", func(_ *testing.T, vm *containervm.VM) { vm.CPUSet = []int{0} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			vm := another(t, v, 4, "echo up")
			c.change(t, &vm)
			m := start(t, d, vm)
			if got := output(t, m, vm); !m.Info().Template || m.Info().PID == kept.m.info.PID || got != "up\n" {
				t.Errorf("VM is %+v, output %q", m.Info(), got)
			}
		})
	}
	t.Run("it has died", func(t *testing.T) {
		if err := kept.m.signal(9); err != nil {
			t.Fatal(err)
		}
		wait(t, kept.m, kept.m.vm)
		vm := another(t, v, 5, "echo up")
		m := start(t, d, vm)
		if got := output(t, m, vm); !m.Info().Template || got != "up\n" || !strings.Contains(said.String(), "a spare VM is of no use") {
			t.Errorf("VM is %+v, output %q, log %s", m.Info(), got, said.String())
		}
	})
	t.Run("its keeper has died", func(t *testing.T) {
		kept := awaitSpare(t, d, v)
		d.templates.mu.Lock()
		d.templates.spare = nil // forgotten, as by a process that was killed
		d.templates.mu.Unlock()
		kept.conn.Close()
		wait(t, kept.m, kept.m.vm)
		kept.m.Close()
		if len(spareFolders(t, d, v)) != 2 {
			t.Errorf("left are %q", spareFolders(t, d, v))
		}
		d.templates.swept = false
		kept = awaitSpare(t, d, v)
		if left := spareFolders(t, d, v); len(left) != 2 || filepath.Base(left[0]) != kept.m.vm.ID {
			t.Errorf("left are %q, and %s is in use", left, kept.m.vm.ID)
		}
	})
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if left := spareFolders(t, d, v); len(left) > 0 {
		t.Errorf("left at the end are %q", left)
	}
}

// checkWritten has the kernel's judges look at a disk that a guest has written a file to.
func checkWritten(t *testing.T, disk string) {
	t.Helper()
	oracle.Need(t, "e2fsck")
	raw := filepath.Join(t.TempDir(), "raw")
	for _, args := range [][]string{
		{"qemu-img", "check", "-q", disk}, {"qemu-img", "convert", "-O", "raw", disk, raw},
		{"e2fsck", "-fn", raw}, {"sh", "-c", `test "$(debugfs -R "cat /file" "$1" 2>/dev/null)" = written`, "sh", raw},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Errorf("%q: %v\n%s", args, err, out)
		}
	}
}
