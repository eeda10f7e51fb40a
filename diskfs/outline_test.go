package diskfs

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"testing"
)

// outlineLines walks all of an outline: a line for each name, with what its file is.
func outlineLines(o *Outline) ([]string, error) {
	var lines []string
	var walk func(p string, i, parent uint32) error
	walk = func(p string, i, parent uint32) error {
		st, err := o.Stat(i)
		if err != nil {
			return fmt.Errorf("%q: %w", p, err)
		}
		line := p
		switch st.Mode & modeType {
		case modeDir:
			line += "/"
		case modeLink:
			n, err := o.Node(i)
			if err != nil {
				return err
			}
			target, err := n.ReadLink()
			if err != nil {
				return err
			}
			line += " -> " + target
		case modeFile:
			if st.Inode == 0 {
				line += fmt.Sprintf(" whiteout %o", st.Mode&07777)
				break
			}
			n, err := o.Node(i)
			if err != nil {
				return err
			}
			f, err := n.Open()
			if err != nil {
				return err
			}
			b, err := io.ReadAll(io.LimitReader(f, 30))
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %q", b)
		}
		lines = append(lines, line)
		names, up, err := o.Names(i)
		if err != nil {
			return err
		}
		if up != parent {
			return fmt.Errorf("%q: parent %d, want %d", p, up, parent)
		}
		for _, n := range names {
			k, err := o.Lookup(i, n.Name)
			if err != nil || k != n.Inode {
				return fmt.Errorf("%q in %q: entry %d (%v), listed as %d", n.Name, p, k, err, n.Inode)
			}
			s, err := o.Stat(k)
			if err == nil && n.Type != 0 && n.Type != s.Mode&modeType {
				err = fmt.Errorf("type %o, listed as %o", s.Mode, n.Type)
			}
			if err != nil {
				return fmt.Errorf("%q in %q: %w", n.Name, p, err)
			}
			if err := walk(path.Join(p, n.Name), k, i); err != nil {
				return err
			}
		}
		return nil
	}
	err := walk(".", 0, 0)
	return lines, err
}

// outline reads the outline of a tar that was applied.
func outline(t testing.TB, f *FS, data []byte) (*Outline, error) {
	t.Helper()
	var skeleton bytes.Buffer
	if _, err := ReadTar(bytes.NewReader(data), io.Discard, &skeleton, Limits{}); err != nil {
		t.Fatal(err)
	}
	return f.ReadOutline(&skeleton)
}

func TestOutline(t *testing.T) {
	lower := layer{folder("d"), file("d/a", "lower"), file("d/b", "lower b"), symlink("s", "d"), symlink("t", "d"), folder("usr/bin"), symlink("bin", "usr/bin")}
	for _, tt := range []struct {
		name  string
		upper layer
		want  string
	}{
		{"empty", layer{}, "./"},
		{"files", layer{folder("d"), file("d/a", "upper"), file("n/o/p", "q"), symlink("d/l", "a")}, "./ | d/ | d/a \"upper\" | d/l -> a | n/ | n/o/ | n/o/p \"q\""},
		{"whiteouts", layer{whiteout("d/a").mode(0600), opaque("usr"), whiteout("s")}, "./ | .wh.s whiteout 0 | d/ | d/.wh.a whiteout 600 | usr/ | usr/.wh..wh..opq whiteout 0"},
		{"whiteout of nothing", layer{whiteout("no/such/x"), whiteout("d/a/y")}, "./ | d/ | d/a/ | d/a/.wh.y whiteout 0 | no/ | no/such/ | no/such/.wh.x whiteout 0"},
		{"whiteout and file", layer{whiteout("d"), folder("d"), file("d/new", "x")}, "./ | .wh.d whiteout 0 | d/ | d/new \"x\""},
		{"through a lower symlink", layer{file("bin/sh", "shell")}, "./ | bin/ | bin/sh \"shell\""},
		{"through an own symlink", layer{folder("real"), symlink("way", "real"), file("way/f", "f"), symlink("up", "/real/../way"), file("up/g", "g")},
			"./ | real/ | real/f \"f\" | real/g \"g\" | up -> /real/../way | way -> real"},
		{"lower symlink replaced", layer{folder("t"), file("t/f", "f")}, "./ | t/ | t/f \"f\""},
		{"named twice", layer{file("x", "1"), file("x", "2")}, "./ | x \"2\""},
		{"directory, then file", layer{folder("x"), file("x/y", "1"), folder("x/z"), file("x/z/z", "2"), file("x", "3")}, "./ | x \"3\""},
		{"directory, then file, then directory", layer{file("x/y", "1"), file("x", "3"), file("x2", ""), folder("x"), file("x/y", "4")}, "./ | x/ | x/y \"4\" | x2 \"\""},
		{"link within", layer{file("x", "1"), link("y", "x")}, "./ | x \"1\" | y \"1\""},
		{"link to the layer below", layer{link("y", "d/b")}, "./ | y \"lower b\""},
		{"link by way of symlinks", layer{link("s/y", "t/b")}, "./ | s/ | s/y \"lower b\""},
		{"aufs", layer{file(".wh..wh.plnk/1.2", "of aufs"), link("x", ".wh..wh.plnk/1.2"), folder(".wh..wh.orph")}, "./ | x \"of aufs\""},
		{"large", layer{file("x", strings.Repeat("0123456789", 30000)), file("y", "after")}, "./ | x \"012345678901234567890123456789\" | y \"after\""},
		{"root", layer{folder(".").mode(0700), file("./x", "1")}, "./ | x \"1\""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f, disk, high := formatMem(t, smallDisk)
			for _, l := range []layer{lower, tt.upper} {
				var err error
				if high, err = applyMem(t, f, disk, l.tar(t), high, Limits{}); err != nil {
					t.Fatal(err)
				}
			}
			o, err := outline(t, f, tt.upper.tar(t))
			if err != nil {
				t.Fatal(err)
			}
			lines, err := outlineLines(o)
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(lines, " | "); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			if _, err := o.Lookup(0, "nope"); err != fs.ErrNotExist {
				t.Errorf("lookup: %v", err)
			}
			if _, err := o.Stat(uint32(len(o.entries))); err == nil {
				t.Error("an entry behind the last")
			}
		})
	}
}

// TestOutlineSparse: a sparse file's data and map stand in the skeleton, between headers.
func TestOutlineSparse(t *testing.T) {
	for _, format := range []string{"gnu", "posix"} {
		data := gnuTar(t, "--sparse", "--format="+format)
		f, disk, high := formatMem(t, smallDisk)
		if _, err := applyMem(t, f, disk, data, high, Limits{}); err != nil {
			t.Fatal(err)
		}
		o, err := outline(t, f, data)
		if err != nil {
			t.Fatal(err)
		}
		if i, err := o.Lookup(0, "sparse"); err != nil {
			t.Error(err)
		} else if s, err := o.Stat(i); err != nil || s.Size != 4<<20 {
			t.Errorf("%s: %d bytes, %v", format, s.Size, err)
		}
	}
}

// TestSkeletonTar: a skeleton reads as the tar, but for its data, whether that is read or
// passed over.
func TestSkeletonTar(t *testing.T) {
	data := layer{file("a", strings.Repeat("a", 70000)), folder("d"), file("d/b", "b"), file("c", strings.Repeat("c", 512)), whiteout("x")}.tar(t)
	names := func(r io.Reader) (list []string) {
		for tr := tar.NewReader(r); ; {
			h, err := tr.Next()
			if err == io.EOF {
				return list
			}
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, fmt.Sprint(h.Name, h.Size))
		}
	}
	var skeleton bytes.Buffer
	if _, err := ReadTar(bytes.NewReader(data), io.Discard, &skeleton, Limits{}); err != nil {
		t.Fatal(err)
	}
	want := names(bytes.NewReader(data))
	for _, r := range []io.Reader{newSkeletonTar(bytes.NewReader(skeleton.Bytes())), struct{ io.Reader }{newSkeletonTar(bytes.NewReader(skeleton.Bytes()))}} {
		if got := names(r); !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	}
}

// FuzzReadOutline: whatever a skeleton says, reading it ends, and what it names can be asked for.
func FuzzReadOutline(f *testing.F) {
	for _, l := range []layer{
		{folder("d"), file("d/a", "1"), symlink("l", "d"), file("l/x", "2"), whiteout("d/a"), opaque("d")},
		{file("x/y", "1"), file("x", "2"), link("z", "x")},
		{symlink("a", "b"), symlink("b", "a"), file("a/c", "")},
	} {
		var skeleton bytes.Buffer
		if _, err := ReadTar(bytes.NewReader(l.tar(f)), io.Discard, &skeleton, Limits{}); err != nil {
			f.Fatal(err)
		}
		f.Add(skeleton.Bytes())
	}
	fsys, _, _ := formatMem(f, smallDisk)
	f.Fuzz(func(t *testing.T, skeleton []byte) {
		o, err := fsys.ReadOutline(bytes.NewReader(skeleton))
		if err != nil {
			return
		}
		for i := range min(len(o.entries), 100) {
			_, err := o.Stat(uint32(i))
			var bad *FormatError
			if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.As(err, &bad) && !errors.Is(err, errNotDir) && !errors.Is(err, fs.ErrInvalid) {
				t.Error(err)
			}
			o.Names(uint32(i))
		}
	})
}
