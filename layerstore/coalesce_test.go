package layerstore

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

func TestParentIndex(t *testing.T) {
	for _, bound := range []int{minDepth, 5, 6, 7, 16, DefaultDepth, 100, maxDepth} {
		depth := []int{0} // of the chain of each disk, the base disk not counted
		for n := 1; n <= 700; n++ {
			p := parentIndex(n, bound)
			if p < 0 || p >= n {
				t.Fatalf("bound %d: disk %d stands on %d", bound, n, p)
			}
			for i := n - 1; i != p; i = parentIndex(i, bound) {
				if i < p {
					t.Fatalf("bound %d: disk %d stands on %d, which is not in the chain of %d", bound, n, p, n-1)
				}
			}
			if depth = append(depth, depth[p]+1); depth[n] > bound-2 {
				t.Fatalf("bound %d: disk %d has a chain of %d layers", bound, n, depth[n])
			}
		}
	}
	if p := parentIndex(1000, 0); p != 999 {
		t.Errorf("without a bound, disk 1000 stands on %d", p)
	}
}

// How often each layer's grains are written, by the number of layers.
func TestParentIndexCost(t *testing.T) {
	copies := make([]int, 701)
	for n := 1; n <= 700; n++ {
		for i := parentIndex(n, DefaultDepth) + 1; i <= n; i++ {
			copies[i]++
		}
		want := 1
		switch {
		case n > 693:
			want = 4
		case n > 133:
			want = 3
		case n > 28:
			want = 2
		}
		if got := slices.Max(copies); got > want {
			t.Fatalf("%d layers: a layer is written %d times, want %d", n, got, want)
		}
	}
	if copies[14] != 1 {
		t.Errorf("layer 14 is written %d times, want 1", copies[14])
	}
}

// deepLayers makes n layers that add, replace, keep and remove files.
func deepLayers(t *testing.T, n int) []memLayer {
	var layers []memLayer
	for i := range n {
		entries := []tarEntry{
			file(fmt.Sprintf("layer-%03d", i), fmt.Sprint(i)),
			file("top", fmt.Sprint(i)),
			file("same", string(randomBytes(7, 200_000))),
			file(fmt.Sprintf("turn-%d", i%5), string(randomBytes(uint64(i), 10_000*(i%7)))),
		}
		if i > 3 && i%4 == 0 {
			entries = append(entries, file(fmt.Sprintf(".wh.layer-%03d", i-3), ""))
		}
		layers = append(layers, memLayer{tar: makeTar(t, entries...)})
	}
	return layers
}

// As many layers as docker allows, and two on top of them later: their parent's file system
// is read through the whole chain, which stays within its bound.
func TestPullDeep(t *testing.T) {
	s := openStore(t, Options{})
	layers := deepLayers(t, 127)
	pullImage(t, s, makeImage(t, layers[:125]...), "deep:125")
	src := makeImage(t, layers...)
	img := pullImage(t, s, src, "deep:127")
	if n := src.total(); n != 2 {
		t.Errorf("%d blobs fetched, want 2", n)
	}
	sameTrees(t, s, img, src)
	files := snapshot(t, s)
	uses, err := s.Layers()
	if err != nil {
		t.Fatal(err)
	}
	deepest := 0
	for _, l := range uses {
		deepest = max(deepest, l.Depth)
	}
	if deepest != DefaultDepth-1 {
		t.Errorf("the deepest chain has %d disks, want %d: one less than the bound, for the container", deepest, DefaultDepth-1)
	}

	other := makeImage(t, append(slices.Clone(layers[:100]), memLayer{tar: makeTar(t, file("other", "x"))})...)
	twin := pullImage(t, s, other, "deep:twin")
	if n := other.total(); n != 1 {
		t.Errorf("%d blobs fetched of an image that shares all but its last layer, want 1", n)
	}
	sameTrees(t, s, twin, other)
	after := snapshot(t, s)
	for name, sum := range files {
		if after[name] != sum {
			t.Errorf("%s changed", name)
		}
	}
	checkClean(t, s)
}

// Merged disks do not depend on what was pulled before, nor in which order blobs came, and
// layers' tars are rebuilt from them.
func TestCoalesceSame(t *testing.T) {
	layers := deepLayers(t, 20)
	layers[9] = memLayer{tar: make([]byte, 4096)} // empty: no disk
	var want map[string]string
	for run := range 4 {
		s := openStore(t, Options{Depth: 6, Parallel: 20})
		for _, n := range [][]int{{20}, {11, 20}, {3, 4, 5, 9, 10, 19, 20}, {20}}[run] {
			src := makeImage(t, layers[:n]...)
			if run == 3 {
				src.hook = inOrder(t, src, rand.New(rand.NewPCG(uint64(run), 0)))
			}
			img := pullImage(t, s, src, "same:"+fmt.Sprint(n))
			if run == 0 {
				sameTrees(t, s, img, src)
			}
		}
		checkClean(t, s) // deep: rebuilds every tar
		got := snapshot(t, s)
		maps.DeleteFunc(got, func(name, _ string) bool { return len(name) < 6 || name[:6] != "disks/" })
		if want == nil {
			want = got
		}
		if !maps.Equal(got, want) {
			t.Errorf("run %d: other disks than with one pull", run)
		}
	}
	if _, err := Open(t.TempDir(), Options{Depth: 3}); err == nil {
		t.Error("a store with chains of 3 disks was made")
	}
}
