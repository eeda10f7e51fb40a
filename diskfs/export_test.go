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

	"vic/bench/oracle"

	"golang.org/x/sys/unix"
)

// TestWriteTar: GNU tar extracts what the kernel sees on the disk, and a disk made of the tar
// is the same again.
func TestWriteTar(t *testing.T) {
	oracle.Root(t)
	oracle.Need(t, "tar", "setcap", "setfacl")
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

// TestGrafts: GNU tar extracts trees in one another.
func TestGrafts(t *testing.T) {
	oracle.Need(t, "tar")
	fill := func(names ...string) *FS {
		c := newChain(t, FormatOptions{Capacity: 16 << 20})
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, name := range names {
			h := tar.Header{Name: name, Mode: 0755, Format: tar.FormatPAX}
			if to, from, ok := strings.Cut(name, "="); ok {
				h.Name, h.Linkname, h.Typeflag = to, from, tar.TypeLink
			}
			if err := w.WriteHeader(&h); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		c.apply(&b)
		c.check()
		return c.fs
	}
	// What is under a graft is not the first name of an inode.
	root := fill("top/data/hidden", "top/data/sub/hidden", "top/z=top/data/hidden", "top/file", "other")
	a, b := fill("in/a1", "in/a2=in/a1"), fill("b1", "b2=b1")
	for _, tt := range []struct {
		name, file, as string
		grafts         []Graft
		want           string
	}{
		{"none", "top", "as", nil, "as as/data as/data/hidden as/data/sub as/data/sub/hidden as/file as/z"},
		{"a folder", "top", "as", []Graft{{"data", a, "in"}}, "as as/data as/data/a1 as/data/a2 as/file as/z"},
		{"one in another", "top", "as", []Graft{{"data/sub", b, "."}, {"data", a, "in"}}, "as as/data as/data/a1 as/data/a2 as/data/sub as/data/sub/b1 as/data/sub/b2 as/file as/z"},
		{"one in the image's", "top", "as", []Graft{{"data/sub", b, "."}}, "as as/data as/data/hidden as/data/sub as/data/sub/b1 as/data/sub/b2 as/file as/z"},
		{"a file", "top", "as", []Graft{{"file", a, "in/a1"}, {"new", b, "b1"}}, "as as/data as/data/hidden as/data/sub as/data/sub/hidden as/file as/new as/z"},
		{"no place", "top", "as", []Graft{{"x/y/z", a, "in"}, {"x/y/w/v", b, "b1"}}, "as as/data as/data/hidden as/data/sub as/data/sub/hidden as/file as/x as/x/y as/x/y/w as/x/y/w/v as/x/y/z as/x/y/z/a1 as/x/y/z/a2 as/z"},
		{"nothing there", "absent", "as", []Graft{{"x/y", a, "in"}}, "as as/x as/x/y as/x/y/a1 as/x/y/a2"},
		{"the root", ".", "", []Graft{{"top", a, "in/a1"}, {"q/r", b, "b2"}}, "other q q/r top"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			if err := root.WriteTrees(&out, tt.file, tt.as, tt.grafts); err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			path := filepath.Join(dir, "tar")
			if err := os.WriteFile(path, out.Bytes(), 0o600); err != nil {
				t.Fatal(err)
			}
			shell(t, "mkdir %s/out && tar -C %s/out -xf %s", dir, dir, path)
			var got []string
			if err := filepath.WalkDir(filepath.Join(dir, "out"), func(p string, _ os.DirEntry, err error) error {
				if name, _ := filepath.Rel(filepath.Join(dir, "out"), p); name != "." {
					got = append(got, name)
				}
				return err
			}); err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(got, " "); got != tt.want {
				t.Errorf("%s, want %s", got, tt.want)
			}
		})
	}
	if err := root.WriteTree(io.Discard, "absent", "as"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("nothing there: %v", err)
	}
	if err := root.WriteTrees(io.Discard, "top", "as", []Graft{{"data", a, "absent"}}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("graft of nothing: %v", err)
	}
}

// TestWriteTarForeign: a disk that mke2fs made has what no layer brings: attributes with names
// that a PAX record cannot hold, and sockets, which a tar cannot.
func TestWriteTarForeign(t *testing.T) {
	oracle.Root(t)
	oracle.Need(t, "mke2fs", "tar")
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
