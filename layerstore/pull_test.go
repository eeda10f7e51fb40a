package layerstore

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"vic/diskfs"
)

// bigImage is an image with all that layers can have, but little of each.
func bigImage(t testing.TB) *memImage {
	t.Helper()
	at := time.Unix(1500000000, 123456789)
	xattr := map[string]string{"SCHILY.xattr.user.colour": "blue", "SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}
	many := []tarEntry{folder("many")}
	for i := range 3000 {
		many = append(many, file(fmt.Sprintf("many/file-%04d", i), strings.Repeat("x", i%9000)))
	}
	return makeImage(t,
		memLayer{tar: makeTar(t,
			folder("etc"), folder("dev"), folder("opt"), folder("opt/old"), folder("opt/kept"), folder("swap"),
			file("etc/hosts", "127.0.0.1 localhost\n"),
			file("opt/old/a", "a"), file("opt/old/b", "b"), file("opt/kept/c", "c"), file("swap/dir", "a file first"),
			hardlink("opt/kept/hosts", "etc/hosts"),
			tarEntry{Header: tar.Header{Name: "dev/null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3, Mode: 0o666}},
			tarEntry{Header: tar.Header{Name: "dev/pipe", Typeflag: tar.TypeFifo, Mode: 0o600}},
			tarEntry{Header: tar.Header{Name: "etc/suid", Typeflag: tar.TypeReg, Mode: 0o4755, Uid: 100000, Gid: 70000, PAXRecords: xattr, ModTime: at}, data: []byte("#!/bin/sh\n")},
			file("zeros", string(make([]byte, 400_000))),
			file("random", string(randomBytes(7, 900_000))),
		)},
		memLayer{tar: makeTar(t, many...)},
		memLayer{tar: makeTar(t, folder("opt/old"), file("opt/old/.wh..wh..opq", ""), file("opt/old/new", "new"),
			file("opt/kept/.wh.c", ""), file("swap/.wh.dir", ""), folder("swap/dir2")), packing: packZstd},
		memLayer{tar: makeTar(t, folder("swap/dir"), file("swap/dir/inside", "now a folder"), symlink("etc/alias", "hosts"),
			hardlink("etc/hosts2", "etc/hosts")), packing: packPlain},
		// Past the page cache, see smallBlob.
		memLayer{tar: makeTar(t, file("large", string(randomBytes(8, 5_000_000))), file("random", string(randomBytes(7, 900_000))))},
		memLayer{tar: makeTar(t, tarEntry{Header: tar.Header{Name: "etc/suid", Typeflag: tar.TypeReg, Mode: 0o755, ModTime: at}, data: []byte("#!/bin/sh\n")})},
	)
}

func TestPull(t *testing.T) {
	for name, make := range map[string]func(testing.TB) *memImage{"web": webImage, "big": bigImage} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, Options{})
			src := make(t)
			img := pullImage(t, s, src, "example.com/image:1")
			if got, want := img.ID, digest.FromBytes(src.config); got != want {
				t.Errorf("ID %s, want %s", got, want)
			}
			if got, want := img.RepoTags(), []string{"example.com/image:1"}; !slices.Equal(got, want) {
				t.Errorf("tags %q, want %q", got, want)
			}
			if got, want := img.RepoDigests(), []string{"example.com/image@" + src.desc.Digest.String()}; !slices.Equal(got, want) {
				t.Errorf("digests %q, want %q", got, want)
			}
			if img.Size() == 0 {
				t.Error("size 0")
			}
			sameTrees(t, s, img, src)
			checkClean(t, s)
			emptyTmp(t, s)

			before := src.total()
			var last ProgressEvent
			_, err := s.Pull(t.Context(), src, mustName(t, "example.com/image:1"), PullOptions{Progress: func(e ProgressEvent) { last = e }})
			if err != nil {
				t.Fatal(err)
			}
			if last.Layer != "" || last.Updated {
				t.Errorf("second pull: last event %+v, want that the image is up to date", last)
			}
			if src.total() != before {
				t.Errorf("second pull fetched %d blobs", src.total()-before)
			}
		})
	}
}

func tarLimits(entries int) diskfs.Limits { return diskfs.Limits{Entries: entries} }

func emptyTmp(t testing.TB, s *Store) {
	t.Helper()
	names, err := listDir(s.dir.tmp())
	if err != nil {
		t.Fatal(err)
	}
	if len(names) != 0 {
		t.Errorf("left in tmp: %q", names)
	}
}

// Layers without entries have no disk, and those known to be empty by their diff
// ID are not even fetched.
func TestPullEmptyLayers(t *testing.T) {
	one := memLayer{tar: makeTar(t, file("a", "a"))}
	for _, test := range []struct {
		name   string
		layers []memLayer
		disks  int // besides the base disk
		fetch  int
	}{
		{"none", nil, 0, 0},
		{"only empty", []memLayer{{tar: make([]byte, 1024)}, {tar: []byte{}, packing: packPlain}}, 0, 0},
		{"around one", []memLayer{{tar: make([]byte, 1024)}, one, {tar: make([]byte, 10240)}, {tar: make([]byte, 1024)}}, 1, 1},
		{"unknown empty", []memLayer{one, {tar: make([]byte, 4096)}, {tar: makeTar(t, file("b", "b"))}}, 2, 3},
		{"unknown empty first", []memLayer{{tar: make([]byte, 8192)}, {tar: make([]byte, 4096)}, one}, 1, 3},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := openStore(t, Options{})
			src := makeImage(t, test.layers...)
			img := pullImage(t, s, src, "empty")
			if n := src.total(); n != test.fetch {
				t.Errorf("%d blobs fetched, want %d", n, test.fetch)
			}
			disks, err := listDir(s.dir.disks())
			if err != nil {
				t.Fatal(err)
			}
			disks = slices.DeleteFunc(disks, func(name string) bool { return strings.HasSuffix(name, recipeSuffix) })
			if n := len(disks)/2 - 1; n != test.disks {
				t.Errorf("%d disks, want %d: %q", n, test.disks, disks)
			}
			if len(img.Layers) != len(test.layers) {
				t.Errorf("%d layers, want %d", len(img.Layers), len(test.layers))
			}
			rawDisk(t, s, img)
			checkClean(t, s)
		})
	}
}

// All of it at once, in one store: each blob is fetched once.
func TestPullConcurrently(t *testing.T) {
	base := []memLayer{
		{tar: makeTar(t, file("base", string(randomBytes(1, 2_000_000))))},
		{tar: makeTar(t, file("lib", string(randomBytes(2, 500_000))))},
	}
	images := []*memImage{
		makeImage(t, base...),
		makeImage(t, append(base[:2:2], memLayer{tar: makeTar(t, file("app1", "1"))})...),
		makeImage(t, append(base[:2:2], memLayer{tar: makeTar(t, file("app2", "2"))}, memLayer{tar: make([]byte, 1024)})...),
		makeImage(t, append(base[:1:1], memLayer{tar: makeTar(t, file("app3", "3"))})...),
	}
	s := openStore(t, Options{})
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			k := i % len(images)
			_, err := s.Pull(t.Context(), images[k], mustName(t, fmt.Sprintf("app%d:v%d", k, i)), PullOptions{Progress: func(ProgressEvent) {}})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	all := make(map[digest.Digest]int)
	for _, m := range images {
		for d, n := range m.fetched {
			all[d] += n
		}
	}
	if len(all) != 5 {
		t.Errorf("%d blobs fetched, want 5", len(all))
	}
	for d, n := range all {
		if n != 1 {
			t.Errorf("blob %s fetched %d times", d, n)
		}
	}
	list, err := s.Images()
	if err != nil || len(list) != len(images) {
		t.Fatalf("%d images, want %d: %v", len(list), len(images), err)
	}
	for _, img := range list {
		if len(img.RepoTags()) != 5 {
			t.Errorf("image %s has tags %q, want 5", img.ID, img.RepoTags())
		}
		rawDisk(t, s, img)
	}
	checkClean(t, s)
	emptyTmp(t, s)
}

// A gate lets reads pass only when it is opened, and tells when one waits.
type gate struct {
	waiting chan struct{} // closed by the first read
	open    chan struct{}
	once    sync.Once
}

func newGate() *gate { return &gate{waiting: make(chan struct{}), open: make(chan struct{})} }

func (g *gate) hook(ctx context.Context, _ ocispec.Descriptor, r io.Reader) io.Reader {
	return readerFunc(func(p []byte) (int, error) {
		g.once.Do(func() { close(g.waiting) })
		select {
		case <-g.open:
			return r.Read(p)
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	})
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// startPull pulls in a goroutine; the channel gets the error. The second channel
// is closed when the pull rides on flights.
func startPull(t testing.TB, s *Store, ctx context.Context, src Source, name string) (<-chan error, <-chan struct{}) {
	ref := mustName(t, name)
	done, begun := make(chan error, 1), make(chan struct{})
	var once sync.Once
	go func() {
		_, err := s.Pull(ctx, src, ref, PullOptions{Progress: func(e ProgressEvent) {
			if e.Stage != StageQueued && e.Stage != StageExists {
				once.Do(func() { close(begun) })
			}
		}})
		done <- err
	}()
	return done, begun
}

// The pull that began to fetch is cancelled: the other one gets the same bytes.
func TestPullTakeover(t *testing.T) {
	s := openStore(t, Options{})
	first, second := webImage(t), webImage(t)
	g := newGate()
	first.hook = g.hook
	ctx, cancel := context.WithCancel(t.Context())
	done1, _ := startPull(t, s, ctx, first, "first")
	<-g.waiting
	done2, begun := startPull(t, s, t.Context(), second, "second")
	<-begun
	cancel()
	if err := <-done1; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled pull: %v", err)
	}
	close(g.open)
	if err := <-done2; err != nil {
		t.Fatal(err)
	}
	for d, n := range first.fetched {
		if n+second.fetched[d] != 1 {
			t.Errorf("blob %s fetched %d times", d, n+second.fetched[d])
		}
	}
	if _, err := s.Image("first"); !errors.Is(err, ErrNotFound) {
		t.Errorf("image of the cancelled pull: %v", err)
	}
	checkClean(t, s)
	emptyTmp(t, s)
}

// The Source of the pull that began fails: the other pull's is used.
func TestPullSecondSource(t *testing.T) {
	s := openStore(t, Options{})
	first, second := webImage(t), webImage(t)
	g := newGate()
	broken := errors.New("connection lost")
	first.hook = func(ctx context.Context, d ocispec.Descriptor, _ io.Reader) io.Reader {
		return g.hook(ctx, d, readerFunc(func([]byte) (int, error) { return 0, broken }))
	}
	done1, _ := startPull(t, s, t.Context(), first, "first")
	<-g.waiting
	done2, begun := startPull(t, s, t.Context(), second, "second")
	<-begun
	close(g.open)
	if err := <-done1; !errors.Is(err, broken) {
		t.Errorf("pull whose source broke: %v", err)
	}
	if err := <-done2; err != nil {
		t.Fatal(err)
	}
	checkClean(t, s)
	emptyTmp(t, s)
}

// snapshot returns the names and checksums of all files of a store.
func snapshot(t testing.TB, s *Store) map[string]string {
	t.Helper()
	files := make(map[string]string)
	err := filepath.WalkDir(s.Dir(), func(path string, e os.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			var b []byte
			b, err = os.ReadFile(path)
			name, _ := filepath.Rel(s.Dir(), path)
			files[name] = fmt.Sprintf("%x", sha256.Sum256(b))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// Whatever a Source does, the store is as it was, but for layers that are whole.
func TestPullFaults(t *testing.T) {
	good := func() memLayer { return memLayer{tar: makeTar(t, file("good", string(randomBytes(3, 400_000))))} }
	bad := makeTar(t, file("bad", string(randomBytes(4, 600_000))), file("worse", "x"))
	cut := func(b []byte, n int) []byte { return b[:len(b)-n] }
	flip := func(b []byte) []byte {
		b = slices.Clone(b)
		b[len(b)/2] ^= 0xff
		return b
	}
	atEnd := func(err error) func(context.Context, ocispec.Descriptor, io.Reader) io.Reader {
		return func(_ context.Context, _ ocispec.Descriptor, r io.Reader) io.Reader {
			return readerFunc(func(p []byte) (int, error) {
				n, e := r.Read(p)
				if e == io.EOF {
					e = err
				}
				return n, e
			})
		}
	}
	errDigest := errors.New("digest is wrong")
	for _, test := range []struct {
		name  string
		layer memLayer
		hook  func(context.Context, ocispec.Descriptor, io.Reader) io.Reader // on the bad layer
		lim   Limits
		want  string // in the error
	}{
		{name: "wrong digest", layer: memLayer{tar: bad}, hook: atEnd(errDigest), want: "digest is wrong"},
		{name: "wrong digest, plain", layer: memLayer{tar: bad, packing: packPlain}, hook: atEnd(errDigest), want: "digest is wrong"},
		{name: "wrong digest and not gzip", layer: memLayer{tar: bad, blob: flip(packGzip.pack(t, bad))}, hook: atEnd(errDigest), want: "digest is wrong"},
		{name: "connection lost", layer: memLayer{tar: bad}, want: "lost", hook: func(_ context.Context, _ ocispec.Descriptor, r io.Reader) io.Reader {
			return io.MultiReader(io.LimitReader(r, 300_000), readerFunc(func([]byte) (int, error) { return 0, errors.New("connection lost") }))
		}},
		{name: "wrong diff ID", layer: memLayer{tar: bad, blob: packGzip.pack(t, makeTar(t, file("other", "x")))}, want: "diff ID"},
		{name: "corrupt gzip", layer: memLayer{tar: bad, blob: flip(packGzip.pack(t, bad))}, want: "gzip"},
		{name: "gzip cut", layer: memLayer{tar: bad, blob: cut(packGzip.pack(t, bad), 20)}, want: "unexpected EOF"},
		{name: "garbage after gzip", layer: memLayer{tar: bad, blob: append(packGzip.pack(t, bad), "garbage that is no header"...)}, want: "gzip"},
		{name: "corrupt zstd", layer: memLayer{tar: bad, blob: flip(packZstd.pack(t, bad))}, want: "zstd"},
		{name: "zstd cut", layer: memLayer{tar: bad, blob: cut(packZstd.pack(t, bad), 20)}, want: "zstd"},
		{name: "zstd window of 1 GiB", layer: memLayer{tar: bad, blob: []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa0, 0, 0, 0}}, want: "zstd"},
		{name: "tar cut", layer: memLayer{tar: cut(bad, 3000)}, want: "unexpected EOF"},
		{name: "no tar", layer: memLayer{tar: randomBytes(5, 5000), packing: packPlain}, want: "tar"},
		{name: "too many entries", layer: memLayer{tar: bad}, lim: Limits{Tar: tarLimits(1)}, want: "entries"},
		{name: "too long a tar", layer: memLayer{tar: bad}, lim: Limits{TarSize: 500_000}, want: "longer than 500000"},
		{name: "a file where a folder is", layer: memLayer{tar: makeTar(t, file("good/inside", "x"))}, want: "good"},
	} {
		for _, where := range []string{"first", "last"} {
			t.Run(test.name+", "+where, func(t *testing.T) {
				s := openStore(t, Options{Limits: test.lim})
				small := memLayer{tar: makeTar(t, file("small", "x"))}
				pullImage(t, s, makeImage(t, small), "old")
				before := snapshot(t, s)
				layers := []memLayer{test.layer, good(), small}
				if where == "last" {
					layers = []memLayer{good(), small, test.layer}
				} else if test.name == "a file where a folder is" {
					return // there is none yet
				}
				if test.lim != (Limits{}) {
					layers = []memLayer{test.layer}
				}
				src := makeImage(t, layers...)
				if test.hook != nil {
					badBlob := digest.FromBytes(test.layer.packing.pack(t, test.layer.tar))
					if test.layer.blob != nil {
						badBlob = digest.FromBytes(test.layer.blob)
					}
					src.hook = func(ctx context.Context, d ocispec.Descriptor, r io.Reader) io.Reader {
						if d.Digest == badBlob {
							return test.hook(ctx, d, r)
						}
						return r
					}
				}
				_, err := s.Pull(t.Context(), src, mustName(t, "new"), PullOptions{})
				if err == nil || !strings.Contains(err.Error(), test.want) {
					t.Errorf("error %v, want one with %q", err, test.want)
				}
				emptyTmp(t, s)
				after := snapshot(t, s)
				maps.DeleteFunc(after, func(name, _ string) bool {
					return where == "last" && before[name] == "" && (strings.HasPrefix(name, "disks/") || strings.HasPrefix(name, "layers/"))
				})
				if !maps.Equal(before, after) {
					t.Errorf("store has changed\nbefore %v\n after %v", before, after)
				}
				checkClean(t, s)
				if _, err := s.Sweep(t.Context()); err != nil {
					t.Fatal(err)
				}
				if after := snapshot(t, s); !maps.Equal(before, after) {
					t.Errorf("store has changed after the sweep\nbefore %v\n after %v", before, after)
				}
			})
		}
	}
}

// A pull cancelled when it reaches a stage leaves nothing half done.
func TestPullCancelled(t *testing.T) {
	for _, stage := range []Stage{StageQueued, StageWaiting, StageFetching, StageFetched, StageBound, StageDone} {
		for layer := range 5 {
			t.Run(fmt.Sprintf("stage %d of layer %d", stage, layer), func(t *testing.T) {
				s := openStore(t, Options{})
				src := webImage(t)
				var man ocispec.Manifest
				src.change(t, func(_ *ocispec.Image, m *ocispec.Manifest) { man = *m })
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				_, err := s.Pull(ctx, src, mustName(t, "web"), PullOptions{Progress: func(e ProgressEvent) {
					if e.Layer == man.Layers[layer].Digest && e.Stage == stage {
						cancel()
					}
				}})
				if err != nil && !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
				if _, imgErr := s.Image("web"); (imgErr == nil) != (err == nil) {
					t.Errorf("pull: %v, image: %v", err, imgErr)
				}
				emptyTmp(t, s)
				checkClean(t, s)
				pullImage(t, s, src, "web")
				checkClean(t, s)
			})
		}
	}
}

// Closing the store ends pulls as cancelling them does.
func TestCloseDuringPull(t *testing.T) {
	dir := t.TempDir() + "/store"
	s := openStoreIn(t, dir, Options{})
	src := webImage(t)
	g := newGate()
	src.hook = g.hook
	done, _ := startPull(t, s, t.Context(), src, "web")
	<-g.waiting
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, ErrClosed) {
		t.Errorf("pull: %v", err)
	}
	emptyTmp(t, s)
	if _, err := s.Pull(t.Context(), src, nil, PullOptions{}); !errors.Is(err, ErrClosed) {
		t.Errorf("pull into a closed store: %v", err)
	}
}

// The same layers give the same disks, whatever the timing.
func TestPullDeterministic(t *testing.T) {
	src := bigImage(t)
	var want map[string]string
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	for _, run := range []struct{ procs, parallel int }{{1, 1}, {1, 8}, {8, 1}, {8, 8}, {8, 8}, {8, 8}} {
		old := runtime.GOMAXPROCS(run.procs)
		s := openStore(t, Options{Parallel: run.parallel})
		if run.parallel > 1 {
			src.hook = inOrder(t, src, rnd)
		}
		pullImage(t, s, src, "big")
		runtime.GOMAXPROCS(old)
		src.hook = nil
		got := snapshot(t, s)
		maps.DeleteFunc(got, func(name, _ string) bool { return strings.HasPrefix(name, "images/") }) // has the time of the pull
		if want == nil {
			want = got
		}
		if !maps.Equal(got, want) {
			t.Errorf("%+v: files differ\n got %v\nwant %v", run, got, want)
		}
	}
}

// inOrder returns a hook that lets the blobs of an image end in a random order.
func inOrder(t *testing.T, m *memImage, rnd *rand.Rand) func(context.Context, ocispec.Descriptor, io.Reader) io.Reader {
	var man ocispec.Manifest
	m.change(t, func(_ *ocispec.Image, x *ocispec.Manifest) { man = *x })
	order := rnd.Perm(len(man.Layers))
	before := make(map[digest.Digest]chan struct{}) // closed when the blob may end
	after := make(map[digest.Digest]chan struct{})  // to close when it has
	prev := make(chan struct{})
	close(prev)
	for _, i := range order {
		d := man.Layers[i].Digest
		before[d], after[d] = prev, make(chan struct{})
		prev = after[d]
	}
	return func(ctx context.Context, d ocispec.Descriptor, r io.Reader) io.Reader {
		return readerFunc(func(p []byte) (int, error) {
			n, err := r.Read(p)
			if err == io.EOF {
				select {
				case <-before[d.Digest]:
				case <-ctx.Done():
					return 0, ctx.Err()
				}
				close(after[d.Digest])
			}
			return n, err
		})
	}
}
