package diskfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"
)

// changes lists what Diff tells, a line each.
func changes(t *testing.T, old, new *FS, o DiffOptions) string {
	t.Helper()
	var b strings.Builder
	err := Diff(old, new, o, func(c Change) error {
		fmt.Fprintf(&b, "%v %s %s\n", c.Kind, c.Path, strings.Join(c.What, " "))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// dockerChanges works out of two trees, as the kernel shows them, what docker diff would
// tell of them (moby, pkg/archive/changes.go).
func dockerChanges(old, new tree) string {
	lines := map[string]byte{}
	above := func(p string) {
		for i := strings.LastIndexByte(p, '/'); i > 0; i = strings.LastIndexByte(p, '/') {
			if p = p[:i]; lines[p] == 0 {
				lines[p] = 'C'
			}
		}
	}
	gone := func(p string) bool { // with a directory above
		for i := strings.LastIndexByte(p, '/'); i > 0; i = strings.LastIndexByte(p, '/') {
			p = p[:i]
			if _, still := new[p]; !still {
				return true
			}
		}
		return false
	}
	for p, a := range old {
		b, still := new[p]
		switch {
		case !still && !gone(p):
			lines[p] = 'D'
		case !still:
			continue
		default:
			a.links, b.links, a.same, b.same = 0, 0, "", ""
			if a.mode&0xf000 == 0x4000 && b.mode&0xf000 == 0x4000 {
				a.sec, a.nsec, b.sec, b.nsec = 0, 0, 0, 0
			}
			if a == b {
				continue
			}
			lines[p] = 'C'
		}
		above(p)
	}
	for p := range new {
		if _, was := old[p]; !was {
			lines[p] = 'A'
			above(p)
		}
	}
	var out []string
	for p, k := range lines {
		if p == "." {
			p = ""
		}
		out = append(out, fmt.Sprintf("%c /%s", k, p))
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

func kinds(s string) string {
	var out []string
	for line := range strings.Lines(s) {
		f := strings.Fields(line)
		out = append(out, f[0]+" "+f[1])
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

func TestDiff(t *testing.T) {
	base := layer{
		folder("d"), file("d/same", "1"), file("d/mode", "2"), file("d/gone", "3"), folder("d/deep"), folder("d/deep/er"), file("d/deep/er/f", "x"),
		folder("goes"), file("goes/a", "a"), folder("goes/b"), file("goes/b/c", "c"), file("file", "becomes a directory"), folder("dir"), file("dir/x", "x"),
		symlink("link", "a"), symlink("link2", "same"), device("null", 'c', 1, 3), device("fifo", 'p', 0, 0), file("x", "").xattr("user.x", "1"),
		file("big", strings.Repeat("0123456789abcdef", 40000)), file("touched", "t"), folder("untouched"), file("owner", "o"), file("h1", "h"), link("h2", "h1"),
	}
	for _, tc := range []struct {
		name string
		l    layer
		want string
	}{
		{"nothing", nil, ""},
		{"root", layer{folder(".").mode(0700)}, "C / mode\n"},
		{"each kind of change", layer{
			file("d/mode", "2").mode(0600), whiteout("d/gone"), file("d/new", ""), file("d/deep/er/f", "y"), file("owner", "o").owner(7, 8),
			symlink("link", "b"), device("null", 'c', 1, 5), file("x", "").xattr("user.x", "2"), file("touched", "t").mtime(entryTime.Add(time.Nanosecond)),
		}, "C /d \nA /d/new \nD /d/gone \n"},
		{"content alone", layer{file("d/same", "2"), file("big", strings.Repeat("0123456789abcdeF", 40000))}, "C /big content\nC /d \nC /d/same content\n"},
		{"shipped again", append(layer{}, base...), ""},
		{"removed tree", layer{whiteout("goes")}, "D /goes \n"},
		{"new tree", layer{folder("n"), folder("n/m"), file("n/m/o", ""), symlink("n/l", "x")}, "A /n \nA /n/l \nA /n/m \nA /n/m/o \n"},
		{"kinds swap", layer{whiteout("file"), folder("file"), file("file/in", ""), whiteout("dir"), symlink("dir", "d")}, "C /dir type\nD /dir/x \nC /file type\nA /file/in \n"},
		{"size", layer{file("big", "small")}, "C /big size\n"},
		{"times of directories", layer{folder("untouched").mtime(time.Unix(5, 5))}, ""},
		{"long xattr", layer{file("x", "").xattr("user.x", strings.Repeat("1", 900))}, "C /x xattrs\n"},
		{"hard links", layer{whiteout("h2"), file("h2", "h")}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before, after := newChain(t, smallDisk), newChain(t, smallDisk)
			before.apply(bytes.NewReader(base.tar(t)))
			after.apply(bytes.NewReader(base.tar(t)))
			shared := DiffOptions{Shared: after.high * ClusterSize}
			after.apply(bytes.NewReader(tc.l.tar(t)))
			got := changes(t, before.fs, after.fs, shared)
			if slow := changes(t, before.fs, after.fs, DiffOptions{}); slow != got {
				t.Errorf("without knowing what is shared:\n%s\nwith:\n%s", slow, got)
			}
			for line := range strings.Lines(tc.want) {
				if !strings.Contains(got, line) {
					t.Errorf("got:\n%s\nwant also %q", got, line)
				}
			}
			if tc.want == "" && got != "" {
				t.Errorf("got:\n%s", got)
			}
			if want := dockerChanges(before.kernelTree(), after.kernelTree()); kinds(got) != want {
				t.Errorf("got:\n%s\n\ndocker's:\n%s", kinds(got), want)
			}
			// Added and deleted swap places the other way round.
			if back, want := kinds(changes(t, after.fs, before.fs, shared)), dockerChanges(after.kernelTree(), before.kernelTree()); back != want {
				t.Errorf("back:\n%s\n\ndocker's:\n%s", back, want)
			}
		})
	}
}

// TestDiffReads: a file whose data both disks have in one place is not read.
func TestDiffReads(t *testing.T) {
	f, disk, high := formatMem(t, smallDisk)
	high, err := applyMem(t, f, disk, layer{file("big", strings.Repeat("0123456789abcdef", 100000))}.tar(t), high, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	before := must(Open(disk, disk.size))
	top := newMemDisk(disk.size, disk)
	after := must(Open(top, disk.size))
	if _, err := applyMem(t, after, top, layer{file("small", "s")}.tar(t), high, Limits{}); err != nil {
		t.Fatal(err)
	}
	count := &countingDisk{r: top}
	after = must(Open(count, disk.size))
	if got := changes(t, before, after, DiffOptions{Shared: high * ClusterSize}); got != "A /small \n" {
		t.Error(got)
	}
	if count.n > 1<<20 {
		t.Errorf("%d bytes read", count.n)
	}
	errStop := errors.New("stop")
	if err := Diff(before, after, DiffOptions{}, func(Change) error { return errStop }); err != errStop {
		t.Errorf("error %v, not fn's", err)
	}
}

type countingDisk struct {
	r io.ReaderAt
	n int
}

func (d *countingDisk) ReadAt(p []byte, off int64) (int, error) {
	d.n += len(p)
	return d.r.ReadAt(p, off)
}
