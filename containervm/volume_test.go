package containervm

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"vic/layerstore"
	"vic/tether/wire"
)

func (s *site) volume(name string) {
	s.t.Helper()
	if _, _, err := s.o.Volumes.CreateVolume(layerstore.VolumeOptions{Name: name, Options: map[string]string{"size": "32m"}}); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) volumes() string {
	s.t.Helper()
	all, damaged, err := s.o.Volumes.Volumes()
	if err != nil || damaged != nil {
		s.t.Fatal(err, damaged)
	}
	var names []string
	for _, v := range all {
		names = append(names, v.Name)
	}
	return strings.Join(names, " ")
}

// sleeper is a container that runs and mounts volumes, those that end in :ro read-only.
func sleeper(volumes ...string) Spec {
	spec := Spec{Args: []string{"sleep"}}
	for i, v := range volumes {
		name, ro := strings.CutSuffix(v, ":ro")
		spec.Volumes = append(spec.Volumes, VolumeMount{Name: name, Target: "/v" + string(rune('0'+i)), ReadOnly: ro})
	}
	return spec
}

// One VM writes a volume, or several read it; whoever comes too late is told who has it.
func TestVolumeHolders(t *testing.T) {
	s := newSite(t)
	s.volume("data")
	for _, tt := range []struct {
		name          string
		first, second Spec
		want          string // in the error of the second's start
	}{
		{"two writers", sleeper("data"), sleeper("data"), "which can write it"},
		{"writer and reader", sleeper("data"), sleeper("data:ro"), "which can write it"},
		{"writer of one mount", sleeper("data:ro", "data"), sleeper("data:ro"), "which can write it"},
		{"two readers", sleeper("data:ro"), sleeper("data:ro"), ""},
		{"reader and writer", sleeper("data:ro"), sleeper("data"), "which reads it"},
		{"others", sleeper("one"), sleeper("two"), ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s.t = t
			tt.first.Volumes, tt.second.Volumes = slices.Clone(tt.first.Volumes), slices.Clone(tt.second.Volumes)
			for _, spec := range []Spec{tt.first, tt.second} {
				for i := range spec.Volumes {
					spec.Volumes[i].NoCopy = true
				}
			}
			first, second := s.run(tt.first), s.create(tt.second)
			restarted := func() {
				err := second.Start(t.Context())
				if tt.want == "" {
					if err != nil {
						t.Error(err)
					}
					return
				}
				wantError(t, err, ErrConflict, "volume data is in use by running container "+first.Info().Name+" ("+first.id[:12]+"), "+tt.want)
			}
			restarted()
			s.reopen()
			if tt.want != "" {
				first, second = s.byID(first.id), s.byID(second.id)
				restarted()
				if err := first.Kill(t.Context(), 9); err != nil {
					t.Fatal(err)
				}
				if err := second.Start(t.Context()); err != nil {
					t.Errorf("once it is free: %v", err)
				}
			}
			for _, c := range s.List() {
				if err := c.Remove(t.Context(), RemoveOptions{Force: true}); err != nil {
					t.Error(err)
				}
			}
			s.Manager.volumes.Lock()
			defer s.Manager.volumes.Unlock()
			if len(s.holders) > 0 {
				t.Errorf("left over: %v", s.holders)
			}
		})
	}
}

func (s *site) byID(id string) *Container {
	s.t.Helper()
	c, err := s.Container(id)
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

// What the VM and its guest are told.
func TestVolumeDisks(t *testing.T) {
	s := newSite(t)
	s.volume("data")
	s.volume("shared")
	spec := Spec{Args: []string{"sleep"}, Tmpfs: []Tmpfs{{Target: "/a/b"}}, Volumes: []VolumeMount{
		{Name: "data", Target: "/a/b/c", NoCopy: true}, {Name: "data", Target: "/a", Subpath: "x/y", ReadOnly: true},
		{Name: "shared", Target: "/s", NoCopy: true, ReadOnly: true}, {Target: "/own"},
	}}
	c := s.run(spec)
	vm := s.rack.vm(c.id)
	own := c.Info().Spec.Volumes[3].Name
	if len(own) != 64 {
		t.Errorf("the volume without a name got %q", own)
	}
	var got []string
	for _, d := range vm.vm.Disks {
		got = append(got, filepath.Base(filepath.Dir(d.Path))+" "+d.Serial+map[bool]string{true: " ro"}[d.ReadOnly])
	}
	if want := []string{"data " + volumeSerial("data"), "shared " + volumeSerial("shared") + " ro", own + " " + volumeSerial(own)}; !slices.Equal(got, want) {
		t.Errorf("disks %q, want %q", got, want)
	}
	mounts := []wire.Mount{
		{Type: "disk", Serial: volumeSerial("data"), Target: "/a", Subpath: "x/y", ReadOnly: true},
		{Type: "disk", Serial: volumeSerial("shared"), Target: "/s", ReadOnly: true},
		{Type: "disk", Serial: volumeSerial(own), Target: "/own", Copy: true},
		{Type: "tmpfs", Target: "/a/b"},
		{Type: "disk", Serial: volumeSerial("data"), Target: "/a/b/c"},
	}
	if len(vm.conf.Mounts) != len(mounts) {
		t.Fatalf("mounts %+v", vm.conf.Mounts)
	}
	for i, m := range vm.conf.Mounts {
		if m.Options = nil; m.Serial != mounts[i].Serial || m.Target != mounts[i].Target || m.Subpath != mounts[i].Subpath || m.ReadOnly != mounts[i].ReadOnly || m.Copy != mounts[i].Copy {
			t.Errorf("mount %d is %+v, want %+v", i, m, mounts[i])
		}
	}
	if events := s.happened(); events != "volume create, container create, volume mount, volume mount, volume mount, volume mount, container start" {
		t.Errorf("events: %s", events)
	}
	// Filled at the first start only.
	if err := c.Restart(t.Context(), StopOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, m := range s.rack.vm(c.id).conf.Mounts {
		if m.Copy {
			t.Errorf("filled again: %+v", m)
		}
	}
}

// A volume to be read only is written all the same if there is something to fill it with.
func TestVolumeFilledForReader(t *testing.T) {
	s := newSite(t)
	s.volume("data")
	c := s.run(sleeper("data:ro"))
	vm := s.rack.vm(c.id)
	if d := vm.vm.Disks[0]; d.ReadOnly || !vm.conf.Mounts[0].Copy || !vm.conf.Mounts[0].ReadOnly {
		t.Errorf("disk %+v, mount %+v", d, vm.conf.Mounts[0])
	}
}

// What belongs to a container goes with it where it is to, also if the VCH dies on the way.
func TestVolumesRemoved(t *testing.T) {
	s := newSite(t)
	own := Spec{Args: []string{"sleep"}, Volumes: []VolumeMount{{Name: "named", Target: "/n"}, {Target: "/own"}}}
	c := s.create(own)
	name := c.Info().Spec.Volumes[1].Name
	var inUse *layerstore.VolumeInUseError
	if err := s.o.Volumes.RemoveVolume("named"); !errors.As(err, &inUse) || inUse.Containers[0] != c.id {
		t.Errorf("a used volume was removed: %v", err)
	}
	if err := c.Remove(t.Context(), RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := s.volumes(); got != name+" named" && got != "named "+name {
		t.Errorf("left after rm: %s", got)
	}
	if err := s.o.Volumes.RemoveVolume(name); err != nil {
		t.Fatal(err)
	}
	c = s.create(own)
	if err := c.Remove(t.Context(), RemoveOptions{Volumes: true}); err != nil {
		t.Fatal(err)
	}
	if got := s.volumes(); got != "named" {
		t.Errorf("left after rm -v: %s", got)
	}
	spec := own
	spec.AutoRemove, spec.Args = true, []string{"exit", "0"}
	c = s.run(spec)
	s.wait(c, Removed)
	if got := s.volumes(); got != "named" {
		t.Errorf("left after run --rm: %s", got)
	}
	// The VCH died while it removed one with its volumes, and while it made another.
	c = s.create(own)
	c.mu.Lock()
	c.state.Status, c.removeVolumes = Removing, true
	c.mu.Unlock()
	if err := c.saveState(); err != nil {
		t.Fatal(err)
	}
	unfinished := s.create(own)
	if err := os.Remove(filepath.Join(unfinished.dir, configFile)); err != nil {
		t.Fatal(err)
	}
	s.reopen()
	for _, c := range s.List() {
		s.wait(c, Removed)
	}
	if got := s.volumes(); got != "named" {
		t.Errorf("left after a restart: %s", got)
	}
}

func TestVolumesRefused(t *testing.T) {
	s := newSite(t)
	many := sleeper()
	for range maxVolumes + 1 {
		many.Volumes = append(many.Volumes, VolumeMount{Target: "/v" + newID()})
	}
	for _, tt := range []struct {
		name string
		v    VolumeMount
		kind error
		want string
	}{
		{"relative target", VolumeMount{Name: "vol", Target: "x"}, ErrInvalid, "mount path must be absolute"},
		{"root", VolumeMount{Name: "vol", Target: "/.."}, ErrInvalid, "destination can't be '/'"},
		{"subpath", VolumeMount{Name: "vol", Target: "/x", Subpath: "/etc"}, ErrInvalid, "must be a relative path"},
		{"subpath of none", VolumeMount{Target: "/x", Subpath: "x"}, ErrInvalid, "anonymous"},
		{"driver", VolumeMount{Name: "vol", Target: "/x", Driver: "nope"}, layerstore.ErrNoDriver, "not found"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := s.Create(t.Context(), Spec{Args: []string{"sleep"}, Network: NetworkSpec{Mode: "none"}, Volumes: []VolumeMount{{Name: "first", Target: "/first"}, tt.v}})
			wantError(t, err, tt.kind, tt.want)
		})
	}
	_, err := s.Create(t.Context(), many)
	wantError(t, err, ErrInvalid, "17 volumes are more than the 16")
	if got := s.volumes(); got != "" {
		t.Errorf("volumes were made: %s", got)
	}
}

// sharingRack is a Hypervisor that shares folders.
type sharingRack struct {
	*rack
	lacks error
}

func (r *sharingRack) CanShare() error { return r.lacks }

func TestBinds(t *testing.T) {
	s := newSite(t)
	bind := func(source string) Spec {
		return Spec{Args: []string{"sleep"}, Network: NetworkSpec{Mode: "none"}, Binds: []BindMount{{Source: source, Target: "/x", ReadOnly: true}}}
	}
	dir := t.TempDir()
	_, err := s.Create(t.Context(), bind(dir))
	wantError(t, err, ErrNotImplemented, "this hypervisor cannot share one with a virtual machine; use a volume")
	r := &sharingRack{s.rack, errors.New("it takes a program")}
	s.o.Hypervisor = r
	s.reopen()
	_, err = s.Create(t.Context(), bind(dir))
	wantError(t, err, ErrNotImplemented, "not possible: it takes a program; or use a volume")
	r.lacks = nil
	_, err = s.Create(t.Context(), bind(dir+"/nope"))
	wantError(t, err, ErrInvalid, "bind source path does not exist: "+dir+"/nope")
	_, err = s.Create(t.Context(), bind("/dev/null"))
	wantError(t, err, ErrInvalid, "neither a folder nor a regular file")
	spec := bind(dir)
	spec.Binds = append(spec.Binds, BindMount{Source: dir + "/new/sub", Target: "/x/y", Create: true}, BindMount{Source: dir + "/file", Target: "/z"})
	if err := os.WriteFile(dir+"/file", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c := s.run(spec)
	if fi, err := os.Stat(dir + "/new/sub"); err != nil || !fi.IsDir() {
		t.Errorf("the folder was not made: %v", err)
	}
	vm := s.rack.vm(c.id)
	if got, want := vm.vm.Shares, []Share{{dir, "bind0", true}, {dir + "/new/sub", "bind1", false}, {dir + "/file", "bind2", false}}; !slices.Equal(got, want) {
		t.Errorf("shares %+v, want %+v", got, want)
	}
	var got []string
	for _, m := range vm.conf.Mounts {
		got = append(got, m.Type+" "+m.Serial+" "+m.Target+" "+m.Subpath)
	}
	if want := []string{"share bind0 /x ", "share bind2 /z file", "share bind1 /x/y "}; !slices.Equal(got, want) {
		t.Errorf("mounts %q, want %q", got, want)
	}
	// What was there when the container was made may have gone since.
	if err := c.Kill(t.Context(), 9); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(dir + "/file"); err != nil {
		t.Fatal(err)
	}
	wantError(t, c.Start(t.Context()), ErrInvalid, "bind source path does not exist")
}
