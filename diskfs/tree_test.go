package diskfs

import (
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A tree is what a user can see of a file system: a line for each path.
type tree map[string]string

// hostTree describes a directory of this machine. Inode numbers become the first path
// that has them, so that hard links can be compared.
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
		rdev := uint64(0)
		if st.Mode&unix.S_IFMT == unix.S_IFCHR || st.Mode&unix.S_IFMT == unix.S_IFBLK {
			rdev = uint64(unix.Major(st.Rdev))<<32 | uint64(unix.Minor(st.Rdev))
		}
		line := fmt.Sprintf("mode %o owner %d:%d mtime %d.%09d rdev %#x", st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec, rdev)
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			if first[st.Ino] == "" {
				first[st.Ino] = rel
			}
			line += fmt.Sprintf(" links %d same as %q", st.Nlink, first[st.Ino])
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			h := sha256.New()
			f, err := os.Open(p)
			if err != nil {
				return err
			}
			defer f.Close()
			if _, err := io.Copy(h, f); err != nil {
				return err
			}
			line += fmt.Sprintf(" size %d sha256 %x", st.Size, h.Sum(nil)[:8])
		case unix.S_IFLNK:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" -> %q", target)
		}
		for _, name := range listXattrs(t, p) {
			buf := make([]byte, 65536)
			n, err := unix.Lgetxattr(p, name, buf)
			if err != nil {
				return fmt.Errorf("getxattr %s %s: %w", p, name, err)
			}
			line += fmt.Sprintf(" %s=%x", name, buf[:n])
		}
		out[rel] = line
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func listXattrs(t testing.TB, p string) []string {
	t.Helper()
	buf := make([]byte, 65536)
	n, err := unix.Llistxattr(p, buf)
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
		rdev := uint64(st.Major)<<32 | uint64(st.Minor)
		line := fmt.Sprintf("mode %o owner %d:%d mtime %d.%09d rdev %#x", st.Mode, st.UID, st.GID, st.Mtime.Unix(), st.Mtime.Nanosecond(), rdev)
		if !info.IsDir() {
			if first[st.Inode] == "" {
				first[st.Inode] = p
			}
			line += fmt.Sprintf(" links %d same as %q", st.Links, first[st.Inode])
		}
		switch st.Mode & modeType {
		case modeFile:
			h := sha256.New()
			file, err := f.Open(p)
			if err != nil {
				return err
			}
			if _, err := io.Copy(h, file); err != nil {
				return err
			}
			line += fmt.Sprintf(" size %d sha256 %x", st.Size, h.Sum(nil)[:8])
		case modeLink:
			target, err := f.ReadLink(p)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" -> %q", target)
		}
		list, err := f.Xattrs(p)
		if err != nil {
			return err
		}
		for _, x := range list {
			line += fmt.Sprintf(" %s=%x", x.Name, x.Value)
		}
		out[p] = line
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// compareTrees reports up to 20 differences.
func compareTrees(t testing.TB, gotName string, got tree, wantName string, want tree) {
	t.Helper()
	var diff []string
	for p, w := range want {
		if g, ok := got[p]; !ok {
			diff = append(diff, fmt.Sprintf("%q: only in %s", p, wantName))
		} else if g != w {
			diff = append(diff, fmt.Sprintf("%q:\n  %s: %s\n  %s: %s", p, gotName, g, wantName, w))
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
