package layerstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A sweep takes the layers of a pull that failed, not those of one that goes on,
// of an image, or of a container.
func TestSweep(t *testing.T) {
	s := openStore(t, Options{})
	layers := func() (n int) {
		chains, err := s.dir.chains()
		if err != nil {
			t.Fatal(err)
		}
		return len(chains)
	}
	sweep := func(want int) {
		t.Helper()
		swept, err := s.Sweep(t.Context())
		if err != nil || len(swept.Layers) != want || (want == 0) != (swept.Bytes == 0) {
			t.Errorf("swept %d layers, %d bytes, %v; want %d layers", len(swept.Layers), swept.Bytes, err, want)
		}
		checkClean(t, s)
	}
	one := memLayer{tar: makeTar(t, file("one", "1"))}
	two := memLayer{tar: makeTar(t, file("two", "2"))}
	bad := memLayer{tar: []byte("no tar"), packing: packPlain}
	if _, err := s.Pull(t.Context(), makeImage(t, one, bad), nil, PullOptions{}); err == nil {
		t.Fatal("pulled what is no tar")
	}
	for layers() == 0 { // cancelled before it was committed
		slow := makeImage(t, one, two, memLayer{tar: makeTar(t, file("three", "3"))})
		first := digest.FromBytes(one.packing.pack(t, one.tar))
		ctx, cancel := context.WithCancel(t.Context())
		s.Pull(ctx, slow, nil, PullOptions{Progress: func(e ProgressEvent) {
			if e.Layer == first && e.Stage == StageDone {
				cancel()
			}
		}})
		cancel()
		if imgs, _ := s.Images(); len(imgs) > 0 {
			s.Remove(imgs[0].ID.String(), RemoveOptions{})
		}
	}
	sweep(layers())
	if n := layers(); n != 0 {
		t.Fatalf("%d layers left", n)
	}

	src := makeImage(t, one, two, memLayer{tar: makeTar(t, file("three", "3"))})
	g := newGate()
	var man ocispec.Manifest
	src.change(t, func(_ *ocispec.Image, m *ocispec.Manifest) { man = *m })
	src.hook = func(ctx context.Context, d ocispec.Descriptor, r io.Reader) io.Reader {
		if d.Digest == man.Layers[2].Digest {
			return g.hook(ctx, d, r)
		}
		return r
	}
	arrived := make(chan struct{})
	done := make(chan error, 1)
	go func() {
		img, err := s.Pull(t.Context(), src, mustName(t, "three"), PullOptions{Progress: func(e ProgressEvent) {
			if e.Layer == man.Layers[1].Digest && e.Stage == StageDone {
				close(arrived)
			}
		}})
		if err == nil {
			_, err = s.CreateContainerDisk("c", img.ID)
		}
		done <- err
	}()
	<-arrived
	sweep(0)
	close(g.open)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	sweep(0)
	if _, err := s.Remove("three", RemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	sweep(0)
	if n := layers(); n != 3 {
		t.Errorf("%d layers under a container's disk, want 3", n)
	}
	if err := s.RemoveContainer("c"); err != nil {
		t.Fatal(err)
	}
	if n := layers(); n != 0 {
		t.Errorf("%d layers left by the last container", n)
	}
	checkClean(t, s)
}

// What a dead process leaves in tmp, the next Open removes; what a living one has
// there, it does not.
func TestOpenCleansTmp(t *testing.T) {
	s := openStore(t, Options{})
	img := pullImage(t, s, webImage(t), "web")
	live, err := s.dir.lease(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer live.release()
	dead, err := s.dir.lease([]digest.Digest{digest.FromString("x")})
	if err != nil {
		t.Fatal(err)
	}
	dead.lock.unlock() // and the file stays
	held := digest.FromString("held")
	lock, err := s.dir.tryLockChain(held)
	if err != nil || lock == nil {
		t.Fatal(lock, err)
	}
	defer lock.unlock()
	begun := digest.FromString("begun")
	for _, path := range []string{
		s.dir.tmpExtent(held), s.dir.tmpLayer(held), s.dir.extent(held),
		s.dir.tmpExtent(begun), s.dir.tmpDisk(begun), s.dir.tmpLayer(begun), s.dir.extent(begun), s.dir.disk(begun),
		s.dir.tmpLayer(img.Layers[0].Chain), // its record exists: the disk is whole
		s.dir.in("tmp", "file-1"), s.dir.in("tmp", "anything"),
	} {
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(s.dir.in("tmp", "removed-1", "image"), 0o700); err != nil {
		t.Fatal(err)
	}
	openStoreIn(t, s.Dir(), Options{})
	left, err := listDir(s.dir.tmp())
	if err != nil || len(left) != 3 {
		t.Errorf("left in tmp: %q, %v; want a lease and two files of a layer", left, err)
	}
	for path, want := range map[string]bool{
		s.dir.extent(held): true, s.dir.extent(begun): false, s.dir.disk(begun): false, s.dir.extent(img.Layers[0].Chain): true,
	} {
		if there, err := exists(path); err != nil || there != want {
			t.Errorf("%s: there %v, %v", path, there, err)
		}
	}
}

func TestOpen(t *testing.T) {
	write := func(name, content string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			if err := os.WriteFile(dir+"/"+name, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, test := range []struct {
		name    string
		prepare func(t *testing.T, dir string)
		o       Options
		want    string // in the error; "" is none
	}{
		{name: "empty folder", prepare: func(*testing.T, string) {}},
		{name: "beginnings of a store", prepare: func(t *testing.T, dir string) {
			for _, sub := range []string{"disks", "tmp"} {
				if err := os.Mkdir(dir+"/"+sub, 0o700); err != nil {
					t.Fatal(err)
				}
			}
			write("disks/base.vmdk", "half")(t, dir)
			write("tmp/base-delta.vmdk", "half")(t, dir)
		}},
		{name: "somebody's folder", prepare: write("thesis.txt", "x"), want: "not a store"},
		{name: "version no JSON", prepare: write("version", ""), want: "version"},
		{name: "version of the future", prepare: write("version", `{"version": 2}`), want: "is 2, this program knows 1"},
		{name: "version without capacity", prepare: write("version", `{"version": 1}`), want: "capacity"},
		{name: "capacity not in grains", prepare: func(*testing.T, string) {}, o: Options{Capacity: testCapacity + 512}, want: "multiple"},
		{name: "capacity too small", prepare: func(*testing.T, string) {}, o: Options{Capacity: 1 << 20}, want: "1048576"},
		{name: "capacity negative", prepare: func(*testing.T, string) {}, o: Options{Capacity: -1 << 30}, want: "capacity"},
		{name: "another capacity", prepare: func(t *testing.T, dir string) { openStoreIn(t, dir, Options{}) }, o: Options{Capacity: 2 << 30}, want: "not the 2147483648"},
		{name: "its own capacity", prepare: func(t *testing.T, dir string) { openStoreIn(t, dir, Options{}) }, o: Options{Capacity: testCapacity}},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			test.prepare(t, dir)
			s, err := Open(dir, test.o)
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Fatalf("error %v, want %q", err, test.want)
			}
			if err != nil {
				return
			}
			defer s.Close()
			checkClean(t, s)
			emptyTmp(t, s)
			if test.o.Capacity == 0 && s.Capacity() != DefaultCapacity {
				t.Errorf("capacity %d", s.Capacity())
			}
		})
	}
}

// Everything at once, at random: no call may fail for a reason other than that
// what it wants is not there, no Check may find anything, and in the end all can
// be removed.
func TestAtRandom(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	dir := t.TempDir() + "/store"
	stores := []*Store{openStoreIn(t, dir, Options{}), openStoreIn(t, dir, Options{Parallel: 1})}
	layer := func(i int) memLayer {
		return memLayer{tar: makeTar(t, file(fmt.Sprintf("file%d", i), string(randomBytes(uint64(i), 50_000*i)))), packing: packing(i % 3)}
	}
	images := []*memImage{
		makeImage(t, layer(0)),
		makeImage(t, layer(0), layer(1), memLayer{tar: make([]byte, 1024)}, layer(2)),
		makeImage(t, layer(0), layer(1), memLayer{tar: make([]byte, 1024)}, layer(3), layer(4)),
		makeImage(t, layer(5), layer(0)),
		makeImage(t),
	}
	name := func(r *rand.Rand) string { return fmt.Sprintf("image:%d", r.IntN(4)) }
	expected := func(err error) bool {
		var inUse *InUseError
		return err == nil || errors.Is(err, ErrNotFound) || errors.As(err, &inUse) || errors.Is(err, fs.ErrExist) || errors.Is(err, context.Canceled)
	}
	var wg sync.WaitGroup
	for g := range 6 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(g)))
			for range 40 {
				s := stores[r.IntN(len(stores))]
				var err error
				op := r.IntN(10)
				switch op {
				case 0, 1, 2, 3:
					ctx, cancel := context.WithCancel(t.Context())
					var o PullOptions
					if n := r.IntN(20); op == 3 {
						o.Progress = func(ProgressEvent) {
							if n--; n == 0 {
								cancel()
							}
						}
					}
					_, err = s.Pull(ctx, images[r.IntN(len(images))], mustName(t, name(r)), o)
					cancel()
				case 4:
					_, err = s.Remove(name(r), RemoveOptions{Force: r.IntN(2) == 0})
				case 5:
					err = s.Tag(name(r), mustName(t, name(r)))
				case 6:
					_, err = s.Sweep(t.Context())
				case 7:
					var list []*Image
					if list, err = s.Images(); err == nil && len(list) > 0 {
						_, err = s.CreateContainerDisk(fmt.Sprintf("c%d", r.IntN(3)), list[r.IntN(len(list))].ID)
					}
				case 8:
					err = s.RemoveContainer(fmt.Sprintf("c%d", r.IntN(3)))
				case 9:
					err = s.Check(t.Context(), CheckOptions{}, func(f Finding) {
						if !f.Harmless {
							t.Errorf("check: %+v", f)
						}
					})
				}
				if !expected(err) {
					t.Errorf("operation %d: %v", op, err)
				}
			}
		})
	}
	wg.Wait()
	s := stores[0]
	checkClean(t, s)
	for i := range 3 {
		if err := s.RemoveContainer(fmt.Sprintf("c%d", i)); err != nil {
			t.Error(err)
		}
	}
	list, err := s.Images()
	if err != nil {
		t.Fatal(err)
	}
	for _, img := range list {
		if _, err := s.Remove(img.ID.String(), RemoveOptions{Force: true}); err != nil {
			t.Error(err)
		}
	}
	if _, err := s.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	checkClean(t, s)
	emptyTmp(t, s)
	for _, sub := range []string{"layers", "images", "names", "containers"} {
		if left, err := listDir(s.dir.in(sub)); err != nil || len(left) != 0 {
			t.Errorf("left in %s: %q, %v", sub, left, err)
		}
	}
	if left, err := listDir(s.dir.disks()); err != nil || !slices.Equal(left, []string{"base-delta.vmdk", "base.vmdk"}) {
		t.Errorf("left in disks: %q, %v", left, err)
	}
}

// A temporary file has no name, so a process that dies leaves none.
func TestTempFile(t *testing.T) {
	s := openStore(t, Options{})
	f, err := s.TempFile()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	names, err := listDir(s.dir.tmp())
	if err != nil || len(names) > 0 {
		t.Errorf("there is %q, %v", names, err)
	}
	if _, err := f.WriteString("spooled"); err != nil {
		t.Error(err)
	}
	b := make([]byte, 7)
	if _, err := f.ReadAt(b, 0); err != nil || string(b) != "spooled" {
		t.Errorf("%q, %v", b, err)
	}
}
