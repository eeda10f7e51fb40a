package mount

import (
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
)

// maxTrees is how many trees may be open before the kernel is asked to forget the one that was
// not used for longest.
const maxTrees = 32

// A treeKey says what a tree is of.
type treeKey struct {
	isLayer bool
	id      digest.Digest // an image's ID or a layer's chain ID
}

// place returns where the catalog has the tree.
func (k treeKey) place() (dir uint64, name string) {
	if k.isLayer {
		return layersNode, k.id.Encoded()
	}
	return imagesNode, k.id.Encoded()
}

// A slot is a tree that the kernel knows files of.
type slot struct {
	key  treeKey
	num  uint32
	used atomic.Int64 // when it was used last, in the forest's time
	refs uint64       // guarded by forest.mu: lookups that the kernel has not forgotten

	mu   sync.Mutex
	tree tree // guarded by mu; nil: not open yet
}

// A forest is the trees that are open.
type forest struct {
	store Source
	most  int // trees, as maxTrees says
	clock atomic.Int64

	mu    sync.RWMutex
	byNum map[uint32]*slot // guarded by mu
	byKey map[treeKey]*slot
}

func newForest(s Source) *forest {
	return &forest{store: s, most: maxTrees, byNum: make(map[uint32]*slot), byKey: make(map[treeKey]*slot)}
}

// take adds a reference to a tree, opening it if need be. After an error there is none.
func (f *forest) take(key treeKey) (*slot, tree, error) {
	f.mu.Lock()
	s := f.byKey[key]
	if s == nil {
		s = &slot{key: key, num: f.number(key)}
		f.byNum[s.num], f.byKey[key] = s, s
	}
	s.refs++
	f.mu.Unlock()
	t, err := s.open(f.store)
	if err != nil {
		f.forget(s.num, 1)
		return nil, nil, err
	}
	f.touch(s)
	return s, t, nil
}

// number chooses the number of a tree. The caller holds f.mu.
func (f *forest) number(key treeKey) uint32 {
	seed := digest.FromString(key.id.String())
	if key.isLayer {
		seed = digest.FromString("layer " + key.id.String())
	}
	b, err := hex.DecodeString(seed.Encoded()[:8])
	if err != nil {
		panic("mount: digest " + seed + " is not hexadecimal")
	}
	n := binary.BigEndian.Uint32(b) &^ (1 << 31)
	for ; n == 0 || f.byNum[n] != nil; n = (n + 1) &^ (1 << 31) {
	}
	return n
}

func (s *slot) open(store Source) (tree, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tree != nil {
		return s.tree, nil
	}
	var t tree
	var err error
	if s.key.isLayer {
		t, err = openLayer(store, s.key.id)
	} else {
		t, err = openImage(store, s.key.id)
	}
	if err != nil {
		return nil, err // t is not nil then, as an interface
	}
	s.tree = t
	return t, nil
}

// openImage opens an image's root file system.
func openImage(store Source, id digest.Digest) (*diskTree, error) {
	img, err := store.ImageByID(id)
	if err != nil {
		return nil, err
	}
	return openTree(store, img.Chain())
}

func (f *forest) touch(s *slot) { s.used.Store(f.clock.Add(1)) }

// tree returns the tree with a number, nil if the kernel should not know it.
func (f *forest) tree(num uint32) tree {
	f.mu.RLock()
	s := f.byNum[num]
	f.mu.RUnlock()
	if s == nil {
		return nil
	}
	f.touch(s)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tree
}

// hold adds n references to a tree that has some already.
func (f *forest) hold(num uint32, n uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if s := f.byNum[num]; s != nil {
		s.refs += n
	}
}

// forget takes n references from a tree and closes it with the last. Nothing reads it then:
// a read needs a file that the kernel knows.
func (f *forest) forget(num uint32, n uint64) {
	f.mu.Lock()
	s := f.byNum[num]
	if s == nil {
		f.mu.Unlock()
		return
	}
	s.refs -= min(n, s.refs)
	last := s.refs == 0
	if last {
		delete(f.byNum, num)
		delete(f.byKey, s.key)
	}
	f.mu.Unlock()
	if last {
		s.close()
	}
}

func (s *slot) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tree != nil {
		s.tree.close() // read only
		s.tree = nil
	}
}

// idle returns the trees that were not used for longest, as many as there are too many. They
// count as used then: the next call returns others, should somebody keep these open.
func (f *forest) idle() []treeKey {
	f.mu.RLock()
	defer f.mu.RUnlock()
	slots := slices.Collect(maps.Values(f.byKey))
	if len(slots) <= f.most {
		return nil
	}
	slices.SortFunc(slots, func(a, b *slot) int { return cmp.Compare(a.used.Load(), b.used.Load()) })
	var keys []treeKey
	for _, s := range slots[:len(slots)-f.most] {
		f.touch(s)
		keys = append(keys, s.key)
	}
	return keys
}

// keys returns what the open trees are of.
func (f *forest) keys() []treeKey {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return slices.Collect(maps.Keys(f.byKey))
}

// closeAll closes all trees. The kernel knows none any more.
func (f *forest) closeAll() {
	f.mu.Lock()
	slots := f.byNum
	f.byNum, f.byKey = make(map[uint32]*slot), make(map[treeKey]*slot)
	f.mu.Unlock()
	for _, s := range slots {
		s.close()
	}
}
