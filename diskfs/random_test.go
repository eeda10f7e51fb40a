package diskfs

import (
	"archive/tar"
	"bytes"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestModel applies chains of random layers, and compares with the model and, where they
// agree on what a layer means, with containerd after each. A chain that fails is made as
// small as it gets, and printed as a case to put into a table.
func TestModel(t *testing.T) {
	t.Parallel()
	r, chains := random(t), 80
	if testing.Short() {
		chains = 10
	}
	var work sync.WaitGroup
	defer work.Wait()
	slots := make(chan struct{}, runtime.GOMAXPROCS(0))
	for n := range chains {
		alike := n%2 == 0
		layers := randomChain(r, alike)
		slots <- struct{}{}
		work.Go(func() {
			defer func() { <-slots }()
			msg := tryChain(t, layers, alike)
			if msg == "" || t.Failed() {
				return
			}
			t.Errorf("chain %d: %s", n, msg)
			small := shrink(layers, func(l []layer) bool { return tryChain(t, l, alike) != "" })
			t.Errorf("The smallest chain that fails:\n%s\n%s", source(small), tryChain(t, small, alike))
		})
	}
}

// randomChain invents up to ten layers, each of which can be applied to those before. If
// they are to be alike, they are such that containerd makes the same of them.
func randomChain(r *rand.Rand, alike bool) (layers []layer) {
	m := newModel()
	for range 1 + r.IntN(10) {
		l := m.valid(randomLayer(r, m))
		for alike {
			kept := m.valid(m.alike(l))
			if len(kept) == len(l) {
				break
			}
			l = kept
		}
		if _, err := m.apply(l); err != nil {
			panic(err)
		}
		layers = append(layers, l)
	}
	return layers
}

// valid leaves out of a layer what must be refused.
func (m *model) valid(l layer) layer {
	for {
		bad, err := m.clone().apply(l)
		if err == nil {
			return l
		}
		l = slices.Delete(slices.Clone(l), bad, bad+1)
	}
}

// tryChain tells how a chain of layers fails, "" if it does not, or if it is none.
func tryChain(t *testing.T, layers []layer, alike bool) string {
	for m, k := newModel(), 0; k < len(layers); k++ {
		if alike && len(m.alike(layers[k])) != len(layers[k]) {
			return ""
		}
		if _, err := m.apply(layers[k]); err != nil {
			return ""
		}
	}
	return probe(t, func(t testing.TB) { runChain(t, layers, alike) })
}

func runChain(t testing.TB, layers []layer, alike bool) {
	carried, reopened := newChain(t, smallDisk), newChain(t, smallDisk)
	reopened.forgetful = true
	m, root, begun := newModel(), t.TempDir(), time.Now()
	for k, l := range layers {
		if _, err := m.apply(l); err != nil {
			t.Fatal(err)
		}
		tar := l.tar(t)
		carried.apply(bytes.NewReader(tar))
		reopened.apply(bytes.NewReader(tar))
		if digest(t, carried.disk) != digest(t, reopened.disk) {
			t.Errorf("the disk depends on whether the file system was kept in memory")
		}
		checkFS(t, carried.fs)
		got := fsTree(t, carried.fs)
		compareTrees(t, "diskfs", got, "model", m.tree())
		if alike {
			if err := containerdApply(t, root, whiteoutsFirst(l).tar(t)); err != nil {
				t.Fatal(err)
			}
			j := judgement{hostTree(t, root), begun}
			j.excuse(got)
			compareTrees(t, "diskfs", got, "containerd", j.tree)
		}
		if t.Failed() {
			t.Fatalf("layer %d of %d", k+1, len(layers))
		}
	}
	fsck(t, carried.path)
}

// whiteoutsFirst is the same layer in the order that containerd needs.
func whiteoutsFirst(l layer) layer {
	l = slices.Clone(l)
	slices.SortStableFunc(l, func(a, b item) int {
		first := func(i item) int {
			if isWhiteout(i) {
				return 0
			}
			return 1
		}
		return first(a) - first(b)
	})
	return l
}

func isWhiteout(i item) bool {
	_, base := splitPath(strings.TrimSuffix(i.h.Name, "/"))
	return strings.HasPrefix(base, whiteoutPrefix)
}

// alike leaves out of a layer what containerd is known to make something else of: see
// differences for what and why.
func (m *model) alike(l layer) layer {
	m = m.clone()
	kept := make([]bool, len(l))
	for k, i := range l {
		if isWhiteout(i) {
			kept[k] = m.hide(i)
		}
	}
	type place struct {
		dir  *modelNode
		name string
	}
	taken, dated := map[place]bool{}, map[*modelNode]bool{}
	for k, i := range l {
		if isWhiteout(i) {
			continue
		}
		path := parts(i.h.Name)
		dir, base := path[:len(path)-1], path[len(path)-1]
		_, real := m.real(dir)
		d, err := m.resolve(dir, true, nil)
		if err != nil {
			continue
		}
		old, at := d.children[base], place{d, base}
		isDir := i.h.Typeflag == tar.TypeDir
		switch {
		case taken[at]: // twice in a layer
			continue
		case isDir && !real: // it is dated at the end, when the symlinks may have changed
			continue
		case isDir && old != nil && old.children != nil:
			if !covers(i.h.PAXRecords, old.i.h.PAXRecords) { // attributes are added
				continue
			}
		case old != nil && old.holds(func(n *modelNode) bool { return dated[n] }):
			continue
		}
		if i.h.Typeflag == tar.TypeLink { // what is in the way is removed first
			to := parts(i.h.Linkname)
			td, err := m.resolve(to[:len(to)-1], false, nil)
			if err != nil {
				continue
			}
			target := td.children[to[len(to)-1]]
			if target == nil || old != nil && old.holds(func(n *modelNode) bool { return n == target }) {
				continue
			}
		}
		if m.entry(i) != nil {
			continue
		}
		taken[at] = true
		if isDir {
			dated[d.children[base]] = true
		}
		kept[k] = true
	}
	var out layer
	for k, i := range l {
		dir, base := splitPath(i.h.Name)
		_, real := m.real(parts(dir))
		if kept[k] && (base != opaqueName || real) { // else its folder is made, at another time
			out = append(out, i)
		}
	}
	return out
}

// hide does what a whiteout does, if its folder is there and no symlink leads to it.
func (m *model) hide(i item) bool {
	dir, base := splitPath(strings.TrimSuffix(i.h.Name, "/"))
	d, ok := m.real(parts(dir))
	if !ok {
		return false
	}
	if base == opaqueName {
		clear(d.children)
	} else {
		delete(d.children, strings.TrimPrefix(base, whiteoutPrefix))
	}
	return true
}

// real returns the directory at a path, and whether it is there and no symlink leads to it.
func (m *model) real(path []string) (*modelNode, bool) {
	at := m.root
	for _, name := range path {
		if at = at.children[name]; at == nil || at.children == nil {
			return nil, false
		}
	}
	return at, true
}

// holds tells whether a node, or one below it, is such.
func (n *modelNode) holds(such func(*modelNode) bool) bool {
	if such(n) {
		return true
	}
	for _, c := range n.children {
		if c.holds(such) {
			return true
		}
	}
	return false
}

// covers tells whether a has all keys of b.
func covers(a, b map[string]string) bool {
	for k := range b {
		if _, ok := a[k]; !ok {
			return false
		}
	}
	return true
}
