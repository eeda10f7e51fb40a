package mount

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
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

	"vic/bench/oracle"
	"vic/layerstore"
)

// kernelMount mounts an image's disk with the kernel, by way of qemu-img.
func kernelMount(t *testing.T, s *layerstore.Store, img *layerstore.Image) (raw, dir string) {
	t.Helper()
	oracle.Need(t, "qemu-img")
	oracle.Root(t)
	path, err := s.DiskPath(img)
	if err != nil {
		t.Fatal(err)
	}
	raw, dir = filepath.Join(t.TempDir(), "disk.raw"), t.TempDir()
	command(t, "qemu-img", "convert", "-f", "vmdk", "-O", "raw", path, raw)
	command(t, "mount", "-t", "ext4", "-o", "loop,ro,noload", raw, dir)
	t.Cleanup(func() { command(t, "umount", dir) })
	return raw, dir
}

// statLines describes all of a tree as stat(2) does, which is more than a tar has. Inode
// numbers are those of the file system on the disk.
func statLines(t *testing.T, root string) []string {
	t.Helper()
	var lines []string
	err := filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		name, _ := filepath.Rel(root, p)
		lines = append(lines, fmt.Sprintf("%q mode=%o inode=%d links=%d owner=%d:%d dev=%x size=%d blocks=%d atime=%v mtime=%v ctime=%v holes=%v", name,
			st.Mode, uint32(st.Ino), st.Nlink, st.Uid, st.Gid, st.Rdev, st.Size, st.Blocks, st.Atim, st.Mtim, st.Ctim, holes(t, p, st)))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

// holes returns where data and holes begin in a file.
func holes(t *testing.T, path string, st unix.Stat_t) (list []int64) {
	t.Helper()
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for off := int64(0); ; {
		for _, whence := range []int{unix.SEEK_DATA, unix.SEEK_HOLE} {
			off, err = unix.Seek(int(f.Fd()), off, whence)
			if err == unix.ENXIO {
				return list
			}
			if err != nil {
				t.Fatalf("seek in %s: %v", path, err)
			}
			list = append(list, off)
		}
	}
}

func sameLines(t *testing.T, got, want []string) {
	t.Helper()
	for i := range max(len(got), len(want)) {
		switch {
		case i >= len(got):
			t.Fatalf("missing: %s", want[i])
		case i >= len(want):
			t.Fatalf("superfluous: %s", got[i])
		case got[i] != want[i]:
			t.Fatalf("\n got %s\nwant %s", got[i], want[i])
		}
	}
}

// TestKernelsView: what an image's folder shows is what the kernel shows of its disk.
func TestKernelsView(t *testing.T) {
	s := openStore(t, 64<<20)
	img := pull(t, s, "registry.example:5000/lib/all:1", everything(), changes())
	dir, _ := view(t, s, Options{})
	raw, kernel := kernelMount(t, s, img)
	rootfs := filepath.Join(dir, "images/registry.example:5000/lib/all:1/rootfs")
	id := filepath.Join(dir, "images", img.ID.Encoded())
	for range 2 { // from the store, from the kernel's caches
		sameLines(t, statLines(t, filepath.Join(id, "rootfs")), statLines(t, kernel))
		sameArchives(t, "the view", archive(t, rootfs, withXattrs...), "the kernel's", archive(t, kernel, withXattrs...))
	}
	disk := filepath.Join(id, "disk.raw")
	command(t, "cmp", disk, raw)
	copied := filepath.Join(t.TempDir(), "copy")
	command(t, "cp", "--sparse=auto", disk, copied)
	command(t, "cmp", copied, raw)
	var st, want unix.Stat_t
	if err := errors.Join(unix.Stat(disk, &st), unix.Stat(raw, &want)); err != nil {
		t.Fatal(err)
	}
	if st.Size != 64<<20 || st.Blocks == 0 || st.Blocks > want.Size/512/2 {
		t.Errorf("disk.raw: %d bytes, %d blocks", st.Size, st.Blocks)
	}
	if b, err := os.ReadFile(filepath.Join(id, "config.json")); err != nil || !bytes.Equal(b, img.RawConfig) {
		t.Errorf("config.json: %v", err)
	}
	if b, err := os.ReadFile(filepath.Join(id, "manifest.json")); err != nil || !bytes.Equal(b, img.RawManifest) {
		t.Errorf("manifest.json: %v", err)
	}
	for i, l := range img.Layers {
		var record layerstore.Layer
		b, err := os.ReadFile(filepath.Join(id, "layers", fmt.Sprintf("%03d", i), "layer.json"))
		if err == nil {
			err = json.Unmarshal(b, &record)
		}
		if err != nil || record.Chain != l.Chain {
			t.Errorf("layer.json: %v, %+v", err, record)
		}
	}
}

// TestChangeset: a layer's diff is what GNU tar extracts from its tar.
func TestChangeset(t *testing.T) {
	oracle.Need(t, "tar")
	oracle.Root(t)
	s := openStore(t, 64<<20)
	img := pull(t, s, "all:1", everything(), changes(), entries())
	dir, _ := view(t, s, Options{})
	for i, l := range img.Layers {
		extracted, tarball := t.TempDir(), filepath.Join(t.TempDir(), "layer.tar")
		f, err := os.Create(tarball)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(s.WriteTar(t.Context(), l.Chain, f), f.Close()); err != nil {
			t.Fatal(err)
		}
		command(t, "tar", "-C", extracted, "--xattrs", "--xattrs-include=*", "--numeric-owner", "--same-owner", "--delay-directory-restore", "-pxf", tarball)
		// No entry names the root: it has the attributes of the layer below.
		diff := filepath.Join(dir, "layers", l.Chain.Encoded(), "diff")
		for _, sub := range []string{"d", "many", "private"} {
			got, want := filepath.Join(diff, sub), filepath.Join(extracted, sub)
			if _, err := os.Lstat(want); err != nil {
				if _, err := os.Lstat(got); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("layer %d: %s: %v", i, sub, err)
				}
				continue
			}
			sameArchives(t, "diff", archive(t, got), "the extracted tar", archive(t, want))
			sameLines(t, xattrLines(t, got), xattrLines(t, want))
		}
		list, err := os.ReadDir(diff)
		want, err2 := os.ReadDir(extracted)
		if err != nil || err2 != nil || len(list) != len(want) {
			t.Errorf("layer %d: %v (%v), want %v (%v)", i, list, err, want, err2)
		}
	}
}

// TestFlattened: a layer whose disk was merged into another has a record and no more.
func TestFlattened(t *testing.T) {
	s := openStore(t, 64<<20)
	img := pull(t, s, "all:1", everything(), entries(), changes())
	dir, _ := view(t, s, Options{})
	id := filepath.Join(dir, "images", img.ID.Encoded())
	rootfs, diff := archive(t, filepath.Join(id, "rootfs"), withXattrs...), archive(t, filepath.Join(id, "layers/002/diff"), withXattrs...)
	if _, err := s.Flatten(t.Context(), "all:1", nil); err != nil {
		t.Fatal(err)
	}
	again, _ := view(t, s, Options{}) // the first has the old disks open
	for _, dir := range []string{dir, again} {
		id := filepath.Join(dir, "images", img.ID.Encoded())
		sameArchives(t, "rootfs", archive(t, filepath.Join(id, "rootfs"), withXattrs...), "that of before", rootfs)
		sameArchives(t, "diff", archive(t, filepath.Join(id, "layers/002/diff"), withXattrs...), "that of before", diff)
	}
	for i := range 2 {
		list, err := os.ReadDir(filepath.Join(again, "images", img.ID.Encoded(), fmt.Sprintf("layers/%03d", i)))
		if err != nil || len(list) != 1 || list[0].Name() != "layer.json" {
			t.Errorf("layer %d: %v, %v", i, list, err)
		}
	}
}

// TestReadOnly: whatever would change something is refused as on any read-only file system.
func TestReadOnly(t *testing.T) {
	s := openStore(t, 64<<20)
	img := pull(t, s, "all:1", everything())
	dir, _ := view(t, s, Options{})
	in := func(name string) string { return filepath.Join(dir, "images", img.ID.Encoded(), "rootfs", name) }
	for name, err := range map[string]error{
		"create":    os.WriteFile(in("new"), nil, 0o600),
		"write":     os.WriteFile(in("d/small"), []byte("x"), 0o600),
		"truncate":  os.Truncate(in("d/small"), 0),
		"mkdir":     os.Mkdir(in("dir"), 0o700),
		"unlink":    os.Remove(in("d/small")),
		"rmdir":     unix.Rmdir(in("d")),
		"rename":    os.Rename(in("d/small"), in("d/other")),
		"link":      os.Link(in("d/small"), in("d/other")),
		"symlink":   os.Symlink("x", in("d/other")),
		"chmod":     os.Chmod(in("d/small"), 0o600),
		"chown":     os.Chown(in("d/small"), 1, 1),
		"mknod":     unix.Mknod(in("pipe"), unix.S_IFIFO, 0),
		"setxattr":  unix.Setxattr(in("d/small"), "user.x", []byte("y"), 0),
		"rmxattr":   unix.Removexattr(in("d/capable"), "user.note"),
		"an image":  os.Remove(filepath.Join(dir, "images", img.ID.Encoded())),
		"a catalog": os.WriteFile(filepath.Join(dir, "layers/new"), nil, 0o600),
	} {
		if !errors.Is(err, unix.EROFS) {
			t.Errorf("%s: %v, want EROFS", name, err)
		}
	}
	for name, want := range map[string]error{"nope": unix.ENOENT, "d/small/x": unix.ENOTDIR, strings.Repeat("n", 300): unix.ENAMETOOLONG} {
		if _, err := os.Lstat(in(name)); !errors.Is(err, want) {
			t.Errorf("%.20s: %v, want %v", name, err, want)
		}
	}
	if _, err := unix.Getxattr(in("d/small"), "user.none", make([]byte, 10)); err != unix.ENODATA {
		t.Errorf("an attribute that is not there: %v", err)
	}
	if _, err := unix.Getxattr(in("d/manyattrs"), "user.a", make([]byte, 10)); err != unix.ERANGE {
		t.Errorf("an attribute that is too long: %v", err)
	}
	if _, err := os.Open(in("d/null")); !errors.Is(err, unix.EACCES) {
		t.Errorf("a device: %v, want EACCES", err)
	}
	if _, err := os.ReadDir(in("d/small")); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("a file as a directory: %v", err)
	}
}

// TestNames: names are symlinks to IDs; what docker takes for one can be looked up.
func TestNames(t *testing.T) {
	s := openStore(t, 64<<20)
	img := pull(t, s, "debian:12", entries(file("f", "debian")))
	long := "example.org/" + strings.Repeat("n", 200) + ":" + strings.Repeat("t", 128)
	other := pull(t, s, long, entries(file("f", "other")))
	dir, _ := view(t, s, Options{})
	images := filepath.Join(dir, "images")
	for name, want := range map[string]*layerstore.Image{
		"docker.io/library/debian:12":                     img,
		"docker.io/library/debian@" + img.Digest.String(): img,
		"debian:12":           img,
		img.ID.Encoded()[:10]: img,
		"example.org/" + fileName(strings.TrimPrefix(long, "example.org/")): other,
	} {
		id, err := filepath.EvalSymlinks(filepath.Join(images, name))
		if err != nil || id != filepath.Join(images, want.ID.Encoded()) {
			t.Errorf("%.60s: %s, %v", name, id, err)
		}
	}
	for _, name := range []string{"debian:13", "docker.io/library/debian", "docker.io/nope", strings.Repeat("0", 64), "sha256:zz", ".hidden"} {
		if got, err := os.Readlink(filepath.Join(images, name)); err == nil || !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	var found []string
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error { // each image is there once
		if e != nil && e.Name() == "f" && !strings.Contains(p, "/diff/") {
			found = append(found, p)
		}
		return err
	})
	if err != nil || len(found) != 2 {
		t.Errorf("%v, %v", found, err)
	}
}

// TestConcurrentReaders reads one image from several processes and threads at once.
func TestConcurrentReaders(t *testing.T) {
	s := openStore(t, 64<<20)
	img := pull(t, s, "all:1", everything())
	dir, _ := view(t, s, Options{})
	id := filepath.Join(dir, "images", img.ID.Encoded())
	want := sha256.Sum256(archive(t, filepath.Join(id, "rootfs")))
	disk, err := os.ReadFile(filepath.Join(id, "disk.raw"))
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(filepath.Join(id, "disk.raw"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil { // so that all is asked for again
		t.Fatal(err)
	}
	var wait sync.WaitGroup
	for i := range 4 {
		wait.Go(func() {
			if got := sha256.Sum256(archive(t, filepath.Join(id, "rootfs"))); got != want {
				t.Error("another archive")
			}
		})
		wait.Go(func() {
			buf := make([]byte, 200_001)
			for off := int64(i * 50_000); off < int64(len(disk)); off += int64(len(buf)) {
				n, err := f.ReadAt(buf, off)
				if err != nil && err != io.EOF || !bytes.Equal(buf[:n], disk[off:off+int64(n)]) {
					t.Errorf("disk.raw at byte %d: %v", off, err)
					return
				}
			}
		})
	}
	wait.Wait()
}

// TestRemoved: a removed image vanishes, but for what is open.
func TestRemoved(t *testing.T) {
	s := openStore(t, 64<<20)
	dir, v := view(t, s, Options{})
	images := filepath.Join(dir, "images")
	if list, err := os.ReadDir(images); err != nil || len(list) != 0 {
		t.Errorf("%v, %v", list, err)
	}
	body := strings.Repeat("0123456789abcdef", 100_000)
	img := pull(t, s, "lib:1", entries(file("d/f", body), file("d/g", "other")))
	id := filepath.Join(images, img.ID.Encoded())
	eventually(t, func() bool {
		_, err := os.Stat(filepath.Join(images, "docker.io/library/lib:1/rootfs/d/f"))
		return err == nil
	})
	f, err := os.Open(filepath.Join(id, "rootfs/d/f"))
	if err != nil {
		t.Fatal(err)
	}
	disk, err := os.Open(filepath.Join(id, "disk.raw"))
	if err != nil {
		t.Fatal(err)
	}
	folder, err := os.Open(filepath.Join(id, "rootfs/d"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Remove("lib:1", layerstore.RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool {
		list, err := os.ReadDir(images)
		return err == nil && len(list) == 0
	})
	eventually(t, func() bool {
		_, err := os.Stat(filepath.Join(id, "rootfs/d/f"))
		return errors.Is(err, fs.ErrNotExist)
	})
	if b, err := io.ReadAll(f); err != nil || string(b) != body {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if names, err := folder.Readdirnames(-1); err != nil || len(names) != 2 {
		t.Errorf("%v, %v", names, err)
	}
	if _, err := disk.ReadAt(make([]byte, 1<<20), 0); err != nil {
		t.Error(err)
	}
	for _, f := range []*os.File{f, disk, folder} {
		f.Close()
	}
	if n := len(v.server.forest.keys()); n != 2 { // the image, and the layer for its disk
		t.Errorf("%d trees are open", n)
	}
}

// TestRemovedUnused: the files of a removed image that nobody uses are closed, although the
// kernel would remember them.
func TestRemovedUnused(t *testing.T) {
	s := openStore(t, 64<<20)
	dir, v := view(t, s, Options{})
	img := pull(t, s, "lib:1", entries(file("d/f", "f"), file("d/g", "other")))
	archive(t, filepath.Join(dir, "images", img.ID.Encoded()))
	archive(t, filepath.Join(dir, "layers", img.Chain().Encoded(), "diff"))
	if n := len(v.server.forest.keys()); n != 2 {
		t.Errorf("%d trees are open", n)
	}
	if _, err := s.Remove("lib:1", layerstore.RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool { return len(v.server.forest.keys()) == 0 })
}

// eventually waits for what the kernel and the store tell of without saying when.
func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	never := time.After(time.Minute)
	for !ok() {
		select {
		case <-never:
			t.Fatal("it did not come to that")
		case <-time.After(5 * time.Millisecond): // the kernel forgets without telling anybody
		}
	}
}

// TestManyImages: the kernel is asked to forget the trees that were not used for longest.
func TestManyImages(t *testing.T) {
	s := openStore(t, 64<<20)
	var all []*layerstore.Image
	const most = 4
	for i := range most + 6 {
		all = append(all, pull(t, s, fmt.Sprint("lib:", i), entries(file("f", fmt.Sprint("image ", i)))))
	}
	dir, v := view(t, s, Options{})
	v.server.forest.most = most
	read := func(i int) string {
		b, err := os.ReadFile(filepath.Join(dir, "images", all[i].ID.Encoded(), "rootfs/f"))
		if err != nil {
			t.Error(err)
		}
		return string(b)
	}
	first, err := os.Open(filepath.Join(dir, "images", all[0].ID.Encoded(), "rootfs/f"))
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	for i := range all {
		if got := read(i); got != fmt.Sprint("image ", i) {
			t.Errorf("image %d: %q", i, got)
		}
	}
	// The first one's turn to be forgotten may have come last, and it is in use.
	eventually(t, func() bool { return len(v.server.forest.keys()) <= most+1 })
	if b, err := io.ReadAll(first); err != nil || string(b) != "image 0" {
		t.Errorf("%q, %v", b, err)
	}
	inodes := make(map[uint64]bool)
	for i := range all {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(dir, "images", all[i].ID.Encoded(), "rootfs/f"), &st); err != nil || inodes[st.Ino] {
			t.Errorf("image %d: inode %d, %v", i, st.Ino, err)
		}
		inodes[st.Ino] = true
	}
}

func TestRefused(t *testing.T) {
	s := openStore(t, 64<<20)
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]string{
		full:                               "not empty",
		filepath.Join(full, "x"):           "not a directory",
		filepath.Join(full, "nope"):        "make the folder first",
		filepath.Join(s.Dir(), "disks/no"): "make the folder first",
		filepath.Join(s.Dir(), "tmp"):      "in the store itself",
	} {
		if _, err := Mount(s, dir, Options{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", dir, err, want)
		}
	}
	dir, v := view(t, s, Options{})
	if died, err := Recover(dir); died || err == nil || !strings.Contains(err.Error(), "mounted already") {
		t.Errorf("recover: %v, %v", died, err)
	}
	if died, err := Recover(full); died || err != nil {
		t.Errorf("recover where nothing is: %v, %v", died, err)
	}
	wd, err := os.Open(filepath.Join(dir, "images"))
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Unmount(); !errors.Is(err, ErrBusy) {
		t.Errorf("unmount: %v", err)
	}
	if users := v.Users(); !slices.ContainsFunc(users, func(u User) bool { return u.PID == os.Getpid() }) {
		t.Errorf("users: %v", users)
	}
	if err := v.Detach(); err != nil {
		t.Fatal(err)
	}
	if list, err := os.ReadDir(dir); err != nil || len(list) != 0 {
		t.Errorf("after it was detached: %v, %v", list, err)
	}
	select {
	case <-v.Done():
		t.Error("done while somebody is there")
	default:
	}
	wd.Close()
	select {
	case <-v.Done():
	case <-time.After(time.Minute):
		t.Error("not done when nobody is there")
	}
}
