package diskfs

import (
	"archive/tar"
	"testing"
)

// TestWhiteouts: layer.md, "Whiteouts". They hide what the layers below hold, never what
// their own layer does, wherever in the tar they stand.
func TestWhiteouts(t *testing.T) {
	base := layer{folder("d"), file("d/a", "1"), file("d/b", "2"), folder("d/sub"), file("d/sub/c", "3"), file("e", "4"), symlink("l", "d")}
	const all = `d/ | d/a "1" | d/b "2" | d/sub/ | d/sub/c "3" | e "4" | l -> d`
	runCases(t, []layerCase{{
		name:   "file",
		layers: []layer{base, {whiteout("d/a")}},
		want:   `d/ | d/b "2" | d/sub/ | d/sub/c "3" | e "4" | l -> d`,
	}, {
		name:   "what does not exist",
		layers: []layer{base, {whiteout("d/x"), whiteout("x/y/z"), whiteout("e/x")}},
		want:   all,
	}, {
		name:   "directory and all below",
		layers: []layer{base, {whiteout("d")}},
		want:   `e "4" | l -> d`,
	}, {
		name:   "directory and something below it",
		layers: []layer{base, {whiteout("d/sub/c"), whiteout("d"), whiteout("d/a")}},
		want:   `e "4" | l -> d`,
	}, {
		name:   "symlink, not its target",
		layers: []layer{base, {whiteout("l")}},
		want:   `d/ | d/a "1" | d/b "2" | d/sub/ | d/sub/c "3" | e "4"`,
	}, {
		name:   "through a symlink",
		layers: []layer{base, {whiteout("l/a"), whiteout("l/sub")}},
		want:   `d/ | d/b "2" | e "4" | l -> d`,
	}, {
		name:   "of the layer before last, then back again",
		layers: []layer{base, {whiteout("d/a")}, {whiteout("d/b")}, {file("d/a", "5")}},
		want:   `d/ | d/a "5" | d/sub/ | d/sub/c "3" | e "4" | l -> d`,
	}, {
		name:   "after an entry of the same name",
		layers: []layer{base, {file("d/a", "5"), whiteout("d/a")}},
		want:   `d/ | d/a "5" | d/b "2" | d/sub/ | d/sub/c "3" | e "4" | l -> d`,
	}, {
		name:   "before an entry of the same name",
		layers: []layer{base, {whiteout("d/a"), file("d/a", "5")}},
		want:   `d/ | d/a "5" | d/b "2" | d/sub/ | d/sub/c "3" | e "4" | l -> d`,
	}, {
		name:   "of a directory that the layer fills",
		layers: []layer{base, {file("d/new", "5"), whiteout("d")}},
		want:   `d/ implied | d/new "5" | e "4" | l -> d`,
	}, {
		name:   "of a name another layer never had, with an entry",
		layers: []layer{base, {file("x/y", "5"), whiteout("x/y"), whiteout("x")}},
		want:   all + ` | x/ implied | x/y "5"`,
	}, {
		name:   "one of two hard links",
		layers: []layer{{file("a", "1"), link("b", "a")}, {whiteout("a")}},
		want:   `b "1"`,
	}, {
		name:   "a hard link's both names in two layers",
		layers: []layer{{file("a", "1"), link("b", "a"), file("c", "2")}, {whiteout("a")}, {whiteout("b")}},
		want:   `c "2"`,
	}, {
		name: "whatever its type",
		layers: []layer{base, {
			file("d/.wh.a", "not empty"), folder(".wh.e"), link("d/.wh.b", "d/sub/c"), symlink("d/sub/.wh.c", "x"), device(".wh.l", 'c', 0, 0),
		}},
		want: `d/ | d/sub/`,
	}, {
		name:   "its parent becomes a symlink",
		layers: []layer{{folder("a"), file("a/b", "1"), folder("t")}, {whiteout("a/b"), symlink("a", "t")}},
		want:   `a -> t | t/`,
	}, {
		name:   "its parent is missing, then a symlink",
		layers: []layer{{folder("t")}, {whiteout("a/a"), symlink("a", "t")}},
		want:   `a -> t | t/`,
	}, {
		name:   "of nothing",
		layers: []layer{base, {file("d/.wh.", "")}}, refused: "whiteout of an impossible name", want: all,
	}, {
		name:   "of dot",
		layers: []layer{base, {file("d/.wh..", "")}}, refused: "whiteout of an impossible name", want: all,
	}, {
		name:   "of dot dot",
		layers: []layer{base, {file("d/.wh...", "")}}, refused: "whiteout of an impossible name", want: all,
	}, {
		name:   "of a name of 251 bytes",
		layers: []layer{{file(longName(251), ""), file("a", "")}, {whiteout(longName(251))}},
		want:   `a ""`,
	}, {
		name:   "of a name of 255 bytes", // in 259
		layers: []layer{{file(longName(255), ""), file("a", ""), folder("d"), file("d/"+longName(252), "")}, {whiteout(longName(255)), whiteout("d/" + longName(252))}},
		want:   `a "" | d/`,
	}, {
		name:   "of a name too long for a disk",
		layers: []layer{{file("a", "")}, {whiteout(longName(256))}}, refused: "name component of 256 bytes", want: `a ""`,
	}, {
		name:   "with a directory of the same name: its children are gone",
		layers: []layer{base, {folder("d").mode(0700), file("d/new", "5"), whiteout("d")}},
		want:   `d/ mode 700 | d/new "5" | e "4" | l -> d`,
	}, {
		name:   "before a directory of the same name: its children are gone",
		layers: []layer{base, {whiteout("d"), folder("d").mode(0700), file("d/new", "5")}},
		want:   `d/ mode 700 | d/new "5" | e "4" | l -> d`,
	}, {
		name:   "twice",
		layers: []layer{base, {whiteout("d/a"), whiteout("d/a"), whiteout("e")}},
		want:   `d/ | d/b "2" | d/sub/ | d/sub/c "3" | l -> d`,
	}, {
		name:   "everything",
		layers: []layer{base, {whiteout("d"), whiteout("e"), whiteout("l")}},
		want:   ``,
	}, {
		name:   "aufs bookkeeping",
		layers: []layer{base, {folder(".wh..wh.orph"), folder(".wh..wh.plnk"), file(".wh..wh.aufs", ""), file(".wh..wh.plnk/1.2", "x"), file("d/x", "5")}},
		want:   all + ` | d/x "5"`,
	}, {
		name: "aufs pseudo links",
		layers: []layer{base, {
			folder(".wh..wh.plnk"), file(".wh..wh.plnk/1.2", "linked").mode(0600), file(".wh..wh.plnk/1.3", "never linked"),
			link("x", ".wh..wh.plnk/1.2").mode(0640), link("d/y", "/.wh..wh.plnk/1.2").mode(0640),
		}},
		want: all + ` | d/y "linked" mode 640 links 2 | x "linked" = d/y`,
	}, {
		name:    "aufs pseudo link that is missing",
		layers:  []layer{base, {link("x", ".wh..wh.plnk/1.2")}},
		want:    all,
		refused: `hard link to ".wh..wh.plnk/1.2", which does not exist`,
	}})
}

// TestOpaque: layer.md, "Opaque Whiteout".
func TestOpaque(t *testing.T) {
	base := layer{folder("d").mode(0700), file("d/a", "1"), folder("d/sub"), file("d/sub/b", "2"), file("e", "3"), symlink("l", "d")}
	const all = `d/ mode 700 | d/a "1" | d/sub/ | d/sub/b "2" | e "3" | l -> d`
	runCases(t, []layerCase{{
		name:   "first in its directory",
		layers: []layer{base, {folder("d"), opaque("d"), file("d/new", "4")}},
		want:   `d/ | d/new "4" | e "3" | l -> d`,
	}, {
		name:   "last in its directory",
		layers: []layer{base, {folder("d"), file("d/new", "4"), file("d/a", "5"), opaque("d")}},
		want:   `d/ | d/a "5" | d/new "4" | e "3" | l -> d`,
	}, {
		name:   "without an entry for its directory",
		layers: []layer{base, {opaque("d")}},
		want:   `d/ mode 700 | e "3" | l -> d`,
	}, {
		name:   "late, with implied parents",
		layers: []layer{base, {file("d/sub/x/y", "4"), opaque("d/sub"), opaque("d")}},
		want:   `d/ mode 700 | d/sub/ implied | d/sub/x/ implied | d/sub/x/y "4" | e "3" | l -> d`,
	}, {
		name:   "in a directory of its own layer",
		layers: []layer{base, {folder("n"), file("n/a", "4"), opaque("n")}},
		want:   all + ` | n/ | n/a "4"`,
	}, {
		name:   "in a directory that does not exist",
		layers: []layer{base, {opaque("x/y")}},
		want:   all + ` | x/ implied | x/y/ implied`,
	}, {
		name:   "in the root",
		layers: []layer{base, {opaque(""), file("new", "4")}},
		want:   `new "4"`,
	}, {
		name:   "through a symlink",
		layers: []layer{base, {opaque("l")}},
		want:   `d/ mode 700 | e "3" | l -> d`,
	}, {
		name:   "in a directory that replaces a symlink",
		layers: []layer{base, {folder("l"), opaque("l"), file("l/new", "4")}},
		want:   `d/ mode 700 | d/a "1" | d/sub/ | d/sub/b "2" | e "3" | l/ | l/new "4"`,
	}, {
		name:   "below a directory that replaces a symlink",
		layers: []layer{base, {opaque("l/sub"), folder("l"), folder("l/sub")}},
		want:   `d/ mode 700 | d/a "1" | d/sub/ | d/sub/b "2" | e "3" | l/ | l/sub/`,
	}, {
		name:   "in what was a file",
		layers: []layer{base, {folder("e"), opaque("e"), file("e/new", "4")}},
		want:   `d/ mode 700 | d/a "1" | d/sub/ | d/sub/b "2" | e/ | e/new "4" | l -> d`,
	}, {
		name:   "in what is a file",
		layers: []layer{base, {opaque("e")}},
		want:   all,
	}, {
		name:   "in what becomes a file",
		layers: []layer{base, {opaque("d"), file("d", "4")}},
		want:   `d "4" | e "3" | l -> d`,
	}, {
		name:   "twice, around an entry",
		layers: []layer{base, {opaque("d"), file("d/new", "4"), opaque("d")}},
		want:   `d/ mode 700 | d/new "4" | e "3" | l -> d`,
	}, {
		name:   "as a hard link",
		layers: []layer{base, {link("d/.wh..wh..opq", "e")}},
		want:   `d/ mode 700 | e "3" | l -> d`,
	}, {
		name:   "in a directory and in one below it",
		layers: []layer{base, {opaque("d/sub"), opaque("d"), file("d/sub/new", "4")}},
		want:   `d/ mode 700 | d/sub/ implied | d/sub/new "4" | e "3" | l -> d`,
	}, {
		name:   "with whiteouts beside it",
		layers: []layer{base, {whiteout("d/a"), opaque("d"), whiteout("d/sub")}},
		want:   `d/ mode 700 | e "3" | l -> d`,
	}, {
		name:   "keeps a directory of both layers, empties it",
		layers: []layer{base, {opaque("d"), folder("d/sub").mode(0711)}},
		want:   `d/ mode 700 | d/sub/ mode 711 | e "3" | l -> d`,
	}, {
		name:   "as another type",
		layers: []layer{base, {file("d/.wh..wh..opq", "").typeflag(tar.TypeDir)}},
		want:   `d/ mode 700 | e "3" | l -> d`,
	}, {
		name:   "a layer of 300 names, emptied and filled again",
		layers: []layer{many("d", 300), {opaque("d"), file("d/f7", "new")}, many("d", 20)},
		want:   `d/ | ` + many("d", 20).files(),
	}})
}

func longName(n int) string {
	p := make([]byte, n)
	for i := range p {
		p[i] = 'a' + byte(i%26)
	}
	return string(p)
}
