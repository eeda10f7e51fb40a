package diskfs

import (
	"archive/tar"
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vic/bench/oracle"

	"golang.org/x/sys/unix"
)

// generate writes a tar while it is read.
func generate(t testing.TB, write func(add func(item)) error) io.Reader {
	r, w := io.Pipe()
	done := make(chan struct{})
	t.Cleanup(func() { r.Close(); <-done })
	go func() {
		defer close(done)
		b := bufio.NewWriterSize(w, 1<<20)
		tw := tar.NewWriter(b)
		var failed error
		err := write(func(i item) {
			if failed == nil {
				failed = tw.WriteHeader(&i.h)
			}
			if failed == nil {
				_, failed = io.WriteString(tw, i.body)
			}
		})
		w.CloseWithError(errors.Join(err, failed, tw.Close(), b.Flush()))
	}()
	return r
}

// needTime skips a test that takes more than a few seconds in short runs.
func needTime(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("takes long")
	}
}

// TestLargeDirectory: directories far beyond one block, and what later layers do to them.
func TestLargeDirectory(t *testing.T) {
	t.Parallel()
	oracle.Need(t, "debugfs")
	// 8 blocks are linear, from 9 on there is an index; 507 leaves fill its root.
	for _, n := range []int{250, 1100, 20000} {
		c := newChain(t, FormatOptions{Capacity: 4 << 30})
		c.apply(bytes.NewReader(many("d", n).tar(t)))
		c.check()
		tree := c.checkReader()
		if got := len(tree); got != n+2 {
			t.Errorf("%d names, want %d", got-2, n)
		}
		if out := command(t, "debugfs", "-R", "htree_dump /d", c.path); n > 1500 && !strings.Contains(out, "Root node dump") {
			t.Errorf("no index with %d names:\n%.500s", n, out)
		}
		// Another layer: a name out of ten goes, some come, one is replaced by a directory.
		var l layer
		for i := range n / 10 {
			l = append(l, whiteout(fmt.Sprintf("d/f%d", i*10)))
		}
		l = append(l, file("d/new", "new"), folder("d/f1"), file("d/f1/x", "x"), file("d/f2", "other"))
		c.apply(bytes.NewReader(l.tar(t)))
		c.check()
		if got, want := len(c.checkReader()), n-n/10+2+2; got != want {
			t.Errorf("%d names after the second layer, want %d", got, want)
		}
		c.apply(bytes.NewReader(layer{opaque("d"), file("d/last", "")}.tar(t)))
		c.check()
		if got := c.checkReader().describe(); got != tidy(`d/ | d/last ""`) {
			t.Errorf("after the last layer: %s", got)
		}
	}
}

// TestChown: a layer that repeats every file of the one below with another owner costs
// metadata only.
func TestChown(t *testing.T) {
	t.Parallel()
	c := newChain(t, FormatOptions{Capacity: 1 << 30})
	r := rand.New(rand.NewPCG(1, 2))
	data := make([]byte, 1<<20)
	for i := range data {
		data[i] = byte(r.Uint32())
	}
	write := func(owner int) func(add func(item)) error {
		return func(add func(item)) error {
			add(folder("d").owner(owner, 0))
			for i := range 500 {
				add(file(fmt.Sprintf("d/f%d", i), string(data[i:100_000+i])).owner(owner, 0))
			}
			return nil
		}
	}
	first := c.apply(generate(t, write(0)))
	second := c.apply(generate(t, write(33)))
	c.check()
	c.checkReader()
	size := func(d *Delta) (n int64) {
		for _, r := range d.Map {
			n += r.N
		}
		if err := d.Fixed(func(int64, []byte) error { n++; return nil }); err != nil {
			t.Error(err)
		}
		return n * ClusterSize
	}
	_ = first
	c.last = second
	if n := size(second); n > 512<<10 {
		t.Errorf("%d bytes written for 50 MB of unchanged files, want at most 512 KiB", n)
	}
}

// TestFragments: files with many holes have extent trees of one and two levels.
func TestFragments(t *testing.T) {
	t.Parallel()
	c := newChain(t, FormatOptions{Capacity: 512 << 20})
	fragments := func(n int) string {
		p := make([]byte, n*(holeBlocks+1)*BlockSize)
		for i := range n {
			p[i*(holeBlocks+1)*BlockSize] = byte(i) | 1
		}
		return string(p)
	}
	var l layer
	for _, n := range []int{1, 4, 5, 341, 1361} {
		l = append(l, file(fmt.Sprintf("f%d", n), fragments(n)))
	}
	tar := l.tar(t)
	c.apply(bytes.NewReader(tar))
	c.check()
	c.checkReader()
	if oracle.Have(t, "debugfs") {
		if out := command(t, "debugfs", "-R", "ex /f1361", c.path); !strings.Contains(out, " 2/ 2") {
			t.Errorf("1361 extents not two levels deep:\n%.500s", out)
		}
	}
	c.apply(bytes.NewReader(layer{file("f1361", "short"), whiteout("f341"), file("f5", fragments(6)), link("g", "f4")}.tar(t)))
	c.check()
	c.checkReader()
	c.apply(bytes.NewReader(tar))
	c.check()
	c.checkReader()
}

// TestDeepTree: no recursion over the depth of a tree, in the writer, Check or e2fsck.
func TestDeepTree(t *testing.T) {
	t.Parallel()
	c := newChain(t, FormatOptions{Capacity: 256 << 20})
	const depth = 5000
	path := strings.TrimSuffix(strings.Repeat("d/", depth), "/")
	c.apply(bytes.NewReader(layer{folder(path), file(path+"/f", "bottom")}.tar(t)))
	c.check()
	p, err := io.ReadAll(must(c.fs.Open(path + "/f")))
	if err != nil || string(p) != "bottom" {
		t.Errorf("read %q, %v", p, err)
	}
	if os.Geteuid() == 0 {
		dir, unmount := mountDisk(t, c.path, "ro,noload")
		fd, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
		for range depth {
			if err != nil {
				t.Fatal(err)
			}
			var next int
			next, err = unix.Openat(fd, "d", unix.O_PATH|unix.O_CLOEXEC, 0)
			unix.Close(fd)
			fd = next
		}
		var st unix.Stat_t
		if err := unix.Fstatat(fd, "f", &st, 0); err != nil || st.Size != 6 {
			t.Errorf("size %d, %v", st.Size, err)
		}
		unix.Close(fd)
		unmount()
	}
	c.apply(bytes.NewReader(layer{whiteout("d/d/d"), file("a", "")}.tar(t)))
	c.check()
	if got := c.checkReader().describe(); got != tidy(`d/ implied | d/d/ implied | a ""`) {
		t.Error(got)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// TestSubdirectories: the link count of a directory stops counting at 65000.
func TestSubdirectories(t *testing.T) {
	needTime(t)
	t.Parallel()
	c := newChain(t, FormatOptions{Capacity: 32 << 30})
	const limit = maxLinks - 2
	add := func(from, to int, want uint16, more ...item) {
		t.Helper()
		l := layer(more)
		for i := from; i < to; i++ {
			l = append(l, folder(fmt.Sprintf("d/%d", i)))
		}
		c.apply(bytes.NewReader(l.tar(t)))
		fsck(t, c.path)
		if got := must(c.fs.Stat("d")).Sys().(*Stat).Links; got != want {
			t.Errorf("%d subdirectories: %d links, want %d", to, got, want)
		}
	}
	add(0, limit-1, maxLinks-1)
	add(limit-1, limit, 1)
	add(limit, limit+2, 1)
	add(0, 0, maxLinks-2, whiteout("d/5"), whiteout("d/6"), whiteout("d/7"), whiteout("d/8"))
	checkFS(t, c.fs)
}

// TestSharedXattrs: one block serves at most 1024 inodes.
func TestSharedXattrs(t *testing.T) {
	t.Parallel()
	c := newChain(t, FormatOptions{Capacity: 256 << 20})
	value := strings.Repeat("x", 300)
	var l layer
	for i := range 2500 {
		l = append(l, file(fmt.Sprintf("f%d", i), "").xattr("user.x", value).xattr("security.capability", capability))
	}
	c.apply(bytes.NewReader(l.tar(t)))
	c.check()
	c.checkReader()
	var second layer
	for i := range 2500 {
		switch i % 4 {
		case 0:
			second = append(second, whiteout(fmt.Sprintf("f%d", i)))
		case 1:
			second = append(second, l[i])
		case 2:
			second = append(second, file(fmt.Sprintf("f%d", i), "").xattr("user.x", value))
		}
	}
	c.apply(bytes.NewReader(second.tar(t)))
	c.check()
	c.checkReader()
	c.apply(bytes.NewReader(layer{opaque("")}.tar(t)))
	c.check()
	if n := c.fs.sb.freeBlocks; n != freshDisk(t, FormatOptions{Capacity: 256 << 20}).sb.freeBlocks {
		t.Errorf("%d blocks free after everything was removed", n)
	}
}

func freshDisk(t *testing.T, o FormatOptions) *FS {
	t.Helper()
	f, _, err := Format(o)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// TestFull: a layer that does not fit is refused with ErrNoSpace, whatever it lacks.
func TestFull(t *testing.T) {
	t.Parallel()
	noise := make([]byte, 8<<20)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range noise {
		noise[i] = byte(r.Uint32()) | 1
	}
	refuse := func(t *testing.T, c *chain, l layer) {
		t.Helper()
		before := digest(t, c.disk)
		_, err := c.try(bytes.NewReader(l.tar(t)))
		if !errors.Is(err, ErrNoSpace) {
			t.Fatalf("error %v, want ErrNoSpace", err)
		}
		t.Log(err)
		if digest(t, c.disk) != before {
			t.Error("the refused layer changed the disk")
		}
		c.reopen()
		c.check()
	}
	t.Run("data", func(t *testing.T) {
		c := newChain(t, FormatOptions{Capacity: 16 << 20})
		refuse(t, c, layer{file("a", string(noise)), file("b", string(noise))})
		c.apply(bytes.NewReader(layer{file("a", string(noise))}.tar(t)))
		c.check()
	})
	t.Run("to the last cluster", func(t *testing.T) {
		c := newChain(t, FormatOptions{Capacity: 20 << 20})
		left := c.fs.Capacity() - c.high*ClusterSize
		c.apply(bytes.NewReader(layer{file("a", string(append(noise, noise...)[:left-BlockSize]))}.tar(t)))
		if left := c.fs.Capacity() - c.high*ClusterSize; left != 0 {
			t.Errorf("%d bytes left", left)
		}
		c.check()
		c.checkReader()
		refuse(t, c, layer{file("b", "1")})
		c.apply(bytes.NewReader(layer{file("a", "").mode(0600)}.tar(t)))
		c.apply(bytes.NewReader(layer{file("a", "").mode(0644)}.tar(t)))
		refuse(t, c, layer{whiteout("a")}) // its directory needs a block
		c.check()
	})
	t.Run("metadata", func(t *testing.T) {
		c := newChain(t, FormatOptions{Capacity: 16 << 20})
		left := (c.fs.Capacity() - c.high*ClusterSize) / BlockSize
		var l layer
		for i := range left + 1 {
			l = append(l, symlink(fmt.Sprintf("s%d", i), longName(100)))
		}
		refuse(t, c, l)
	})
	t.Run("inodes", func(t *testing.T) {
		c := newChain(t, FormatOptions{Capacity: 256 << 20}) // two groups
		c.apply(bytes.NewReader(many("d", 2*inodesPerGroup-firstInode).tar(t)))
		c.check()
		refuse(t, c, layer{file("e", "")})
		c.apply(bytes.NewReader(layer{whiteout("d/f5"), file("new", "")}.tar(t)))
		c.check()
		refuse(t, c, layer{whiteout("d/f6"), folder("e"), folder("e/f")})
		// The one given back is behind the place where the search has come to.
		c.apply(bytes.NewReader(layer{whiteout("d/f4000"), file("d/new1", ""), folder("d/f2"), link("d/f10", "d/f11"), file("d/new2", "")}.tar(t)))
		c.check()
		c.checkReader()
	})
}

// TestFilled fills a disk of 2 GiB to its end, through all groups with room reserved for
// backup superblocks, and compares every byte with the kernel.
func TestFilled(t *testing.T) {
	needTime(t)
	c := newChain(t, FormatOptions{Capacity: 2 << 30})
	noise := make([]byte, 50<<20+5*BlockSize+17)
	r := rand.New(rand.NewPCG(3, 4))
	for i := range noise {
		noise[i] = byte(r.Uint32()) | 1
	}
	n := 0
	for ; ; n++ {
		_, err := c.try(bytes.NewReader(layer{file(fmt.Sprintf("f%d", n), string(noise[n:])), folder(fmt.Sprintf("d%d", n))}.tar(t)))
		if errors.Is(err, ErrNoSpace) {
			c.reopen()
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if left := c.fs.Capacity() - c.high*ClusterSize; left > int64(len(noise))+1<<20 {
		t.Errorf("%d files, %d bytes left", n, left)
	}
	for left := c.fs.Capacity() - c.high*ClusterSize - BlockSize; left > 0; left = c.fs.Capacity() - c.high*ClusterSize - BlockSize {
		c.apply(bytes.NewReader(layer{file(fmt.Sprint("last", left), string(noise[:min(left, int64(len(noise)))]))}.tar(t)))
	}
	c.check()
	c.checkReader()
}

// TestGuest: a guest mounts the disk read-write, works on it, and goes.
func TestGuest(t *testing.T) {
	t.Parallel()
	oracle.Root(t)
	oracle.Need(t, "cp", "setfattr")
	c := newChain(t, FormatOptions{Capacity: 4 << 30})
	c.apply(bytes.NewReader(append(many("big", 5000), append(many("small", 50), file("x", "").xattr("user.x", strings.Repeat("v", 200)))...).tar(t)))
	c.check()
	guest := filepath.Join(t.TempDir(), "guest.raw")
	command(t, "cp", "--sparse=always", c.path, guest)

	_, unmount := mountDisk(t, guest, "rw")
	unmount()
	if n := changedBlocks(t, c.path, guest) * BlockSize; n > 64<<10 {
		t.Errorf("mount and umount change %d bytes, want at most 64 KiB", n)
	}
	fsck(t, guest)

	dir, unmount := mountDisk(t, guest, "rw")
	shell(t, `cd %s
		for i in $(seq 300); do echo $i > big/new$i; rm big/f$i; mv big/f$((i+1000)) small/moved$i; done
		for i in $(seq 600); do echo $i > small/n$i; done
		mkdir -p deep/a/b/c; cp -a big copied; ln x y; ln -s x z; rm small/f7; truncate -s 100M hole
		dd if=/dev/urandom of=data bs=1M count=20 status=none; dd if=/dev/zero of=hole bs=4k seek=77 count=3 conv=notrunc status=none
		setfattr -n user.y -v "$(seq 300)" y; sync`, dir)
	want := hostTree(t, dir)
	unmount()
	fsck(t, guest)
	f, err := os.Open(guest)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fs, err := Open(f, 4<<30)
	if err != nil {
		t.Fatal(err)
	}
	checkFS(t, fs)
	compareTrees(t, "our reader", fsTree(t, fs), "kernel", want)
}

// changedBlocks counts the blocks in which two disks differ.
func changedBlocks(t *testing.T, a, b string) (n int64) {
	t.Helper()
	blocks := map[int64]uint32{}
	for i, path := range []string{a, b} {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		eachBlock(t, f, func(off int64, p []byte) {
			sum := crc32c(1, p)
			if i == 1 && blocks[off] == sum {
				delete(blocks, off)
			} else {
				blocks[off] = sum
			}
		})
	}
	return int64(len(blocks))
}
