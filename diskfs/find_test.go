package diskfs

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"

	"vic/bench/oracle"

	"golang.org/x/sys/unix"
)

// TestFind: paths lead where they lead a process that has the disk as its root.
func TestFind(t *testing.T) {
	c := newChain(t, smallDisk)
	c.apply(strings.NewReader(string(layer{
		folder("d"), folder("d/e"), file("d/e/f", "f"), symlink("l", "d/e"), symlink("abs", "/d/e"), symlink("up", "../../../../d"), symlink("d/back", ".."),
		symlink("loop", "loop"), symlink("a", "b"), symlink("b", "a/x"), symlink("dangling", "nowhere"), symlink("file", "d/e/f"), symlink("slash", "d/e/"),
		symlink("badslash", "d/e/f/"), symlink("self", "."), symlink("root", "/"), file("exec", "x"),
	}.tar(t))))
	kernel := -1
	if os.Geteuid() == 0 || oracle.Demanded() {
		dir, _ := mountDisk(t, c.path, "noload,ro")
		var err error
		if kernel, err = unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(kernel) }) // before the disk is unmounted
	}
	// find resolves a path and holds the result against the kernel's.
	find := func(path string, follow bool) (string, error) {
		name, err := c.fs.Find(path, follow)
		if kernel < 0 || path == "" || len(path) > 200 { // the kernel follows 40 symlinks only
			return name, err
		}
		how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT}
		if !follow {
			how.Flags |= unix.O_NOFOLLOW
		}
		fd, kernelErr := unix.Openat2(kernel, path, &how)
		if (kernelErr == nil) != (err == nil) {
			t.Errorf("%q: %v, kernel: %v", path, err, kernelErr)
		}
		if kernelErr != nil {
			return name, err
		}
		defer unix.Close(fd)
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			t.Fatal(err)
		}
		info, err := c.fs.Lstat(name)
		if err != nil || uint64(info.Sys().(*Stat).Inode) != st.Ino {
			t.Errorf("%q is %q: %+v, %v; kernel: inode %d", path, name, info, err, st.Ino)
		}
		return name, err
	}
	for _, tc := range []struct {
		path string
		want string // with symlinks followed; "" is an error
		err  error
	}{
		{"", ".", nil}, {"/", ".", nil}, {".", ".", nil}, {"..", ".", nil}, {"/../../..", ".", nil}, {"//d//e/", "d/e", nil},
		{"d/e/f", "d/e/f", nil}, {"d/e/../../../d/./e/f", "d/e/f", nil}, {"l/f", "d/e/f", nil}, {"abs/../e/f", "d/e/f", nil}, {"up/e", "d/e", nil},
		{"up/../exec", "exec", nil}, {"d/back/d/back/exec", "exec", nil}, {"l/..", "d", nil}, {"self/self/root/self/d", "d", nil}, {"slash", "d/e", nil},
		{"file", "d/e/f", nil}, {"file/", "", errNotDir}, {"badslash", "", errNotDir}, {"d/e/f/", "", errNotDir}, {"d/e/f/..", "", errNotDir}, {"d/e/f/.", "", errNotDir},
		{"loop", "", errLoop}, {"a", "", errLoop}, {"a/..", "", errLoop}, {"dangling", "", fs.ErrNotExist}, {"nope/..", "", fs.ErrNotExist},
		{strings.Repeat("self/", 200) + "d", "d", nil},
	} {
		got, err := find(tc.path, true)
		if got != tc.want || !errors.Is(err, tc.err) {
			t.Errorf("%q: %q, %v, want %q, %v", tc.path, got, err, tc.want, tc.err)
		}
	}
	for path, want := range map[string]string{"l": "l", "l/": "d/e", "loop": "loop", "d/back": "d/back", "d/back/": ".", "dangling": "dangling"} {
		if got, err := find(path, false); got != want || err != nil {
			t.Errorf("%q, not followed: %q, %v, want %q", path, got, err, want)
		}
	}
}

// FuzzFind: whatever the path, what is found has a name, which is no symlink if they are
// followed.
func FuzzFind(f *testing.F) {
	fsys, disk, high := formatMem(f, smallDisk)
	if _, err := applyMem(f, fsys, disk, layer{
		folder("a"), folder("a/b"), file("a/b/f", "f"), symlink("l", "a/b"), symlink("a/u", "../../a/./b/.."), symlink("o", "o/x"), symlink("r", "/"), symlink("s", "a/b/f/"),
	}.tar(f), high, Limits{}); err != nil {
		f.Fatal(err)
	}
	for _, p := range []string{"", "/", "a/b/../u/f", "l/f/", "o", "r/r/r/a", "s", "..//a/./", "a\xff/\x00"} {
		f.Add(p, true)
		f.Add(p, false)
	}
	f.Fuzz(func(t *testing.T, p string, follow bool) {
		name, err := fsys.Find(p, follow)
		if err != nil {
			return
		}
		info, err := fsys.Lstat(name)
		if err != nil || !validPath(name) {
			t.Fatalf("%q: found %q: %v", p, name, err)
		}
		if isLink := info.Mode()&fs.ModeSymlink != 0; isLink && (follow || strings.HasSuffix(p, "/")) {
			t.Errorf("%q: %q is a symlink", p, name)
		}
		if again, err := fsys.Find(name, follow); err != nil || again != name {
			t.Errorf("%q: %q, found again %q, %v", p, name, again, err)
		}
	})
}
