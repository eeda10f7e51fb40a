package diskfs

import (
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A tree is what a user can see of a file system, by path; "." is the root.
type tree map[string]node

// A node is what a user can see of one path.
type node struct {
	mode         uint32 // as in stat(2)
	uid, gid     uint32
	sec          int64
	nsec         int
	major, minor uint32
	links        int    // names; of a directory 0: file systems count differently
	same         string // the first path with the same inode
	size         int64  // of a file
	head         string // a file's content, if it is short
	sum          [8]byte
	target       string
	xattrs       string // name="value" …, sorted
}

// entryTime is when the entries of tests were changed, unless they say otherwise.
var entryTime = time.Unix(1_000_000_000, 0)

// describe writes a tree the way test cases do: a line for each path, telling what is not
// the default. Defaults are mode 755 for directories and 644 for files, owner root, mtime
// entryTime. A directory with the attributes of one that no entry names is "implied".
func (t tree) describe() string {
	var lines []string
	for p, n := range t {
		if line := n.describe(p); line != "./ implied" {
			lines = append(lines, line+"\n")
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}

func (n node) describe(p string) string {
	line, perm := p, n.mode&07777
	if strings.ContainsAny(p, " \n\"") || strings.ToValidUTF8(p, "") != p {
		line = fmt.Sprintf("%q", p)
	}
	usual := uint32(0644)
	switch n.mode & unix.S_IFMT {
	case unix.S_IFDIR:
		usual = 0755
		line += "/"
	case unix.S_IFLNK:
		usual = 0777
		line += " -> " + n.target
	case unix.S_IFCHR:
		line += fmt.Sprintf(" char %d:%d", n.major, n.minor)
	case unix.S_IFBLK:
		line += fmt.Sprintf(" block %d:%d", n.major, n.minor)
	case unix.S_IFIFO:
		line += " fifo"
	case unix.S_IFREG:
		if n.head != "" || n.size == 0 {
			line += fmt.Sprintf(" %q", n.head)
		} else {
			line += fmt.Sprintf(" %d bytes %x", n.size, n.sum)
		}
	}
	if n.implied() {
		return line + " implied"
	}
	if n.same != "" && n.same != p {
		return line + " = " + n.same
	}
	if perm != usual {
		line += fmt.Sprintf(" mode %o", perm)
	}
	if n.uid != 0 || n.gid != 0 {
		line += fmt.Sprintf(" owner %d:%d", n.uid, n.gid)
	}
	if n.links > 1 {
		line += fmt.Sprintf(" links %d", n.links)
	}
	if n.sec != entryTime.Unix() || n.nsec != 0 {
		line += fmt.Sprintf(" mtime %d.%09d", n.sec, n.nsec)
	}
	if n.xattrs != "" {
		line += " " + n.xattrs
	}
	return line
}

// implied says that the node looks like a directory that no entry of a tar names.
func (n node) implied() bool {
	return n == node{mode: unix.S_IFDIR | 0755}
}

// buffers spare the walks an allocation per file.
var buffers = sync.Pool{New: func() any { return new([64 << 10]byte) }}

// setContent fills in what a node tells of a file's content.
func (n *node) setContent(r io.Reader) error {
	buf := buffers.Get().(*[64 << 10]byte)
	defer buffers.Put(buf)
	h1, h2 := crc32.NewIEEE(), crc32.New(castagnoli) // both in hardware
	var head strings.Builder
	size, err := io.CopyBuffer(io.MultiWriter(h1, h2, limitWriter{&head, 40}), struct{ io.Reader }{r}, buf[:])
	if n.size = size; size <= 40 {
		n.head = head.String()
	}
	h2.Sum(h1.Sum(n.sum[:0]))
	return err
}

// A limitWriter keeps the first n bytes and a few more.
type limitWriter struct {
	b *strings.Builder
	n int
}

func (w limitWriter) Write(p []byte) (int, error) {
	if w.b.Len() <= w.n {
		w.b.Write(p[:min(len(p), w.n+1)])
	}
	return len(p), nil
}

// hostTree describes a directory of this machine.
func hostTree(t testing.TB, root string) tree {
	t.Helper()
	out := tree{}
	first := map[uint64]string{}
	err := filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, p)
		n := node{mode: st.Mode, uid: st.Uid, gid: st.Gid, sec: st.Mtim.Sec, nsec: int(st.Mtim.Nsec)}
		kind := st.Mode & unix.S_IFMT
		if kind == unix.S_IFCHR || kind == unix.S_IFBLK {
			n.major, n.minor = unix.Major(st.Rdev), unix.Minor(st.Rdev)
		}
		if kind != unix.S_IFDIR {
			if first[st.Ino] == "" {
				first[st.Ino] = rel
			}
			n.links, n.same = int(st.Nlink), first[st.Ino]
		}
		switch kind {
		case unix.S_IFREG:
			f, err := os.Open(p)
			if err != nil {
				return err
			}
			defer f.Close()
			if err := n.setContent(f); err != nil {
				return err
			}
		case unix.S_IFLNK:
			if n.target, err = os.Readlink(p); err != nil {
				return err
			}
		}
		var xattrs []string
		for _, name := range listXattrs(t, p) {
			buf := buffers.Get().(*[64 << 10]byte)
			k, err := unix.Lgetxattr(p, name, buf[:])
			if err != nil {
				return fmt.Errorf("getxattr %s %s: %w", p, name, err)
			}
			xattrs = append(xattrs, fmt.Sprintf("%s=%q", name, buf[:k]))
			buffers.Put(buf)
		}
		n.xattrs = strings.Join(xattrs, " ")
		out[rel] = n
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func listXattrs(t testing.TB, p string) []string {
	t.Helper()
	buf := buffers.Get().(*[64 << 10]byte)
	defer buffers.Put(buf)
	n, err := unix.Llistxattr(p, buf[:])
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for name := range strings.SplitSeq(string(buf[:n]), "\x00") {
		if name != "" && name != "security.selinux" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// fsTree describes a file system as our reader sees it, in the same words.
func fsTree(t testing.TB, f *FS) tree {
	t.Helper()
	out, err := walkTree(f)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// walkTree reads everything that our reader can reach.
func walkTree(f *FS) (tree, error) {
	out := tree{}
	first := map[uint32]string{}
	err := fs.WalkDir(f, ".", func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := f.Lstat(p)
		if err != nil {
			return err
		}
		st := info.Sys().(*Stat)
		n := node{mode: uint32(st.Mode), uid: st.UID, gid: st.GID, sec: st.Mtime.Unix(), nsec: st.Mtime.Nanosecond(), major: st.Major, minor: st.Minor}
		if !info.IsDir() {
			if first[st.Inode] == "" {
				first[st.Inode] = p
			}
			n.links, n.same = int(st.Links), first[st.Inode]
		}
		switch st.Mode & modeType {
		case modeFile:
			file, err := f.Open(p)
			if err != nil {
				return err
			}
			if err := n.setContent(file); err != nil {
				return err
			}
			if n.size != st.Size {
				return fmt.Errorf("%q: read %d bytes of %d", p, n.size, st.Size)
			}
		case modeLink:
			if n.target, err = f.ReadLink(p); err != nil {
				return err
			}
		}
		list, err := f.Xattrs(p)
		if err != nil {
			return err
		}
		var xattrs []string
		for _, x := range list {
			xattrs = append(xattrs, fmt.Sprintf("%s=%q", x.Name, x.Value))
		}
		n.xattrs = strings.Join(xattrs, " ")
		out[p] = n
		return nil
	})
	return out, err
}

// compareTrees reports up to 20 differences.
func compareTrees(t testing.TB, gotName string, got tree, wantName string, want tree) {
	t.Helper()
	var diff []string
	for p, w := range want {
		if g, ok := got[p]; !ok {
			diff = append(diff, fmt.Sprintf("%q: only in %s", p, wantName))
		} else if g != w {
			diff = append(diff, fmt.Sprintf("%q:\n  %s: %+v\n  %s: %+v", p, gotName, g, wantName, w))
		}
	}
	for p := range got {
		if _, ok := want[p]; !ok {
			diff = append(diff, fmt.Sprintf("%q: only in %s", p, gotName))
		}
	}
	if len(diff) > 0 {
		slices.Sort(diff)
		t.Errorf("%d differences between %s and %s:\n%s", len(diff), gotName, wantName, strings.Join(diff[:min(20, len(diff))], "\n"))
	}
}
