package diskfs

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vic/bench/oracle"

	"golang.org/x/sys/unix"
)

// TestGNUTar applies tars that GNU tar wrote, in all its formats, and wants the tree that
// GNU tar extracts from them.
func TestGNUTar(t *testing.T) {
	oracle.Root(t)
	oracle.Need(t, "tar", "setcap", "setfacl", "setfattr")
	for _, tc := range []struct {
		name string
		args string
		// What the format can hold: long names and times before 1970, large owners, all
		// that there is.
		long, owners, exact bool
	}{
		{"v7", "--format=v7 --exclude=./fifo --exclude=./null --exclude=./disk", false, false, false},
		{"ustar", "--format=ustar", false, false, false},
		{"oldgnu", "--format=oldgnu", true, true, false},
		{"gnu", "--format=gnu", true, true, false},
		{"posix", "--format=posix --xattrs --xattrs-include=* --acls", true, true, true},
		{"gnu sparse", "--format=gnu --sparse", true, true, false},
		{"posix sparse 0.0", "--format=posix --sparse --sparse-version=0.0 --xattrs --xattrs-include=*", true, true, true},
		{"posix sparse 0.1", "--format=posix --sparse --sparse-version=0.1 --xattrs --xattrs-include=*", true, true, true},
		{"posix sparse 1.0", "--format=posix --sparse --sparse-version=1.0 --xattrs --xattrs-include=*", true, true, true},
		{"hard dereference", "--format=posix --hard-dereference", true, true, true},
		{"posix with atime and ctime", "--format=posix --pax-option=exthdr.name=%d/PaxHeaders/%f,globexthdr.name=/g,comment=x", true, true, true},
	} {
		t.Run(strings.ReplaceAll(tc.name, " ", "_"), func(t *testing.T) {
			t.Parallel()
			src, dst, tarball := t.TempDir(), t.TempDir(), filepath.Join(t.TempDir(), "t.tar")
			makeTree(t, src, tc.long, tc.owners)
			shell(t, "cd %s && tar %s --numeric-owner -cf %s .", src, tc.args, tarball)
			acls := ""
			if strings.Contains(tc.args, "--acls") {
				acls = "--acls" // else it would drop those that the archive has as xattrs
			}
			shell(t, "tar -C %s --xattrs --xattrs-include='*' "+acls+" --numeric-owner --same-owner -p -xf %s", dst, tarball)
			f, err := os.Open(tarball)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			c := newChain(t, FormatOptions{Capacity: 128 << 20})
			c.apply(f)
			c.check()
			got := c.checkReader()
			compareTrees(t, "diskfs", got, "GNU tar", hostTree(t, dst))
			if tc.exact && !strings.Contains(tc.args, "dereference") && strings.Contains(tc.args, "xattrs") {
				compareTrees(t, "diskfs", got, "the tree that was archived", hostTree(t, src))
			}
			if tc.name == "posix" {
				c.apply(strings.NewReader("")) // an empty layer changes nothing
				compareTrees(t, "diskfs", c.checkReader(), "the layer below", got)
			}
		})
	}
}

// makeTree makes one of everything that ext4 can hold and the format can carry.
func makeTree(t *testing.T, dir string, long, owners bool) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	path := func(name string) string { return filepath.Join(dir, name) }
	write := func(name, body string) {
		must(os.MkdirAll(filepath.Dir(path(name)), 0755))
		must(os.WriteFile(path(name), []byte(body), 0644))
	}
	write("empty", "")
	write("small", "small")
	write("block", strings.Repeat("b", BlockSize))
	write("large", strings.Repeat("0123456789abcde\n", 50000))
	write("zeros", strings.Repeat("\x00", 200000))
	write("bytes-\xff\xfe-\xe9", "1")
	write("café", "2")
	write("a b\tc\n\\d*?[", "3")
	write("dir/sub/deep/file", "4")
	must(os.Mkdir(path("dir/empty"), 0700))
	must(os.Symlink("../small", path("dir/link")))
	must(os.Symlink(strings.Repeat("s", 90), path("slow")))
	must(os.Link(path("small"), path("dir/hard")))
	must(os.Link(path("small"), path("hard2")))
	must(unix.Linkat(unix.AT_FDCWD, path("slow"), unix.AT_FDCWD, path("slow2"), 0))
	must(unix.Mknod(path("null"), unix.S_IFCHR|0666, int(unix.Mkdev(1, 3))))
	must(unix.Mknod(path("disk"), unix.S_IFBLK|0660, int(unix.Mkdev(300, 7000))))
	must(unix.Mkfifo(path("fifo"), 0600))
	for i, mode := range []uint32{0, 04755, 02755, 01777, 07777, 0400} {
		name := fmt.Sprint("mode", i)
		write(name, "m")
		must(unix.Chmod(path(name), mode))
	}
	must(unix.Chmod(path("dir/sub"), 03775))

	sparse, err := os.Create(path("sparse"))
	must(err)
	for i := range int64(10) {
		_, err := sparse.WriteAt([]byte(strings.Repeat("d", 5000)), i*1_000_000)
		must(err)
	}
	must(sparse.Truncate(20_000_000))
	must(sparse.Close())
	write("hole", "")
	must(os.Truncate(path("hole"), 3_000_001))

	if long {
		write(strings.Repeat("n", 255), "n")
		write(strings.Repeat(strings.Repeat("p", 120)+"/", 10)+"f", "p")
		must(os.Symlink(strings.Repeat("t/", 600), path("longlink")))
		must(os.Link(path(strings.Repeat("n", 255)), path("hardlong")))
	} else {
		write(strings.Repeat("n", 90), "n")
	}
	write("uid", "u")
	must(os.Lchown(path("uid"), 65536, 65537))
	if owners {
		write("biguid", "u")
		must(os.Lchown(path("biguid"), 1<<32-2, 1<<21+5))
	}
	must(os.Lchown(path("slow"), 12, 13))
	must(os.Lchown(path("dir/sub"), 1000, 1000))

	write("cap", "c")
	command(t, "setcap", "cap_net_raw,cap_sys_admin+ep", path("cap"))
	command(t, "setfacl", "-m", "u:5:rw,g:7:r", path("small"))
	command(t, "setfacl", "-m", "u:5:rwx,d:u:9:rx,d:g::-", path("dir/empty"))
	must(unix.Lsetxattr(path("large"), "user.binary", []byte("\x00\x01=\n\xff"), 0))
	must(unix.Lsetxattr(path("large"), "user.long", []byte(strings.Repeat("v", 1000)), 0))
	must(unix.Lsetxattr(path("dir"), "user.dir", []byte("d"), 0))
	must(unix.Lsetxattr(path("slow"), "security.test", []byte("s"), 0))

	if long { // formats without it have no negative or late times either
		for name, at := range map[string]time.Time{
			"empty": time.Unix(-315619200, 123456789), "block": time.Unix(1<<32+5, 1), "zeros": time.Unix(9_000_000_000, 999999999), "dir/sub/deep": time.Unix(-5, 500),
		} {
			must(os.Chtimes(path(name), at, at))
		}
	}
}
