package vsphere

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"

	"vic/bench/corpus"
	"vic/bench/oracle"
	"vic/bench/vcsim"
	"vic/fetch/archive"
	"vic/layerstore"
)

// capacity of the disks of the tests.
const capacity = 64 << 20

// pulled is a local store with an image of several layers.
func pulled(t *testing.T, layers int) (*layerstore.Store, *layerstore.Image) {
	t.Helper()
	ls, err := layerstore.Open(t.TempDir(), layerstore.Options{Capacity: capacity})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ls.Close() })
	return ls, pull(t, ls, corpus.Shape{Layers: layers, Files: 30 * layers, Sizes: corpus.Fixed(5000), Whiteouts: 0.1, Compression: "zstd"})
}

func pull(t *testing.T, ls *layerstore.Store, shape corpus.Shape) *layerstore.Image {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "image")
	if _, err := corpus.Write(t.Context(), dir, shape); err != nil {
		t.Fatal(err)
	}
	a, err := archive.OpenFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	src, err := a.Entries()[0].Resolve(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	img, err := ls.Pull(t.Context(), src, nil, layerstore.PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func (s *site) store(d *Datastore, vch string) *Store {
	s.t.Helper()
	st, err := OpenStore(s.t.Context(), d, StoreOptions{VCH: vch, Capacity: capacity})
	if err != nil {
		s.t.Fatal(err)
	}
	return st
}

// same has qemu-img say whether a disk on the datastore shows what the image's local one does.
func (s *site) same(d *Datastore, ls *layerstore.Store, img *layerstore.Image, top string) {
	s.t.Helper()
	local, err := ls.DiskPath(img)
	if err != nil {
		s.t.Fatal(err)
	}
	remote := filepath.Join(s.folder(d), d.root, disksFolder, top+".vmdk")
	qemuImg := oracle.Find(s.t, "qemu-img")
	if out, err := exec.Command(qemuImg, "compare", "-f", "vmdk", "-F", "vmdk", local, remote).CombinedOutput(); err != nil {
		s.t.Errorf("qemu-img compare: %v: %s", err, out)
	}
	raw := filepath.Join(s.t.TempDir(), "raw")
	if out, err := exec.Command(qemuImg, "convert", "-f", "vmdk", "-O", "raw", remote, raw).CombinedOutput(); err != nil {
		s.t.Fatalf("qemu-img convert: %v: %s", err, out)
	}
	if out, err := exec.Command(oracle.Find(s.t, "e2fsck"), "-fn", raw).CombinedOutput(); err != nil {
		s.t.Errorf("e2fsck: %v: %s", err, out)
	}
}

// files are the names of what is in a folder of the datastore.
func (s *site) files(d *Datastore, folder string) []string {
	s.t.Helper()
	entries, err := os.ReadDir(filepath.Join(s.folder(d), d.root, folder))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func TestPublish(t *testing.T) {
	for _, e := range []Encoding{VMFSSparse, Hosted} {
		t.Run(string(e), func(t *testing.T) { testPublish(t, e) })
	}
}

func testPublish(t *testing.T, e Encoding) {
	s, ctx := newSite(t, vcsim.Options{}), t.Context()
	d := s.datastore(s.connect(s.endpoint()), "vic/store")
	ls, img := pulled(t, 3)
	st, err := OpenStore(ctx, d, StoreOptions{VCH: "one", Capacity: capacity, Encoding: e})
	if err != nil {
		t.Fatal(err)
	}
	p, err := st.Publish(ctx, ls, img)
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Disks) != 4 || p.Sent == 0 { // three layers and the empty file system
		t.Errorf("published %+v", p)
	}
	s.same(d, ls, img, p.Disks[0])
	if got := s.files(d, "vchs/one/pulls"); len(got) != 0 {
		t.Errorf("left in pulls: %v", got)
	}
	if got := s.files(d, "vchs/one/images"); len(got) != 1 || got[0] != img.ID.Encoded()+".json" {
		t.Errorf("images: %v", got)
	}

	// What is there is not sent again, to another VCH either.
	before := s.files(d, "disks")
	for _, vch := range []string{"one", "two"} {
		again, err := s.store(d, vch).Publish(ctx, ls, img)
		if err != nil || again.Sent != 0 || !slices.Equal(again.Disks, p.Disks) {
			t.Errorf("again, by %s: %+v, %v", vch, again, err)
		}
	}
	if after := s.files(d, "disks"); !slices.Equal(before, after) {
		t.Errorf("disks %v, were %v", after, before)
	}

	// An image with a layer more shares the others.
	more := pull(t, ls, corpus.Shape{Layers: 4, Files: 120, Sizes: corpus.Fixed(5000), Whiteouts: 0.1, Compression: "zstd"})
	p2, err := st.Publish(ctx, ls, more)
	if err != nil {
		t.Fatal(err)
	}
	s.same(d, ls, more, p2.Disks[0])

	// A flattened one is one disk over the empty one.
	if _, err := ls.Flatten(ctx, img.ID.String(), nil); err != nil {
		t.Fatal(err)
	}
	if img, err = ls.ImageByID(img.ID); err != nil {
		t.Fatal(err)
	}
	flat, err := st.Publish(ctx, ls, img)
	if err != nil || len(flat.Disks) != 1 {
		t.Fatalf("flattened: %+v, %v", flat, err)
	}
	s.same(d, ls, img, flat.Disks[0])

	if _, err := OpenStore(ctx, d, StoreOptions{VCH: "big", Capacity: 2 * capacity}); err == nil || !strings.Contains(err.Error(), "needs a store of the same") {
		t.Errorf("another capacity: %v", err)
	}
	if _, err := OpenStore(ctx, d, StoreOptions{VCH: "../x", Capacity: capacity}); err == nil {
		t.Error("a VCH outside of the store")
	}
}

// A pull into a store with the datastore as its mirror sends each layer's disk as it comes, and the image is in both or in none.
func TestMirror(t *testing.T) {
	s, ctx := newSite(t, vcsim.Options{}), t.Context()
	f, c := s.behind()
	d := s.datastore(c, "store")
	st := s.store(d, "one")
	ls, err := layerstore.Open(t.TempDir(), layerstore.Options{Capacity: capacity, Mirror: st})
	if err != nil {
		t.Fatal(err)
	}
	defer ls.Close()
	dir := filepath.Join(t.TempDir(), "image")
	if _, err := corpus.Write(ctx, dir, corpus.Shape{Layers: 4, Files: 120, Sizes: corpus.Fixed(5000), Compression: "zstd"}); err != nil {
		t.Fatal(err)
	}
	a, err := archive.OpenFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	pull := func() (*layerstore.Image, map[layerstore.Stage]int64, error) {
		src, err := a.Entries()[0].Resolve(ctx, nil)
		if err != nil {
			t.Fatal(err)
		}
		sent := map[layerstore.Stage]int64{}
		img, err := ls.Pull(ctx, src, nil, layerstore.PullOptions{Progress: func(e layerstore.ProgressEvent) { sent[e.Stage] += max(1, e.Sent) }})
		return img, sent, err
	}
	full := func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPut && strings.HasSuffix(r.URL.Path, "-delta.vmdk") {
			http.Error(w, "full", http.StatusInsufficientStorage)
			return true
		}
		return false
	}
	f.set(full)
	if _, _, err := pull(); err == nil || !strings.Contains(err.Error(), "is full") {
		t.Fatalf("pull to a full datastore: %v", err)
	}
	if ids, err := ls.ImageIDs(); err != nil || len(ids) != 0 {
		t.Errorf("images after that: %v, %v", ids, err)
	}
	f.set(func(http.ResponseWriter, *http.Request) bool { return false })
	img, events, err := pull()
	if err != nil {
		t.Fatal(err)
	}
	if events[layerstore.StageDone] == 0 {
		t.Errorf("events: %v", events)
	}
	p, err := st.Publish(ctx, ls, img) // costs nothing
	if err != nil || len(p.Disks) != 5 {
		t.Fatalf("published %+v, %v", p, err)
	}
	s.same(d, ls, img, p.Disks[0])
	if left := s.files(d, "vchs/one/pulls"); len(left) != 0 {
		t.Errorf("left in pulls: %v", left)
	}

	// An image that the local store has no more is forgotten.
	if err := st.Tidy(ctx, ls); err != nil {
		t.Fatal(err)
	}
	if got := s.files(d, "vchs/one/images"); len(got) != 1 {
		t.Errorf("images: %v", got)
	}
	if _, err := ls.Remove(img.ID.String(), layerstore.RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := st.Tidy(ctx, ls); err != nil {
		t.Fatal(err)
	}
	if got := s.files(d, "vchs/one/images"); len(got) != 0 {
		t.Errorf("images: %v", got)
	}
}

// One of two pulls of the same image is broken off: the other has what it needs.
func TestMirrorShared(t *testing.T) {
	s := newSite(t, vcsim.Options{})
	f, c := s.behind()
	d := s.datastore(c, "store")
	st := s.store(d, "one")
	ls, img := pulled(t, 4)
	held, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	var puts atomic.Int32
	f.set(func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPut && strings.HasSuffix(r.URL.Path, "-delta.vmdk") {
			puts.Add(1)
			once.Do(func() { close(held) })
			<-release
		}
		return false
	})
	first := st.begin(t.Context(), ls)
	broken := make(chan error, 1)
	go func() {
		_, err := first.commit(img.ID, img.Chain())
		broken <- err
	}()
	<-held
	second := st.begin(t.Context(), ls)
	second.Layer(img.Chain())
	second.wg.Wait()
	first.stop()
	if err := <-broken; !errors.Is(err, context.Canceled) {
		t.Errorf("broken off: %v", err)
	}
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	close(release)
	p, err := second.commit(img.ID, img.Chain())
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Close(); err != nil {
		t.Error(err)
	}
	s.same(d, ls, img, p.Disks[0])
	if n := puts.Load(); n != 5 {
		t.Errorf("%d extents were sent, of 5 disks", n)
	}
	if left := s.files(d, "vchs/one/pulls"); len(left) != 0 {
		t.Errorf("left in pulls: %v", left)
	}
}

// Two VCHs that bring the same image at once both have it whole, and nobody writes a file twice.
func TestPublishAtOnce(t *testing.T) {
	s, ctx := newSite(t, vcsim.Options{}), t.Context()
	f, c := s.behind()
	var mu sync.Mutex
	written := map[string]int{}
	f.set(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPut && strings.HasSuffix(r.URL.Path, "-delta.vmdk") {
			mu.Lock()
			written[r.URL.Path]++
			mu.Unlock()
		}
		return false
	})
	d := s.datastore(c, "store")
	ls, img := pulled(t, 4)
	var wg sync.WaitGroup
	for _, vch := range []string{"a", "b", "c"} {
		wg.Go(func() {
			st, err := OpenStore(ctx, d, StoreOptions{VCH: vch, Capacity: capacity})
			if err != nil {
				t.Error(err)
				return
			}
			p, err := st.Publish(ctx, ls, img)
			if err != nil {
				t.Error(err)
				return
			}
			s.same(d, ls, img, p.Disks[0])
		})
	}
	wg.Wait()
	for path, n := range written {
		if n != 1 {
			t.Errorf("%s was written %d times", path, n)
		}
	}
}

// An upload that fails for good leaves nothing that looks complete, and what was complete is not sent again.
func TestPublishFails(t *testing.T) {
	s, ctx := newSite(t, vcsim.Options{}), t.Context()
	f, c := s.behind()
	d := s.datastore(c, "store")
	ls, img := pulled(t, 5)
	st := s.store(d, "a")
	for full := int32(1); ; full++ { // the datastore is full from the n-th file on
		var puts atomic.Int32
		f.set(func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodPut || puts.Add(1) <= full {
				return false
			}
			http.Error(w, "full", http.StatusInsufficientStorage)
			return true
		})
		p, err := st.Publish(ctx, ls, img)
		f.set(func(http.ResponseWriter, *http.Request) bool { return false })
		for _, name := range s.files(d, "disks") { // each that has a record is whole, and so is all below it
			if name, ok := strings.CutSuffix(name, ".json"); ok {
				s.whole(d, name)
			}
		}
		if err == nil {
			s.same(d, ls, img, p.Disks[0])
			if full < 6 {
				t.Errorf("done with %d files", full)
			}
			return
		}
		if !strings.Contains(err.Error(), "is full") {
			t.Fatal(err)
		}
		if got := s.files(d, "vchs/a/images"); len(got) != 0 {
			t.Fatalf("an image is there: %v", got)
		}
	}
}

// whole has qemu-img read a disk to its end.
func (s *site) whole(d *Datastore, name string) {
	s.t.Helper()
	remote := filepath.Join(s.folder(d), d.root, disksFolder, name+".vmdk")
	if out, err := exec.Command(oracle.Find(s.t, "qemu-img"), "map", "-f", "vmdk", remote).CombinedOutput(); err != nil {
		s.t.Errorf("qemu-img map %s: %v: %s", name, err, out)
	}
}

// Records are in a store that others write to, too: parents that come back to a disk are an error.
func TestParentsInCircle(t *testing.T) {
	s, ctx := newSite(t, vcsim.Options{}), t.Context()
	st := s.store(s.datastore(s.connect(s.endpoint()), "store"), "one")
	chain := digest.FromString("layer")
	a, b := newName(chain), newName(chain)
	for name, parent := range map[string]string{a: b, b: a} {
		if err := st.putJSON(ctx, path.Join(disksFolder, name+".json"), diskRecord{Chain: chain, Parent: parent, CID: "0000000a"}); err != nil {
			t.Fatal(err)
		}
	}
	if err := st.look(ctx); err != nil {
		t.Fatal(err)
	}
	p := st.begin(ctx, nil)
	defer p.Close()
	if d, err := p.found(chain); err == nil || !strings.Contains(err.Error(), "come back to it") {
		t.Errorf("found %v, %v", d, err)
	}
}
