package mount

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"vic/diskfs"
)

const (
	// forever is how long the kernel may keep what it knows of a tree.
	forever = 24 * time.Hour
	// requestSize is the longest read that the kernel asks for: a reply, with its header, has
	// to fit into a pipe of a megabyte, the largest that everybody may have.
	requestSize = 512 << 10
	// spliceSize is the read from which splicing costs less than copying.
	spliceSize = 32 << 10
)

// A server answers the kernel.
type server struct {
	fuse.RawFileSystem // what is not here is not supported
	store              Source
	log                *slog.Logger
	catalog            *catalog
	forest             *forest
	kernel             *fuse.Server  // set before the first request
	crowded            chan struct{} // holds a token when there may be too many trees

	mu       sync.Mutex
	listings map[uint64]*listing // guarded by mu: open directories by handle
	handle   uint64              // handed out last
}

func newServer(s Source, log *slog.Logger) *server {
	return &server{RawFileSystem: fuse.NewDefaultRawFileSystem(), store: s, log: log, catalog: newCatalog(s), forest: newForest(s),
		crowded: make(chan struct{}, 1), listings: make(map[uint64]*listing)}
}

// String names the file system's type.
func (s *server) String() string { return "vic" }

// nodeID joins the number of a tree, 0 for the catalog, and that of a file in it.
func nodeID(tree, ino uint32) uint64 { return uint64(tree)<<32 | uint64(ino) }

func split(id uint64) (tree, ino uint32) { return uint32(id >> 32), uint32(id) }

// errStale is the error for a node that the kernel should have forgotten.
var errStale = errors.New("no such node")

// treeOf returns the tree of a node that is not of the catalog.
func (s *server) treeOf(num uint32) (tree, error) {
	if t := s.forest.tree(num); t != nil {
		return t, nil
	}
	return nil, errStale
}

func (s *server) catalogNode(ino uint32) (*node, error) {
	if n := s.catalog.node(ino); n != nil {
		return n, nil
	}
	return nil, errStale
}

// status translates an error, and logs what is not to be expected.
func (s *server) status(op string, id uint64, err error) fuse.Status {
	switch {
	case err == nil:
		return fuse.OK
	case errors.Is(err, fs.ErrNotExist):
		return fuse.ENOENT
	case errors.Is(err, errStale):
		return fuse.Status(unix.ESTALE)
	case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE):
		return fuse.Status(unix.ENFILE)
	}
	s.log.Warn("cannot read", "op", op, "node", id, "error", err)
	return fuse.EIO
}

// recovered answers a request that met a broken invariant.
func (s *server) recovered(what any) fuse.Status {
	s.log.Error("panic while answering the kernel", "panic", what, "stack", string(debug.Stack()))
	return fuse.EIO
}

// Lookup finds a name in a directory.
func (s *server) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if len(name) > maxName {
		return fuse.Status(unix.ENAMETOOLONG)
	}
	num, ino := split(h.NodeId)
	if num == 0 {
		return s.status("lookup "+name, h.NodeId, s.lookupCatalog(ino, name, out))
	}
	t, err := s.treeOf(num)
	if err != nil {
		return s.status("lookup", h.NodeId, err)
	}
	child, err := t.lookup(ino, name)
	if errors.Is(err, fs.ErrNotExist) {
		out.SetEntryTimeout(forever) // and no node: it will never be there
		return fuse.OK
	}
	if err == nil {
		err = s.entry(num, t, child, out)
	}
	return s.status("lookup "+name, h.NodeId, err)
}

func (s *server) lookupCatalog(dir uint32, name string, out *fuse.EntryOut) error {
	d, err := s.catalogNode(dir)
	if err != nil {
		return err
	}
	n, err := s.catalog.lookup(d, name)
	if err != nil {
		return err
	}
	if n.ino == 0 {
		s.catalogAttr(n, &out.Attr)
		out.NodeId = nodeID(0, n.id)
		ttl := n.ttl()
		out.SetEntryTimeout(ttl)
		out.SetAttrTimeout(ttl)
		return nil
	}
	sl, t, err := s.forest.take(n.tree)
	if err != nil {
		return err
	}
	defer s.forest.forget(sl.num, 1) // entry takes what the kernel has
	select {
	case s.crowded <- struct{}{}:
	default:
	}
	return s.entry(sl.num, t, n.ino, out)
}

// ttl is how long the kernel may believe the node.
func (n *node) ttl() time.Duration {
	if n.stays {
		return forever
	}
	return fresh
}

// entry describes a file of a tree to the kernel, which refers to it from then on.
func (s *server) entry(num uint32, t tree, ino uint32, out *fuse.EntryOut) error {
	st, err := t.stat(ino)
	if err != nil {
		return err
	}
	s.fill(num, ino, st, out)
	return nil
}

// fill is entry for a file that has been described.
func (s *server) fill(num, ino uint32, st diskfs.Stat, out *fuse.EntryOut) {
	setAttr(&out.Attr, st)
	out.NodeId = nodeID(num, ino)
	out.Ino = statInode(num, ino, st)
	out.SetEntryTimeout(forever)
	out.SetAttrTimeout(forever)
	s.forest.hold(num, 1)
}

// statInode is what stat(2) gives as the inode number: that of the file system on the disk,
// so that hard links have one, or for what it does not have, one that is none of its numbers.
func statInode(num, ino uint32, st diskfs.Stat) uint64 {
	if st.Inode != 0 {
		return nodeID(num, st.Inode)
	}
	return nodeID(num, ino|1<<31)
}

func (s *server) catalogAttr(n *node, a *fuse.Attr) {
	t := n.time
	if t.IsZero() {
		t = s.catalog.begun
	}
	a.Ino, a.Mode, a.Nlink = inode(n.path), uint32(n.mode), 1
	if n.mode&unix.S_IFMT == unix.S_IFDIR {
		a.Nlink = 2
	}
	a.Uid, a.Gid, a.Size, a.Blksize = s.catalog.uid, s.catalog.gid, uint64(len(n.link)+len(n.data)), diskfs.BlockSize
	a.Blocks = (uint64(len(n.data)) + 511) / 512
	a.SetTimes(&t, &t, &t)
}

// Forget takes back references that lookups gave.
func (s *server) Forget(id, n uint64) {
	if num, ino := split(id); num == 0 {
		s.catalog.forget(ino, n)
	} else {
		s.forest.forget(num, n)
	}
}

// GetAttr describes a file.
func (s *server) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	num, ino := split(in.NodeId)
	if num == 0 {
		n, err := s.catalogNode(ino)
		if err == nil {
			s.catalogAttr(n, &out.Attr)
			out.SetTimeout(n.ttl())
		}
		return s.status("stat", in.NodeId, err)
	}
	t, err := s.treeOf(num)
	if err != nil {
		return s.status("stat", in.NodeId, err)
	}
	st, err := t.stat(ino)
	if err == nil {
		setAttr(&out.Attr, st)
		out.Ino = statInode(num, ino, st)
		out.SetTimeout(forever)
	}
	return s.status("stat", in.NodeId, err)
}

// Readlink returns the target of a symlink.
func (s *server) Readlink(_ <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	num, ino := split(h.NodeId)
	if num == 0 {
		n, err := s.catalogNode(ino)
		if err != nil {
			return nil, s.status("readlink", h.NodeId, err)
		}
		return []byte(n.link), fuse.OK
	}
	t, err := s.treeOf(num)
	if err != nil {
		return nil, s.status("readlink", h.NodeId, err)
	}
	target, err := t.readLink(ino)
	return []byte(target), s.status("readlink", h.NodeId, err)
}

// xattrsOf returns the extended attributes of a node.
func (s *server) xattrsOf(id uint64) ([]diskfs.Xattr, error) {
	num, ino := split(id)
	if num == 0 {
		return nil, nil
	}
	t, err := s.treeOf(num)
	if err != nil {
		return nil, err
	}
	return t.xattrs(ino)
}

// GetXAttr copies an extended attribute to p, or says how long it is.
func (s *server) GetXAttr(_ <-chan struct{}, h *fuse.InHeader, name string, p []byte) (uint32, fuse.Status) {
	list, err := s.xattrsOf(h.NodeId)
	if err != nil {
		return 0, s.status("getxattr", h.NodeId, err)
	}
	for _, x := range list {
		if x.Name == name {
			return give(p, x.Value)
		}
	}
	return 0, fuse.ENOATTR
}

// ListXAttr copies the names of the extended attributes to p, each with a zero byte.
func (s *server) ListXAttr(_ <-chan struct{}, h *fuse.InHeader, p []byte) (uint32, fuse.Status) {
	list, err := s.xattrsOf(h.NodeId)
	if err != nil {
		return 0, s.status("listxattr", h.NodeId, err)
	}
	var b []byte
	for _, x := range list {
		b = append(append(b, x.Name...), 0)
	}
	return give(p, b)
}

// give copies what was asked for, if there is room.
func give(p, b []byte) (uint32, fuse.Status) {
	if len(b) > len(p) {
		return uint32(len(b)), fuse.ERANGE
	}
	return uint32(copy(p, b)), fuse.OK
}

// Open tells the kernel that files need no opening.
func (s *server) Open(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status {
	return fuse.ENOSYS
}

// Flush tells the kernel that closing a file means nothing, so it does not ask again.
func (s *server) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.ENOSYS }

// contentOf returns what a regular file has.
func (s *server) contentOf(id uint64) (content, error) {
	num, ino := split(id)
	if num == 0 {
		n, err := s.catalogNode(ino)
		if err != nil {
			return nil, err
		}
		return newBytes(n.data), nil
	}
	t, err := s.treeOf(num)
	if err != nil {
		return nil, err
	}
	return t.open(ino)
}

// Read reads a piece of a file, into buf if it must.
func (s *server) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	c, err := s.contentOf(in.NodeId)
	if err != nil {
		return nil, s.status("read", in.NodeId, err)
	}
	off := int64(in.Offset)
	n := min(int64(in.Size), int64(len(buf)), c.size()-off)
	if off < 0 || n <= 0 {
		return fuse.ReadResultVector(nil), fuse.OK
	}
	if n >= spliceSize {
		if f, pos := c.plain(off, n); f != nil {
			return &splice{f, pos, int(n)}, fuse.OK
		}
	}
	k, err := c.ReadAt(buf[:n], off)
	if err == io.EOF {
		err = nil
	}
	if err != nil {
		return nil, s.status("read", in.NodeId, err)
	}
	return fuse.ReadResultVector([][]byte{buf[:k]}), fuse.OK
}

// A splice is a reply that go-fuse splices from a file: a fuse.ReadResult with Seekable. The
// file stays open until then, since the kernel does not forget what it waits for.
type splice struct {
	f   *os.File
	pos int64
	n   int
}

func (r *splice) Size() int                                { return r.n }
func (r *splice) Done()                                    {}
func (r *splice) Seekable() (fd uintptr, pos int64, n int) { return r.f.Fd(), r.pos, r.n }

// Bytes reads the piece, where splicing did not work.
func (r *splice) Bytes(buf []byte) ([]byte, fuse.Status) {
	n, err := r.f.ReadAt(buf[:min(r.n, len(buf))], r.pos)
	if n > 0 || err == io.EOF {
		err = nil
	}
	return buf[:n], fuse.ToStatus(err)
}

// Lseek finds data and holes.
func (s *server) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	c, err := s.contentOf(in.NodeId)
	if err != nil {
		return s.status("lseek", in.NodeId, err)
	}
	off, size := int64(in.Offset), c.size()
	if off < 0 || off >= size {
		return fuse.Status(unix.ENXIO)
	}
	start, n, err := c.data(off)
	if err != nil {
		return s.status("lseek", in.NodeId, err)
	}
	switch {
	case in.Whence == unix.SEEK_DATA && n == 0:
		return fuse.Status(unix.ENXIO)
	case in.Whence == unix.SEEK_DATA:
		out.Offset = uint64(start)
	case in.Whence == unix.SEEK_HOLE && n > 0 && start == off:
		out.Offset = uint64(min(start+n, size))
	case in.Whence == unix.SEEK_HOLE:
		out.Offset = in.Offset
	default:
		return fuse.EINVAL
	}
	return fuse.OK
}

// StatFs describes the file system as full, which is what a read-only one is.
func (s *server) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	out.Bsize, out.Frsize, out.NameLen = diskfs.BlockSize, diskfs.BlockSize, maxName
	out.Blocks = uint64(s.store.Capacity() / diskfs.BlockSize)
	return fuse.OK
}

// watch follows the store and keeps the kernel from holding on to what has gone. It returns
// once ctx ends.
func (s *server) watch(ctx context.Context) {
	var wait sync.WaitGroup
	defer wait.Wait()
	wait.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-s.crowded:
			}
			for _, key := range s.forest.idle() {
				s.drop(key)
			}
		}
	})
	if err := s.store.Watch(ctx, s.changed); err != nil {
		s.log.Warn("removed images keep their space until somebody looks", "error", err)
	}
}

// changed tells the kernel what is no longer in the store.
func (s *server) changed() {
	s.catalog.changed()
	for _, key := range s.forest.keys() {
		var err error
		if key.isLayer {
			_, err = s.store.Layer(key.id)
		} else {
			_, err = s.store.ImageByID(key.id)
		}
		if errors.Is(err, fs.ErrNotExist) {
			s.drop(key)
		}
	}
}

// drop asks the kernel to forget the files of a tree that nobody uses.
func (s *server) drop(key treeKey) {
	dir, name := key.place()
	s.kernel.EntryNotify(dir, name) // it may not know it, or know it no more
}
