package layerstore

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"vic/bench/oracle"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// A faultFS is a file system that shows a folder, keeps a log of what is done to it, and
// fails when it is told to. The kernel is between it and whoever uses it: nothing in the
// code under test knows of it.
type faultFS struct {
	Dir string // where it is mounted

	mu    sync.Mutex
	steps int     // operations so far: those of the log, opens and reads
	log   []logOp // changes that were made
	ids   map[uint64]int
	next  int
	fault func(step int, op string) fault
}

// A fault is what becomes of an operation.
type fault struct {
	errno syscall.Errno
	half  bool // a write writes half, and no error
}

// A logOp is a change of a file or a folder. They are told by numbers; 0 is the root.
type logOp struct {
	kind     string // create, mkdir, unlink, rmdir, rename, write, truncate, punch, chmod, fsync, fsyncdir
	node     int    // the file, or the folder of name
	name     string
	to       int // of rename: the folder of toName
	toName   string
	made     int // of create and mkdir: the number of what is there now
	off, len int64
	data     []byte
	mode     os.FileMode
}

// mountFaultFS mounts an empty one until the test ends.
func mountFaultFS(t *testing.T) *faultFS {
	t.Helper()
	oracle.Root(t)
	backing, dir := memoryDir(t), t.TempDir()
	f := &faultFS{Dir: dir, ids: map[uint64]int{}}
	var st syscall.Stat_t
	if err := syscall.Stat(backing, &st); err != nil {
		t.Fatal(err)
	}
	data := &fs.LoopbackRoot{Path: backing, Dev: uint64(st.Dev), NewNode: f.newNode}
	root := f.newNode(data, nil, "", &st)
	data.RootNode = root
	keep := time.Minute // nobody else changes it
	server, err := fs.Mount(dir, root, &fs.Options{EntryTimeout: &keep, AttrTimeout: &keep, MountOptions: fuse.MountOptions{DirectMount: true, FsName: "faultfs"}})
	if err != nil {
		oracle.Missing(t, fmt.Errorf("mount a FUSE file system: %w", err))
	}
	t.Cleanup(func() {
		if err := server.Unmount(); err != nil {
			t.Error(err)
		}
		server.Wait()
	})
	return f
}

// faultAt has the operation fail that is the n-th from now on, and tells whether it came to that.
func (f *faultFS) faultAt(n int, what func(after int, op string) fault) (done func() bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	begin, hit := f.steps, false
	f.fault = func(step int, op string) fault {
		if step-begin < n {
			return fault{}
		}
		is := what(step-begin-n, op)
		hit = hit || is != fault{}
		return is
	}
	return func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.fault = nil
		return hit
	}
}

// do runs an operation, unless it is to fail, and logs what it returns.
func (f *faultFS) do(op string, run func(half bool) (logOp, syscall.Errno)) syscall.Errno {
	f.mu.Lock()
	defer f.mu.Unlock()
	var is fault
	if f.fault != nil {
		is = f.fault(f.steps, op)
	}
	f.steps++
	if is.errno != 0 {
		return is.errno
	}
	l, errno := run(is.half)
	if errno == 0 && l.kind != "" {
		f.log = append(f.log, l)
	}
	return errno
}

// changes returns the log so far.
func (f *faultFS) changes() []logOp {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.log)
}

func (f *faultFS) newNode(data *fs.LoopbackRoot, _ *fs.Inode, _ string, _ *syscall.Stat_t) fs.InodeEmbedder {
	return &faultNode{LoopbackNode: fs.LoopbackNode{RootData: data}, f: f}
}

type faultNode struct {
	fs.LoopbackNode
	f *faultFS
}

// id returns the node's number. The caller holds mu.
func (n *faultNode) id() int { return n.f.ids[n.StableAttr().Ino] }

// made gives a new node a number. The caller holds mu.
func (n *faultNode) made(child *fs.Inode) int {
	n.f.next++
	n.f.ids[child.StableAttr().Ino] = n.f.next
	return n.f.next
}

func (n *faultNode) Create(ctx context.Context, name string, flags, mode uint32, out *fuse.EntryOut) (child *fs.Inode, fh fs.FileHandle, fuseFlags uint32, errno syscall.Errno) {
	errno = n.f.do("create", func(bool) (logOp, syscall.Errno) {
		child, fh, fuseFlags, errno = n.LoopbackNode.Create(ctx, name, flags&^syscall.O_DIRECT, mode, out)
		if errno != 0 {
			return logOp{}, errno
		}
		fh = &faultFile{fh.(*fs.LoopbackFile), child.Operations().(*faultNode)}
		return logOp{kind: "create", node: n.id(), name: name, made: n.made(child), mode: os.FileMode(mode & 0o777)}, 0
	})
	return child, fh, fuseFlags, errno
}

func (n *faultNode) Open(ctx context.Context, flags uint32) (fh fs.FileHandle, fuseFlags uint32, errno syscall.Errno) {
	errno = n.f.do("open", func(bool) (logOp, syscall.Errno) {
		// The kernel keeps to what O_DIRECT means; the folder below may have other rules.
		if fh, fuseFlags, errno = n.LoopbackNode.Open(ctx, flags&^syscall.O_DIRECT); errno == 0 {
			fh = &faultFile{fh.(*fs.LoopbackFile), n}
		}
		return logOp{}, errno
	})
	return fh, fuseFlags, errno
}

func (n *faultNode) Mkdir(ctx context.Context, name string, mode uint32, out *fuse.EntryOut) (child *fs.Inode, errno syscall.Errno) {
	errno = n.f.do("mkdir", func(bool) (logOp, syscall.Errno) {
		if child, errno = n.LoopbackNode.Mkdir(ctx, name, mode, out); errno != 0 {
			return logOp{}, errno
		}
		return logOp{kind: "mkdir", node: n.id(), name: name, made: n.made(child), mode: os.FileMode(mode & 0o777)}, 0
	})
	return child, errno
}

func (n *faultNode) Unlink(ctx context.Context, name string) syscall.Errno {
	return n.f.do("unlink", func(bool) (logOp, syscall.Errno) {
		return logOp{kind: "unlink", node: n.id(), name: name}, n.LoopbackNode.Unlink(ctx, name)
	})
}

func (n *faultNode) Rmdir(ctx context.Context, name string) syscall.Errno {
	return n.f.do("rmdir", func(bool) (logOp, syscall.Errno) {
		return logOp{kind: "rmdir", node: n.id(), name: name}, n.LoopbackNode.Rmdir(ctx, name)
	})
}

func (n *faultNode) Rename(ctx context.Context, name string, to fs.InodeEmbedder, toName string, flags uint32) syscall.Errno {
	return n.f.do("rename", func(bool) (logOp, syscall.Errno) {
		parent := to.(*faultNode)
		return logOp{kind: "rename", node: n.id(), name: name, to: parent.id(), toName: toName},
			n.LoopbackNode.Rename(ctx, name, &parent.LoopbackNode, toName, flags)
	})
}

func (n *faultNode) Setattr(ctx context.Context, fh fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	return n.f.do("setattr", func(bool) (logOp, syscall.Errno) {
		l := logOp{node: n.id()}
		if size, ok := in.GetSize(); ok {
			l.kind, l.len = "truncate", int64(size)
		} else if mode, ok := in.GetMode(); ok {
			l.kind, l.mode = "chmod", os.FileMode(mode&0o777)
		}
		if f, ok := fh.(*faultFile); ok {
			fh = f.LoopbackFile
		}
		return l, n.LoopbackNode.Setattr(ctx, fh, in, out)
	})
}

// A layer's files have one name each, so that the log need not know of others.
func (n *faultNode) Link(context.Context, fs.InodeEmbedder, string, *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	return nil, syscall.EPERM
}

func (n *faultNode) OpendirHandle(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	fh, fuseFlags, errno := n.LoopbackNode.OpendirHandle(ctx, flags)
	if errno != 0 {
		return nil, 0, errno
	}
	return &faultDir{fh.(dirHandle), n}, fuseFlags, 0
}

type dirHandle interface {
	fs.FileReaddirenter
	fs.FileReleasedirer
	fs.FileSeekdirer
	fs.FileFsyncdirer
}

type faultDir struct {
	dirHandle
	n *faultNode
}

func (d *faultDir) Fsyncdir(context.Context, uint32) syscall.Errno {
	return d.n.f.do("fsyncdir", func(bool) (logOp, syscall.Errno) { return logOp{kind: "fsyncdir", node: d.n.id()}, 0 })
}

type faultFile struct {
	*fs.LoopbackFile
	n *faultNode
}

// PassthroughFd would let the kernel read and write past this file system.
func (f *faultFile) PassthroughFd() (int, bool) { return 0, false }

func (f *faultFile) Read(ctx context.Context, buf []byte, off int64) (res fuse.ReadResult, errno syscall.Errno) {
	errno = f.n.f.do("read", func(bool) (logOp, syscall.Errno) {
		res, errno = f.LoopbackFile.Read(ctx, buf, off)
		return logOp{}, errno
	})
	return res, errno
}

func (f *faultFile) Write(ctx context.Context, data []byte, off int64) (n uint32, errno syscall.Errno) {
	errno = f.n.f.do("write", func(half bool) (logOp, syscall.Errno) {
		if half {
			data = data[:(len(data)+1)/2]
		}
		n, errno = f.LoopbackFile.Write(ctx, data, off)
		return logOp{kind: "write", node: f.n.id(), off: off, data: append([]byte(nil), data[:n]...)}, errno
	})
	return n, errno
}

func (f *faultFile) Fsync(context.Context, uint32) syscall.Errno {
	return f.n.f.do("fsync", func(bool) (logOp, syscall.Errno) { return logOp{kind: "fsync", node: f.n.id()}, 0 })
}

func (f *faultFile) Allocate(ctx context.Context, off, size uint64, mode uint32) syscall.Errno {
	return f.n.f.do("allocate", func(bool) (logOp, syscall.Errno) {
		return logOp{kind: "punch", node: f.n.id(), off: int64(off), len: int64(size)}, f.LoopbackFile.Allocate(ctx, off, size, mode)
	})
}

// TestFaultFS: the log says what the folder holds.
func TestFaultFS(t *testing.T) {
	f := mountFaultFS(t)
	s := openStoreIn(t, filepath.Join(f.Dir, "store"), Options{})
	pullImage(t, s, webImage(t), "web")
	checkClean(t, s)
	for _, chain := range []string{"base"} { // over a hole, and a byte past the end
		p := filepath.Join(f.Dir, "store", "disks", chain+".vmdk")
		if err := os.Chmod(p, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(p, 1000); err != nil {
			t.Fatal(err)
		}
	}
	again := t.TempDir()
	log := f.changes()
	crash(log, keepAll).write(t, again)
	want, got := treeSums(t, f.Dir), treeSums(t, again)
	for name, sum := range want {
		if got[name] != sum {
			t.Errorf("%s: %s, want %s", name, got[name], sum)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d files, want %d", len(got), len(want))
	}
	var kinds strings.Builder
	for _, l := range log {
		kinds.WriteString(l.kind + " ")
	}
	for _, kind := range []string{"create", "mkdir", "unlink", "rename", "write", "truncate", "chmod", "fsync", "fsyncdir"} {
		if !strings.Contains(kinds.String(), kind+" ") {
			t.Errorf("no %s in the log", kind)
		}
	}
}
