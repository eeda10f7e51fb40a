package mount

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"vic/diskfs"
	"vic/layerstore"
)

// Node IDs of the catalog that always mean the same. Others are handed out from firstNode on,
// and never twice.
const (
	rootNode = 1 + iota
	imagesNode
	layersNode
	firstNode
)

// fresh is how long the catalog trusts what it has read of the store's names, and the kernel
// what the catalog says.
const fresh = time.Second

// A node is one file of the catalog.
type node struct {
	id   uint32
	path string // in DIR, "" for the root
	refs uint64 // guarded by catalog.mu: lookups that the kernel has not forgotten
	item
}

// An item is what a path of the catalog is.
type item struct {
	mode  uint16 // type and permissions
	link  string // target of a symlink
	data  []byte // of a file
	tree  treeKey
	ino   uint32 // not 0: the path is this file of the tree
	image digest.Digest
	layer digest.Digest
	time  time.Time
	// stays says that the item is as it is as long as its folder is there.
	stays bool
}

func folderItem() item { return item{mode: unix.S_IFDIR | 0o555} }

func linkItem(target string) item { return item{mode: unix.S_IFLNK | 0o777, link: target} }

func fileItem(data []byte) item { return item{mode: unix.S_IFREG | 0o444, data: data, stays: true} }

// A catalog is the files above the trees.
type catalog struct {
	store    Source
	begun    time.Time
	uid, gid uint32

	mu     sync.Mutex
	byPath map[string]*node // guarded by mu, as all below
	byID   map[uint32]*node
	last   uint32 // node ID handed out
	known  *names // nil: to be read anew
}

func newCatalog(s Source) *catalog {
	c := &catalog{store: s, begun: time.Now(), uid: uint32(os.Geteuid()), gid: uint32(os.Getegid()),
		byPath: make(map[string]*node), byID: make(map[uint32]*node), last: firstNode - 1}
	for id, path := range map[uint32]string{rootNode: "", imagesNode: "images", layersNode: "layers"} {
		n := &node{id: id, path: path, item: folderItem(), refs: 1}
		c.byPath[path], c.byID[id] = n, n
	}
	return c
}

// node returns the node with an ID, nil if the kernel should not know it.
func (c *catalog) node(id uint32) *node {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.byID[id]
}

// lookup finds a name in a directory. What it returns is referred to once more, unless it is a
// file of a tree.
func (c *catalog) lookup(dir *node, name string) (*node, error) {
	it, err := c.find(dir, name)
	if err != nil {
		return nil, err
	}
	path := strings.TrimPrefix(dir.path+"/"+name, "/")
	if it.ino != 0 {
		return &node{path: path, item: it}, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.byPath[path]
	if n == nil || n.link != it.link || n.mode != it.mode || !bytes.Equal(n.data, it.data) {
		if c.last++; c.last == 0 {
			c.last = firstNode
		}
		n = &node{id: c.last, path: path, item: it}
		c.byPath[path], c.byID[n.id] = n, n
	}
	n.refs++
	return n, nil
}

// forget takes n references from a node.
func (c *catalog) forget(id uint32, n uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	x := c.byID[id]
	if x == nil || id < firstNode {
		return
	}
	if x.refs -= min(n, x.refs); x.refs == 0 {
		delete(c.byID, id)
		if c.byPath[x.path] == x {
			delete(c.byPath, x.path)
		}
	}
}

// find says what a name in a directory is.
func (c *catalog) find(dir *node, name string) (item, error) {
	switch {
	case dir.id == rootNode && (name == "images" || name == "layers"):
		return folderItem(), nil
	case dir.id == imagesNode:
		if id, ok := parseID(name); ok {
			img, err := c.store.ImageByID(id)
			if err != nil {
				return item{}, err
			}
			it := folderItem()
			it.image, it.time = id, img.Pulled
			return it, nil
		}
		it, err := c.findName("", name)
		if errors.Is(err, fs.ErrNotExist) {
			return c.findShort(name)
		}
		return it, err
	case dir.id == layersNode:
		chain, ok := parseID(name)
		if !ok {
			return item{}, fs.ErrNotExist
		}
		_, err := c.store.Layer(chain)
		it := folderItem()
		it.layer = chain
		return it, err
	case dir.image != "" || dir.layer != "":
		items, err := c.folder(dir)
		if err != nil {
			return item{}, err
		}
		if it, ok := items[name]; ok {
			return it, nil
		}
	case strings.HasPrefix(dir.path, "images/"):
		return c.findName(strings.TrimPrefix(dir.path, "images/"), name)
	}
	return item{}, fs.ErrNotExist
}

func parseID(name string) (digest.Digest, bool) {
	d := digest.NewDigestFromEncoded(digest.SHA256, name)
	return d, d.Validate() == nil
}

// folder returns what is in the folder of an image or of a layer, or in an image's layers.
func (c *catalog) folder(dir *node) (map[string]item, error) {
	if dir.layer != "" {
		return c.layerFolder(dir.layer)
	}
	img, err := c.store.ImageByID(dir.image)
	if err != nil {
		return nil, err
	}
	items := make(map[string]item)
	if strings.HasSuffix(dir.path, "/layers") {
		for i, l := range img.Layers {
			items[fmt.Sprintf("%03d", i)] = linkItem("../../../layers/" + l.Chain.Encoded())
		}
		return items, nil
	}
	layers := folderItem()
	layers.image, layers.stays = dir.image, true
	items["layers"] = layers
	for name, data := range map[string][]byte{"config.json": img.RawConfig, "manifest.json": img.RawManifest} {
		if data != nil {
			items[name] = fileItem(data)
		}
	}
	items["rootfs"] = item{mode: unix.S_IFDIR, tree: treeKey{false, dir.image}, ino: diskfs.RootInode}
	if chain := img.Chain(); chain != "" {
		items["disk.raw"] = linkItem("../../layers/" + chain.Encoded() + "/disk.raw")
	}
	for name, it := range items {
		it.time, it.stays = img.Pulled, true
		items[name] = it
	}
	return items, nil
}

func (c *catalog) layerFolder(chain digest.Digest) (map[string]item, error) {
	l, err := c.store.Layer(chain)
	if err != nil {
		return nil, err
	}
	record, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return nil, err
	}
	own := l // the layer whose disk shows this one
	if l.Empty() && l.Disk != "" {
		if own, err = c.store.Layer(l.Disk); err != nil {
			return nil, err
		}
	}
	items := make(map[string]item)
	if l.DiffID != "" { // else that is all the store has of it
		items["layer.json"] = fileItem(append(record, '\n'))
	}
	if own.In != "" {
		return items, nil // no disk has what it was before the layers above
	}
	key := treeKey{true, chain}
	items["disk.raw"] = item{mode: unix.S_IFREG, tree: key, ino: rawFile}
	if l.Empty() || l.Recipe != nil {
		items["diff"] = item{mode: unix.S_IFDIR, tree: key, ino: diffRoot}
	}
	return items, nil
}

// list returns the names in a directory, sorted, and what each is.
func (c *catalog) list(dir *node) ([]string, map[string]item, error) {
	items := make(map[string]item)
	var err error
	switch {
	case dir.id == rootNode:
		items["images"], items["layers"] = folderItem(), folderItem()
	case dir.id == layersNode:
		var chains []digest.Digest
		chains, err = c.store.Chains()
		for _, chain := range chains {
			items[chain.Encoded()] = folderItem()
		}
	case dir.image != "" || dir.layer != "":
		items, err = c.folder(dir)
	default:
		var known *names
		if known, err = c.names(); err == nil {
			for name, it := range known.folders[strings.TrimPrefix(strings.TrimPrefix(dir.path, "images"), "/")] {
				items[name] = it
			}
		}
		if dir.id == imagesNode && err == nil {
			var ids []digest.Digest
			ids, err = c.store.ImageIDs()
			for _, id := range ids {
				items[id.Encoded()] = folderItem()
			}
		}
	}
	if err != nil {
		return nil, nil, err
	}
	list := make([]string, 0, len(items))
	for name := range items {
		list = append(list, name)
	}
	slices.Sort(list)
	return list, items, nil
}

// inode returns the number that stat(2) gives for a path of the catalog: the same at every
// mount, and never that of a tree's file.
func inode(path string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(path))
	return h.Sum64() | 1<<63
}

// names is what the store's names make of DIR/images.
type names struct {
	read    time.Time
	folders map[string]map[string]item // by path in images, "" for itself
}

// names returns the store's names as they were not long ago.
func (c *catalog) names() (*names, error) {
	c.mu.Lock()
	known := c.known
	c.mu.Unlock()
	now := time.Now()
	if known != nil && now.Sub(known.read) < fresh {
		return known, nil
	}
	refs, err := c.store.Names()
	if err != nil {
		return nil, err
	}
	known = &names{read: now, folders: map[string]map[string]item{"": {}}}
	for id, list := range refs {
		for _, ref := range list {
			known.add(ref.String(), id)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.known = known
	return known, nil
}

// changed makes the catalog read the names anew.
func (c *catalog) changed() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.known = nil
}

// add puts a name into its folders.
func (n *names) add(ref string, id digest.Digest) {
	parts := strings.Split(ref, "/")
	dir := ""
	for i, part := range parts {
		part = fileName(part)
		if i == len(parts)-1 {
			n.folders[dir][part] = linkItem(strings.Repeat("../", i) + id.Encoded())
			return
		}
		if _, ok := n.folders[dir][part]; !ok {
			n.folders[dir][part] = folderItem()
		}
		if dir = strings.TrimPrefix(dir+"/"+part, "/"); n.folders[dir] == nil {
			n.folders[dir] = make(map[string]item)
		}
	}
}

// maxName is the longest file name that Linux takes.
const maxName = 255

// fileName returns the file name of a part of a reference.
func fileName(part string) string {
	if len(part) <= maxName {
		return part
	}
	return part[:maxName-65] + "~" + digest.FromString(part).Encoded()
}

// findName finds one part of a name in the folder of those before it.
func (c *catalog) findName(dir, part string) (item, error) {
	known, err := c.names()
	if err != nil {
		return item{}, err
	}
	if it, ok := known.folders[dir][part]; ok {
		return it, nil
	}
	return item{}, fs.ErrNotExist
}

// findShort finds what is not listed: a name as docker has it, or the beginning of an ID.
func (c *catalog) findShort(ref string) (item, error) {
	img, err := c.store.Image(ref)
	switch {
	case errors.Is(err, layerstore.ErrNotFound), errors.Is(err, layerstore.ErrAmbiguous):
		return item{}, fs.ErrNotExist
	case err != nil:
		return item{}, err
	}
	return linkItem(img.ID.Encoded()), nil
}
