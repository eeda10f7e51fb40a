package mount

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"vic/diskfs"
	"vic/layerstore"
)

// A tree is the files of an image or of a layer. Errors are fs.ErrNotExist for a name that is
// not there, or those of the disk. Its methods may run concurrently.
type tree interface {
	stat(ino uint32) (diskfs.Stat, error)
	lookup(dir uint32, name string) (uint32, error)
	names(dir uint32) (names []diskfs.Name, parent uint32, err error)
	readLink(ino uint32) (string, error)
	xattrs(ino uint32) ([]diskfs.Xattr, error)
	open(ino uint32) (content, error)
	close() error
}

// What a tree may keep in memory of what it has read: enough for a walk, which seldom comes
// back.
const (
	treeCache = 4 << 20 // bytes of metadata
	treeNames = 1 << 15 // names of directories
	treeFiles = 256     // maps of files' blocks
)

// A diskTree is a file system on a disk of the store: the tree of an image, and what that of a
// layer stands on.
type diskTree struct {
	disk Disk
	fs   *diskfs.FS

	mu    sync.Mutex
	files map[uint32]content // guarded by mu: those that were read last
}

// openTree opens the file system that a layer and all below it show.
func openTree(s Source, chain digest.Digest) (*diskTree, error) {
	disk, err := s.Disk(chain)
	if err != nil {
		return nil, err
	}
	f, err := diskfs.Open(disk, disk.Capacity())
	if err != nil {
		disk.Close()
		return nil, fmt.Errorf("open file system of layer %s: %w", chain, err)
	}
	f.LimitCache(treeCache, treeNames)
	return &diskTree{disk: disk, fs: f, files: make(map[uint32]content)}, nil
}

func (t *diskTree) close() error                              { return t.disk.Close() }
func (t *diskTree) stat(ino uint32) (diskfs.Stat, error)      { return t.fs.Node(ino).Stat() }
func (t *diskTree) readLink(ino uint32) (string, error)       { return t.fs.Node(ino).ReadLink() }
func (t *diskTree) xattrs(ino uint32) ([]diskfs.Xattr, error) { return t.fs.Node(ino).Xattrs() }

func (t *diskTree) lookup(dir uint32, name string) (uint32, error) {
	return t.fs.Node(dir).Lookup(name)
}

func (t *diskTree) names(dir uint32) ([]diskfs.Name, uint32, error) { return t.fs.Node(dir).Names() }

func (t *diskTree) open(ino uint32) (content, error) { return t.openNode(ino, t.fs.Node(ino)) }

// openNode opens a file and keeps it, under a number, for the reads to come.
func (t *diskTree) openNode(ino uint32, n diskfs.Node) (content, error) {
	t.mu.Lock()
	c := t.files[ino]
	t.mu.Unlock()
	if c != nil {
		return c, nil
	}
	f, err := n.Open()
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	c = fileContent{f, t.disk, info.Size()}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.files) >= treeFiles {
		clear(t.files)
	}
	t.files[ino] = c
	return c, nil
}

// Files of the tree of a layer.
const (
	rawFile  = 1
	diffRoot = 2 // and the n-th name of the changeset is this + n
)

// A layerTree is a layer: its disk, and its changeset once that is asked for.
type layerTree struct {
	*diskTree
	store Source
	layer *layerstore.Layer

	mu      sync.Mutex
	outline *diskfs.Outline // guarded by mu; nil: not read yet
	blocks  int64           // guarded by mu: stored bytes of the disk; -1: not counted yet
}

func openLayer(s Source, chain digest.Digest) (*layerTree, error) {
	l, err := s.Layer(chain)
	if err != nil {
		return nil, err
	}
	t, err := openTree(s, chain)
	if err != nil {
		return nil, err
	}
	return &layerTree{diskTree: t, store: s, layer: l, blocks: -1}, nil
}

// changeset returns the outline, reading it the first time.
func (t *layerTree) changeset() (*diskfs.Outline, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.outline != nil {
		return t.outline, nil
	}
	var err error
	if t.layer.Empty() {
		t.outline, err = t.fs.ReadOutline(strings.NewReader(""))
		return t.outline, err
	}
	r, err := t.store.Skeleton(t.layer)
	if err != nil {
		return nil, err
	}
	t.outline, err = t.fs.ReadOutline(r)
	return t.outline, errors.Join(err, r.Close())
}

// rawStat describes disk.raw. It is for root alone: it has what the files' modes protect.
func (t *layerTree) rawStat() (diskfs.Stat, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.blocks < 0 {
		n, err := diskContent{t.disk}.stored()
		if err != nil {
			return diskfs.Stat{}, err
		}
		t.blocks = n / 512
	}
	return diskfs.Stat{Mode: unix.S_IFREG | 0o400, Links: 1, Size: t.disk.Capacity(), Blocks: t.blocks, Mtime: time.Unix(0, 0), Atime: time.Unix(0, 0), Ctime: time.Unix(0, 0)}, nil
}

func (t *layerTree) stat(ino uint32) (diskfs.Stat, error) {
	if ino == rawFile {
		return t.rawStat()
	}
	o, err := t.changeset()
	if err != nil {
		return diskfs.Stat{}, err
	}
	return o.Stat(ino - diffRoot)
}

func (t *layerTree) lookup(dir uint32, name string) (uint32, error) {
	o, err := t.changeset()
	if err != nil {
		return 0, err
	}
	i, err := o.Lookup(dir-diffRoot, name)
	return i + diffRoot, err
}

func (t *layerTree) names(dir uint32) ([]diskfs.Name, uint32, error) {
	o, err := t.changeset()
	if err != nil {
		return nil, 0, err
	}
	names, parent, err := o.Names(dir - diffRoot)
	for i := range names {
		names[i].Inode += diffRoot
	}
	return names, parent + diffRoot, err
}

// node returns the file that a name of the changeset is; fs.ErrNotExist for a whiteout.
func (t *layerTree) node(ino uint32) (diskfs.Node, error) {
	o, err := t.changeset()
	if err != nil {
		return diskfs.Node{}, err
	}
	return o.Node(ino - diffRoot)
}

func (t *layerTree) readLink(ino uint32) (string, error) {
	n, err := t.node(ino)
	if err != nil {
		return "", err
	}
	return n.ReadLink()
}

func (t *layerTree) xattrs(ino uint32) ([]diskfs.Xattr, error) {
	if ino == rawFile {
		return nil, nil
	}
	n, err := t.node(ino)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return n.Xattrs()
}

func (t *layerTree) open(ino uint32) (content, error) {
	if ino == rawFile {
		return diskContent{t.disk}, nil
	}
	n, err := t.node(ino)
	if errors.Is(err, fs.ErrNotExist) {
		return newBytes(nil), nil
	}
	if err != nil {
		return nil, err
	}
	return t.openNode(ino, n)
}

// setAttr translates a Stat.
func setAttr(a *fuse.Attr, s diskfs.Stat) {
	a.Size, a.Blocks, a.Blksize = uint64(s.Size), uint64(s.Blocks), diskfs.BlockSize
	a.Mode, a.Nlink, a.Uid, a.Gid = uint32(s.Mode), uint32(s.Links), s.UID, s.GID
	a.Rdev = s.Minor&0xff | s.Major<<8 | s.Minor&^0xff<<12
	a.SetTimes(&s.Atime, &s.Mtime, &s.Ctime)
}
