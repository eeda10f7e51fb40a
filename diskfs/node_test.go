package diskfs

import (
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

// nodeTree is walkTree by inode numbers, with files read from where the disk has them.
func nodeTree(f *FS) (tree, error) {
	out, first := tree{}, map[uint32]string{}
	var walk func(p string, n Node, ino, parent uint32) error
	walk = func(p string, n Node, ino, parent uint32) error {
		st, err := n.Stat()
		if err != nil {
			return err
		}
		x := node{mode: uint32(st.Mode), uid: st.UID, gid: st.GID, sec: st.Mtime.Unix(), nsec: st.Mtime.Nanosecond(), major: st.Major, minor: st.Minor}
		if st.Inode != ino {
			return fmt.Errorf("%q: inode %d says it is %d", p, ino, st.Inode)
		}
		var names []Name
		switch st.Mode & modeType {
		case modeDir:
			var up uint32
			if names, up, err = n.Names(); err == nil && up != parent {
				err = fmt.Errorf("%q: parent %d, want %d", p, up, parent)
			}
		case modeFile:
			var file *File
			if file, err = n.Open(); err == nil {
				err = x.setContent(&placeReader{f: file, disk: f.disk})
			}
		case modeLink:
			x.target, err = n.ReadLink()
		}
		if err != nil {
			return err
		}
		if st.Mode&modeType != modeDir {
			if first[ino] == "" {
				first[ino] = p
			}
			x.links, x.same = int(st.Links), first[ino]
		}
		list, err := n.Xattrs()
		if err != nil {
			return err
		}
		var xattrs []string
		for _, a := range list {
			xattrs = append(xattrs, fmt.Sprintf("%s=%q", a.Name, a.Value))
		}
		slices.Sort(xattrs)
		x.xattrs = strings.Join(xattrs, " ")
		out[p] = x
		slices.SortFunc(names, func(a, b Name) int { return strings.Compare(a.Name, b.Name) })
		for _, c := range names {
			got, err := n.Lookup(c.Name)
			if err != nil || got != c.Inode {
				return fmt.Errorf("%q in %q: inode %d (%v), listed with %d", c.Name, p, got, err, c.Inode)
			}
			if err := walk(path.Join(p, c.Name), f.Node(got), got, ino); err != nil {
				return err
			}
			if s, err := f.Node(got).Stat(); err != nil || s.Mode&modeType != c.Type {
				return fmt.Errorf("%q in %q: mode %o (%v), listed with type %o", c.Name, p, s.Mode, err, c.Type)
			}
		}
		return nil
	}
	err := walk(".", f.Node(RootInode), RootInode, RootInode)
	return out, err
}

// A placeReader reads a file from the disk, going by Place, and finds no data where Data
// says that there is none.
type placeReader struct {
	f    *File
	disk io.ReaderAt
	off  int64
}

func (r *placeReader) Read(p []byte) (int, error) {
	at, n := r.f.Place(r.off, int64(len(p)))
	if n == 0 {
		return 0, io.EOF
	}
	p = p[:n]
	if start, k := r.f.Data(r.off); (k == 0 || start > r.off) != (at < 0) {
		return 0, fmt.Errorf("byte %d: placed at %d, data from %d on", r.off, at, start)
	}
	r.off += n
	if at < 0 {
		clear(p)
		return len(p), nil
	}
	if err := readFull(r.disk, p, at); err != nil {
		return 0, err
	}
	return len(p), nil
}

func TestNode(t *testing.T) {
	c := newChain(t, smallDisk)
	c.apply(bytes.NewReader(append(layer{folder("d"), file("d/f", "f"), symlink("l", "d/f")}, many("many", 3000)...).tar(t)))
	c.fs.LimitCache(3*BlockSize, 100) // whatever is forgotten is read again
	c.checkReader()
	c.fs.LimitCache(0, 0)
	c.checkReader()
	if n := len(c.fs.blocks); n > 1 {
		t.Errorf("%d blocks in memory", n)
	}
	d, err := c.fs.Node(RootInode).Lookup("d")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.fs.Node(d).Lookup("nope"); err != fs.ErrNotExist {
		t.Errorf("lookup: %v", err)
	}
	var bad *FormatError
	for _, ino := range []uint32{0, 9, 4000, 1 << 31} {
		if _, err := c.fs.Node(ino).Stat(); !errors.As(err, &bad) {
			t.Errorf("inode %d: %v", ino, err)
		}
	}
	if _, _, err := c.fs.Node(d + 1).Names(); err == nil {
		t.Error("names in a file")
	}
	if _, err := c.fs.Node(d).ReadLink(); err == nil {
		t.Error("target of a directory")
	}
	if f, err := c.fs.Node(d).Open(); err != nil {
		t.Error(err)
	} else if _, n := f.Place(0, 10); n != 0 {
		t.Errorf("%d bytes of a directory", n)
	}
}
