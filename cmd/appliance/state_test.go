//go:build linux

package main

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"vic/bench/oracle"
	"vic/diskfs"
)

// TestPrepare makes a file system on a blank disk, e2fsck judges, and leaves alone what is not blank.
func TestPrepare(t *testing.T) {
	oracle.Need(t, "e2fsck", "mke2fs", "mkswap", "sfdisk")
	const size = 448 << 20
	at := func(off int64, p []byte) func(*testing.T, string) {
		return func(t *testing.T, disk string) {
			f, err := os.OpenFile(disk, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteAt(p, off); err != nil {
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, c := range []struct {
		name string
		fill func(t *testing.T, disk string)
		want error
	}{
		{"blank", func(*testing.T, string) {}, nil},
		{"ours", func(t *testing.T, disk string) {
			if err := prepareDevice(disk); err != nil {
				t.Fatal(err)
			}
		}, nil},
		{"ext4", func(t *testing.T, disk string) { command(t, "mke2fs", "-q", "-t", "ext4", disk) }, errForeign},
		{"swap", func(t *testing.T, disk string) { command(t, "mkswap", disk) }, errForeign},
		{"partitions", func(t *testing.T, disk string) {
			cmd := exec.Command("sfdisk", "-q", disk)
			cmd.Stdin = strings.NewReader("label: gpt\n,\n")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("sfdisk: %v\n%s", err, out)
			}
		}, errForeign},
		{"file system of another's layer", func(t *testing.T, disk string) {
			_, delta, err := diskfs.Format(diskfs.FormatOptions{Capacity: size})
			if err != nil {
				t.Fatal(err)
			}
			f, err := os.OpenFile(disk, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if err := putDelta(f, delta, nil); err != nil {
				t.Fatal(err)
			}
		}, errForeign},
		{"the first byte", at(0, []byte{1}), errForeign},
		{"the last byte", at(size-1, []byte{1}), errForeign},
		{"a backup GPT", at(size-512, []byte("EFI PART")), errForeign},
		{"a backup superblock", at(3*128<<20, make([]byte, 100)), nil},
		{"something in the middle", at(3*128<<20, bytes.Repeat([]byte{1}, 100)), errForeign},
		{"begun on a disk of another size", at(0, []byte("vic state disk of 4096 bytes, being formatted\n")), errForeign},
	} {
		t.Run(c.name, func(t *testing.T) {
			disk := stateDisk(t, size)
			c.fill(t, disk)
			before := sum(t, disk)
			if err := prepareDevice(disk); !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			if c.want != nil || c.name == "ours" {
				if sum(t, disk) != before {
					t.Error("it was written to")
				}
			}
			if c.want == nil {
				checkState(t, disk)
			}
		})
	}
}

// sum is a checksum of a file, and quick: most of it is a hole.
func sum(t *testing.T, path string) uint32 {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return h.Sum32()
}

var errCut = errors.New("power cut")

// cutDevice is a disk whose power fails at the write or sync of a number; of that write half is there.
type cutDevice struct {
	*os.File
	left int
}

func (d *cutDevice) WriteAt(p []byte, off int64) (int, error) {
	if d.left--; d.left < 0 {
		n, err := d.File.WriteAt(p[:len(p)/2/sectorSize*sectorSize], off)
		return n, errors.Join(errCut, err)
	}
	return d.File.WriteAt(p, off)
}

func (d *cutDevice) Sync() error {
	if d.left--; d.left < 0 {
		return errCut
	}
	return nil
}

// TestPrepareCut cuts the power at each step of formatting. The next boot has it done, or goes on with it.
func TestPrepareCut(t *testing.T) {
	oracle.Need(t, "e2fsck")
	const size = 64 << 20
	for cut := 0; ; cut++ {
		path := stateDisk(t, size)
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		err = prepare(&cutDevice{f, cut}, size)
		if err != nil && !errors.Is(err, errCut) {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		if again := prepareDevice(path); again != nil {
			t.Fatalf("cut at step %d: %v", cut, again)
		}
		checkState(t, path)
		if err == nil {
			t.Logf("%d steps", cut)
			return
		}
	}
}

func TestSCSIDisk(t *testing.T) {
	for _, c := range []struct {
		name  string
		files map[string]string
		want  string
	}{
		{"none", nil, ""},
		{"another controller", map[string]string{"class/scsi_host/host0/proc_name": "ahci\n", "class/scsi_device/0:0:0:0/device/block/sda/size": ""}, ""},
		{"no disk yet", map[string]string{"class/scsi_host/host2/proc_name": "vmw_pvscsi\n"}, ""},
		{"the first of two", map[string]string{
			"class/scsi_host/host1/proc_name": "ata_piix\n", "class/scsi_host/host10/proc_name": "vmw_pvscsi\n", "class/scsi_host/host9/proc_name": "vmw_pvscsi\n",
			"class/scsi_device/9:0:0:0/device/block/sdc/size": "", "class/scsi_device/9:0:1:0/device/block/sda/size": "", "class/scsi_device/10:0:0:0/device/block/sdb/size": "",
		}, "/dev/sdc"},
	} {
		t.Run(c.name, func(t *testing.T) {
			sys := t.TempDir()
			for name, text := range c.files {
				path := filepath.Join(sys, name)
				if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if got, err := scsiDisk(sys, 0); err != nil || got != c.want {
				t.Errorf("got %q, %v, want %q", got, err, c.want)
			}
		})
	}
}

func TestWatchButton(t *testing.T) {
	event := func(kind, code uint16, value uint32) string {
		return fmt.Sprintf("%016d%c%c%c%c%c\x00\x00\x00", 0, byte(kind), 0, byte(code), 0, byte(value))
	}
	pressed := 0
	watchButton(strings.NewReader(event(1, 116, 1)+event(0, 0, 0)+event(1, 116, 0)+event(1, 30, 1)+event(1, 116, 1)+"cut off"), func() { pressed++ })
	if pressed != 2 {
		t.Errorf("pressed %d times, want 2", pressed)
	}
}
