package diskfs

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestReplace: layer.md, "Applying Changesets": an entry over an existing path replaces
// it, except that a directory over a directory keeps the children. The attributes are
// those of the new entry.
func TestReplace(t *testing.T) {
	big := strings.Repeat("0123456789abcdef", 1000)
	changed := big[:9000] + "!" + big[9001:]
	// Every kind of thing once over every other, in two layers and in one.
	kinds := map[string]func(name string) layer{
		"file":    func(n string) layer { return layer{file(n, "file").mode(0600).xattr("user.f", "f")} },
		"dir":     func(n string) layer { return layer{folder(n).mode(0700).xattr("user.d", "d"), file(n+"/in", "x")} },
		"symlink": func(n string) layer { return layer{symlink(n, "target")} },
		"long":    func(n string) layer { return layer{symlink(n, strings.Repeat("t", 100))} },
		"char":    func(n string) layer { return layer{device(n, 'c', 1, 3)} },
		"block":   func(n string) layer { return layer{device(n, 'b', 300, 70000)} },
		"fifo":    func(n string) layer { return layer{device(n, 'p', 0, 0)} },
		"link":    func(n string) layer { return layer{link(n, "other")} },
	}
	shown := map[string]string{
		"file": `%s "file" mode 600 user.f="f"`, "dir": `%[1]s/ mode 700 user.d="d" | %[1]s/in "x"`,
		"symlink": `%s -> target`, "long": `%s -> ` + strings.Repeat("t", 100),
		"char": `%s char 1:3`, "block": `%s block 300:70000`, "fifo": `%s fifo`, "link": ``,
	}
	var first, second, both layer
	var want, links []string
	first, both = append(first, file("other", "o")), append(both, file("other", "o"))
	for _, from := range []string{"block", "char", "dir", "fifo", "file", "link", "long", "symlink"} {
		for _, to := range []string{"block", "char", "dir", "fifo", "file", "link", "long", "symlink"} {
			name := from + "-" + to
			first, second = append(first, kinds[from](name)...), append(second, kinds[to](name)...)
			both = append(append(both, kinds[from](name)...), kinds[to](name)...)
			if to == "link" {
				links = append(links, name)
			} else {
				want = append(want, fmt.Sprintf(shown[to], name))
			}
		}
	}
	want = append(want, fmt.Sprintf(`%s "o" links %d`, links[0], len(links)+1))
	for _, name := range append(links[1:], "other") {
		want = append(want, fmt.Sprintf(`%s "o" = %s`, name, links[0]))
	}

	runCases(t, []layerCase{{
		name: "every kind over every kind", layers: []layer{first, second}, want: strings.Join(want, " | "),
	}, {
		name: "every kind over every kind in one layer", layers: []layer{both}, want: strings.Join(want, " | "),
	}, {
		name:   "directory's attributes",
		layers: []layer{{folder("d").mode(0700).owner(1, 2).xattr("user.old", "1"), file("d/a", "1")}, {folder("d").mode(01755).mtime(time.Unix(5, 6)).xattr("user.new", "2")}},
		want:   `d/ mode 1755 mtime 5.000000006 user.new="2" | d/a "1"`,
	}, {
		name:   "directory's xattrs with none",
		layers: []layer{{folder("d").xattr("user.old", "1").xattr("user.older", strings.Repeat("x", 500))}, {folder("d")}},
		want:   `d/`,
	}, {
		name:   "file's content and attributes",
		layers: []layer{{file("a", "one").mode(04755).owner(1, 2).xattr("user.x", "1")}, {file("a", big)}, {file("a", "three")}},
		want:   `a "three"`,
	}, {
		name:   "file that is another's link",
		layers: []layer{{file("a", "1"), link("b", "a"), link("c", "a")}, {file("a", "2")}},
		want:   `a "2" | b "1" links 2 | c "1" = b`,
	}, {
		name:   "file that is another's link in the same layer",
		layers: []layer{{file("a", "1"), link("b", "a"), file("a", "2")}},
		want:   `a "2" | b "1"`,
	}, {
		name:   "symlink, not what it leads to",
		layers: []layer{{file("t", "1"), symlink("l", "t"), symlink("m", "/t")}, {file("l", "2")}, {folder("m")}},
		want:   `l "2" | m/ | t "1"`,
	}, {
		name:   "directory by a symlink to another",
		layers: []layer{{folder("d"), file("d/a", "1"), folder("e")}, {symlink("d", "e"), file("d/b", "2")}},
		want:   `d -> e | e/ | e/b "2"`,
	}, {
		name:   "directory, and its children again",
		layers: []layer{{folder("d"), file("d/a", "1"), file("d/b", "2")}, {file("d", "x"), folder("d"), file("d/a", "3")}},
		want:   `d/ | d/a "3"`,
	}, {
		name:   "duplicates, the last wins",
		layers: []layer{{file("a", "1"), file("b", "x"), file("a", "2").mode(0600), folder("d").mode(0700), file("d/x", "y"), folder("d").mode(0711), symlink("s", "1"), symlink("s", "2")}},
		want:   `a "2" mode 600 | b "x" | d/ mode 711 | d/x "y" | s -> 2`,
	}, {
		name:   "duplicates of one block's data, all but one dead",
		layers: []layer{{file("a", big), file("a", changed), file("a", big), file("b", changed), file("b", big)}},
		want:   `a ` + contents(big) + ` | b ` + contents(big),
	}, {
		name:   "same content, new attributes",
		layers: []layer{{file("a", big), file("b", "")}, {file("a", big).mode(0600).owner(7, 8).xattr("user.x", "1"), file("b", "").mode(0600)}},
		want:   `a ` + contents(big) + ` mode 600 owner 7:8 user.x="1" | b "" mode 600`,
	}, {
		name:   "same size, other content",
		layers: []layer{{file("a", big)}, {file("a", changed)}},
		want:   `a ` + contents(changed),
	}, {
		name:   "same content, twice in the layer",
		layers: []layer{{file("a", big)}, {file("a", big).mode(0600), file("a", big).mode(0611)}, {file("a", changed), file("a", big)}},
		want:   `a ` + contents(big),
	}, {
		name:   "same content under a second name",
		layers: []layer{{file("a", big), link("b", "a")}, {file("a", big).mode(0600)}},
		want:   `a ` + contents(big) + ` mode 600 | b ` + contents(big),
	}, {
		name:   "shrinks to nothing, grows again",
		layers: []layer{{file("a", big)}, {file("a", "")}, {file("a", big)}},
		want:   `a ` + contents(big),
	}, {
		name:   "a tree by a file by a tree",
		layers: []layer{many("a/b/c", 50), {file("a", "1")}, append(layer{folder("a")}, many("a/b", 30)...)},
		want:   `a/ | a/b/ | ` + many("a/b", 30).files(),
	}, {
		name:   "nothing: empty layers between",
		layers: []layer{{file("a", "1")}, {}, {}, {file("b", "2")}},
		want:   `a "1" | b "2"`,
	}})
}

// contents describes a long file as tree.describe does.
func contents(s string) string {
	var n node
	if err := n.setContent(strings.NewReader(s)); err != nil {
		panic(err)
	}
	return fmt.Sprintf("%d bytes %x", n.size, n.sum)
}
