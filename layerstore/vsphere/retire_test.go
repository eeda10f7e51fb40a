package vsphere

import (
	"testing"

	"vic/bench/corpus"
	"vic/bench/vcsim"
	"vic/layerstore"
)

// A VCH that is removed takes along what no other needs, and the last one the store.
func TestRetire(t *testing.T) {
	s, ctx := newSite(t, vcsim.Options{}), t.Context()
	d := s.datastore(s.connect(s.endpoint()), "store")
	retire := func(vch string) {
		t.Helper()
		for range 2 {
			if err := Retire(ctx, d, vch); err != nil {
				t.Fatal(err)
			}
		}
	}
	retire("one") // no store
	ls, img := pulled(t, 2)
	more := pull(t, ls, corpus.Shape{Layers: 1, Files: 10, Sizes: corpus.Fixed(5000), Compression: "zstd"})
	one, two := s.store(d, "one"), s.store(d, "two")
	var disks []string // of img
	for _, x := range []struct {
		st  *Store
		img *layerstore.Image
	}{{two, img}, {one, img}, {one, more}} {
		p, err := x.st.Publish(ctx, ls, x.img)
		if err != nil {
			t.Fatal(err)
		}
		if x.img == img {
			disks = p.Disks
		}
	}
	retire("one")
	s.same(d, ls, img, disks[0])
	if got := s.files(d, "disks"); len(got) != 2+3*len(disks) {
		t.Errorf("left: %v", got)
	}
	retire("two")
	if got := s.files(d, "."); len(got) != 0 {
		t.Errorf("left by the last: %v", got)
	}
	if err := Retire(ctx, d, "../x"); err == nil {
		t.Error("a VCH of another folder")
	}
}
