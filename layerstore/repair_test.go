package layerstore

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"vic/bench/oracle"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// storeFiles returns the digests of all files of a store that Repair may touch, less the dates
// in them.
func storeFiles(t testing.TB, s *Store) map[string][sha256.Size]byte {
	t.Helper()
	files := make(map[string][sha256.Size]byte)
	err := filepath.WalkDir(s.Dir(), func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() || filepath.Base(path) == imageFile {
			return err
		}
		b, err := os.ReadFile(path)
		rel, _ := filepath.Rel(s.Dir(), path)
		files[rel] = sha256.Sum256(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func sameFiles(t testing.TB, got, want map[string][sha256.Size]byte) {
	t.Helper()
	for path, sum := range want {
		if is, ok := got[path]; !ok {
			t.Errorf("%s is gone", path)
		} else if is != sum {
			t.Errorf("%s has changed", path)
		}
	}
	for path := range got {
		if _, ok := want[path]; !ok {
			t.Errorf("%s is new", path)
		}
	}
}

// registryOf is a RepairOptions.Fetch for one image.
func registryOf(src Source) func(context.Context, reference.Named) (Source, error) {
	return func(_ context.Context, name reference.Named) (Source, error) {
		if name.Name() != "docker.io/library/web" {
			return nil, fmt.Errorf("no repository %s", name)
		}
		return src, nil
	}
}

// repair runs Repair and returns what it did and left, a line each.
func repair(t testing.TB, s *Store, o RepairOptions) (did, left string) {
	t.Helper()
	var b strings.Builder
	findings, err := s.Repair(t.Context(), o, func(Finding) {}, func(r Repaired) { fmt.Fprintln(&b, r.Done) })
	if err != nil {
		t.Fatal(err)
	}
	var l strings.Builder
	for _, f := range findings {
		fmt.Fprintf(&l, "%s: %s [%s]\n", f.About, f.Problem, f.Unrepaired)
	}
	return b.String(), l.String()
}

// TestRepair: whatever Check finds is mended, and every file is what it was.
func TestRepair(t *testing.T) {
	for _, test := range damages() {
		t.Run(test.name, func(t *testing.T) {
			s := openStore(t, Options{})
			src := webImage(t)
			img := pullImage(t, s, src, "web")
			if _, err := s.CreateContainerDisk("web-1", img.ID); err != nil {
				t.Fatal(err)
			}
			before := storeFiles(t, s)
			if err := test.damage(s.dir, img); err != nil {
				t.Fatal(err)
			}
			fetched := src.total()
			did, left := repair(t, s, RepairOptions{CheckOptions: CheckOptions{Deep: true}, Fetch: registryOf(src)})
			t.Logf("%d blobs fetched, did:\n%s", src.total()-fetched, did)
			if test.left != "" {
				if strings.Count(left, "\n") != 1 || !strings.Contains(left, test.left) || did != "" {
					t.Errorf("did:\n%sleft:\n%s", did, left)
				}
				return
			}
			if left != "" || did == "" && test.want != "died" {
				t.Errorf("did:\n%sleft:\n%s", did, left)
			}
			sameFiles(t, storeFiles(t, s), before)
			checkClean(t, s)
			emptyTmp(t, s)
			if test.name == "data damaged" { // other files are what they were, so others vouch for them
				rawDisk(t, s, img)
			}
		})
	}
}

// TestRepairSound: a store without damage is left alone.
func TestRepairSound(t *testing.T) {
	s := openStore(t, Options{})
	pullImage(t, s, webImage(t), "web")
	before := storeFiles(t, s)
	if did, left := repair(t, s, RepairOptions{CheckOptions: CheckOptions{Deep: true}, Drop: true}); did != "" || left != "" {
		t.Errorf("did:\n%sleft:\n%s", did, left)
	}
	sameFiles(t, storeFiles(t, s), before)
}

// TestRepairAlone: without a registry, layers are made from what the store has.
func TestRepairAlone(t *testing.T) {
	app := memLayer{tar: makeTar(t, folder("app"), file("app/run", string(randomBytes(9, 200_000))))}
	pullBoth := func(t *testing.T) (s *Store, one, two *Image) {
		s = openStore(t, Options{})
		one = pullImage(t, s, makeImage(t, memLayer{tar: makeTar(t, file("base", "one"))}, app), "one")
		two = pullImage(t, s, makeImage(t, memLayer{tar: makeTar(t, file("base", "two"))}, app), "two")
		return s, one, two
	}
	for _, test := range []struct {
		name   string
		damage func(d Dir, img *Image) error
		alone  bool // the other image is removed before
		mended bool
	}{
		{"from the other image", func(d Dir, img *Image) error { return os.Truncate(d.extent(img.Chain()), 70_000) }, false, true},
		{"data damaged, no other image", func(d Dir, img *Image) error { return damageAt(d.extent(img.Chain()), 70_000) }, true, false},
		{"metadata damaged, no other image", func(d Dir, img *Image) error {
			fi, err := os.Stat(d.extent(img.Chain())) // the tables are at the end, the redundant ones first
			if err != nil {
				return err
			}
			return damageAt(d.extent(img.Chain()), fi.Size()-2*4096)
		}, true, true},
		{"record lost", func(d Dir, img *Image) error { return os.Remove(d.layer(img.Chain())) }, false, true},
		{"recipe lost", func(d Dir, img *Image) error { return os.Remove(d.recipe(img.Chain())) }, true, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, one, two := pullBoth(t)
			if test.alone {
				if _, err := s.Remove(two.ID.String(), RemoveOptions{}); err != nil {
					t.Fatal(err)
				}
			}
			before := storeFiles(t, s)
			if err := test.damage(s.dir, one); err != nil {
				t.Fatal(err)
			}
			damaged := storeFiles(t, s)
			did, left := repair(t, s, RepairOptions{CheckOptions: CheckOptions{Deep: true}})
			if !test.mended {
				if did != "" || !strings.Contains(left, "nothing is to be fetched") {
					t.Errorf("did:\n%sleft:\n%s", did, left)
				}
				sameFiles(t, storeFiles(t, s), damaged)
				return
			}
			if left != "" || !strings.Contains(did, "from what the store has") && test.name != "record lost" {
				t.Errorf("did:\n%sleft:\n%s", did, left)
			}
			// The record tells which blob a layer was made of; a source without blobs has the same.
			sameFiles(t, storeFiles(t, s), before)
			checkClean(t, s)
		})
	}
}

// damageAt changes a byte of a file.
func damageAt(path string, off int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], off); err != nil {
		return err
	}
	b[0] ^= 0x55
	_, err = f.WriteAt(b[:], off)
	return err
}

// TestRepairRunning: a layer that QEMU has open under a container's disk is left alone until
// that ends.
func TestRepairRunning(t *testing.T) {
	oracle.Need(t, "qemu-io")
	s := openStore(t, Options{})
	src := webImage(t)
	img := pullImage(t, s, src, "web")
	disk, err := s.CreateContainerDisk("web-1", img.ID)
	if err != nil {
		t.Fatal(err)
	}
	before := storeFiles(t, s)
	qemu := exec.CommandContext(t.Context(), "qemu-io", "-f", "vmdk", disk)
	in, err := qemu.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := qemu.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := qemu.Start(); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(in, "read 0 512")
	lines := bufio.NewScanner(out)
	if !lines.Scan() || !strings.Contains(lines.Text(), "read 512/512") { // it has opened the disk
		t.Fatalf("qemu-io says %q", lines.Text())
	}
	if err := damageAt(s.dir.extent(img.Layers[0].Chain), 70_000); err != nil {
		t.Fatal(err)
	}
	o := RepairOptions{CheckOptions: CheckOptions{Deep: true}, Fetch: registryOf(src), Drop: true}
	if did, left := repair(t, s, o); did != "" || !strings.Contains(left, "container web-1 runs on it: stop it first") {
		t.Errorf("did:\n%sleft:\n%s", did, left)
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	for lines.Scan() { // to the end
	}
	if err := qemu.Wait(); err != nil {
		t.Fatal(err)
	}
	if did, left := repair(t, s, o); left != "" || !strings.Contains(did, "fetched from web") {
		t.Errorf("did:\n%sleft:\n%s", did, left)
	}
	sameFiles(t, storeFiles(t, s), before)
}

// TestRepairDrop: what cannot be mended is dropped if that is asked for, and nothing else.
func TestRepairDrop(t *testing.T) {
	base := memLayer{tar: makeTar(t, file("base", "b"))}
	s := openStore(t, Options{})
	bad := pullImage(t, s, makeImage(t, base, memLayer{tar: makeTar(t, file("bad", string(randomBytes(3, 100_000))))}), "bad")
	good := pullImage(t, s, makeImage(t, base, memLayer{tar: makeTar(t, file("good", "g"))}), "good")
	used := pullImage(t, s, makeImage(t, base, memLayer{tar: makeTar(t, file("used", "u"))}), "used")
	lost := pullImage(t, s, makeImage(t, memLayer{tar: makeTar(t, file("lost", "l"))}), "lost")
	if _, err := s.CreateContainerDisk("c", used.ID); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		damageAt(s.dir.extent(bad.Chain()), 70_000), os.Remove(s.dir.recipe(bad.Chain())),
		os.Remove(s.dir.extent(used.Chain())), os.Remove(s.dir.recipe(used.Chain())),
		os.Remove(s.dir.image(lost.ID) + "/" + configFile),
		os.WriteFile(s.dir.name("docker.io/library/good:latest"), []byte("{"), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	errDown := errors.New("the registry is down")
	o := RepairOptions{CheckOptions: CheckOptions{Deep: true}, Fetch: func(context.Context, reference.Named) (Source, error) { return nil, errDown }}
	damaged := storeFiles(t, s)
	did, left := repair(t, s, o)
	if did != "" || strings.Count(left, errDown.Error()) < 4 {
		t.Errorf("did:\n%sleft:\n%s", did, left)
	}
	sameFiles(t, storeFiles(t, s), damaged)

	o.Drop = true
	did, left = repair(t, s, o)
	for _, want := range []string{"dropped image " + shortID(bad.ID.Encoded()) + ": bad:latest, bad@", "dropped image " + shortID(lost.ID.Encoded()), "removed the damaged name"} {
		if !strings.Contains(did, want) {
			t.Errorf("did:\n%swant also %q", did, want)
		}
	}
	for line := range strings.Lines(left) {
		if !strings.HasPrefix(line, "layer: ") || !strings.Contains(line, "container c needs it") {
			t.Errorf("left: %s", line)
		}
	}
	for ref, id := range map[string]digest.Digest{"good@" + good.Digest.String(): good.ID, "used": used.ID} {
		if img, err := s.Image(ref); err != nil || img.ID != id {
			t.Errorf("%s: %v", ref, err)
		}
	}
	for _, img := range []*Image{bad, lost} {
		if _, err := s.Image(img.ID.String()); !errors.Is(err, ErrNotFound) {
			t.Errorf("image is still there: %v", err)
		}
		if there, err := exists(s.dir.layer(img.Chain())); there || err != nil {
			t.Errorf("its layer is still there: %v", err)
		}
	}
	rawDisk(t, s, good)
	emptyTmp(t, s)
}

// TestRepairOther: a registry that has something else does no harm.
func TestRepairOther(t *testing.T) {
	s := openStore(t, Options{})
	img := pullImage(t, s, webImage(t), "web")
	for _, err := range []error{os.Remove(s.dir.image(img.ID) + "/" + imageFile), os.WriteFile(s.dir.name("docker.io/library/web:latest"), nil, 0o600)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	other := makeImage(t, memLayer{tar: makeTar(t, file("other", "o"))})
	did, left := repair(t, s, RepairOptions{Fetch: registryOf(other)})
	if did != "" || !strings.Contains(left, "calls another image") || !strings.Contains(left, "does not have the image") {
		t.Errorf("did:\n%sleft:\n%s", did, left)
	}
	if images, err := s.Images(); err != nil || len(images) != 0 {
		t.Errorf("images %v, %v", images, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	src := webImage(t)
	_, err := s.Repair(ctx, RepairOptions{Fetch: func(ctx context.Context, name reference.Named) (Source, error) {
		cancel()
		return src, ctx.Err()
	}}, func(Finding) {}, func(Repaired) {})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	emptyTmp(t, s)
}

// TestRepairNothingElse: layers on a damaged base disk are sound.
func TestRepairNothingElse(t *testing.T) {
	s := openStore(t, Options{})
	pullImage(t, s, webImage(t), "web")
	before := storeFiles(t, s)
	if err := damageAt(s.dir.extent(""), 70_000); err != nil {
		t.Fatal(err)
	}
	if did, left := repair(t, s, RepairOptions{CheckOptions: CheckOptions{Deep: true}}); did != "made the base disk again\n" || left != "" {
		t.Errorf("did:\n%sleft:\n%s", did, left)
	}
	sameFiles(t, storeFiles(t, s), before)
}

// TestRepairFlattened: an image that was flattened is mended too; if the one disk is lost, it
// gets its layers' disks back.
func TestRepairFlattened(t *testing.T) {
	oracle.Need(t, "qemu-img")
	for _, test := range []struct {
		name   string
		damage func(d Dir, img *Image) error
		disks  string // as of disksOf, after the repair
	}{
		{"data", func(d Dir, img *Image) error { return damageAt(d.flat(img.Chain()), 70_000) }, "d-ddd"},
		{"extent file lost", func(d Dir, img *Image) error { return os.Remove(d.flat(img.Chain())) }, "d-ddd"},
		{"descriptor", func(d Dir, img *Image) error { return damageAt(d.disk(img.Chain()), 30) }, "----d"},
		{"recipe below", func(d Dir, img *Image) error { return os.Remove(d.recipe(img.Layers[2].Chain)) }, "d-d-d"},
		{"record below", func(d Dir, img *Image) error { return os.Remove(d.layer(img.Layers[2].Chain)) }, "d-d-d"},
		{"record", func(d Dir, img *Image) error { return os.WriteFile(d.layer(img.Chain()), nil, 0o600) }, "d-ddd"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := openStore(t, Options{})
			src := webImage(t)
			img := pullImage(t, s, src, "web")
			path, err := s.CreateContainerDisk("c1", img.ID)
			if err != nil {
				t.Fatal(err)
			}
			raw := rawContainer(t, path)
			if _, err := s.Flatten(t.Context(), "web", nil); err != nil {
				t.Fatal(err)
			}
			checkClean(t, s)
			if err := test.damage(s.dir, img); err != nil {
				t.Fatal(err)
			}
			did, left := repair(t, s, RepairOptions{CheckOptions: CheckOptions{Deep: true}, Fetch: registryOf(src)})
			t.Log(did)
			if left != "" {
				t.Errorf("left:\n%s", left)
			}
			checkClean(t, s)
			emptyTmp(t, s)
			if got := disksOf(t, s, img); got != test.disks {
				t.Errorf("layers with disks: %s, want %s", got, test.disks)
			}
			command(t, "qemu-img", "compare", raw, path)
			for _, l := range img.Layers {
				rec, err := s.Layer(l.Chain)
				if err != nil {
					t.Fatal(err)
				}
				if got := rebuild(t, s, l.Chain); rec.Recipe != nil && got != rec.DiffID {
					t.Errorf("tar of layer %s is %s", l.Chain, got)
				}
			}
		})
	}
}

// TestSweepAmidRepair: a flattened image whose layers' disks are back, but whose records do not
// say so yet, keeps them.
func TestSweepAmidRepair(t *testing.T) {
	s := openStore(t, Options{})
	img := pullImage(t, s, webImage(t), "web")
	path, err := s.CreateContainerDisk("c1", img.ID)
	if err != nil {
		t.Fatal(err)
	}
	raw := rawContainer(t, path)
	disks := os.DirFS(s.dir.disks())
	kept := t.TempDir()
	if err := os.CopyFS(kept, disks); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Flatten(t.Context(), "web", nil); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(s.dir.disks()); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(s.dir.disks(), os.DirFS(kept)); err != nil {
		t.Fatal(err)
	}
	checkClean(t, s)
	if _, err := s.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	checkClean(t, s)
	command(t, "qemu-img", "compare", raw, path)
}

// hurt damages much of a store at once.
func hurt(t testing.TB, s *Store, img *Image) {
	t.Helper()
	d := s.dir
	for _, err := range []error{
		damageAt(d.extent(img.Layers[0].Chain), 70_000), os.Remove(d.disk(img.Layers[2].Chain)), os.Remove(d.layer(img.Layers[3].Chain)),
		os.Remove(d.extent("")), damageAt(d.disk(img.Layers[4].Chain), 80), os.Remove(d.image(img.ID) + "/" + configFile),
		os.WriteFile(d.extent(digest.FromString("x")), []byte("x"), 0o600), os.WriteFile(d.name(img.Names[1].String()), []byte("x"), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestKilledRepairing does with a repair what TestKilledAtEachStep does with a pull.
func TestKilledRepairing(t *testing.T) {
	for _, test := range []struct {
		name string
		hurt func(t testing.TB, s *Store, img *Image)
		flat bool
	}{
		{"everything", hurt, false},
		{"flattened", func(t testing.TB, s *Store, img *Image) {
			if err := damageAt(s.dir.flat(img.Chain()), 70_000); err != nil {
				t.Fatal(err)
			}
		}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			rnd := rand.New(rand.NewPCG(seed, 0))
			kills, step := 0, 15
			if testing.Short() {
				step = 60
			}
			for n := 1; ; n += 1 + rnd.IntN(step) {
				dir := filepath.Join(t.TempDir(), "store")
				s := openStoreIn(t, dir, Options{})
				src := webImage(t)
				img := pullImage(t, s, src, "web")
				before := storeFiles(t, s)
				if test.flat {
					if _, err := s.Flatten(t.Context(), "web", nil); err != nil {
						t.Fatal(err)
					}
				}
				test.hurt(t, s, img)
				out, err := child(t, "repair", dir, n).CombinedOutput()
				if !killed(t, err, out) {
					break
				}
				kills++
				again, err := Open(dir, Options{})
				if err != nil {
					t.Fatal(err)
				}
				if _, left := repair(t, again, RepairOptions{CheckOptions: CheckOptions{Deep: true}, Fetch: registryOf(src)}); left != "" {
					t.Errorf("left:\n%s", left)
				}
				again.Close()
				if !test.flat {
					sameFiles(t, storeFiles(t, s), before)
				}
				recovered(t, dir)
				if t.Failed() {
					t.Fatalf("killed after %d changes", n)
				}
			}
			if kills == 0 {
				t.Error("no repair was killed")
			}
			t.Logf("%d kills", kills)
		})
	}
}
