package diskfs

import (
	"archive/tar"
	"bytes"
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"vic/bench/oracle"

	"golang.org/x/sys/unix"
)

// huge is how many files are many: a million with NIGHTLY=1, else as many as have a directory's index two levels high.
func huge() int {
	if os.Getenv("NIGHTLY") == "1" {
		return 1_000_000
	}
	return 200_000
}

// TestHugeDirectory: one directory with many names has an index of two levels, and a million of them names that share a
// hash across leaves.
func TestHugeDirectory(t *testing.T) {
	needTime(t)
	oracle.Root(t)
	n := huge()
	c := newChain(t, FormatOptions{Capacity: 64 << 30})
	c.apply(generate(t, func(add func(item)) error {
		add(folder("d"))
		for i := range n {
			add(file(fmt.Sprintf("d/name-%d", i), ""))
		}
		return nil
	}))
	c.check()
	list, err := c.fs.ReadDir("d")
	if err != nil || len(list) != n {
		t.Fatalf("%d names, %v", len(list), err)
	}
	c.apply(bytes.NewReader(layer{whiteout("d/name-77"), file("d/name-78", "78"), file("d/one more", "")}.tar(t)))
	c.check()
	dir, unmount := mountDisk(t, c.path, "ro,noload")
	defer unmount()
	d, err := os.Open(filepath.Join(dir, "d"))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	seen := 0
	for {
		names, err := d.Readdirnames(100_000)
		seen += len(names)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if seen != n {
		t.Errorf("the kernel lists %d names, want %d", seen, n)
	}
	for i := 0; i < n; i += 7 { // by way of the index
		var st unix.Stat_t
		if err := unix.Fstatat(int(d.Fd()), fmt.Sprintf("name-%d", i), &st, 0); (err != nil) != (i == 77) {
			t.Fatalf("name-%d: %v", i, err)
		}
	}
}

// TestSharedHash: of two names with one hash the first ends a leaf and the other begins the next.
func TestSharedHash(t *testing.T) {
	oracle.Root(t)
	t.Parallel()
	c := newChain(t, FormatOptions{})
	hash := func(name string) uint32 { h, _ := dirHash(c.fs.sb.hashSeed, name); return h }
	const leaves = 2 * linearBlocks
	names := make([]string, 200_000) // among which there are some twenty pairs
	for i := range names {
		names[i] = fmt.Sprintf("name-%06d", i)
	}
	slices.SortFunc(names, func(a, b string) int { return cmp.Or(cmp.Compare(hash(a), hash(b)), strings.Compare(a, b)) })
	below := leaves*(leafFill/entryLen(names[0])) - 1
	at := below
	for at+1 < len(names) && hash(names[at]) != hash(names[at+1]) {
		at++
	}
	names = names[at-below:]
	names = names[:2*below]
	var files layer
	for _, name := range names {
		files = append(files, file("d/"+name, name))
	}
	c.apply(bytes.NewReader(files.tar(t)))
	ino, err := c.fs.lookup("d", false)
	if err != nil {
		t.Fatal(err)
	}
	d, err := c.fs.dir(ino)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.lay(c.fs.sb.hashSeed); err != nil || d.layout.starts[leaves] != below+1 || hash(names[below]) != hash(names[below+1]) {
		t.Fatalf("%v: leaf %d begins with name %d, want %d", err, leaves, d.layout.starts[leaves], below+1)
	}
	c.check()
	dir, unmount := mountDisk(t, c.path, "ro,noload")
	defer unmount()
	for _, name := range names {
		if p, err := os.ReadFile(filepath.Join(dir, "d", name)); err != nil || string(p) != name {
			t.Fatalf("%s: %q, %v", name, p, err)
		}
	}
}

// TestManyFiles: a tree of 100,000 files, then a layer that changes each of them.
func TestManyFiles(t *testing.T) {
	needTime(t)
	t.Parallel()
	c := newChain(t, FormatOptions{Capacity: 8 << 30})
	name := func(i int) string { return fmt.Sprintf("d%d/e%d/f%d", i%10, i%300, i) }
	write := func(owner int) func(add func(item)) error {
		return func(add func(item)) error {
			for i := range 100_000 {
				add(file(name(i), fmt.Sprintf("%0*d", i%200, i)).owner(owner, owner))
			}
			return nil
		}
	}
	c.apply(generate(t, write(0)))
	c.check()
	d := c.apply(generate(t, write(1000)))
	c.check()
	if len(d.Map) > 0 {
		t.Errorf("data placed for files that did not change: %+v", d.Map)
	}
	got := c.checkReader()
	if len(got) != 100_000+10+300+1 {
		t.Errorf("%d paths", len(got))
	}
	for i := range 100_000 {
		if n := got[name(i)]; n.uid != 1000 || n.size != int64(max(i%200, len(fmt.Sprint(i)))) {
			t.Fatalf("%s: %+v", name(i), n)
		}
	}
}

// TestHugeTree: a tree of many files, each of which the kernel finds by its name.
func TestHugeTree(t *testing.T) {
	needTime(t)
	oracle.Root(t)
	t.Parallel()
	n := huge()
	name := func(i int) string { return fmt.Sprintf("%d/%d/f%d", i%10, i%1000, i) }
	size := func(i int) int { return max(0, i%100-98) * (i % 5000) } // one in a hundred has data
	c := newChain(t, FormatOptions{Capacity: 64 << 30})
	data := strings.Repeat("0123456789", 500)
	c.apply(generate(t, func(add func(item)) error {
		for i := range n {
			add(file(name(i), data[:size(i)]).owner(i, 0))
		}
		return nil
	}))
	c.check()
	dir, unmount := mountDisk(t, c.path, "ro,noload")
	defer unmount()
	syscall.ForkLock.RLock() // see chain.kernelTree
	defer syscall.ForkLock.RUnlock()
	for i := range n {
		var st unix.Stat_t
		if err := unix.Lstat(dir+"/"+name(i), &st); err != nil || st.Size != int64(size(i)) || st.Uid != uint32(i) || st.Nlink != 1 {
			t.Fatalf("%s: %v, %+v", name(i), err, st)
		}
		if i%10_000 == 99 {
			if p, err := os.ReadFile(dir + "/" + name(i)); err != nil || string(p) != data[:size(i)] {
				t.Fatalf("%s: %d bytes, %v", name(i), len(p), err)
			}
		}
	}
	files := 0
	err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			files++
		}
		return err
	})
	if err != nil || files != n {
		t.Errorf("the kernel lists %d files, want %d, %v", files, n, err)
	}
}

// TestSparseFile: a file larger than its disk.
func TestSparseFile(t *testing.T) {
	t.Parallel()
	oracle.Need(t, "tar")
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	const size = 20<<30 + 123
	for _, off := range []int64{0, 5 << 30, 7<<30 + 777, size - 5} {
		if _, err := f.WriteAt([]byte("data!"), off); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"gnu", "posix"} {
		out := filepath.Join(t.TempDir(), "t.tar")
		command(t, "tar", "-C", dir, "--format="+format, "--sparse", "-cf", out, "sparse")
		tar, err := os.Open(out)
		if err != nil {
			t.Fatal(err)
		}
		defer tar.Close()
		c := newChain(t, smallDisk)
		c.apply(tar)
		c.check()
		file, err := c.fs.Open("sparse")
		if err != nil {
			t.Fatal(err)
		}
		if info, err := file.Stat(); err != nil || info.Size() != size {
			t.Errorf("%s: size %d, %v", format, info.Size(), err)
		}
		for off := int64(0); ; {
			start, n := file.(*File).Data(off)
			if n == 0 {
				break
			}
			got, want := make([]byte, n), make([]byte, n)
			if _, err := file.(*File).ReadAt(got, start); err != nil && err != io.EOF {
				t.Fatal(err)
			}
			for _, at := range []int64{0, 5 << 30, 7<<30 + 777, size - 5} {
				if at >= start && at < start+n {
					copy(want[at-start:], "data!")
				}
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%s: wrong data at %d", format, start)
			}
			off = start + n
		}
		if st := file.(*File).info.Sys().(*Stat); st.Blocks > 8*8 {
			t.Errorf("%s: %d sectors", format, st.Blocks)
		}
		sameData(t, c, "sparse", filepath.Join(dir, "sparse"))
	}
}

// sameData wants the kernel to see on the chain's disk, in a file, the data and the holes
// of another.
func sameData(t *testing.T, c *chain, name, want string) {
	t.Helper()
	dir, unmount := mountDisk(t, c.path, "ro,noload")
	defer unmount()
	syscall.ForkLock.RLock() // see chain.kernelTree
	defer syscall.ForkLock.RUnlock()
	var blocks [2]map[int64]string
	for i, path := range []string{filepath.Join(dir, name), want} {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		blocks[i] = map[int64]string{}
		eachBlock(t, f, func(off int64, p []byte) { blocks[i][off] = string(p) })
	}
	if !maps.Equal(blocks[0], blocks[1]) {
		t.Errorf("%s: %d blocks of data, not the %d of %s", name, len(blocks[0]), len(blocks[1]), want)
	}
}

// large is for what takes a minute and 20 GB in the folder for temporary files:
// go test ./diskfs -run TestHugeFile -large
var large = flag.Bool("large", false, "run TestHugeFile")

// TestHugeFile: a file of 9 GiB, whose size a header of old cannot say. It has no zeros.
func TestHugeFile(t *testing.T) {
	if !*large {
		t.Skip("takes -large, a minute, and 20 GB in the folder for temporary files")
	}
	oracle.Root(t)
	const size = 9<<30 + 4711
	// block makes the file's content from off on.
	block := func(p []byte, off int64) {
		for i := range p {
			p[i] = byte(i>>9) | 1
		}
		for i := 0; i < len(p); i += BlockSize {
			copy(p[i:], fmt.Sprint("block ", (off+int64(i))/BlockSize))
		}
	}
	body := func(r io.Reader) error {
		got, want := make([]byte, 1<<20), make([]byte, 1<<20)
		for off := int64(0); off < size; off += int64(len(got)) {
			got, want = got[:min(size-off, 1<<20)], want[:min(size-off, 1<<20)]
			if _, err := io.ReadFull(r, got); err != nil {
				return err
			}
			if block(want, off); !bytes.Equal(got, want) {
				return fmt.Errorf("other data from byte %d", off)
			}
		}
		return nil
	}
	r, w := io.Pipe()
	done := make(chan struct{})
	defer func() { r.Close(); <-done }()
	go func() {
		defer close(done)
		tw := tar.NewWriter(w)
		tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "huge", Mode: 0644, Size: size, ModTime: entryTime})
		p := make([]byte, 1<<20)
		var err error
		for off := int64(0); off < size && err == nil; off += int64(len(p)) {
			p = p[:min(size-off, 1<<20)]
			block(p, off)
			_, err = tw.Write(p)
		}
		w.CloseWithError(errors.Join(err, tw.Close()))
	}()
	c := newChain(t, FormatOptions{Capacity: 16 << 30})
	c.apply(r)
	c.check()
	dir, unmount := mountDisk(t, c.path, "ro,noload")
	defer unmount()
	f, err := os.Open(filepath.Join(dir, "huge"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || st.Size() != size {
		t.Fatal(st, err)
	}
	if err := body(f); err != nil {
		t.Error(err)
	}
}
