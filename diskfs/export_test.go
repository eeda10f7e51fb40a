package diskfs

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestWriteTar: GNU tar extracts what the kernel sees on the disk, and a disk made of the tar
// is the same again.
func TestWriteTar(t *testing.T) {
	needRoot(t)
	needTool(t, "tar", "setcap", "setfacl")
	src, dst, dir := t.TempDir(), t.TempDir(), t.TempDir()
	makeTree(t, src, true, true)
	if err := os.Chmod(src, 01750); err != nil {
		t.Fatal(err)
	}
	first := filepath.Join(dir, "first.tar")
	shell(t, "tar -C %s --format=posix --xattrs --xattrs-include='*' --acls --numeric-owner -cf %s .", src, first)
	c := newChain(t, FormatOptions{Capacity: 128 << 20})
	in, err := os.Open(first)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	c.apply(in)
	c.check()
	want := c.kernelTree()

	var out bytes.Buffer
	if err := c.fs.WriteTar(&out); err != nil {
		t.Fatal(err)
	}
	exported := filepath.Join(dir, "exported.tar")
	if err := os.WriteFile(exported, out.Bytes(), 0o666); err != nil {
		t.Fatal(err)
	}
	// With --acls, GNU tar would drop those that stand in the tar as attributes.
	shell(t, "tar -C %s --xattrs --xattrs-include='*' --numeric-owner --same-owner -p -xf %s", dst, exported)
	compareTrees(t, "GNU tar", hostTree(t, dst), "kernel", want)

	again := newChain(t, FormatOptions{Capacity: 128 << 20})
	again.apply(bytes.NewReader(out.Bytes()))
	again.check()
	compareTrees(t, "the tar's disk", again.kernelTree(), "kernel", want)

	c.reopen()
	var same bytes.Buffer
	if err := c.fs.WriteTar(&same); err != nil || !bytes.Equal(same.Bytes(), out.Bytes()) {
		t.Errorf("written again: %v, or other bytes", err)
	}
	if err := c.fs.WriteTar(&boundedWriter{5 << 20}); !errors.Is(err, errFull) {
		t.Errorf("to a full disk: %v", err)
	}
	var names []string
	for r := tar.NewReader(&out); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, strings.TrimSuffix(h.Name, "/"))
	}
	if names[0] != "." || len(names) != len(want) {
		t.Errorf("%d entries, the first is %q; want %d", len(names), names[0], len(want))
	}
}

// TestWriteTarForeign: a disk that mke2fs made has what no layer brings: attributes with names
// that a PAX record cannot hold, and sockets, which a tar cannot.
func TestWriteTarForeign(t *testing.T) {
	needRoot(t)
	needTool(t, "mke2fs", "tar")
	src, dst, dir := t.TempDir(), t.TempDir(), t.TempDir()
	for _, name := range []string{"file", "sock"} {
		if err := os.WriteFile(filepath.Join(src, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Lsetxattr(filepath.Join(src, "file"), "user.a=b%c", []byte("x"), 0); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(filepath.Join(src, "file"), entryTime, entryTime); err != nil { // mke2fs drops nanoseconds
		t.Fatal(err)
	}
	want := hostTree(t, src)
	delete(want, "sock")
	if err := os.Remove(filepath.Join(src, "sock")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(filepath.Join(src, "sock"), unix.S_IFSOCK|0o644, 0); err != nil {
		t.Fatal(err)
	}
	disk := filepath.Join(dir, "disk")
	command(t, "mke2fs", "-q", "-t", "ext4", "-b", "4096", "-O", "^orphan_file", "-d", src, disk, "32M")
	raw, err := os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	f, err := Open(raw, 32<<20)
	if err != nil {
		t.Fatal(err)
	}
	exported := filepath.Join(dir, "exported.tar")
	out, err := os.Create(exported)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if err := f.WriteTar(out); err != nil {
		t.Fatal(err)
	}
	shell(t, "tar -C %s --xattrs --xattrs-include='*' --numeric-owner --same-owner -p -xf %s", dst, exported)
	got := hostTree(t, dst)
	delete(got, "lost+found")
	delete(got, ".")
	delete(want, ".") // lost+found changed it
	compareTrees(t, "GNU tar", got, "what mke2fs was given", want)
}
