package vsphere

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vic/bench/oracle"
)

// A machine is a folder with what the kernel shows of SCSI disks.
type machine string

func (m machine) plug(t *testing.T, name, wwid, address, sectors string) {
	t.Helper()
	dev := filepath.Join(string(m), "sys/devices", address)
	block := filepath.Join(string(m), "sys/block", name)
	for _, dir := range []string{dev, block, filepath.Join(string(m), "dev")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for file, text := range map[string]string{dev + "/wwid": wwid + "\n", block + "/size": sectors + "\n", filepath.Join(string(m), "dev", name): "disk " + name} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(dev, block+"/device"); err != nil {
		t.Fatal(err)
	}
}

func TestLinuxDevices(t *testing.T) {
	m := machine(t.TempDir())
	m.plug(t, "sda", "naa.6000c291aaaaaaaaaaaaaaaaaaaaaaaa", "2:0:0:0", "8192")
	m.plug(t, "sdb", "naa.6000c292bbbbbbbbbbbbbbbbbbbbbbbb", "2:0:1:0", "2048")
	m.plug(t, "sdc", "naa.6000c292bbbbbbbbbbbbbbbbbbbbbbbb", "2:0:2:0", "2048") // another child of the same parent
	m.plug(t, "sdd", "naa.6000c293cccccccccccccccccccccccc", "2:0:3:0", "2048")
	m.plug(t, "sde", "naa.6000c293cccccccccccccccccccccccc", "3:0:3:0", "2048")
	m.plug(t, "sdf", "t10.ATA", "4:0:9:0", "2048")
	m.plug(t, "sdh", "t10.VMware", "2:0:5:0", "2048")
	if err := os.WriteFile(filepath.Join(string(m), "sys/block/sdh/device/vpd_pg80"), []byte("\x00\x80\x00\x2012345678aaaabbbbccccddddeeeeffff"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		d    AttachedDisk
		want string // what the device holds; or what the error has
	}{
		{"by UUID and target", AttachedDisk{UUID: "6000C292-bbbb-bbbb-bbbb-bbbbbbbbbbbb", Target: 2, Capacity: 1 << 20}, "disk sdc"},
		{"by serial number", AttachedDisk{UUID: "12345678-AAAA-bbbb-cccc-ddddeeeeffff", Target: 5, Capacity: 1 << 20}, "disk sdh"},
		{"another size", AttachedDisk{UUID: "6000C291-aaaa-aaaa-aaaa-aaaaaaaaaaaa", Target: 0, Capacity: 1 << 20}, "has 8192 sectors, want 2048"},
		{"two of the same", AttachedDisk{UUID: "6000C293-cccc-cccc-cccc-cccccccccccc", Target: 3, Capacity: 1 << 20}, "sdd, sde all have"},
		{"another target", AttachedDisk{UUID: "6000C292-bbbb-bbbb-bbbb-bbbbbbbbbbbb", Target: 5, Capacity: 1 << 20}, "disk.EnableUUID"},
		{"no UUID", AttachedDisk{Target: 9, Capacity: 1 << 20}, "disk.EnableUUID"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			dev, err := LinuxDevices{string(m)}.Open(ctx, tt.d)
			if err != nil {
				if !strings.Contains(err.Error(), tt.want) {
					t.Errorf("error %v, want one with %q", err, tt.want)
				}
				return
			}
			defer dev.Close()
			p := make([]byte, len(tt.want))
			if _, err := dev.ReadAt(p, 0); err != nil || string(p) != tt.want {
				t.Errorf("opened %q, %v; want %q", p, err, tt.want)
			}
		})
	}

	// A disk that comes late is found when the kernel says that something came: here a loop device, which has no wwid.
	t.Run("late", func(t *testing.T) {
		losetup := oracle.Find(t, "losetup")
		file := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(file, make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		opened := make(chan error, 1)
		go func() {
			dev, err := LinuxDevices{string(m)}.Open(t.Context(), AttachedDisk{UUID: "6000C294-dddd-dddd-dddd-dddddddddddd", Target: 4, Capacity: 1 << 20})
			if err == nil {
				err = dev.Close()
			}
			opened <- err
		}()
		m.plug(t, "sdg", "naa.6000c294dddddddddddddddddddddddd", "2:0:4:0", "2048")
		out, err := exec.Command(losetup, "-f", "--show", file).Output()
		if err != nil {
			t.Fatalf("losetup: %v", err)
		}
		defer exec.Command(losetup, "-d", strings.TrimSpace(string(out))).Run()
		if err := <-opened; err != nil {
			t.Error(err)
		}
	})

	// One that is detached goes later: the kernel says so, here of a loop device as well.
	t.Run("gone", func(t *testing.T) {
		losetup := oracle.Find(t, "losetup")
		file := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(file, make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		d := AttachedDisk{UUID: "6000C292-bbbb-bbbb-bbbb-bbbbbbbbbbbb", Target: 1, Capacity: 1 << 20}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if err := (LinuxDevices{string(m)}).Gone(ended, d); !errors.Is(err, context.Canceled) {
			t.Errorf("a disk that stays: %v", err)
		}
		gone := make(chan error, 1)
		go func() { gone <- LinuxDevices{string(m)}.Gone(t.Context(), d) }()
		if err := os.RemoveAll(filepath.Join(string(m), "sys/block/sdb")); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(losetup, "-f", "--show", file).Output()
		if err != nil {
			t.Fatalf("losetup: %v", err)
		}
		defer exec.Command(losetup, "-d", strings.TrimSpace(string(out))).Run()
		if err := <-gone; err != nil {
			t.Error(err)
		}
	})

	// A device that is not there any more, and one that has a name and answers nothing, are waited for.
	t.Run("going", func(t *testing.T) {
		if err := os.Remove(filepath.Join(string(m), "dev/sdc")); err != nil {
			t.Fatal(err)
		}
		for _, dev := range []string{"none", "socket"} {
			if dev == "socket" { // to open one is ENXIO
				l, err := net.Listen("unix", filepath.Join(string(m), "dev/sdc"))
				if err != nil {
					t.Fatal(err)
				}
				defer l.Close()
			}
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			if _, err := (LinuxDevices{string(m)}).Open(ctx, AttachedDisk{UUID: "6000C292-bbbb-bbbb-bbbb-bbbbbbbbbbbb", Target: 2, Capacity: 1 << 20}); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s: %v", dev, err)
			}
		}
	})
}
