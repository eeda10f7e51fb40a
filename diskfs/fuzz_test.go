package diskfs

import (
	"bytes"
	"cmp"
	"errors"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"vic/bench/oracle"
)

// fuzzLimits keep one execution short.
var fuzzLimits = Limits{Entries: 1000, FileSize: 4 << 20, Data: 4 << 20, Holes: 4 << 20, Names: 1 << 20}

// seedTars are tars of our making and of GNU tar's.
func seedTars(f *testing.F) [][]byte {
	f.Helper()
	tars := [][]byte{
		nil,
		layer{
			folder("d").mode(0700), file("d/f", "content").owner(70000, 3), symlink("l", "d"), file("l/x", "1"), link("h", "d/f"), whiteout("d/a"), opaque("d/e"),
			device("c", 'c', 1, 3), device("p", 'p', 0, 0), file("a", "x").xattr("user.x", strings.Repeat("v", 200)).xattr("system.posix_acl_access", accessACL),
		}.tar(f),
		layer{file("indexed", "file over directory"), folder("a"), file("x", "").xattr("user.x", strings.Repeat("x", 900)), whiteout("b"), opaque("")}.tar(f),
		layer{file("large", strings.Repeat("0123456789", 10000)), file("holes", strings.Repeat("x"+strings.Repeat("\x00", 80000), 3))}.tar(f),
		layer{file("../../a/./b", ""), folder("slow/x"), symlink("loop", "loop"), file(longName(300), ""), link("fast", "slow")}.tar(f)[:3000],
		layer{folder(".wh..wh.plnk"), file(".wh..wh.plnk/1.2", "x"), link("y", ".wh..wh.plnk/1.2"), link("z", ".wh..wh.plnk/1.2")}.tar(f),
		damageLayer(f),
	}
	if oracle.Have(f, "tar") {
		dir := f.TempDir()
		shell(f, `cd %s; mkdir -p d/e; echo f > d/e/f; ln -s e d/l; ln d/e/f d/h; truncate -s 100k s; echo x | dd of=s bs=1k seek=50 conv=notrunc status=none`, dir)
		for _, args := range []string{"--format=v7", "--format=gnu --sparse", "--format=posix --sparse --sparse-version=0.0", "--format=posix --sparse --sparse-version=0.1", "--format=posix --sparse"} {
			out, err := exec.Command("tar", append(strings.Fields(args), "-b1", "-C", dir, "-cf", "-", ".")...).Output()
			if err != nil {
				f.Fatal(err)
			}
			tars = append(tars, out)
		}
	}
	return tars
}

// FuzzReadTar: whatever the tar, what comes of it is well-formed.
func FuzzReadTar(f *testing.F) {
	for _, p := range seedTars(f) {
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		var stream bytes.Buffer
		r := bytes.NewReader(p)
		cs, err := ReadTar(r, &stream, nil, fuzzLimits)
		if err != nil {
			return
		}
		if r.Len() > 0 || int64(stream.Len()) != cs.DataSize() {
			t.Fatalf("%d bytes left, stream of %d, want %d", r.Len(), stream.Len(), cs.DataSize())
		}
		used := make([]bool, cs.blocks)
		claim := func(runs []run, size int64) {
			var at int64
			for _, r := range runs {
				if r.at < at || r.n <= 0 || (r.at+r.n-1)*BlockSize >= size {
					t.Fatalf("runs %v of a file of %d bytes", runs, size)
				}
				at = r.at + r.n
				for k := range r.n {
					if used[r.where+k] {
						t.Fatalf("stream block %d used twice", r.where+k)
					}
					used[r.where+k] = true
				}
			}
		}
		for e := range cs.entries.all() {
			checkClean(t, e.path)
			if e.kind == kindHardlink {
				checkClean(t, e.link)
			}
			claim(e.runs, e.size)
		}
		for _, r := range cs.dead {
			claim([]run{{0, r.where, r.n}}, r.n*BlockSize)
		}
		for _, path := range slices.Concat(cs.whiteouts, cs.opaques) {
			checkClean(t, path)
		}
		if i := slices.Index(used, false); i >= 0 {
			t.Errorf("stream block %d belongs to nothing", i)
		}
	})
}

func checkClean(t *testing.T, path string) {
	t.Helper()
	if path == "" {
		return
	}
	for part := range strings.SplitSeq(path, "/") {
		if !validName(part) {
			t.Fatalf("path %q", path)
		}
	}
}

// FuzzApply: whatever the layer, it is refused or gives a file system that Check and our
// reader find nothing wrong with.
func FuzzApply(f *testing.F) {
	for _, p := range seedTars(f) {
		f.Add(p)
	}
	s := newSpecimen(f)
	f.Fuzz(func(t *testing.T, p []byte) {
		disk := newMemDisk(s.disk.size, s.disk)
		fs, err := Open(disk, disk.size)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := applyMem(t, fs, disk, p, s.high, fuzzLimits); err != nil {
			return
		}
		checkFS(t, fs)
		kept, err := walkTree(fs)
		if err != nil {
			t.Fatal(err)
		}
		if fs, err = Open(disk, disk.size); err != nil {
			t.Fatal(err)
		}
		compareTrees(t, "from the disk", fsTree(t, fs), "from memory", kept)
	})
}

// FuzzOpen: whatever a disk holds, reading it, checking it and applying a layer to it end.
// The input is a list of edits; its first byte says whether checksums are made right.
func FuzzOpen(f *testing.F) {
	s, tar := newSpecimen(f), damageLayer(f)
	f.Add([]byte{1})
	r := random(f)
	for range 200 {
		p := []byte{byte(r.IntN(4))}
		for range 1 + r.IntN(3) {
			off := r.IntN(BlockSize)
			if r.IntN(3) > 0 {
				off %= 300
			}
			p = append(p, byte(r.IntN(len(s.blocks))), 0, byte(off), byte(off>>8), byte(r.Uint32()))
		}
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) == 0 || len(p) > 200 {
			return
		}
		var edits []edit
		for e := p[1:]; len(e) >= 5; e = e[5:] {
			edits = append(edits, edit{le.Uint16(e), le.Uint16(e[2:]), e[4]})
		}
		s.use(t, s.damaged(edits, p[0] != 0), tar)
	})
}

// FuzzXattr: attributes that can be written are read back, in their order.
func FuzzXattr(f *testing.F) {
	f.Add("x", []byte("value"), "security.capability", []byte(capability), "b", []byte{})
	f.Add("long", bytes.Repeat([]byte("v"), 3000), "system.posix_acl_access", []byte(accessACL), strings.Repeat("n", 250), bytes.Repeat([]byte{0xff}, 1000))
	f.Fuzz(func(t *testing.T, n1 string, v1 []byte, n2 string, v2 []byte, n3 string, v3 []byte) {
		list := []Xattr{{"user." + n1, v1}, {n2, v2}, {"security." + n3, v3}}
		inode, content, err := encodeXattrs(list)
		if err != nil {
			return
		}
		var got []Xattr
		if inode != nil {
			if len(inode) != inodeSize-inoXattr {
				t.Fatalf("%d bytes for the inode", len(inode))
			}
			if got, err = parseXattrs(1, inode[4:], inode[4:], got); err != nil {
				t.Fatal(err)
			}
		}
		if content != nil {
			if len(content) != BlockSize {
				t.Fatalf("%d bytes for the block", len(content))
			}
			if got, err = parseXattrs(1, content[xattrBlockHeader:], content, got); err != nil {
				t.Fatal(err)
			}
		}
		order := func(a, b Xattr) int { return cmp.Compare(a.Name, b.Name) }
		slices.SortStableFunc(got, order)
		slices.SortStableFunc(list, order)
		if !slices.EqualFunc(got, list, func(a, b Xattr) bool { return a.Name == b.Name && bytes.Equal(a.Value, b.Value) }) {
			t.Errorf("got %q, want %q", got, list)
		}
	})
}

// FuzzParseXattrs: any bytes, as an inode's and as a block's.
func FuzzParseXattrs(f *testing.F) {
	inode, block, err := encodeXattrs([]Xattr{{"user.x", bytes.Repeat([]byte("v"), 4030)}, {"security.capability", []byte(capability)}})
	if err != nil || inode == nil || block == nil {
		f.Fatal(err)
	}
	f.Add(inode)
	f.Add(block)
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) > 4 {
			parseXattrs(1, p[4:], p[4:], nil)
		}
		if len(p) > xattrBlockHeader {
			parseXattrs(1, p[xattrBlockHeader:], p, nil)
		}
	})
}

// FuzzACL: an ACL that can be written is read back.
func FuzzACL(f *testing.F) {
	f.Add([]byte(accessACL))
	f.Fuzz(func(t *testing.T, p []byte) {
		aclFromDisk(p)
		disk, err := aclToDisk(p)
		if err != nil {
			return
		}
		got, err := aclFromDisk(disk)
		if err != nil || len(got) != len(p) {
			t.Errorf("%x becomes %x, %v", p, got, err)
		}
	})
}

// FuzzExtents: runs that are written are read back. The input is pairs of gap and length.
func FuzzExtents(f *testing.F) {
	f.Add([]byte{0, 1}, 1)
	f.Add([]byte{0, 1, 1, 2, 3, 4, 0, 5, 0, 255, 255, 255}, 1)
	f.Add([]byte{1, 1, 2, 3}, 300)
	f.Add([]byte{1, 1}, 1361)
	f.Add([]byte{1, 1}, 500_000)
	f.Add([]byte{0, 255, 0, 255}, 40)
	fs := freshFS(f)
	f.Fuzz(func(t *testing.T, p []byte, times int) {
		if times < 0 || times*len(p) > 2_000_000 || len(p) == 0 {
			return
		}
		p = bytes.Repeat(p, times)
		var runs []run
		var at int64
		where := int64(1000)
		for ; len(p) >= 2; p = p[2:] {
			gap, n := int64(p[0]), int64(p[1])*300+1
			if p[0] == 255 {
				where += 77 // not contiguous on the disk, but in the file
				gap = 0
			}
			if at += gap; at+n > 1<<32 || where+n >= fs.sb.blocksCount {
				break
			}
			runs = append(runs, run{at, where, n})
			at, where = at+n, where+gap+n
		}
		a := &apply{FS: fs, cs: &Changeset{}, place: placer{base: fs.sb.blocksCount/clusterBlocks - 10_000}}
		in := make(rawInode, inodeSize)
		taken, err := a.putExtents(12, in, runs)
		if err != nil {
			t.Fatal(err)
		}
		want := splitRuns(runs)
		var got []run
		nodes := int64(0)
		err = fs.extents(12, in, func(r run, unwritten bool) error {
			got = append(got, r)
			if unwritten {
				return errors.New("unwritten")
			}
			return nil
		}, func(int64) error { nodes++; return nil })
		if err != nil || nodes != taken || !slices.Equal(got, want) {
			t.Fatalf("%d runs in %d nodes, want %d in %d: %v", len(got), nodes, len(want), taken, err)
		}
		clear(fs.blocks)
	})
}

func freshFS(t testing.TB) *FS {
	f, _, err := Format(FormatOptions{Capacity: 1 << 40})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// FuzzCleanPath: a path never leaves the root.
func FuzzCleanPath(f *testing.F) {
	for _, s := range []string{"", "/", "a/b", "./a//b/", "../../x", "a/../..", "\xff", "...", "d/.wh." + longName(255)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := cleanPath(s)
		if err != nil {
			return
		}
		if dir, base := path.Split(p); len(base) > maxNameLen {
			checkClean(t, dir+strings.TrimPrefix(base, whiteoutPrefix))
		} else {
			checkClean(t, p)
		}
		if again, err := cleanPath(p); again != p || err != nil {
			t.Errorf("%q becomes %q becomes %q, %v", s, p, again, err)
		}
		if abs := filepath.Join("/", s); abs != "/"+p {
			t.Errorf("%q becomes %q, want %q", s, p, abs)
		}
	})
}
