package vsphere

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"

	"vic/bench/oracle"
	"vic/bench/vcsim"
	"vic/layerstore"
)

// writingVolumes is volumes for a VCH that runs in a virtual machine; its local store is in a folder that stays.
func (s *site) writingVolumes(vch, dir string, d *Datastore, own *OwnVM) (*Volumes, *layerstore.Store) {
	s.t.Helper()
	var ls *layerstore.Store
	v := NewVolumes(map[string]*Datastore{DefaultVolumes: d}, VolumesOptions{VCH: vch, Own: own,
		Format: func(capacity int64) (*layerstore.Disk, error) { return ls.EmptyVolume(capacity) }})
	ls, err := layerstore.Open(dir, layerstore.Options{Capacity: capacity, VolumeDisks: v})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { ls.Close() })
	return v, ls
}

// oneFile is a layer that has one file.
func oneFile(t *testing.T, name, text string) *bytes.Reader {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(text)), Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return bytes.NewReader(b.Bytes())
}

// inVolume is the contents of a file in a volume, or the error.
func inVolume(t *testing.T, ls *layerstore.Store, volume, name string) string {
	t.Helper()
	f, err := ls.VolumeFS(t.Context(), volume)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	b, err := fs.ReadFile(f, name)
	if errors.Is(err, fs.ErrNotExist) {
		return "absent"
	}
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// A volume is written through the machine in which the VCH runs. What fails leaves nothing attached for long, no file system that is half written, and
// nobody else at the disk meanwhile.
func TestVolumesWrite(t *testing.T) {
	s, ctx := newSite(t, vmfs6), t.Context()
	c := s.connect(s.endpoint())
	x := s.export()
	own, vm := s.appliance(c, x)
	d := s.datastore(c, "volumes")
	dir := t.TempDir()
	v, ls := s.writingVolumes("one", dir, d, own)
	vol, _, err := ls.CreateVolume(sized("data"))
	if err != nil {
		t.Fatal(err)
	}
	other, otherLS := s.writingVolumes("two", t.TempDir(), d, nil)
	if got := names2(otherLS.Volumes()); len(got) != 1 {
		t.Fatalf("the other sees %v", got)
	}
	judge := func() {
		t.Helper()
		raw := s.raw(d, vol.Disk)
		if out, err := exec.Command(oracle.Find(t, "e2fsck"), "-fn", raw).CombinedOutput(); err != nil {
			t.Errorf("e2fsck: %v: %s", err, out)
		}
	}
	clean := func() {
		t.Helper()
		if left := s.attached(vm); len(left) != 0 {
			t.Errorf("still attached: %v", left)
		}
		if left := s.files(d, "volumes/data"); len(left) != 1 {
			t.Errorf("left: %v", left)
		}
		judge()
	}
	before := s.Calls()
	if err := ls.ApplyToVolume(ctx, "data", oneFile(t, "a", "first")); err != nil {
		t.Fatal(err)
	}
	t.Logf("calls of one copy: %v", s.since(before))
	clean()
	raw := s.raw(d, vol.Disk)
	if out, err := exec.Command(oracle.Find(t, "debugfs"), "-R", "cat a", raw).Output(); err != nil || string(out) != "first" {
		t.Errorf("debugfs reads %q, %v", out, err)
	}
	if got := inVolume(t, otherLS, "data", "a"); got != "first" {
		t.Errorf("the other reads %q", got)
	}
	if err := otherLS.ApplyToVolume(ctx, "data", oneFile(t, "a", "x")); !errors.As(err, new(*layerstore.DistantVolumeError)) {
		t.Errorf("outside of an appliance: %v", err)
	}

	fault := &types.GenericVmConfigFault{Reason: "injected"}
	reconfigured := vcsim.TaskFault{Task: "VirtualMachine.reconfigVm", Fault: fault}
	big := strings.Repeat("0123456789abcde\n", 64<<10)
	for _, tt := range []struct {
		name  string
		begin func(cancel func())
		want  string // in the error
		left  bool   // the disk to a later write
	}{
		{"attaching fails", func(func()) { s.FailTask(reconfigured) }, "attach disk", false},
		{"attaching is done and said to have failed", func(func()) {
			f := reconfigured
			f.Done = true
			s.FailTask(f)
		}, "", false},
		{"detaching fails", func(func()) {
			f := reconfigured
			f.Skip = 1
			s.FailTask(f)
		}, "detach disk", true},
		{"the datastore is full", func(func()) { x.room.Store(300 << 10) }, syscall.ENOSPC.Error(), false},
		{"the session is dropped", func(func()) {
			x.onWrite(func() {
				if err := s.DropSessions(ctx); err != nil {
					t.Error(err)
				}
			})
		}, "", false},
		{"the copy is cancelled", func(cancel func()) { x.onWrite(cancel) }, context.Canceled.Error(), false},
		{"it is full where changes are made in place", func(func()) { x.room.Store(1<<20 + 150<<10) }, syscall.ENOSPC.Error(), true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			was := inVolume(t, ls, "data", "a")
			tt.begin(cancel)
			err := ls.ApplyToVolume(ctx, "data", oneFile(t, "a", tt.name+big))
			x.room.Store(0)
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("error %v, want one with %q", err, tt.want)
			}
			want := was
			if err == nil || tt.left {
				want = tt.name + big
			}
			if !tt.left {
				clean()
			} else {
				if got := s.files(d, "volumes/data"); !slices.Contains(got, "one.writes") {
					t.Errorf("nothing keeps others away: %v", got)
				}
				if got := inVolume(t, otherLS, "data", "a"); !strings.Contains(got, "virtual container host one writes") {
					t.Errorf("another reads it: %.80q", got)
				}
				if _, err := otherLS.VolumeDisk("data"); !errors.As(err, new(*layerstore.VolumeBusyError)) {
					t.Errorf("another starts with it: %v", err)
				}
			}
			if got := inVolume(t, ls, "data", "a"); got != want {
				t.Errorf("%d bytes, %.40q, want %d, %.40q", len(got), got, len(want), want)
			}
			clean()
		})
	}

	// What a VCH leaves that is killed it finishes when it is back.
	x.room.Store(1<<20 + 150<<10)
	if err := ls.ApplyToVolume(ctx, "data", oneFile(t, "a", "killed"+big)); !errors.Is(err, layerstore.ErrUnsettled) {
		t.Fatal(err)
	}
	x.room.Store(0)
	attachLeft(t, vm, d.Path(strings.TrimPrefix(vol.Disk, "default/")+".vmdk"), own)
	ls.Close()
	_, ls = s.writingVolumes("one", dir, d, own)
	if got := names2(ls.Volumes()); len(got) != 1 {
		t.Fatalf("volumes %v", got)
	}
	if err := ls.SettleVolumes(ctx); err != nil {
		t.Fatal(err)
	}
	clean()
	if got := inVolume(t, otherLS, "data", "a"); got != "killed"+big {
		t.Errorf("after that: %.40q", got)
	}

	// Whom containers of two VCHs mount only those write.
	if err := v.Use(vol.Disk, true); err != nil {
		t.Fatal(err)
	}
	if err := other.Use(vol.Disk, true); err != nil {
		t.Fatal(err)
	}
	if err := ls.ApplyToVolume(ctx, "data", oneFile(t, "a", "x")); !errors.As(err, new(*layerstore.VolumeBusyError)) || !strings.Contains(err.Error(), "containers of virtual container host two") {
		t.Errorf("what others mount: %v", err)
	}
	if left := s.files(d, "volumes/data"); slices.Contains(left, "one.writes") {
		t.Errorf("left: %v", left)
	}
	// A VCH that is removed for good takes its mark with it.
	if err := os.WriteFile(filepath.Join(s.folder(d), d.root, "volumes", "data", "one.writes"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := RetireVolumes(ctx, d, "one"); err != nil {
		t.Fatal(err)
	}
	if left := s.files(d, "volumes/data"); len(left) != 2 || !slices.Contains(left, "two.uses") {
		t.Errorf("left: %v", left)
	}
}

// attachLeft attaches a disk as a crash would have left it.
func attachLeft(t *testing.T, vm *object.VirtualMachine, file string, own *OwnVM) {
	t.Helper()
	if err := own.apply(t.Context(), &change{file: file}); err != nil {
		t.Fatal(err)
	}
	disks, err := disksOf(t.Context(), vm)
	if err != nil || len(disks) != 1 {
		t.Fatalf("attached %v, %v", disks, err)
	}
}
