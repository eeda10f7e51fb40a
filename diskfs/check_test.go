package diskfs

import (
	"bytes"
	"errors"
	"os/exec"
	"strings"
	"testing"

	"vic/bench/oracle"
)

// damage changes the file system behind its back, checksums made right again, and writes
// that to the disk.
func (c *chain) damage(change func(a *apply) error) {
	c.t.Helper()
	c.reopen()
	c.fs.applying = true
	c.fs.resetZones()
	a := &apply{FS: c.fs, cs: &Changeset{}, place: newPlacer(c.high, c.fs.reservedClusters())}
	if err := change(a); err != nil {
		c.t.Fatal(err)
	}
	for n := range a.groups {
		a.groups[n].changed = true
	}
	d, err := a.finish()
	if err != nil {
		c.t.Fatal(err)
	}
	stream := c.stream()
	defer stream.Close()
	c.write(d, stream)
	c.reopen()
}

// TestCheck damages file systems in ways that checksums do not show, and wants Check to
// say what e2fsck says.
func TestCheck(t *testing.T) {
	oracle.Need(t, "e2fsck")
	l := append(layer{
		file("a", strings.Repeat("a", 3*BlockSize)), file("b", strings.Repeat("b", 2*BlockSize)), link("c", "b"),
		folder("d"), folder("d/e"), file("d/e/f", "f"), symlink("slow", strings.Repeat("s", 80)), symlink("fast", "f"),
		device("null", 'c', 1, 3), file("x", "").xattr("user.x", strings.Repeat("x", 900)), file("y", "").xattr("user.x", strings.Repeat("x", 900)),
	}, many("big", 3000)...)
	tar := l.tar(t)
	inode := func(a *apply, name string) (uint32, rawInode) {
		ino, err := a.lookup(name, false)
		if err != nil {
			t.Error(err)
		}
		in, err := a.changeInode(ino)
		if err != nil {
			t.Error(err)
		}
		return ino, in
	}
	change := func(name string, fn func(ino uint32, in rawInode)) func(a *apply) error {
		return func(a *apply) error {
			fn(inode(a, name))
			return nil
		}
	}
	// names edits a directory as it will be rendered.
	names := func(name string, fn func(a *apply, d *dir)) func(a *apply) error {
		return func(a *apply) error {
			ino, _ := inode(a, name)
			d, err := a.dir(ino)
			if err == nil {
				d.changed = true
				fn(a, d)
			}
			return err
		}
	}
	// block edits a block of a directory in place.
	block := func(name string, n int64, fn func(p []byte)) func(a *apply) error {
		return func(a *apply) error {
			ino, in := inode(a, name)
			return a.extents(ino, in, func(r run, _ bool) error {
				if n < r.at || n >= r.at+r.n {
					return nil
				}
				b, err := a.touch(r.where + n - r.at)
				if err == nil {
					fn(b.data[:])
					seed := a.inodeSeed(ino, in.generation())
					switch {
					case b.data[dirTail+7] == fileTypeTail:
						le.PutUint32(b.data[dirTail+8:], dirChecksum(seed, b.data[:]))
					case n == 0:
						count := int(le.Uint16(b.data[dxRootOff+2:]))
						le.PutUint32(b.data[BlockSize-4:], dxChecksum(seed, b.data[:], dxRootOff, count, dxRootLimit))
					}
				}
				return err
			}, nil)
		}
	}
	for _, tc := range []struct {
		name string
		harm func(a *apply) error
		want string
	}{
		{"links of a file", change("b", func(_ uint32, in rawInode) { in.setLinks(3) }), "2 links, says 3"},
		{"links of a directory", change("d", func(_ uint32, in rawInode) { in.setLinks(2) }), "3 links, says 2"},
		{"sectors", change("a", func(_ uint32, in rawInode) { in.setBlocks(9) }), "occupies 3 blocks, says 72 sectors"},
		{"size below the data", change("a", func(_ uint32, in rawInode) { in.setSize(5) }), "3 blocks of data, size of 5 bytes"},
		{"blocks of two files", func(a *apply) error {
			_, from := inode(a, "a")
			_, to := inode(a, "d/e/f")
			copy(to[inoBlock:], from[inoBlock:inoBlock+inoBlockLen])
			to.setSize(from.size())
			to.setBlocks(3)
			return nil
		}, "belong to something else"},
		{"extent over the superblock", change("d/e/f", func(_ uint32, in rawInode) { le.PutUint32(in[inoBlock+20:], 1) }), "belong to something else"},
		{"extent beyond the disk", change("d/e/f", func(_ uint32, in rawInode) { le.PutUint32(in[inoBlock+20:], 1<<30) }), "outside the file system"},
		{"no type", change("null", func(_ uint32, in rawInode) { in.setMode(0xe000 | 0644) }), "mode 0160644"},
		{"device with data", change("a", func(_ uint32, in rawInode) { in.setMode(modeFIFO | 0644) }), "mode 010644 with data"},
		{"symlink without its target", change("slow", func(_ uint32, in rawInode) { putExtentNode(in.blockArea(), nil, 4, 0); in.setBlocks(0) }), "symlink of 80 bytes with 0 blocks"},
		{"symlink of another length", change("slow", func(_ uint32, in rawInode) { in.setSize(81) }), "holds a zero byte"},
		{"directory with a hole", change("big", func(_ uint32, in rawInode) { in.setSize(in.size() + BlockSize) }), "directory of"},
		{"inode free in its bitmap", func(a *apply) error {
			ino, _ := inode(a, "a")
			return a.freeInode(ino, false)
		}, "but free in its bitmap"},
		{"inode used by nothing", func(a *apply) error {
			_, err := a.newInode(false)
			return err
		}, "but in use in its bitmap"},
		{"inode among those never used", func(a *apply) error {
			a.groups[0].unusedTable = inodesPerGroup
			return nil
		}, "among those never used"},
		{"directories counted wrong", func(a *apply) error {
			a.groups[0].usedDirs++
			return nil
		}, "directories, the descriptor says"},
		{"free inodes counted wrong", func(a *apply) error {
			a.groups[0].freeInodes++
			return nil
		}, "inodes free, the descriptor says"},
		{"free blocks counted wrong", func(a *apply) error {
			a.groups[0].freeBlocks++
			return nil
		}, "blocks free, the descriptor says"},
		{"free blocks of all groups counted wrong", func(a *apply) error {
			a.sb.freeBlocks--
			return nil
		}, "the groups have"},
		{"block free in its bitmap", func(a *apply) error {
			_, in := inode(a, "a")
			return a.markBlocks(int64(le.Uint32(in[inoBlock+20:])), 1, false)
		}, "1 marked free that something does"},
		{"block used by nothing", func(a *apply) error { return a.markBlocks(a.sb.blocksCount-1, 1, true) }, "1 blocks marked used that nothing owns"},
		{"name of nothing", names("d", func(_ *apply, d *dir) { d.insert("ghost", 4000, fileTypeFile) }), "which is not in use"},
		{"name of no inode", names("d", func(_ *apply, d *dir) { d.insert("ghost", 1<<30, fileTypeFile) }), "which is not in use"},
		{"name of the journal", names("d", func(_ *apply, d *dir) { d.insert("journal", journalInode, fileTypeFile) }), "which is not in use"},
		{"type in the directory", names("d/e", func(_ *apply, d *dir) { d.ents[0].typ = fileTypeLink }), `gives "f" type 7`},
		{"file without a name", names("d/e", func(_ *apply, d *dir) { d.remove(0) }), "0 links, says 1"},
		{"directory without a name", names("d", func(_ *apply, d *dir) { d.remove(0) }), "directory without a name"},
		{"directory with two names", names(".", func(a *apply, d *dir) {
			ino, _ := inode(a, "d/e")
			d.insert("again", ino, fileTypeDir)
		}), "which has another name"},
		{"root with a name", names("d", func(_ *apply, d *dir) { d.insert("root", rootInode, fileTypeDir) }), "which has another name"},
		{"directory that is its own ancestor", func(a *apply) error {
			root, err := a.dir(rootInode)
			if err != nil {
				return err
			}
			root.remove(root.lookup("d"))
			parent, _ := inode(a, "big")
			d, err := a.dir(parent)
			if err != nil {
				return err
			}
			// big moves into itself
			root.remove(root.lookup("big"))
			d.insert("self", parent, fileTypeDir)
			return nil
		}, "its own ancestor"},
		{"parent", names("d/e", func(_ *apply, d *dir) { d.parent = rootInode }), "it says 2"},
		{"dot", block("d", 0, func(p []byte) { le.PutUint32(p, 2) }), `where "." belongs`},
		{"dot dot", block("d", 0, func(p []byte) { p[12+8] = 'x' }), `where ".." belongs`},
		{"name twice", names("d/e", func(_ *apply, d *dir) { d.ents = append(d.ents, d.ents[0]) }), "twice"},
		{"name with a slash", block("d/e", 0, func(p []byte) { p[24+8] = '/' }), "holds the name"},
		{"index with another hash", block("big", 0, func(p []byte) { p[28] = 2 }), "index with hash 2"},
		{"index to the wrong leaf", block("big", 0, func(p []byte) {
			a, b := p[dxRootOff+8+4:], p[dxRootOff+16+4:]
			x, y := le.Uint32(a), le.Uint32(b)
			le.PutUint32(a, y)
			le.PutUint32(b, x)
		}), "index does not lead to the name"},
		{"index to one leaf twice", block("big", 0, func(p []byte) { copy(p[dxRootOff+8+4:], p[dxRootOff+16+4:dxRootOff+16+8]) }), "index does not lead to the name"},
		{"index out of order", block("big", 0, func(p []byte) { le.PutUint32(p[dxRootOff+8:], 0xfffffff0) }), "index is not in order"},
		{"index without a leaf", block("big", 0, func(p []byte) { le.PutUint16(p[dxRootOff+2:], le.Uint16(p[dxRootOff+2:])-1) }), "index does not lead to"},
		{"xattr references", func(a *apply) error {
			_, in := inode(a, "x")
			b, err := a.touch(in.xattrBlock())
			le.PutUint32(b.data[4:], 3)
			a.markXattr(in.xattrBlock())
			return err
		}, "2 references, says 3"},
		{"xattr block of something else", func(a *apply) error {
			_, in := inode(a, "a")
			b, err := a.touch(int64(le.Uint32(in[inoBlock+20:])))
			_, x := inode(a, "x")
			src, _ := a.load(x.xattrBlock())
			at := int64(le.Uint32(in[inoBlock+20:]))
			b.data = src.data
			a.markXattr(at)
			x.setXattrBlock(at)
			return err
		}, "belong to something else"},
		{"reserved inode", func(a *apply) error { return a.freeInode(5, false) }, "reserved, but free"},
	} {
		t.Run(strings.ReplaceAll(tc.name, " ", "_"), func(t *testing.T) {
			t.Parallel()
			c := newChain(t, smallDisk)
			c.apply(bytes.NewReader(tar))
			c.check()
			c.damage(tc.harm)
			var found []string
			err := c.fs.Check(func(err error) error {
				found = append(found, err.Error())
				return nil
			})
			if err != nil {
				t.Error(err)
			}
			if !strings.Contains(strings.Join(found, "\n"), tc.want) {
				t.Errorf("found %q, want %q", found, tc.want)
			}
			if err := exec.Command("e2fsck", "-fn", c.path).Run(); err == nil && !strings.Contains(tc.name, "of all groups") {
				t.Error("e2fsck finds nothing wrong")
			}
		})
	}
}

// TestCheckEnds: an error of the report function ends the check.
func TestCheckEnds(t *testing.T) {
	c := newChain(t, smallDisk)
	c.apply(bytes.NewReader(many("d", 50).tar(t)))
	c.damage(func(a *apply) error {
		for ino := uint32(12); ino < 40; ino++ {
			in, err := a.changeInode(ino)
			if err != nil {
				return err
			}
			in.setLinks(7)
		}
		return nil
	})
	enough := errors.New("enough")
	n := 0
	err := c.fs.Check(func(error) error {
		if n++; n == 5 {
			return enough
		}
		return nil
	})
	if err != enough || n != 5 {
		t.Errorf("error %v after %d reports", err, n)
	}
}
