package layerstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"vic/bench/oracle"
	"vic/vmdk"
)

// A shelf is a place of volumes that several stores have, in memory; distantDisks are it as one of them sees it.
type shelf struct {
	mu      sync.Mutex
	ids     int
	volumes map[string]*Volume
	disks   map[string][]byte
	users   map[string]map[*distantDisks]bool // of each disk
	writer  map[string]*distantDisks          // of each disk: who writes it
}

func newShelf() *shelf {
	return &shelf{volumes: map[string]*Volume{}, disks: map[string][]byte{}, users: map[string]map[*distantDisks]bool{}, writer: map[string]*distantDisks{}}
}

type distantDisks struct {
	*shelf
	store *Store
	fail  error // of Remove and List
	busy  bool
	wrote func(b []byte) (int, error) // is called before each write, and nil is nothing
}

func (d *distantDisks) Options() []string { return []string{"volumestore"} }

func (d *distantDisks) Name(volume string, options map[string]string) (string, error) {
	for key, value := range options {
		if strings.EqualFold(key, "volumestore") && value != "fast" {
			return "", fmt.Errorf("no volume store named %q", value)
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ids++
	return fmt.Sprintf("fast/%s-%d", volume, d.ids), nil
}

func (d *distantDisks) Path(disk string) string           { return "[ds] " + disk + ".vmdk" }
func (d *distantDisks) Stored(disk string) (int64, error) { return 12345, nil }

func (d *distantDisks) List() (map[string]string, []error, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	disks := map[string]string{}
	for name, v := range d.volumes {
		disks[name] = v.Disk
	}
	return disks, nil, d.fail
}

func (d *distantDisks) Find(name string) (*Volume, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if v := d.volumes[name]; v != nil {
		return new(*v), nil
	}
	return nil, ErrNotFound
}

func (d *distantDisks) Read(disk string) (*Volume, error) {
	name, _, _ := strings.Cut(strings.TrimPrefix(disk, "fast/"), "-")
	v, err := d.Find(name)
	if err == nil && v.Disk != disk {
		err = ErrNotFound
	}
	return v, err
}

func (d *distantDisks) Make(v *Volume, used bool) (*Volume, bool, error) {
	if there, err := d.Find(v.Name); err == nil {
		return there, false, nil
	}
	disk, err := d.store.EmptyVolume(v.Capacity)
	if err != nil {
		return nil, false, err
	}
	defer disk.Close()
	b := make([]byte, v.Capacity)
	if _, err := disk.ReadAt(b, 0); err != nil {
		return nil, false, err
	}
	made := *v
	made.Published = true
	d.mu.Lock()
	d.volumes[v.Name], d.disks[v.Disk] = &made, b
	d.mu.Unlock()
	return new(made), true, d.Use(v.Disk, used)
}

func (d *distantDisks) Use(disk string, used bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.users[disk] == nil {
		d.users[disk] = map[*distantDisks]bool{}
	}
	if d.users[disk][d] = true; !used {
		delete(d.users[disk], d)
	}
	return nil
}

func (d *distantDisks) Used(disk string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.users[disk][d]
}

func (d *distantDisks) Remove(disk string) error {
	if d.fail != nil {
		return d.fail
	}
	v, err := d.Read(disk)
	if err != nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for other := range d.users[disk] {
		if other != d {
			return &VolumeInUseError{v.Name, []string{"another"}}
		}
	}
	delete(d.volumes, v.Name)
	return nil
}

func (d *distantDisks) Grow(disk string, capacity int64) (int64, error) {
	v, err := d.Read(disk)
	if err != nil {
		return 0, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.volumes[v.Name].Capacity = capacity
	return capacity, nil
}

func (d *distantDisks) Release(string) error { return nil }

func (d *distantDisks) Open(_ context.Context, disk string) (VolumeReader, int64, error) {
	v, err := d.Read(disk)
	if err == nil && d.busy {
		err = &VolumeBusyError{Name: v.Name, Containers: []string{"a VM"}}
	}
	if err != nil {
		return nil, 0, err
	}
	return openDisk{bytes.NewReader(d.disks[disk])}, v.Capacity, nil
}

type openDisk struct{ *bytes.Reader }

func (openDisk) Close() error { return nil }

func (d *distantDisks) Write(ctx context.Context, disk string, fn func(GuestDevice, int64) error) error {
	if d.wrote == nil {
		return &DistantVolumeError{Name: disk, Disk: disk}
	}
	if _, err := d.Unsettled(disk); err != nil {
		return err
	}
	d.mu.Lock()
	d.writer[disk] = d
	d.mu.Unlock()
	err := fn(distantDevice{d, d.disks[disk]}, int64(len(d.disks[disk])))
	if d.mu.Lock(); !errors.Is(err, ErrUnsettled) {
		delete(d.writer, disk)
	}
	d.mu.Unlock()
	return err
}

func (d *distantDisks) Unsettled(disk string) (bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	w := d.writer[disk]
	if w != nil && w.store.Dir() != d.store.Dir() {
		return false, &VolumeBusyError{Name: disk, Why: "another host writes"}
	}
	return w != nil, nil
}

func (d *distantDisks) Left() (left []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for disk := range d.writer {
		left = append(left, disk)
	}
	return left
}

type distantDevice struct {
	d *distantDisks
	b []byte
}

func (x distantDevice) Sync() error { return nil }

func (x distantDevice) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(x.b).ReadAt(p, off)
}

func (x distantDevice) WriteAt(p []byte, off int64) (int, error) {
	if n, err := x.d.wrote(p); err != nil {
		return n, err
	}
	return copy(x.b[off:], p), nil
}

// openDistant opens a store whose volumes are on a shelf.
func openDistant(t *testing.T, s *shelf) (*Store, *distantDisks) {
	t.Helper()
	d := &distantDisks{shelf: s}
	d.store = openStore(t, Options{VolumeDisks: d})
	return d.store, d
}

// A volume whose disk is elsewhere is a record, and goes only with its disk.
func TestDistantVolumes(t *testing.T) {
	s, disks := openDistant(t, newShelf())
	v, made, err := s.CreateVolume(VolumeOptions{Name: "one", Options: map[string]string{"VolumeStore": "fast", "size": "64m"}})
	if err != nil || !made || !strings.HasPrefix(v.Disk, "fast/one-") || v.Capacity != 64<<20 {
		t.Fatalf("made %+v, %v, %v", v, made, err)
	}
	if again, made, err := s.CreateVolume(VolumeOptions{Name: "one", Options: map[string]string{"VolumeStore": "fast"}}); err != nil || made || again.Disk != v.Disk {
		t.Errorf("again: %+v, %v, %v", again, made, err)
	}
	for _, tt := range []struct {
		name    string
		options map[string]string
		want    string
	}{
		{"two", map[string]string{"VolumeStore": "slow"}, `no volume store named "slow"`},
		{"two", map[string]string{"type": "nfs"}, "takes size (or Capacity), volumestore"},
		{"one", map[string]string{"size": "32m"}, "with a capacity of 67108864 bytes"},
	} {
		if _, _, err := s.CreateVolume(VolumeOptions{Name: tt.name, Options: tt.options}); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("options %v: %v, want %q", tt.options, err, tt.want)
		}
	}
	if got, err := s.VolumeDisk("one"); err != nil || got != "[ds] "+v.Disk+".vmdk" || got != s.VolumePath(v) {
		t.Errorf("disk %q, %v", got, err)
	}
	if n, err := s.VolumeStored("one"); err != nil || n != 12345 {
		t.Errorf("stored %d, %v", n, err)
	}
	if st, err := s.VolumeState("one"); err != nil || !st.Empty || st.Grown {
		t.Errorf("state %+v, %v", st, err)
	}
	if v, err := s.GrowVolume("one", 128<<20); err != nil || v.Capacity != 128<<20 {
		t.Errorf("grown: %+v, %v", v, err)
	}
	if _, err := s.GrowVolume("one", 64<<20); err == nil || !strings.Contains(err.Error(), "cannot be made smaller") {
		t.Errorf("made smaller: %v", err)
	}
	var distant *DistantVolumeError
	if err := s.ApplyToVolume(t.Context(), "one", bytes.NewReader(makeTar(t, file("a", "x")))); !errors.As(err, &distant) {
		t.Errorf("write to it: %v", err)
	}
	disks.busy = true
	var busy *VolumeBusyError
	if _, err := s.VolumeFS(t.Context(), "one"); !errors.As(err, &busy) {
		t.Errorf("read what a VM writes: %v", err)
	}
	if err := s.Check(t.Context(), CheckOptions{Deep: true}, func(f Finding) { t.Errorf("finding: %+v", f) }); err != nil {
		t.Error(err)
	}

	disks.fail = errors.New("the datastore is away")
	if err := s.RemoveVolume("one"); err == nil || !strings.Contains(err.Error(), "the datastore is away") {
		t.Errorf("remove without the datastore: %v", err)
	}
	if all, damaged, err := s.Volumes(); err != nil || len(all) != 1 || len(damaged) != 1 || all[0].Disk != v.Disk {
		t.Errorf("after that: %+v, %v, %v", all, damaged, err)
	}
	disks.fail = nil
	if err := s.RemoveVolume("one"); err != nil || len(disks.volumes) != 0 {
		t.Errorf("removed %v, %v", disks.volumes, err)
	}
	if _, err := s.Volume("one"); !errors.Is(err, ErrNotFound) {
		t.Errorf("after that: %v", err)
	}
}

// Two stores have the same volumes, as long as each of them wants them.
func TestSharedVolumes(t *testing.T) {
	place := newShelf()
	a, _ := openDistant(t, place)
	b, far := openDistant(t, place)
	v, made, err := a.CreateVolume(VolumeOptions{Name: "data", Driver: "vsphere", Labels: map[string]string{"k": "v"}, Options: map[string]string{"size": "64m"}})
	if err != nil || !made {
		t.Fatal(v, made, err)
	}
	same := func(got *Volume, err error) {
		t.Helper()
		if v.Users = nil; got != nil {
			got.Users = nil
		}
		if err != nil || !reflect.DeepEqual(got, v) {
			t.Errorf("got %+v, %v, want %+v", got, err, v)
		}
	}
	same(b.Volume("data")) // by its name
	all, damaged, err := b.Volumes()
	if err != nil || len(all) != 1 || len(damaged) != 0 {
		t.Fatalf("all: %v, %v, %v", all, damaged, err)
	}
	got, made, err := b.CreateVolume(VolumeOptions{Name: "data"})
	if same(got, err); made {
		t.Error("made again")
	}

	// What a container of one mounts stays.
	const id = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	if err := os.Mkdir(b.dir.container(id), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := b.ClaimVolumes(id, []VolumeClaim{{VolumeOptions: VolumeOptions{Name: "data"}}, {VolumeOptions: VolumeOptions{Name: "own", Options: map[string]string{"size": "64m"}}, Own: true}}); err != nil {
		t.Fatal(err)
	}
	var inUse *VolumeInUseError
	for _, name := range []string{"data", "own"} {
		if err := a.RemoveVolume(name); !errors.As(err, &inUse) {
			t.Errorf("remove %s, which another's container mounts: %v", name, err)
		}
	}
	if removed, err := b.RemoveOwnVolumes(id); err != nil || !slices.Equal(removed, []string{"own"}) {
		t.Errorf("removed %v, %v", removed, err)
	}
	if err := b.RemoveContainer(id); err != nil {
		t.Fatal(err)
	}
	if n := len(place.users[v.Disk]); n != 0 {
		t.Errorf("%d use it still", n)
	}
	if err := a.RemoveVolume("data"); err != nil {
		t.Error(err)
	}

	// What is gone is gone for both, unless a container mounts it.
	if all, damaged, err := b.Volumes(); err != nil || len(all) != 0 || len(damaged) != 0 {
		t.Errorf("after it was removed: %v, %v, %v", all, damaged, err)
	}
	if err := os.Mkdir(b.dir.container(id), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := b.ClaimVolumes(id, []VolumeClaim{{VolumeOptions: VolumeOptions{Name: "data", Options: map[string]string{"size": "64m"}}}}); err != nil {
		t.Fatal(err)
	}
	place.volumes = map[string]*Volume{} // by an administrator
	if all, damaged, err := b.Volumes(); err != nil || len(all) != 1 || len(damaged) != 1 {
		t.Errorf("after it was lost: %v, %v, %v", all, damaged, err)
	}
	if _, err := b.VolumeDisk("data"); err == nil || !strings.Contains(err.Error(), "is gone") {
		t.Errorf("use it: %v", err)
	}

	// Records that make no sense are told of, and no others suffer.
	place.volumes = map[string]*Volume{"../up": {Name: "../up", Disk: "fast/../up-1"}, "odd": {Name: "odd", Disk: "fast/odd-1", Driver: "local", Capacity: 1},
		"large": {Name: "large", Disk: "fast/large-2", Driver: "local", Capacity: 64 << 20, Labels: map[string]string{"k": strings.Repeat("x", maxVolumeText+1)}},
		"good":  {Name: "good", Disk: "fast/good-3", Driver: "local", Capacity: 64 << 20, Published: true}}
	far.users = map[string]map[*distantDisks]bool{}
	if all, damaged, err := b.Volumes(); err != nil || len(all) != 2 || all[1].Name != "good" || len(damaged) != 4 {
		t.Errorf("damaged: %v, %v, %v", all, damaged, err)
	}
}

// The disk that volumes elsewhere begin as has a file system that e2fsck likes.
func TestEmptyVolume(t *testing.T) {
	oracle.Need(t, "qemu-img")
	oracle.Need(t, "e2fsck")
	s := openStore(t, Options{})
	d, err := s.EmptyVolume(256 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if left, err := listDir(s.dir.tmp()); err != nil || len(left) != 0 {
		t.Errorf("left in tmp: %v, %v", left, err)
	}
	stream := filepath.Join(t.TempDir(), "empty.vmdk")
	f, err := os.Create(stream)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(d.WriteStream(f, "empty.vmdk", vmdk.CIDFor("empty")), f.Close()); err != nil {
		t.Fatal(err)
	}
	raw := stream + ".raw"
	command(t, "qemu-img", "convert", "-f", "vmdk", "-O", "raw", stream, raw)
	command(t, "e2fsck", "-fn", raw)
}
