package layerstore

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vic/diskfs"
)

// putRaw makes a volume's disk what is in a file.
func putRaw(t *testing.T, s *Store, name, raw string) {
	t.Helper()
	disk, err := s.dir.openVolumeDisk(name, os.O_RDWR)
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	f, err := os.Open(raw)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	old, p := make([]byte, diskfs.ClusterSize), make([]byte, diskfs.ClusterSize)
	for off := int64(0); off < disk.Capacity(); off += diskfs.ClusterSize {
		if _, err := f.ReadAt(p, off); err != nil {
			t.Fatal(err)
		}
		if _, err := disk.ReadAt(old, off); err != nil && err != io.EOF {
			t.Fatal(err)
		}
		if bytes.Equal(p, old) {
			continue
		}
		if _, err := disk.WriteAt(p, off); err != nil {
			t.Fatal(err)
		}
	}
}

// A volume that a kernel has written to, enlarged, or left without unmounting it, takes a layer, which e2fsck and the kernel find
// sound.
func TestApplyToKernelsVolume(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting takes root")
	}
	for _, tt := range []struct {
		name    string
		grown   int64 // bytes that the disk has in the end
		enlarge bool  // the file system too
		lost    bool  // before it was unmounted
		foreign bool
		full    bool   // at its end
		refused string // the error, if there is to be one
	}{
		{name: "unmounted"},
		{name: "unclean", lost: true},
		{name: "with room at its beginning alone", full: true},
		{name: "larger disk", grown: 200 << 20},
		{name: "enlarged", grown: 200 << 20, enlarge: true},
		{name: "enlarged, unclean", grown: 200 << 20, enlarge: true, lost: true},
		{name: "of another kind", foreign: true, refused: "not made by diskfs.Format"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := openVolumes(t)
			makeVolume(t, s, small("vol"))
			if tt.grown > 0 {
				if _, err := s.GrowVolume("vol", tt.grown); err != nil {
					t.Fatal(err)
				}
			}
			raw := rawVolume(t, s, "vol")
			if tt.enlarge {
				command(t, "resize2fs", raw)
			}
			if tt.foreign {
				command(t, "tune2fs", "-O", "metadata_csum_seed", raw)
			}
			dir := t.TempDir()
			command(t, "mount", "-o", "loop", raw, dir)
			mounted := true
			defer func() {
				if mounted {
					command(t, "umount", dir)
				}
			}()
			command(t, "sh", "-c", `cd "$0" && mkdir a b && seq 30000 > a/numbers && cp a/numbers b/gone && ln -s ../b a/to && sync && rm b/gone && sync -f .`, dir)
			if tt.full {
				command(t, "sh", "-c", `cd "$0" && dd if=/dev/zero of=first bs=1M count=8 status=none; sync; dd if=/dev/zero of=second bs=64k status=none 2>/dev/null; sync; rm first`, dir)
			}
			if tt.lost {
				copied := raw + "-copy"
				command(t, "cp", "--sparse=always", raw, copied)
				raw = copied
			} else {
				command(t, "umount", dir)
				mounted = false
			}
			putRaw(t, s, "vol", raw)

			big := string(randomBytes(2, 2<<20))
			err := s.ApplyToVolume(t.Context(), "vol", bytes.NewReader(makeTar(t, folder("a"), file("a/big", big), file("a/to/new", "new"), file("b/numbers", "few"))))
			if tt.refused != "" {
				if err == nil || !strings.Contains(err.Error(), tt.refused) {
					t.Errorf("%v, want %q", err, tt.refused)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			raw = rawVolume(t, s, "vol") // e2fsck
			checkClean(t, s)
			read := t.TempDir()
			command(t, "mount", "-o", "loop,ro", raw, read)
			defer command(t, "umount", read)
			for name, want := range map[string]string{"a/big": big, "b/new": "new", "b/numbers": "few"} {
				if got := string(readFile(t, filepath.Join(read, name))); got != want {
					t.Errorf("%s: %d bytes, want %d", name, len(got), len(want))
				}
			}
			if got := string(readFile(t, filepath.Join(read, "a/numbers"))); !strings.HasSuffix(got, "\n30000\n") {
				t.Errorf("the kernel's file has %d bytes", len(got))
			}
		})
	}
}

// What a VM has is not written to, growth and removal do not mind what a copy left, and a reader ends with its context.
func TestVolumeFSBesideOthers(t *testing.T) {
	w := writtenVolume(t)
	layer := makeTar(t, file("new", "text"))
	lock, err := lockRange(filepath.Join(w.folder, containerExtent), unix.F_RDLCK, 100, 1, false) // as QEMU does
	if lock == nil {
		t.Fatal(err)
	}
	var busy *VolumeBusyError
	if err := w.apply(layer); !errors.As(err, &busy) {
		t.Errorf("while a VM has it: %v", err)
	}
	lock.unlock()

	ctx, cancel := context.WithCancelCause(t.Context())
	f, err := w.VolumeFS(ctx, "vol")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	enough := errors.New("enough")
	cancel(enough)
	if _, err := f.ReadDir("."); !errors.Is(err, enough) {
		t.Errorf("once the context has ended: %v", err)
	}

	record, descriptor := w.dir.volumeRecord("vol"), filepath.Join(w.folder, containerDisk)
	oldRecord, oldDescriptor := readFile(t, record), readFile(t, descriptor)
	w.decide(layer)
	if _, err := w.GrowVolume("vol", 1<<30); err != nil {
		t.Fatal(err)
	}
	for path, text := range map[string][]byte{record: oldRecord, descriptor: oldDescriptor} { // growth was interrupted too
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got := w.text("new"); got != "text" {
		t.Errorf("grown and settled: %q", got)
	}
	if v, err := w.Volume("vol"); err != nil || v.Capacity != 1<<30 {
		t.Errorf("%+v, %v", v, err)
	}
	w.fsck()
	w.decide(makeTar(t, file("new", "never")))
	if err := w.RemoveVolume("vol"); err != nil {
		t.Fatal(err)
	}
	checkClean(t, w.Store)
	emptyTmp(t, w.Store)
}
