package diskfs

import (
	"archive/tar"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestNames: how the names in a tar become places in the file system. Specification:
// layer.md of the OCI image-spec, which says little, and what containerd and moby do.
func TestNames(t *testing.T) {
	long := strings.Repeat("n", 255)
	deep := strings.Repeat(strings.Repeat("d", 99)+"/", 20) // 2000 bytes
	var hops layer
	for i := range 255 {
		hops = append(hops, symlink(fmt.Sprintf("l%d", i), fmt.Sprintf("l%d", i+1)))
	}
	runCases(t, []layerCase{{
		name:   "dot slash",
		layers: []layer{{folder("./a"), file("./a/b", "1"), file("./././c", "2")}},
		want:   `a/ | a/b "1" | c "2"`,
	}, {
		name:   "absolute",
		layers: []layer{{folder("/a"), file("/a/b", "1"), file("//a//c", "2")}},
		want:   `a/ | a/b "1" | a/c "2"`,
	}, {
		name:   "climbing out is clamped",
		layers: []layer{{file("../../x", "1"), folder("a"), file("a/../../../y", "2"), file("a/./b/../c", "3")}},
		want:   `a/ | a/c "3" | x "1" | y "2"`,
	}, {
		name:   "root entry",
		layers: []layer{{folder(".").mode(0711).owner(3, 4), file("a", "")}},
		want:   `./ mode 711 owner 3:4 | a ""`,
	}, {
		name:   "root entry with xattrs in a later layer",
		layers: []layer{{file("a", "")}, {folder("/").mode(01777).xattr("user.x", "y")}},
		want:   `./ mode 1777 user.x="y" | a ""`,
	}, {
		name:    "root is a directory",
		layers:  []layer{{file("a", "")}, {file(".", "1")}},
		want:    `a ""`,
		refused: "the root must be a directory",
	}, {
		name:   "implied parents",
		layers: []layer{{file("a/b/c/d", "1"), folder("a/b").mode(0700)}},
		want:   `a/ implied | a/b/ mode 700 | a/b/c/ implied | a/b/c/d "1"`,
	}, {
		name:   "parent is a relative symlink",
		layers: []layer{{folder("usr"), folder("usr/lib"), symlink("lib", "usr/lib")}, {file("lib/x", "1")}},
		want:   `lib -> usr/lib | usr/ | usr/lib/ | usr/lib/x "1"`,
	}, {
		name:   "parent is an absolute symlink",
		layers: []layer{{folder("usr"), folder("usr/lib"), symlink("usr/l", "/usr/lib")}, {file("usr/l/x", "1")}},
		want:   `usr/ | usr/l -> /usr/lib | usr/lib/ | usr/lib/x "1"`,
	}, {
		name:   "parent symlink climbs out",
		layers: []layer{{folder("a"), symlink("a/l", "../../../../etc"), folder("etc")}, {file("a/l/x", "1")}},
		want:   `a/ | a/l -> ../../../../etc | etc/ | etc/x "1"`,
	}, {
		name:   "parent symlink of the same layer",
		layers: []layer{{folder("d"), symlink("l", "d"), file("l/x", "1"), file("l/sub/y", "2")}},
		want:   `d/ | d/sub/ implied | d/sub/y "2" | d/x "1" | l -> d`,
	}, {
		name:   "parent symlink replaced between entries",
		layers: []layer{{folder("d"), folder("e"), symlink("l", "d"), file("l/x", "1"), symlink("l", "e"), file("l/y", "2")}},
		want:   `d/ | d/x "1" | e/ | e/y "2" | l -> e`,
	}, {
		name:   "parent directory replaced by a symlink between entries",
		layers: []layer{{folder("d"), folder("l"), file("l/x", "1"), symlink("l", "d"), file("l/y", "2")}},
		want:   `d/ | d/y "2" | l -> d`,
	}, {
		name:   "parent symlink replaced by a link to another symlink between entries",
		layers: []layer{{folder("d"), folder("e"), symlink("l", "d"), symlink("m", "e"), file("l/x", "1"), link("l", "m"), file("l/y", "2")}},
		want:   `d/ | d/x "1" | e/ | e/y "2" | l -> e links 2 | m -> e = l`,
	}, {
		name:   "parent symlink dangles",
		layers: []layer{{symlink("l", "a/b")}, {file("l/x", "1")}},
		want:   `a/ implied | a/b/ implied | a/b/x "1" | l -> a/b`,
	}, {
		name:    "parent symlink loops",
		layers:  []layer{{symlink("l", "m"), symlink("m", "l")}, {file("l/x", "1")}},
		want:    `l -> m | m -> l`,
		refused: "too many levels of symbolic links",
	}, {
		name:   "255 symlinks in a row",
		layers: []layer{hops, {folder("l255"), file("l0/x", "1")}},
		want:   hops.describe() + ` | l255/ | l255/x "1"`,
	}, {
		name:    "256 symlinks in a row",
		layers:  []layer{append(hops, symlink("l255", "l256")), {folder("l256"), file("l0/x", "1")}},
		want:    hops.describe() + ` | l255 -> l256`,
		refused: "too many levels of symbolic links",
	}, {
		name:   "long slow symlink as parent",
		layers: []layer{{folder("d"), symlink("l", strings.Repeat("./", 2000)+"d")}, {file("l/x", "1")}},
		want:   `d/ | d/x "1" | l -> ` + strings.Repeat("./", 2000) + `d`,
	}, {
		name:    "parent is a file",
		layers:  []layer{{file("a", "1")}, {file("a/b", "2")}},
		want:    `a "1"`,
		refused: "not a directory",
	}, {
		name:    "parent is a symlink to a file",
		layers:  []layer{{file("a", "1"), symlink("l", "a")}, {file("l/b", "2")}},
		want:    `a "1" | l -> a`,
		refused: "not a directory",
	}, {
		name:   "name of 255 bytes",
		layers: []layer{{folder(long), file(long+"/"+long, "1")}, {symlink(long+"/l", long)}},
		want:   long + "/ | " + long + "/" + long + ` "1" | ` + long + "/l -> " + long,
	}, {
		name:    "name of 256 bytes",
		layers:  []layer{{file("a", "")}, {file("x/"+long+"n", "1")}},
		want:    `a ""`,
		refused: "name component of 256 bytes",
	}, {
		name:   "path of 2000 bytes",
		layers: []layer{{folder(strings.TrimSuffix(deep, "/"))}, {file(deep+"f", "1")}},
		want:   impliedAbove(deep) + strings.TrimSuffix(deep, "/") + "/ | " + deep + `f "1"`,
	}, {
		name:   "names are bytes",
		layers: []layer{{file("\xff\xfe", "1"), file("caf\u00e9", "2"), file("cafe\u0301", "3"), file("Cafe", "4"), file("a b\tc\n\\d", "5"), file(" ", "6"), file("-rf", "7"), file("...", "8")}},
		want:   `"\xff\xfe" "1" | café "2" | cafe` + "\u0301" + ` "3" | Cafe "4" | "a b\tc\n\\d" "5" | " " "6" | -rf "7" | ... "8"`,
	}, {
		name:   "names of all byte values, in a directory with an index",
		layers: []layer{allBytes(1), allBytes(200)},
		want:   "d/ | " + allBytes(1).names() + " | " + allBytes(200).names(),
	}, {
		name:    "zero byte in a name",
		layers:  []layer{{file("a", "")}, {rawHeader("././@PaxHeader", 'x', "00000000020\x00", nil), rawBytes("13 path=a\x00bc\n"), rawHeader("y", '0', "00000000000\x00", nil)}},
		want:    `a ""`,
		refused: "invalid tar header",
	}, {
		name: "ustar prefix, GNU long names, PAX names",
		layers: []layer{{
			file(strings.Repeat("p", 90)+"/"+strings.Repeat("u", 90), "1").format(tar.FormatUSTAR),
			file("gnu"+strings.Repeat("g", 200), "2").format(tar.FormatGNU),
			symlink("gnulink", strings.Repeat("t", 300)).format(tar.FormatGNU),
			file("pax"+strings.Repeat("x", 200), "3").format(tar.FormatPAX),
			symlink("paxlink", strings.Repeat("t", 300)).format(tar.FormatPAX),
		}},
		want: strings.Repeat("p", 90) + "/ implied | " + strings.Repeat("p", 90) + "/" + strings.Repeat("u", 90) + ` "1"
			gnu` + strings.Repeat("g", 200) + ` "2" | gnulink -> ` + strings.Repeat("t", 300) + `
			pax` + strings.Repeat("x", 200) + ` "3" | paxlink -> ` + strings.Repeat("t", 300),
	}, {
		name: "hard link targets in GNU and PAX long names",
		layers: []layer{{
			file(strings.Repeat("t", 150), "1"), link("gnu", strings.Repeat("t", 150)).format(tar.FormatGNU), link("pax", strings.Repeat("t", 150)).format(tar.FormatPAX),
		}},
		want: strings.Repeat("t", 150) + ` "1" = gnu | gnu "1" links 3 | pax "1" = gnu`,
	}, {
		name:    "dot dot as the last name of a file",
		layers:  []layer{{file("a", "")}, {file("b/..", "1")}},
		want:    `a ""`,
		refused: "the root must be a directory",
	}, {
		name:    "no name",
		layers:  []layer{{file("a", "")}, {rawHeader("", '0', "00000000000\x00", nil)}},
		want:    `a ""`,
		refused: "the root must be a directory",
	}, {
		name:   "dot dot as the last name of a directory",
		layers: []layer{{folder("a"), folder("a/b/..").mode(0700)}},
		want:   `a/ mode 700`,
	}, {
		name: "absolute symlink out of the root, then through it",
		layers: []layer{{folder("d"), symlink("d/out", "/etc"), symlink("d/up", "../../../../../../tmp"), symlink("top", "/")},
			{file("d/out/passwd", "1"), file("d/up/x", "2"), folder("top/d/out/e"), file("top/top/top/y", "3")}},
		want: `d/ | d/out -> /etc | d/up -> ../../../../../../tmp | top -> / | etc/ implied | etc/passwd "1" | tmp/ implied | tmp/x "2" | etc/e/ | y "3"`,
	}, {
		name: "hard link to a symlink out of the root, then through it",
		layers: []layer{{symlink("out", "/etc"), folder("etc")},
			{link("out2", "out"), file("out2/passwd", "1"), link("passwd", "out2/passwd"), file("out2", "2")}},
		want: `etc/ | etc/passwd "1" links 2 | out -> /etc | out2 "2" | passwd "1" = etc/passwd`,
	}, {
		name:   "symlink out of the root replaced, not written through",
		layers: []layer{{symlink("out", "/etc/passwd")}, {file("out", "1")}},
		want:   `out "1"`,
	}, {
		name:    "parent symlink of the same layer loops on itself",
		layers:  []layer{{file("a", "")}, {symlink("l", "l"), file("l/x", "1")}},
		want:    `a ""`,
		refused: "too many levels of symbolic links",
	}, {
		name:   "parent named like a whiteout",
		layers: []layer{{folder("d"), file("d/a", "1")}, {file("d/.wh.a/x", "2")}},
		want:   `d/ | d/a "1" | d/.wh.a/ implied | d/.wh.a/x "2"`,
	}, {
		name:   "v7 header, trailing slash makes a directory",
		layers: []layer{{rawHeader("d/", 0, "00000000000\x00", clearMagic), rawHeader("d/f", 0, "00000000003\x00", clearMagic), rawBytes("abc")}},
		want:   `d/ mode 644 | d/f "abc"`,
	}})
}

func clearMagic(h []byte) { clear(h[257:]) }

// impliedAbove lists the parents of a path that ends in a slash, as tree.describe would.
func impliedAbove(path string) string {
	var b strings.Builder
	for i := range path[:len(path)-1] {
		if path[i] == '/' {
			fmt.Fprintf(&b, "%s implied | ", path[:i+1])
		}
	}
	return b.String()
}

// describe lists the symlinks of a layer as tree.describe would.
func (l layer) describe() string {
	var lines []string
	for _, i := range l {
		lines = append(lines, i.h.Name+" -> "+i.h.Linkname)
	}
	return strings.Join(lines, " | ")
}

// allBytes has a file for each byte that a name may hold, whose name is that byte n times.
func allBytes(n int) layer {
	l := layer{folder("d")}
	for b := 1; b < 256; b++ {
		if name := strings.Repeat(string([]byte{byte(b)}), n); b != '/' && name != "." {
			l = append(l, file("d/"+name, fmt.Sprint(b)))
		}
	}
	return l
}

// names lists a layer's files as tree.describe would.
func (l layer) names() string {
	var lines []string
	for _, i := range l[1:] {
		lines = append(lines, node{mode: unix.S_IFREG | 0644, size: i.h.Size, head: i.body, sec: entryTime.Unix()}.describe(i.h.Name))
	}
	return strings.Join(lines, "\n")
}
