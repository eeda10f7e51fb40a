package diskfs

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"vic/bench/oracle"

	gofile "github.com/diskfs/go-diskfs/backend/file"
	goext4 "github.com/diskfs/go-diskfs/filesystem/ext4"
)

// TestForeign reads file systems that mke2fs made: those of supported shapes as the kernel
// does, the others not at all, and none is taken for a layer's.
func TestForeign(t *testing.T) {
	oracle.Root(t)
	oracle.Need(t, "mke2fs", "setcap", "setfacl", "setfattr")
	src := t.TempDir()
	makeTree(t, src, true, true)
	command(t, "setfattr", "-x", "user.long", filepath.Join(src, "large")) // mke2fs -d cannot store it
	many := filepath.Join(src, "many")
	if err := os.Mkdir(many, 0755); err != nil {
		t.Fatal(err)
	}
	for i := range 500 {
		if err := os.WriteFile(filepath.Join(many, fmt.Sprintf("%s%d", strings.Repeat("n", 100), i)), []byte("x"), 0644); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct{ args, refused string }{
		{"-U random", ""},
		{"-O ^metadata_csum_seed,^orphan_file", ""},
		{"-O ^metadata_csum,^metadata_csum_seed", ""},
		{"-O ^64bit", ""},
		{"-O ^64bit,^metadata_csum,^metadata_csum_seed,uninit_bg", ""},
		{"-O ^flex_bg", ""},
		{"-O ^has_journal,^resize_inode", ""},
		{"-O sparse_super2,^resize_inode", ""},
		{"-O quota,project", ""},
		{"-O bigalloc", "blocks per group"},
		{"-b 1024", "block size is not 4096"},
		{"-b 2048", "block size is not 4096"},
		{"-g 16384", "16384 blocks per group, want"},
		{"-I 128", "inode size 128"},
		{"-I 512", "inode size 512"},
		{"-t ext2", "extents"},
		{"-t ext3", "extents"},
		{"-O inline_data", "inline_data"},
		{"-O meta_bg,^resize_inode", ""},
		{"-O ea_inode", "ea_inode"},
		{"-O large_dir", "large_dir"},
		{"-O encrypt", "encrypt"},
		{"-O casefold", "casefold"},
		{"-O mmp", "mmp"},
		{"-O journal_dev", "journal_dev"},
		{"-N 100000", "16504 blocks per group"},
		{"-m 20 -E hash_seed=00000000-0000-0000-0000-000000000001", ""},
	} {
		t.Run(strings.ReplaceAll(tc.args, " ", "_"), func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "disk.raw")
			args := strings.Fields("-q -F " + tc.args)
			if !strings.Contains(tc.args, "-b ") {
				args = append(args, "-b", "4096")
			}
			if !strings.Contains(tc.args, "-t ") && !strings.Contains(tc.args, "journal_dev") {
				args = append(args, "-t", "ext4")
			}
			if tc.refused == "" {
				args = append(args, "-d", src)
			}
			command(t, "mke2fs", append(args, path, "200M")...)
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			disk, err := Open(f, 200<<20)
			if tc.refused != "" {
				if err == nil || !strings.Contains(err.Error(), tc.refused) {
					t.Errorf("error %v, want one with %q", err, tc.refused)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			c := chain{t: t, fs: disk, path: path, disk: f}
			got := c.checkReader()
			if want := len(hostTree(t, src)) + 1; len(got) != want { // and lost+found
				t.Errorf("%d paths, want %d", len(got), want)
			}
			if _, err := disk.Apply(&Changeset{}, ApplyOptions{}); err == nil || !strings.Contains(err.Error(), "not made by diskfs") {
				t.Errorf("apply: error %v", err)
			}
			n := 0
			if err := disk.Check(func(err error) error { n++; return nil }); n != 1 || err != nil {
				t.Errorf("check reports %d errors, %v", n, err)
			}
		})
	}
}

// TestKernelWritten reads what the kernel wrote on a file system with today's default
// features: fragmented files, indexes it grew itself, unwritten extents.
func TestKernelWritten(t *testing.T) {
	t.Parallel()
	oracle.Need(t, "mke2fs", "fallocate")
	path := filepath.Join(t.TempDir(), "disk.raw")
	command(t, "mke2fs", "-q", "-F", "-t", "ext4", path, "600M")
	dir, unmount := mountDisk(t, path, "rw")
	shell(t, `cd %s
		mkdir d; for i in $(seq 3000); do : > d/name-number-$i; done; seq -f d/name-number-%%g 1 3 3000 | xargs rm`, dir)
	frag, err := os.Create(filepath.Join(dir, "frag"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range int64(400) {
		if _, err := frag.WriteAt(bytes.Repeat([]byte{byte(i), 1}, BlockSize/2), 2*i*BlockSize); err != nil {
			t.Fatal(err)
		}
	}
	if err := frag.Close(); err != nil {
		t.Fatal(err)
	}
	shell(t, `cd %s
		fallocate -l 10M unwritten; dd if=/dev/urandom of=unwritten bs=4k count=1 seek=7 conv=notrunc status=none
		fallocate -p -o 8k -l 40k frag; truncate -s 5001 unwritten2; ln -s "$(seq 400)" slow; ln -s x fast; mkfifo p; cp -a d e`, dir)
	unmount()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	disk, err := Open(f, 600<<20)
	if err != nil {
		t.Fatal(err)
	}
	c := chain{t: t, fs: disk, path: path, disk: f}
	c.checkReader()
}

// TestDebugfs: another parser of our inodes, and of the name hash.
func TestDebugfs(t *testing.T) {
	oracle.Need(t, "debugfs")
	c := newChain(t, smallDisk)
	c.apply(bytes.NewReader(append(layer{
		file("f", strings.Repeat("f", 10000)).mode(04711).owner(70000, 80000).xattr("user.x", "small").xattr("security.capability", capability),
		file("g", "").xattr("user.long", strings.Repeat("v", 500)), symlink("s", "target"), device("dev", 'b', 300, 70000),
	}, many("d", 3000)...).tar(t)))
	c.check()
	for _, tc := range []struct{ request, want string }{
		{"stat /f", `(?s)Type: regular +Mode: +04711 +Flags: 0x80000.*User: 70000 +Group: 80000.*Size: 10000.*Links: 1 +Blockcount: 24.*mtime: 0x3b9aca00:00000000.*Size of extra inode fields: 32.*EXTENTS:\n\(0-2\)`},
		{"stat /s", `Fast link dest: "target"`},
		{"stat /dev", `300:70000`},
		{"ea_list /f", `(?s)user.x \(5\) = "small".*security.capability \(20\)|(?s)security.capability \(20\).*user.x \(5\) = "small"`},
		{"ea_list /g", `user.long \(500\)`},
		{"htree_dump /d", `(?s)Root node dump:.*Hash Version: 1.*Number of entries \(limit\): 507.*Entry #0`},
		{"ex /f", `0 -     2`},
		{"stat <8>", `(?s)Type: regular.*Size: 4194304`},
		{"logdump -S", `(?s)Journal sequence:.*0x00000001.*Journal start:.*0`},
	} {
		if out := command(t, "debugfs", "-R", tc.request, c.path); !regexp.MustCompile(tc.want).MatchString(out) {
			t.Errorf("%s: want %s in:\n%.1500s", tc.request, tc.want, out)
		}
	}
}

// TestDirHash compares the name hash with e2fsprogs'.
func TestDirHash(t *testing.T) {
	oracle.Need(t, "debugfs")
	seed := [4]uint32{0x04030201, 0x08070605, 0x0c0b0a09, 0x100f0e0d}
	r := rand.New(rand.NewPCG(5, 6))
	var names []string
	for n := 1; n <= 255; n++ {
		for _, high := range []bool{false, true} {
			p := make([]byte, n)
			for i := range p {
				for p[i] < '!' || p[i] == '"' || p[i] == 0x7f || p[i] == '-' || !high && p[i] >= 0x80 {
					p[i] = byte(r.Uint32())
				}
			}
			names = append(names, string(p))
		}
	}
	var requests strings.Builder
	for _, name := range names {
		fmt.Fprintf(&requests, "dx_hash -h half_md4 -s 01020304-0506-0708-090a-0b0c0d0e0f10 \"%s\"\n", name)
	}
	cmd := exec.Command("debugfs", "-f", "-")
	cmd.Stdin = strings.NewReader(requests.String())
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`is 0x([0-9a-f]+) \(minor 0x([0-9a-f]+)\)`).FindAllStringSubmatch(string(out), -1)
	if len(found) != len(names) {
		t.Fatalf("debugfs hashes %d of %d names", len(found), len(names))
	}
	for i, name := range names {
		hash, minor := dirHash(seed, name)
		wantHash, _ := strconv.ParseUint(found[i][1], 16, 32)
		wantMinor, _ := strconv.ParseUint(found[i][2], 16, 32)
		if hash != uint32(wantHash) || minor != uint32(wantMinor) {
			t.Errorf("%q: hash %#x minor %#x, e2fsprogs %#x, %#x", name, hash, minor, wantHash, wantMinor)
		}
	}
}

// TestGoDiskfs reads our file system with go-diskfs, which knows nothing of this package.
// Not holes: it leaves them out of what it reads.
func TestGoDiskfs(t *testing.T) {
	c := newChain(t, FormatOptions{Capacity: 256 << 20})
	c.apply(bytes.NewReader(append(layer{
		folder("d").mode(0700), file("d/small", "small").owner(70000, 5).mode(0640), file("d/large", strings.Repeat("0123456789", 100_000)),
		file("empty", ""), symlink("fast", "d/small"), symlink("slow", strings.Repeat("s/", 100)), link("hard", "d/small"),
		file("attr", "a").xattr("user.in", "inode"), file("attrs", "b").xattr("user.block", strings.Repeat("b", 900)),
	}, append(many("many", 300), many("indexed", 800)...)...).tar(t)))
	c.apply(bytes.NewReader(layer{whiteout("many/f3"), file("indexed/f7", "changed"), folder("d/sub")}.tar(t)))
	c.check()
	want := c.checkReader()
	f, err := os.Open(c.path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	other, err := goext4.Read(gofile.New(f, true), 256<<20, 0, 512)
	if err != nil {
		t.Fatal(err)
	}
	seen := 1
	var walk func(dir string)
	walk = func(dir string) {
		list, err := other.ReadDir(filepath.Join(".", dir))
		if err != nil {
			t.Fatalf("%s: %v", dir, err)
		}
		for _, e := range list {
			p := strings.TrimPrefix(dir+"/"+e.Name(), "/")
			if e.Name() == "." || e.Name() == ".." {
				continue
			}
			w, ok := want[p]
			if !ok {
				t.Errorf("%s: not in our tree", p)
				continue
			}
			seen++
			info, err := other.Stat(p)
			if err != nil {
				t.Errorf("%s: %v", p, err)
				continue
			}
			st := info.Sys().(*goext4.StatT)
			if uint32(info.Mode().Perm()) != w.mode&0777 || st.UID != w.uid || st.GID != w.gid || info.ModTime().Unix() != w.sec {
				t.Errorf("%s: mode %v, owner %d:%d, mtime %v; want %+v", p, info.Mode(), st.UID, st.GID, info.ModTime(), w)
			}
			switch {
			case info.IsDir():
				walk(p)
			case info.Mode()&fs.ModeSymlink != 0:
				if target, err := other.ReadLink(p); err != nil || target != w.target {
					t.Errorf("%s: %q, %v", p, target, err)
				}
			default:
				file, err := other.Open(p)
				if err != nil {
					t.Errorf("%s: %v", p, err)
					continue
				}
				var n node
				if err := n.setContent(file.(io.Reader)); err != nil || n.size != w.size || n.sum != w.sum || int(st.Nlink) != w.links {
					t.Errorf("%s: %d bytes %x, %d links, %v; want %d bytes %x, %d links", p, n.size, n.sum, st.Nlink, err, w.size, w.sum, w.links)
				}
			}
		}
	}
	walk("")
	if seen != len(want) {
		t.Errorf("go-diskfs sees %d paths, want %d", seen, len(want))
	}
	for p, want := range map[string]string{"attr": "user.in=inode", "attrs": "user.block=" + strings.Repeat("b", 900)} {
		name, value, _ := strings.Cut(want, "=")
		if got, err := other.GetXattr(p); err != nil || string(got[name]) != value {
			t.Errorf("%s: xattrs %q, %v", p, got, err)
		}
	}
}
