package layerstore

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"
)

// A crashed is what a medium holds after a crash.
type crashed struct {
	dirs  map[int]map[string]int // names by folder
	files map[int][]byte
	modes map[int]os.FileMode
}

// A keeper says whether a change that nothing made durable is on the medium nevertheless.
type keeper func(l logOp) bool

func keepAll(logOp) bool  { return true }
func keepNone(logOp) bool { return false }

// keepNames keeps what a journal of metadata does: names, but no data.
func keepNames(l logOp) bool { return l.ofNames() }

func (l logOp) ofNames() bool {
	switch l.kind {
	case "create", "mkdir", "unlink", "rmdir", "rename":
		return true
	}
	return false
}

// crash returns what is on the medium if the power fails after the changes of a log. An
// fsync of a file makes what was done to its content and mode durable; an fsync of a folder
// all names in it; of the rest keep decides, one by one.
func crash(log []logOp, keep keeper) *crashed {
	durable := make([]bool, len(log))
	for i, l := range log {
		switch l.kind {
		case "fsync":
			for k, old := range log[:i] {
				durable[k] = durable[k] || !old.ofNames() && old.node == l.node
			}
		case "fsyncdir":
			for k, old := range log[:i] {
				durable[k] = durable[k] || old.ofNames() && (old.node == l.node || old.kind == "rename" && old.to == l.node)
			}
		}
	}
	is := &crashed{map[int]map[string]int{0: {}}, map[int][]byte{}, map[int]os.FileMode{}}
	now := map[int]map[string]int{0: {}} // as programs saw the names
	for i, l := range log {
		moved := now[l.node][l.name]
		switch l.kind {
		case "create", "mkdir":
			now[l.node][l.name] = l.made
			is.modes[l.made] = l.mode
			if l.kind == "mkdir" {
				is.dirs[l.made], now[l.made] = map[string]int{}, map[string]int{}
			}
		case "unlink", "rmdir":
			delete(now[l.node], l.name)
		case "rename":
			delete(now[l.node], l.name)
			now[l.to][l.toName] = moved
		}
		if durable[i] || keep(l) {
			is.apply(l, moved)
		}
	}
	return is
}

func (c *crashed) apply(l logOp, moved int) {
	grow := func(n int64) {
		if have := int64(len(c.files[l.node])); have < n {
			c.files[l.node] = append(c.files[l.node], make([]byte, n-have)...)
		}
	}
	switch l.kind {
	case "create", "mkdir":
		c.dirs[l.node][l.name] = l.made
	case "unlink", "rmdir":
		delete(c.dirs[l.node], l.name)
	case "rename":
		if c.dirs[l.node][l.name] == moved {
			delete(c.dirs[l.node], l.name)
		}
		c.dirs[l.to][l.toName] = moved
	case "write":
		grow(l.off + int64(len(l.data)))
		copy(c.files[l.node][l.off:], l.data)
	case "truncate":
		grow(l.len)
		c.files[l.node] = c.files[l.node][:l.len:l.len]
	case "punch":
		if end := min(l.off+l.len, int64(len(c.files[l.node]))); l.off < end {
			clear(c.files[l.node][l.off:end])
		}
	case "chmod":
		c.modes[l.node] = l.mode
	}
}

// write writes what the medium holds to a folder.
func (c *crashed) write(t *testing.T, dir string) {
	t.Helper()
	var walk func(node int, path string)
	walk = func(node int, path string) {
		for name, child := range c.dirs[node] {
			p, err := filepath.Join(path, name), error(nil)
			if _, isDir := c.dirs[child]; isDir {
				if err = os.Mkdir(p, 0o700); err == nil {
					walk(child, p)
				}
			} else {
				err = writeSparse(p, c.files[child])
			}
			if err == nil {
				err = os.Chmod(p, c.modes[child])
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	walk(0, dir)
}

// writeSparse leaves holes where there is nothing.
func writeSparse(path string, p []byte) error {
	const step = 64 << 10
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	zeros := make([]byte, step)
	for off := 0; off < len(p); off += step {
		if piece := p[off:min(off+step, len(p))]; !bytes.Equal(piece, zeros[:len(piece)]) {
			if _, err := f.WriteAt(piece, int64(off)); err != nil {
				return err
			}
		}
	}
	return f.Truncate(int64(len(p)))
}

// treeSums returns the mode and the checksum of each file below a folder.
func treeSums(t *testing.T, dir string) map[string]string {
	t.Helper()
	sums := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		var b []byte
		if e.Type().IsRegular() {
			if b, err = os.ReadFile(path); err != nil {
				return err
			}
		}
		name, err := filepath.Rel(dir, path)
		sums[name] = fmt.Sprintf("%v %x", info.Mode(), sha256.Sum256(b))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return sums
}

// A promise is that a name names an image from a moment in the log on, and something else
// until another. Between them both may be.
type promise struct {
	begun, kept int
	name        string
	image       digest.Digest // "" is that there is no such name
}

// allowed tells what a name may name after n changes.
func allowed(promises []promise, name string, n int) (images []digest.Digest) {
	images = []digest.Digest{""}
	for _, p := range promises {
		switch {
		case p.name != name || n <= p.begun:
		case n >= p.kept:
			images = []digest.Digest{p.image}
		default:
			images = append(images, p.image)
		}
	}
	return images
}

// TestPowerCut cuts the power after every change that a store makes in its life. What was
// promised is there and whole, nothing half done is visible, and the store goes on: the
// disks that it makes then are those of a store that knows no crash.
func TestPowerCut(t *testing.T) {
	f := mountFaultFS(t)
	dir := filepath.Join(f.Dir, "store")
	first, second, third := crashImages(t)

	var promises []promise
	keep := func(name string, image digest.Digest, do func()) {
		t.Helper()
		p := promise{begun: len(f.changes()), name: name, image: image}
		do()
		p.kept = len(f.changes())
		promises = append(promises, p)
	}
	s := openStoreIn(t, dir, Options{})
	pull := func(name string, src *memImage) {
		t.Helper()
		keep(name, digest.FromBytes(src.config), func() { pullImage(t, s, src, name) })
	}
	remove := func(name string) {
		t.Helper()
		keep(name, "", func() {
			if _, err := s.Remove(name, RemoveOptions{}); err != nil {
				t.Fatal(err)
			}
		})
	}
	pull("one:1", first)
	pull("two:1", second)
	pull("one:1", third) // another image takes the name
	flattened := len(f.changes())
	if _, err := s.Flatten(t.Context(), "one:1", nil); err != nil {
		t.Fatal(err)
	}
	keep("tag:1", digest.FromBytes(second.config), func() {
		if err := s.Tag("two:1", mustName(t, "tag:1")); err != nil {
			t.Fatal(err)
		}
	})
	remove("tag:1")
	remove("two:1")
	if _, err := s.CreateContainerDisk("c", digest.FromBytes(third.config)); err != nil {
		t.Fatal(err)
	}
	container := [2]int{len(f.changes())}                                    // while it must be there
	if _, err := s.Remove("one:1", RemoveOptions{Force: true}); err != nil { // its layers stay
		t.Fatal(err)
	}
	promises = append(promises, promise{begun: container[0], kept: len(f.changes()), name: "one:1"})
	container[1] = len(f.changes())
	if err := s.RemoveContainer("c"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	checkClean(t, s)
	want := goodDisks(t, first, second, third)

	log := f.changes()
	seed := rand.Uint64()
	t.Logf("seed %d, %d changes", seed, len(log))
	rnd := rand.New(rand.NewPCG(seed, 0))
	step := 5
	if testing.Short() {
		step = 20
	}
	for n := rnd.IntN(step); n <= len(log); n += step {
		for _, mode := range []struct {
			name   string
			keep   keeper
			strict bool // names were kept in the order in which they were made
		}{
			{"what was synced", keepNone, false},
			{"what a journal of names keeps", keepNames, true},
			{"some of the rest", func(logOp) bool { return rnd.IntN(2) == 0 }, false},
		} {
			again := memoryDir(t)
			strict := mode.strict && n <= flattened
			crash(log[:n], mode.keep).write(t, again)
			afterCrash(t, filepath.Join(again, "store"), strict, n > flattened, func(s *Store) {
				for _, name := range []string{"one:1", "two:1", "tag:1"} {
					var is digest.Digest
					if img, err := s.Image(name); err == nil {
						is = img.ID
					}
					if may := allowed(promises, name, n); !slices.Contains(may, is) {
						t.Errorf("%s is image %q, want one of %q", name, is, may)
					}
				}
				there, err := exists(s.dir.in("containers", "c", containerDisk))
				if err != nil || !there && n >= container[0] && n <= container[1] {
					t.Errorf("the container's disk is there: %v, %v", there, err)
				}
			}, want, first, second, third)
			if t.Failed() {
				for _, l := range log[max(0, n-12):n] {
					l.data = nil
					t.Logf("%+v", l)
				}
				t.Fatalf("power cut after %d changes, of which the medium has %s", n, mode.name)
			}
			os.RemoveAll(again)
		}
	}
}

// memoryDir is a folder in memory, where syncs cost nothing, if there is such a thing here.
func memoryDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "layerstore-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// crashImages are three small images that share layers.
func crashImages(t testing.TB) (first, second, third *memImage) {
	base := memLayer{tar: makeTar(t, folder("etc"), file("etc/os-release", "ID=test\n"), file("bin", string(randomBytes(1, 30_000))), file("gone", "x"))}
	empty := memLayer{tar: makeTar(t)}
	first = makeImage(t, base, empty, memLayer{tar: makeTar(t, file("first", "1"), file(".wh.gone", ""))})
	second = makeImage(t, base, memLayer{tar: makeTar(t, file("second", string(randomBytes(2, 70_000)))), packing: packZstd})
	third = makeImage(t, base, empty, memLayer{tar: makeTar(t, file("third", "3"))}, memLayer{tar: makeTar(t, file("fourth", "4")), packing: packPlain})
	return first, second, third
}

// goodDisks returns the files of the disks that a store makes of images, which qemu-img and
// e2fsck find nothing wrong with.
func goodDisks(t *testing.T, images ...*memImage) map[string]string {
	t.Helper()
	s := openStore(t, Options{})
	for i, src := range images {
		rawDisk(t, s, pullImage(t, s, src, fmt.Sprint("image:", i)))
	}
	return treeSums(t, string(s.dir.disks()))
}

// afterCrash opens what a crash left, holds it against what kept says, and goes on with it.
// If strict, nothing may be left but a container whose making was interrupted: for who
// makes containers to remove. (Flatten, and the removal of what it made, leave files for Sweep.) A flattened image has other disks, until it is pulled again.
func afterCrash(t *testing.T, dir string, strict, flattened bool, kept func(*Store), want map[string]string, images ...*memImage) {
	t.Helper()
	s, err := Open(dir, Options{Capacity: testCapacity})
	if err != nil {
		t.Error(err)
		return
	}
	defer s.Close()
	err = s.Check(t.Context(), CheckOptions{Deep: true}, func(f Finding) {
		if !f.Harmless || strict && f.Path != s.dir.container("c") {
			t.Errorf("check: %s: %s (%s)", f.Path, f.Problem, f.Advice)
		}
	})
	if err != nil {
		t.Error(err)
	}
	kept(s)
	if err := s.RemoveContainer("c"); err != nil {
		t.Error(err)
	}
	if _, err := s.Sweep(t.Context()); err != nil {
		t.Error(err)
	}
	checkClean(t, s)
	emptyTmp(t, s)
	pullAll := func() {
		for i, src := range images {
			pullImage(t, s, src, fmt.Sprint("image:", i))
		}
		checkClean(t, s)
	}
	pullAll()
	if flattened {
		list, err := s.Images()
		if err != nil {
			t.Error(err)
		}
		for _, img := range list {
			if _, err := s.Remove(img.ID.String(), RemoveOptions{Force: true}); err != nil {
				t.Error(err)
			}
		}
		pullAll()
	}
	if got := treeSums(t, string(s.dir.disks())); !maps.Equal(got, want) {
		t.Errorf("other disks than without a crash:\n%v\nwant\n%v", got, want)
	}
}
