package layerstore

import (
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"vic/bench/oracle"
	"vic/diskfs"
)

func openVolumes(t *testing.T) *Store {
	t.Helper()
	s := openStoreIn(t, filepath.Join(t.TempDir(), "store"), Options{Capacity: testCapacity})
	return s
}

func makeVolume(t *testing.T, s *Store, o VolumeOptions) *Volume {
	t.Helper()
	v, made, err := s.CreateVolume(o)
	if err != nil || !made {
		t.Fatalf("create %s: made %v, %v", o.Name, made, err)
	}
	return v
}

// rawVolume converts a volume's disk into a file of its bytes, by qemu-img.
func rawVolume(t *testing.T, s *Store, name string) string {
	t.Helper()
	oracle.Need(t, "qemu-img")
	oracle.Need(t, "e2fsck")
	path, err := s.VolumeDisk(name)
	if err != nil {
		t.Fatal(err)
	}
	raw := filepath.Join(t.TempDir(), "raw")
	command(t, "qemu-img", "convert", "-O", "raw", path, raw)
	command(t, "e2fsck", "-fn", raw)
	return raw
}

// An empty volume of any size is a file system to e2fsck, and takes next to nothing.
func TestVolumeDisk(t *testing.T) {
	for _, size := range []string{"16m", "100000000", "1g", ""} {
		t.Run("size "+size, func(t *testing.T) {
			s := openVolumes(t)
			o := VolumeOptions{Name: "vol", Labels: map[string]string{"a": "b"}}
			if size != "" {
				o.Options = map[string]string{"size": size}
			}
			v := makeVolume(t, s, o)
			raw := rawVolume(t, s, "vol")
			if fi, err := os.Stat(raw); err != nil || fi.Size() != v.Capacity {
				t.Errorf("%v bytes, the record says %d", fi.Size(), v.Capacity)
			}
			if n, err := s.VolumeStored("vol"); err != nil || n > 4<<20 {
				t.Errorf("an empty volume takes %d bytes, %v", n, err)
			}
			path, _ := s.VolumeDisk("vol")
			if out := command(t, "qemu-img", "check", path); !strings.Contains(out, "No errors") {
				t.Error(out)
			}
		})
	}
}

// The largest volume takes little as well.
func TestVolumeLargest(t *testing.T) {
	oracle.Need(t, "qemu-img")
	s := openVolumes(t)
	makeVolume(t, s, VolumeOptions{Name: "vol", Options: map[string]string{"size": "2047g"}})
	if n, err := s.VolumeStored("vol"); err != nil || n > 32<<20 {
		t.Errorf("an empty volume takes %d bytes, %v", n, err)
	}
	path, err := s.VolumeDisk("vol")
	if err != nil {
		t.Fatal(err)
	}
	if out := command(t, "qemu-img", "check", path); !strings.Contains(out, "No errors") {
		t.Error(out)
	}
}

// Two volumes can be told apart by their file systems' UUIDs.
func TestVolumeUUID(t *testing.T) {
	s := openVolumes(t)
	var seen []string
	for _, name := range []string{"v1", "v2"} {
		makeVolume(t, s, VolumeOptions{Name: name, Options: map[string]string{"size": "32m"}})
		for line := range strings.Lines(command(t, "dumpe2fs", "-h", rawVolume(t, s, name))) {
			if strings.HasPrefix(line, "Filesystem UUID:") {
				seen = append(seen, line)
			}
		}
	}
	if len(seen) != 2 || seen[0] == seen[1] {
		t.Errorf("UUIDs: %q", seen)
	}
}

func TestVolumeOptions(t *testing.T) {
	s := openVolumes(t)
	for _, tt := range []struct {
		name     string
		o        VolumeOptions
		capacity int64
		err      string // in the error
	}{
		{"default", VolumeOptions{Name: "default"}, 64 << 30, ""},
		{"bytes", VolumeOptions{Name: "bytes", Options: map[string]string{"size": "20000000"}}, 20054016, ""},
		{"unit", VolumeOptions{Name: "unit", Options: map[string]string{"size": "1.5GiB"}}, 1610612736, ""},
		{"capacity in MiB", VolumeOptions{Name: "mb", Driver: "vsphere", Options: map[string]string{"Capacity": "64"}}, 64 << 20, ""},
		{"capacity with unit", VolumeOptions{Name: "gb", Options: map[string]string{"capacity": "2g"}}, 2 << 30, ""},
		{"zero", VolumeOptions{Name: "zero", Options: map[string]string{"size": "0"}}, 0, "option size: 0B: a volume has from 16MiB to 1.999TiB"},
		{"negative", VolumeOptions{Name: "minus", Options: map[string]string{"Capacity": "-1"}}, 0, "option Capacity: invalid size: '-1'"},
		{"no number", VolumeOptions{Name: "word", Options: map[string]string{"size": "much"}}, 0, "invalid size: 'much'"},
		{"empty", VolumeOptions{Name: "empty", Options: map[string]string{"Capacity": ""}}, 0, "invalid size"},
		{"too small", VolumeOptions{Name: "small", Options: map[string]string{"size": "1m"}}, 0, "1MiB: a volume has from"},
		{"too big", VolumeOptions{Name: "big", Options: map[string]string{"size": "3t"}}, 0, "3TiB: a volume has from"},
		{"beyond numbers", VolumeOptions{Name: "huge", Options: map[string]string{"size": "99999999999999999999999"}}, 0, "option size: 99999999999999999999999: a volume has from"},
		{"no number", VolumeOptions{Name: "points", Options: map[string]string{"size": "1.5.5g"}}, 0, "option size: invalid size: '1.5.5g'"},
		{"both", VolumeOptions{Name: "both", Options: map[string]string{"size": "1g", "Capacity": "1g"}}, 0, "are the same"},
		{"store", VolumeOptions{Name: "store", Options: map[string]string{"VolumeStore": "x"}}, 0, `invalid option: "VolumeStore"`},
		{"type", VolumeOptions{Name: "nfs", Options: map[string]string{"type": "nfs"}}, 0, `invalid option: "type"`},
		{"driver", VolumeOptions{Name: "x1", Driver: "flocker"}, 0, `create x1: error looking up volume plugin flocker: plugin "flocker" not found`},
		{"slash", VolumeOptions{Name: "a/b"}, 0, `create a/b: "a/b" includes invalid characters for a local volume name, only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, use absolute path`},
		{"dots", VolumeOptions{Name: ".."}, 0, "includes invalid characters"},
		{"one letter", VolumeOptions{Name: "a"}, 0, "includes invalid characters"},
		{"long", VolumeOptions{Name: strings.Repeat("a", 201)}, 0, "200 characters"},
		{"labels", VolumeOptions{Name: "labels", Labels: map[string]string{"a": strings.Repeat("b", 256<<10)}}, 0, "labels and options of"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v, _, err := s.CreateVolume(tt.o)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("got %v, want %q", err, tt.err)
				}
				if _, err := os.Stat(filepath.Join(s.Dir(), "volumes", tt.o.Name, volumeRecord)); err == nil {
					t.Error("there is a volume")
				}
				return
			}
			if err != nil || v.Capacity != tt.capacity {
				t.Fatalf("got %+v, %v, want %d bytes", v, err, tt.capacity)
			}
			got, err := s.Volume(tt.o.Name)
			if err != nil || got.Capacity != tt.capacity || got.Driver == "" || got.Created.IsZero() {
				t.Errorf("read %+v, %v", got, err)
			}
		})
	}
}

// The same name gives the same volume, whoever comes first.
func TestCreateVolumeTwice(t *testing.T) {
	s := openVolumes(t)
	o := VolumeOptions{Name: "twice", Options: map[string]string{"size": "32m"}}
	var wg sync.WaitGroup
	var mu sync.Mutex
	count := 0
	for range 8 {
		wg.Go(func() {
			_, made, err := s.CreateVolume(o)
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			if made {
				count++
			}
		})
	}
	wg.Wait()
	if count != 1 {
		t.Errorf("made %d times", count)
	}
	if _, made, err := s.CreateVolume(VolumeOptions{Name: "twice"}); made || err != nil {
		t.Errorf("without options: made %v, %v", made, err)
	}
	o.Options = map[string]string{"size": "64m"}
	if _, _, err := s.CreateVolume(o); err == nil || !strings.Contains(err.Error(), "vic volume grow") {
		t.Errorf("with another size: %v", err)
	}
	emptyTmp(t, s)
}

// claim makes a container's folder and its claims.
func claim(t *testing.T, s *Store, container string, claims ...VolumeClaim) []*Volume {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(s.Dir(), "containers", container), 0o700); err != nil {
		t.Fatal(err)
	}
	made, err := s.ClaimVolumes(container, claims)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func small(name string) VolumeOptions {
	return VolumeOptions{Name: name, Options: map[string]string{"size": "32m"}}
}

func TestVolumeUse(t *testing.T) {
	s := openVolumes(t)
	makeVolume(t, s, small("data"))
	if err := s.RemoveVolume("nope"); !errors.Is(err, ErrNotFound) || err.Error() != "get nope: no such volume" {
		t.Errorf("remove what is not there: %v", err)
	}
	made := claim(t, s, "c1", VolumeClaim{VolumeOptions: small("data")}, VolumeClaim{VolumeOptions: small("own1"), Own: true}, VolumeClaim{VolumeOptions: small("own2"), Own: true})
	if len(made) != 2 {
		t.Errorf("made %d volumes", len(made))
	}
	claim(t, s, "c2", VolumeClaim{VolumeOptions: small("own2"), Own: true})
	v, err := s.Volume("own2")
	if err != nil || !slices.Equal(v.Users, []string{"c1", "c2"}) {
		t.Errorf("%+v, %v", v, err)
	}
	var inUse *VolumeInUseError
	if err := s.RemoveVolume("data"); !errors.As(err, &inUse) || err.Error() != "remove data: volume is in use - [c1]" {
		t.Errorf("remove a used one: %v", err)
	}
	if swept, err := s.Sweep(t.Context()); err != nil || swept.Bytes != 0 {
		t.Errorf("a sweep took %d bytes, %v", swept.Bytes, err)
	}
	if removed, err := s.RemoveOwnVolumes("c1"); err != nil || !slices.Equal(removed, []string{"own1"}) {
		t.Errorf("removed %q, %v", removed, err)
	}
	if removed, err := s.RemoveOwnVolumes("c3"); err != nil || removed != nil {
		t.Errorf("of no container: %q, %v", removed, err)
	}
	if err := s.RemoveContainer("c1"); err != nil {
		t.Fatal(err)
	}
	if err := s.RemoveVolume("data"); err != nil {
		t.Errorf("remove a freed one: %v", err)
	}
	if all, damaged, err := s.Volumes(); err != nil || damaged != nil || len(all) != 1 || all[0].Name != "own2" {
		t.Errorf("left: %v, %v, %v", all, damaged, err)
	}
	if err := s.RemoveContainer("c2"); err != nil {
		t.Fatal(err)
	}
	emptyTmp(t, s)
}

// A volume whose record is damaged is told of, breaks nothing, and can be removed; a container's claims that cannot
// be read keep every volume.
func TestVolumeDamaged(t *testing.T) {
	s := openStoreIn(t, filepath.Join(t.TempDir(), "store"), Options{Capacity: testCapacity})
	for _, name := range []string{"good", "text", "gone", "liar"} {
		makeVolume(t, s, small(name))
	}
	for name, text := range map[string]string{"text": "{", "liar": `{"name":"other","driver":"local","capacity":33554432}`} {
		if err := os.WriteFile(s.dir.volumeRecord(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(s.dir.volumeRecord("gone")); err != nil {
		t.Fatal(err)
	}
	if got := volumeFindings(t, s); got != "gone liar text" {
		t.Errorf("check found %q", got)
	}
	all, damaged, err := s.Volumes()
	if err != nil || len(all) != 1 || all[0].Name != "good" || len(damaged) != 3 {
		t.Errorf("got %v, %v, %v", all, damaged, err)
	}
	if _, _, err := s.CreateVolume(small("gone")); err == nil || !strings.Contains(err.Error(), "volume record: is missing") {
		t.Errorf("create over a damaged one: %v", err)
	}
	for _, name := range []string{"text", "gone", "liar"} {
		if err := s.RemoveVolume(name); err != nil {
			t.Errorf("remove: %v", err)
		}
	}
	claim(t, s, "c1")
	if err := os.WriteFile(s.dir.volumePin("c1"), []byte(`[{"name":"../x"}]`), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := volumeFindings(t, s); got != "c1" {
		t.Errorf("check found %q", got)
	}
	if err := s.RemoveVolume("good"); err == nil {
		t.Error("removed although it cannot be known who uses it")
	}
	if _, err := s.Volume("good"); err != nil {
		t.Error(err)
	}
	if err := s.RemoveContainer("c1"); err != nil {
		t.Fatal(err)
	}
	if err := s.RemoveVolume("good"); err != nil {
		t.Error(err)
	}
}

// volumeFindings are the IDs of what Check finds wrong with volumes and containers.
func volumeFindings(t *testing.T, s *Store) string {
	t.Helper()
	ids := []string{}
	err := s.Check(t.Context(), CheckOptions{Deep: true}, func(f Finding) {
		if f.Harmless || f.About != AboutVolume && f.About != AboutContainer {
			t.Errorf("finding %+v", f)
		}
		ids = append(ids, f.ID)
	})
	if err != nil {
		t.Error(err)
	}
	slices.Sort(ids)
	return strings.Join(ids, " ")
}

// What is wrong with a volume's disk and file system.
func TestVolumeCheck(t *testing.T) {
	s := openStoreIn(t, filepath.Join(t.TempDir(), "store"), Options{Capacity: testCapacity})
	for _, name := range []string{"descriptor", "extent", "files", "tables", "fine", "busy"} {
		makeVolume(t, s, small(name))
	}
	claim(t, s, "c1", VolumeClaim{VolumeOptions: small("fine")})
	claim(t, s, "c2", VolumeClaim{VolumeOptions: small("missing")})
	if got := volumeFindings(t, s); got != "" {
		t.Fatalf("sound volumes: %q", got)
	}
	change := func(name, file string, off int64, text string) {
		t.Helper()
		f, err := os.OpenFile(filepath.Join(s.dir.volume(name), file), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt([]byte(text), off); err != nil {
			t.Fatal(err)
		}
	}
	change("descriptor", containerDisk, 0, "#")
	if err := os.Truncate(filepath.Join(s.dir.volume("descriptor"), containerDisk), 10); err != nil {
		t.Fatal(err)
	}
	change("extent", containerExtent, 0, "X")
	change("tables", containerExtent, 512+512, "\xff\xff\xff\x7f") // the first grain table of the redundant directory
	grain := int64(64 << 10)
	for ; ; grain += 64 << 10 { // the one with the superblock
		b := make([]byte, 2)
		f, err := os.Open(filepath.Join(s.dir.volume("files"), containerExtent))
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.ReadAt(b, grain+1024+0x38)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		if b[0] == 0x53 && b[1] == 0xef {
			break
		}
	}
	change("files", containerExtent, grain+1024+0x10, "\xff\xff")
	change("busy", containerExtent, grain+1024+0x10, "\xff\xff")
	if err := os.RemoveAll(s.dir.volume("missing")); err != nil {
		t.Fatal(err)
	}
	lock, err := lockRange(filepath.Join(s.dir.volume("busy"), containerExtent), unix.F_RDLCK, 100, 1, false) // as QEMU does
	if lock == nil {
		t.Fatal(err)
	}
	defer lock.unlock()
	if got := volumeFindings(t, s); got != "c2 descriptor extent files tables" {
		t.Errorf("check found %q", got)
	}
}

// What looks for a volume's extent file does not make one.
func TestVolumeWithoutExtent(t *testing.T) {
	s := openStoreIn(t, filepath.Join(t.TempDir(), "store"), Options{Capacity: testCapacity})
	makeVolume(t, s, small("vol"))
	extent := filepath.Join(s.dir.volume("vol"), containerExtent)
	if err := os.Remove(extent); err != nil {
		t.Fatal(err)
	}
	if _, err := s.GrowVolume("vol", 4*testCapacity); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("enlarged a volume without an extent file: %v", err)
	}
	if _, err := os.Stat(extent); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the extent file: %v", err)
	}
}

// A store made before there were volumes gets the folder when it is opened.
func TestVolumesOfOldStore(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	s := openStoreIn(t, dir, Options{Capacity: testCapacity})
	s.Close()
	if err := os.Remove(filepath.Join(dir, "volumes")); err != nil {
		t.Fatal(err)
	}
	s = openStoreIn(t, dir, Options{})
	makeVolume(t, s, small("vol"))
}

// The kernel mounts a volume, fills it, and e2fsck finds it sound.
func TestVolumeMounted(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting takes root")
	}
	s := openVolumes(t)
	v := makeVolume(t, s, small("vol"))
	raw := rawVolume(t, s, "vol")
	dir := t.TempDir()
	command(t, "mount", "-o", "loop", raw, dir)
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 0 {
		t.Errorf("a new volume has %v, %v", entries, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("text"), 0o644); err != nil {
		t.Error(err)
	}
	command(t, "sh", "-c", "cd \"$0\" && mkdir many && for i in $(seq 3000); do echo $i > many/a-rather-long-name-for-a-file-$i; done && rm many/*7 && ln file hard && ln -s x link && truncate -s 20m sparse", dir)
	command(t, "umount", dir)
	command(t, "e2fsck", "-fn", raw)
	f, err := os.Open(raw)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fsys, err := diskfs.Open(f, v.Capacity)
	if err != nil {
		t.Fatal(err)
	}
	if err := fsys.Check(func(err error) error { return err }); err != nil {
		t.Errorf("what the kernel wrote is damaged to us: %v", err)
	}
}

// An enlarged volume has what it had and a larger disk; a crash at any point of it is mended by the next use.
func TestGrowVolume(t *testing.T) {
	s := openVolumes(t)
	makeVolume(t, s, small("vol"))
	for _, tt := range []struct {
		size int64
		want string
	}{
		{16 << 20, "cannot be made smaller"},
		{0, "a volume has from"},
		{3 << 40, "a volume has from"},
	} {
		if _, err := s.GrowVolume("vol", tt.size); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("to %d bytes: %v, want %q", tt.size, err, tt.want)
		}
	}
	if _, err := s.GrowVolume("nope", 1<<30); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	if v, err := s.GrowVolume("vol", 32<<20); err != nil || v.Capacity != 32<<20 {
		t.Errorf("to what it has: %+v, %v", v, err)
	}
	record, descriptor := s.dir.volumeRecord("vol"), filepath.Join(s.dir.volume("vol"), containerDisk)
	oldRecord, oldDescriptor := readFile(t, record), readFile(t, descriptor)
	if v, err := s.GrowVolume("vol", 1<<30); err != nil || v.Capacity != 1<<30 {
		t.Errorf("%+v, %v", v, err)
	}
	checkClean(t, s)
	rawVolume(t, s, "vol") // e2fsck finds a file system smaller than its disk
	if st, err := s.VolumeState("vol"); err != nil || !st.Grown || !st.Empty {
		t.Errorf("state %+v, %v", st, err)
	}
	for name, files := range map[string]map[string][]byte{
		"before the descriptor": {record: oldRecord, descriptor: oldDescriptor},
		"before the record":     {record: oldRecord},
	} {
		for path, text := range files {
			if err := os.WriteFile(path, text, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		found := 0
		if err := s.Check(t.Context(), CheckOptions{}, func(f Finding) {
			if found++; !f.Harmless || f.ID != "vol" {
				t.Errorf("%s: finding %+v", name, f)
			}
		}); err != nil || found != 1 {
			t.Errorf("%s: %d findings, %v", name, found, err)
		}
		if _, err := s.VolumeDisk("vol"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if v, err := s.Volume("vol"); err != nil || v.Capacity != 1<<30 {
			t.Errorf("%s: %+v, %v", name, v, err)
		}
		checkClean(t, s)
	}
	lock, err := lockRange(filepath.Join(s.dir.volume("vol"), containerExtent), unix.F_RDLCK, 100, 1, false) // as QEMU does
	if lock == nil {
		t.Fatal(err)
	}
	defer lock.unlock()
	var busy *VolumeBusyError
	if _, err := s.GrowVolume("vol", 2<<30); !errors.As(err, &busy) {
		t.Errorf("while a VM has it: %v", err)
	}
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A process that is killed while it makes or removes volumes leaves none by half.
func TestKilledAtVolumes(t *testing.T) {
	n := 0
	for kill := 1; ; kill++ {
		dir := filepath.Join(t.TempDir(), "store")
		s := openStoreIn(t, dir, Options{Capacity: testCapacity})
		makeVolume(t, s, small("old"))
		claim(t, s, "c1")
		s.Close()
		out, err := child(t, "volumes", dir, kill).CombinedOutput()
		s = openStoreIn(t, dir, Options{})
		if err := s.Check(t.Context(), CheckOptions{Deep: true}, func(f Finding) {
			if !f.Harmless {
				t.Errorf("after %d changes: %+v", kill, f)
			}
		}); err != nil {
			t.Error(err)
		}
		emptyTmp(t, s)
		all, damaged, listErr := s.Volumes()
		if listErr != nil || damaged != nil {
			t.Errorf("after %d changes: %v, %v", kill, damaged, listErr)
		}
		if len(all) > 3 {
			t.Errorf("after %d changes: %d volumes", kill, len(all))
		}
		if _, err := s.RemoveOwnVolumes("c1"); err != nil {
			t.Error(err)
		}
		if !killed(t, err, out) {
			break
		}
		n++
	}
	t.Logf("killed %d times", n)
	if n == 0 {
		t.Error("never killed")
	}
}

// One operation of the datastore after the other fails while volumes are made, claimed, enlarged and removed. None is
// there by half, and once the datastore is well again all of it works.
func TestVolumeFaults(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	failed := 0
	for n, hit := rnd.IntN(5), true; hit; n += 1 + rnd.IntN(5) {
		f := mountFaultFS(t)
		dir := filepath.Join(f.Dir, "store")
		s := openStoreIn(t, dir, Options{Capacity: testCapacity})
		makeVolume(t, s, small("old"))
		claim(t, s, "c1")
		done := f.faultAt(n, func(after int, _ string) fault {
			if after == 0 {
				return fault{errno: syscall.EIO}
			}
			return fault{}
		})
		err := changeVolumes(s)
		hit = done()
		if err != nil {
			failed++
		}
		if err != nil && !strings.Contains(err.Error(), "input/output error") {
			t.Errorf("operation %d fails: %v", n, err)
		}
		check := func() {
			t.Helper()
			if err := s.Check(t.Context(), CheckOptions{Deep: true}, func(f Finding) {
				if !f.Harmless {
					t.Errorf("operation %d fails: %+v", n, f)
				}
			}); err != nil {
				t.Error(err)
			}
		}
		check()
		s.Close()
		s = openStoreIn(t, dir, Options{})
		check()
		emptyTmp(t, s)
		if err := changeVolumes(s); err != nil && !errors.Is(err, ErrNotFound) { // old may be gone
			t.Errorf("after operation %d had failed: %v", n, err)
		}
		if v, err := s.Volume("new"); err != nil || v.Capacity != 64<<20 {
			t.Errorf("after operation %d had failed: %+v, %v", n, v, err)
		}
		checkClean(t, s)
		s.Close()
	}
	if failed < 10 {
		t.Errorf("only %d operations failed", failed)
	}
	t.Logf("%d failed", failed)
}

func changeVolumes(s *Store) error {
	size := map[string]string{"size": "32m"}
	if _, err := s.Volume("new"); err == nil {
		size = nil // it may have grown
	}
	if _, _, err := s.CreateVolume(VolumeOptions{Name: "new", Options: size}); err != nil {
		return err
	}
	if _, err := s.ClaimVolumes("c1", []VolumeClaim{{VolumeOptions: small("own"), Own: true}}); err != nil {
		return err
	}
	if _, err := s.RemoveOwnVolumes("c1"); err != nil {
		return err
	}
	if _, err := s.ClaimVolumes("c1", nil); err != nil {
		return err
	}
	if _, err := s.GrowVolume("new", 64<<20); err != nil {
		return err
	}
	return s.RemoveVolume("old")
}
