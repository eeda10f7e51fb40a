package diskfs

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestHardLinks: the target is resolved inside the root like any path, its last name not
// followed, in the state the entries before it left. As containerd does, the link's own
// header is applied to the inode.
func TestHardLinks(t *testing.T) {
	runCases(t, []layerCase{{
		name:   "in one layer",
		layers: []layer{{file("a", "1"), link("b", "a"), folder("d"), link("d/c", "./a"), link("d/e", "/d/../a")}},
		want:   `a "1" links 4 | b "1" = a | d/ | d/c "1" = a | d/e "1" = a`,
	}, {
		name:   "to a lower layer",
		layers: []layer{{folder("d"), file("d/a", "1")}, {link("b", "d/a")}, {link("c", "b")}},
		want:   `b "1" links 3 | c "1" = b | d/ | d/a "1" = b`,
	}, {
		name:   "to a symlink, not what it leads to",
		layers: []layer{{file("a", "1"), symlink("s", "a"), link("b", "s")}, {link("c", "s")}},
		want:   `a "1" | b -> a links 3 | c -> a = b | s -> a = b`,
	}, {
		name:   "to devices and fifos",
		layers: []layer{{device("c", 'c', 1, 3), link("c2", "c"), device("p", 'p', 0, 0), link("p2", "p")}},
		want:   `c char 1:3 links 2 | c2 char 1:3 = c | p fifo links 2 | p2 fifo = p`,
	}, {
		name:   "target behind a symlink",
		layers: []layer{{folder("d"), file("d/a", "1"), symlink("l", "/d")}, {link("b", "l/a"), link("l/c", "b")}},
		want:   `b "1" links 3 | d/ | d/a "1" = b | d/c "1" = b | l -> /d`,
	}, {
		name:   "target outside the root is clamped",
		layers: []layer{{file("etc/passwd", "ours")}, {link("b", "../../etc/passwd")}},
		want:   `b "ours" links 2 | etc/ implied | etc/passwd "ours" = b`,
	}, {
		name:    "to a directory",
		layers:  []layer{{folder("d")}, {link("b", "d")}},
		want:    `d/`,
		refused: `hard link to "d", a directory`,
	}, {
		name:    "to the root",
		layers:  []layer{{folder("d")}, {link("b", "/")}},
		want:    `d/`,
		refused: `hard link to "", which does not exist`,
	}, {
		name:    "to nothing",
		layers:  []layer{{folder("d")}, {link("b", "d/x")}},
		want:    `d/`,
		refused: `hard link to "d/x", which does not exist`,
	}, {
		name:    "below a file",
		layers:  []layer{{file("f", "")}, {link("b", "f/x")}},
		want:    `f ""`,
		refused: `hard link to "f/x", which does not exist`,
	}, {
		name:    "forward",
		layers:  []layer{{folder("d")}, {link("b", "a"), file("a", "1")}},
		want:    `d/`,
		refused: `hard link to "a", which does not exist`,
	}, {
		name:    "to what the layer's whiteout removes",
		layers:  []layer{{file("a", "1")}, {link("b", "a"), whiteout("a")}},
		want:    `a "1"`,
		refused: `hard link to "a", which does not exist`,
	}, {
		name:   "to itself",
		layers: []layer{{file("a", "1")}, {link("a", "a")}, {link("a", "./a")}},
		want:   `a "1"`,
	}, {
		name:   "to another name of itself",
		layers: []layer{{file("a", "1"), link("b", "a")}, {link("a", "b"), link("b", "a")}},
		want:   `a "1" links 2 | b "1" = a`,
	}, {
		name:   "parent is missing",
		layers: []layer{{file("a", "1"), link("x/y/b", "a")}},
		want:   `a "1" links 2 | x/ implied | x/y/ implied | x/y/b "1" = a`,
	}, {
		name:   "over a file, a symlink, a directory",
		layers: []layer{{file("a", "1"), file("f", "2"), symlink("s", "f"), folder("d"), file("d/x", "3")}, {link("f", "a"), link("s", "a"), link("d", "a")}},
		want:   `a "1" links 4 | d "1" = a | f "1" = a | s "1" = a`,
	}, {
		name:   "over the directory that holds the target",
		layers: []layer{{folder("d"), file("d/a", "1"), file("d/b", "2")}, {link("d", "d/a")}},
		want:   `d "1"`,
	}, {
		name:   "header applied to the inode",
		layers: []layer{{file("a", "1")}, {link("b", "a").mode(04711).owner(3, 4).mtime(time.Unix(9, 8))}},
		want:   `a "1" mode 4711 owner 3:4 links 2 mtime 9.000000008 | b "1" = a`,
	}, {
		name:   "header's mode not applied to a symlink",
		layers: []layer{{symlink("s", "x"), link("t", "s").mode(0600).owner(3, 4)}},
		want:   `s -> x owner 3:4 links 2 | t -> x = s`,
	}, {
		name:   "header without xattrs keeps them",
		layers: []layer{{file("a", "1").xattr("user.x", "y"), link("b", "a")}},
		want:   `a "1" links 2 user.x="y" | b "1" = a`,
	}, {
		name:   "header's xattrs replace",
		layers: []layer{{file("a", "1").xattr("user.x", "y"), link("b", "a").xattr("user.z", "1")}},
		want:   `a "1" links 2 user.z="1" | b "1" = a`,
	}, {
		name:   "with data of its own",
		layers: []layer{{file("a", "1"), rawHeader("b", '1', "00000000003\x00", func(h []byte) { h[157] = 'a' })}},
		want:   `a "1" links 2 | b "1" = a`,
	}, {
		name:   "an empty target name",
		layers: []layer{{file("a", "1")}, {rawHeader("b", '1', "00000000000\x00", nil)}},
		want:   `a "1"`, refused: `hard link to "", which does not exist`,
	}})
}

// TestLinkLimit: ext4 keeps at most 65000 names of an inode.
func TestLinkLimit(t *testing.T) {
	c := newChain(t, FormatOptions{Capacity: 128 << 20})
	l := layer{file("a", "1")}
	for i := range maxLinks - 1 {
		l = append(l, link(fmt.Sprintf("d/%d", i), "a"))
	}
	c.apply(bytes.NewReader(l.tar(t)))
	c.check()
	info, err := c.fs.Lstat("a")
	if err != nil {
		t.Fatal(err)
	}
	if n := info.Sys().(*Stat).Links; n != maxLinks {
		t.Errorf("%d links, want %d", n, maxLinks)
	}
	before := digest(t, c.disk)
	_, err = c.try(bytes.NewReader(layer{link("e", "a")}.tar(t)))
	if err == nil || !strings.Contains(err.Error(), "has 65000 links already") {
		t.Errorf("link 65001: error %v", err)
	}
	if digest(t, c.disk) != before {
		t.Error("the refused layer changed the disk")
	}
	c.reopen()
	c.apply(bytes.NewReader(layer{whiteout("d/5"), link("e", "a")}.tar(t)))
	c.check()
}
