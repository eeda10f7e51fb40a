package diskfs

import (
	"archive/tar"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
)

// shrink makes a chain of layers that fails smaller, as long as it fails: it leaves out
// halves of its entries, then quarters, down to single ones, and then makes those that are
// left plainer. (Zeller and Hildebrandt call it delta debugging.)
func shrink(layers []layer, fails func([]layer) bool) []layer {
	type entry struct {
		layer int
		item  item
	}
	var all []entry
	for k, l := range layers {
		for _, i := range l {
			all = append(all, entry{k, i})
		}
	}
	chain := func(list []entry) []layer {
		var out []layer
		last := -1
		for _, e := range list {
			if e.layer != last {
				out, last = append(out, nil), e.layer
			}
			out[len(out)-1] = append(out[len(out)-1], e.item)
		}
		return out
	}
	for again := true; again; {
		again = false
		for size := max(1, len(all)/2); size > 0; size /= 2 {
			for at := 0; at < len(all); {
				less := slices.Delete(slices.Clone(all), at, min(at+size, len(all)))
				if fails(chain(less)) {
					all, again = less, true
				} else {
					at += size
				}
			}
		}
		for at := range all {
			for try := true; try; {
				try = false
				for _, i := range plainer(all[at].item) {
					other := slices.Clone(all)
					other[at].item = i
					if fails(chain(other)) {
						all, again, try = other, true, true
						break
					}
				}
			}
		}
	}
	return chain(all)
}

// plainer returns an item with less to it in one respect each.
func plainer(i item) (list []item) {
	add := func(change func(*item)) {
		other := i
		other.h.PAXRecords = maps.Clone(i.h.PAXRecords)
		change(&other)
		list = append(list, other)
	}
	for k := range i.h.PAXRecords {
		add(func(o *item) {
			if delete(o.h.PAXRecords, k); len(o.h.PAXRecords) == 0 {
				o.h.PAXRecords = nil
			}
		})
	}
	if usual := (map[byte]int64{tar.TypeDir: 0755, tar.TypeSymlink: 0777}[i.h.Typeflag]); usual != i.h.Mode && i.h.Mode != 0644 && !isWhiteout(i) {
		if usual == 0 {
			usual = 0644
		}
		add(func(o *item) { o.h.Mode = usual })
	}
	if i.h.Uid|i.h.Gid != 0 {
		add(func(o *item) { o.h.Uid, o.h.Gid = 0, 0 })
	}
	if !i.h.ModTime.Equal(entryTime) {
		add(func(o *item) { o.h.ModTime = entryTime })
	}
	if n := len(i.body); n > 1 {
		for _, n := range []int{1, n / 2, n - 1} {
			add(func(o *item) { o.body, o.h.Size = i.body[:n], int64(n) })
		}
	}
	return list
}

// source writes a chain of layers as a layerCase that makes it again, with what the model
// makes of it.
func source(layers []layer) string {
	var b strings.Builder
	m := newModel()
	b.WriteString("{\n\tname: \"\",\n\tlayers: []layer{\n")
	for _, l := range layers {
		b.WriteString("\t\t{")
		for k, i := range l {
			if k > 0 {
				b.WriteString(", ")
			}
			b.WriteString(i.source())
		}
		b.WriteString("},\n")
		if _, err := m.apply(l); err != nil {
			fmt.Fprintf(&b, "\t\t// the model refuses it: %v\n", err)
		}
	}
	fmt.Fprintf(&b, "\t},\n\twant: %q,\n},", m.tree().describe())
	return b.String()
}

// source writes an item as a test would.
func (i item) source() string {
	h := &i.h
	usual := int64(0644)
	var s string
	switch h.Typeflag {
	case tar.TypeReg:
		s = fmt.Sprintf("file(%q, %s)", h.Name, repeats(i.body))
	case tar.TypeDir:
		s, usual = fmt.Sprintf("folder(%q)", strings.TrimSuffix(h.Name, "/")), 0755
	case tar.TypeSymlink:
		s, usual = fmt.Sprintf("symlink(%q, %q)", h.Name, h.Linkname), 0777
	case tar.TypeLink:
		s = fmt.Sprintf("link(%q, %q)", h.Name, h.Linkname)
	default:
		kind := map[byte]rune{tar.TypeChar: 'c', tar.TypeBlock: 'b', tar.TypeFifo: 'p'}[h.Typeflag]
		s = fmt.Sprintf("device(%q, %q, %d, %d)", h.Name, kind, h.Devmajor, h.Devminor)
	}
	if h.Mode != usual {
		s += fmt.Sprintf(".mode(0%o)", h.Mode)
	}
	if h.Uid|h.Gid != 0 {
		s += fmt.Sprintf(".owner(%d, %d)", h.Uid, h.Gid)
	}
	if !h.ModTime.Equal(entryTime) {
		s += fmt.Sprintf(".mtime(time.Unix(%d, %d))", h.ModTime.Unix(), h.ModTime.Nanosecond())
	}
	for _, k := range slices.Sorted(maps.Keys(h.PAXRecords)) {
		s += fmt.Sprintf(".xattr(%q, %s)", strings.TrimPrefix(k, paxXattr), repeats(h.PAXRecords[k]))
	}
	return s
}

// repeats writes a string as an expression, long runs of a byte as strings.Repeat.
func repeats(s string) string {
	const long = 20
	var terms []string
	rest := 0
	flush := func(to int) {
		if to > rest {
			terms = append(terms, fmt.Sprintf("%q", s[rest:to]))
		}
	}
	for at := 0; at < len(s); {
		n := len(s[at:]) - len(strings.TrimLeft(s[at:], s[at:at+1]))
		if s[at] < 0x80 && n >= long {
			flush(at)
			terms = append(terms, fmt.Sprintf("strings.Repeat(%q, %d)", s[at:at+1], n))
			rest = at + n
		} else {
			n = 1
		}
		at += n
	}
	flush(len(s))
	if terms == nil {
		return `""`
	}
	return strings.Join(terms, "+")
}

// probe runs a check by itself and returns how it failed, "" if it did not.
func probe(t *testing.T, check func(testing.TB)) string {
	p := &probeTB{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer p.cleanUp()
		defer func() {
			if r := recover(); r != nil {
				p.Errorf("panic: %v", r)
			}
		}()
		check(p)
	}()
	<-done
	return strings.Join(p.failures, "\n")
}

// A probeTB keeps failures to itself.
type probeTB struct {
	testing.TB
	mu       sync.Mutex
	failures []string
	cleanups []func()
}

func (p *probeTB) fail(msg string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failures = append(p.failures, strings.TrimSpace(msg))
}

func (p *probeTB) Failed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.failures) > 0
}

func (p *probeTB) Helper()                   {}
func (p *probeTB) Error(args ...any)         { p.fail(fmt.Sprintln(args...)) }
func (p *probeTB) Errorf(f string, a ...any) { p.fail(fmt.Sprintf(f, a...)) }
func (p *probeTB) Fatal(args ...any)         { p.Error(args...); runtime.Goexit() }
func (p *probeTB) Fatalf(f string, a ...any) { p.Errorf(f, a...); runtime.Goexit() }
func (p *probeTB) Cleanup(f func())          { p.cleanups = append(p.cleanups, f) }

func (p *probeTB) TempDir() string {
	dir, err := os.MkdirTemp(programs, "probe-")
	if err != nil {
		p.Fatal(err)
	}
	p.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func (p *probeTB) cleanUp() {
	for _, f := range slices.Backward(p.cleanups) {
		f()
	}
}

// TestShrink: of a long chain there remain the entries that a failure takes, made plain,
// and what is printed of them is what a test would say.
func TestShrink(t *testing.T) {
	r := random(t)
	body := strings.Repeat("a", 70_000) + "X" + strings.Repeat("\x00", 50)
	find := func(layers []layer, such func(item) bool) (at [2]int, ok bool) {
		for k, l := range layers {
			if n := slices.IndexFunc(l, such); n >= 0 {
				return [2]int{k, n}, true
			}
		}
		return at, false
	}
	// It fails when a lower layer has a large file with an attribute, and a later one hides it.
	fails := func(layers []layer) bool {
		made, ok := find(layers, func(i item) bool {
			return i.h.Name == "needle" && len(i.body) > 60_000 && i.h.PAXRecords[paxXattr+"user.x"] != ""
		})
		hidden, ok2 := find(layers, func(i item) bool { return i.h.Name == ".wh.needle" })
		return ok && ok2 && made[0] < hidden[0]
	}
	layers := randomChain(r, false)
	needle := file("needle", body).mode(0600).owner(1, 2).xattr("user.x", "y").xattr("user.z", "w")
	layers = append(append([]layer{append(layer{needle}, many("d", 30)...)}, layers...), append(many("e", 30), whiteout("needle")))
	small := shrink(layers, fails)
	got := source(small)
	const want = `{
	name: "",
	layers: []layer{
		{file("needle", strings.Repeat("a", 60001)).xattr("user.x", "y")},
		{file(".wh.needle", "").mode(00)},
	},
	want: "",
},`
	if got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}
