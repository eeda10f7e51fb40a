package diskfs

import (
	"archive/tar"
	"bytes"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

var seedFlag = flag.Uint64("seed", 0, "seed of the random tests; 0 takes a new one")

// A modelNode is a file of the model: a file system that knows no disk.
type modelNode struct {
	i        item // header and content it was made from
	children map[string]*modelNode
	parent   *modelNode // of a directory
}

// A model applies layers as layer.md tells it, in the plainest way.
type model struct{ root *modelNode }

func newModel() *model {
	return &model{impliedNode(nil)}
}

func impliedNode(parent *modelNode) *modelNode {
	return &modelNode{i: item{h: tar.Header{Typeflag: tar.TypeDir, Mode: 0755, ModTime: time.Unix(0, 0)}}, children: map[string]*modelNode{}, parent: parent}
}

func (m *model) clone() *model {
	copies := map[*modelNode]*modelNode{}
	var clone func(n, parent *modelNode) *modelNode
	clone = func(n, parent *modelNode) *modelNode {
		if c := copies[n]; c != nil {
			return c
		}
		c := &modelNode{i: n.i, parent: parent}
		copies[n] = c
		if n.children != nil {
			c.children = map[string]*modelNode{}
			for name, child := range n.children {
				c.children[name] = clone(child, c)
			}
		}
		return c
	}
	return &model{clone(m.root, nil)}
}

var errModel = errors.New("refused")

// resolve walks a path to a directory. real are paths at which the layer has directories.
func (m *model) resolve(path []string, create bool, real map[string]bool) (*modelNode, error) {
	at, links := m.root, 0
	for k := 0; k < len(path); k++ {
		// Follow the name at position k, through as many symlinks as there are.
		pending := []string{path[k]}
		for len(pending) > 0 {
			name := pending[0]
			pending = pending[1:]
			if name == "" || name == "." {
				continue
			}
			if name == ".." {
				if at.parent != nil {
					at = at.parent
				}
				continue
			}
			child := at.children[name]
			if child == nil {
				if !create {
					return nil, errModel
				}
				child = impliedNode(at)
				at.children[name] = child
			}
			switch child.i.h.Typeflag {
			case tar.TypeDir:
				at = child
			case tar.TypeSymlink:
				if links++; links > 255 || real[strings.Join(path[:k+1], "/")] {
					return nil, errModel
				}
				if strings.HasPrefix(child.i.h.Linkname, "/") {
					at = m.root
				}
				pending = append(strings.Split(child.i.h.Linkname, "/"), pending...)
			default:
				return nil, errModel
			}
		}
	}
	return at, nil
}

func parts(p string) []string {
	p = strings.Trim(p, "/")
	if p == "" {
		return nil
	}
	return strings.Split(p, "/")
}

// apply applies a layer. If an entry cannot be applied it returns its index.
func (m *model) apply(l layer) (bad int, err error) {
	real := map[string]bool{}
	for _, i := range l {
		if i.h.Typeflag == tar.TypeDir && !strings.Contains(i.h.Name, ".wh.") {
			real[strings.Trim(i.h.Name, "/")] = true
		}
	}
	type victim struct {
		dir  *modelNode
		name string
	}
	var victims []victim
	for _, i := range l {
		path := parts(i.h.Name)
		if len(path) == 0 || !strings.HasPrefix(path[len(path)-1], ".wh.") {
			continue
		}
		dir, base := path[:len(path)-1], path[len(path)-1][4:]
		d, err := m.resolve(dir, false, real)
		if err != nil {
			continue
		}
		if base == ".wh..opq" {
			for name := range d.children {
				victims = append(victims, victim{d, name})
			}
		} else {
			victims = append(victims, victim{d, base})
		}
	}
	for _, v := range victims {
		delete(v.dir.children, v.name)
	}
	for k, i := range l {
		if strings.Contains(i.h.Name, ".wh.") {
			continue
		}
		if err := m.entry(i); err != nil {
			return k, err
		}
	}
	for k, i := range l {
		if dir, ok := strings.CutSuffix(i.h.Name, ".wh..wh..opq"); ok {
			if _, err := m.resolve(parts(dir), true, nil); err != nil && m.loops(parts(dir)) {
				return k, err
			}
		}
	}
	return 0, nil
}

// loops says that a path leads in circles, as opposed to through a file.
func (m *model) loops(path []string) bool {
	at := m.root
	for k := range path {
		d, err := m.resolve(path[:k+1], false, nil)
		if err != nil {
			c := at.children[path[k]]
			if c == nil || c.i.h.Typeflag != tar.TypeSymlink {
				return false
			}
			return true
		}
		at = d
	}
	return false
}

func (m *model) entry(i item) error {
	path := parts(i.h.Name)
	if len(path) == 0 {
		m.root.i = i
		return nil
	}
	d, err := m.resolve(path[:len(path)-1], true, nil)
	if err != nil {
		return err
	}
	base := path[len(path)-1]
	if i.h.Typeflag == tar.TypeLink {
		to := parts(i.h.Linkname)
		td, err := m.resolve(to[:len(to)-1], false, nil)
		if err != nil {
			return err
		}
		target := td.children[to[len(to)-1]]
		if target == nil || target.children != nil {
			return errModel
		}
		d.children[base] = target
		h := &target.i.h
		h.Uid, h.Gid, h.ModTime = i.h.Uid, i.h.Gid, i.h.ModTime
		if h.Typeflag != tar.TypeSymlink {
			h.Mode = i.h.Mode
		}
		if len(i.h.PAXRecords) > 0 {
			h.PAXRecords = i.h.PAXRecords
		}
		return nil
	}
	if old := d.children[base]; old != nil && old.children != nil && i.h.Typeflag == tar.TypeDir {
		old.i = i
		return nil
	}
	n := &modelNode{i: i}
	if i.h.Typeflag == tar.TypeDir {
		n.children, n.parent = map[string]*modelNode{}, d
	}
	d.children[base] = n
	return nil
}

// tree describes the model as a file system would be.
func (m *model) tree() tree {
	links, first := map[*modelNode]int{}, map[*modelNode]string{}
	out, byPath := tree{}, map[string]*modelNode{}
	var walk func(path string, n *modelNode)
	walk = func(path string, n *modelNode) {
		byPath[path] = n
		if links[n]++; first[n] == "" {
			first[n] = path
		}
		for _, name := range slices.Sorted(maps.Keys(n.children)) {
			walk(strings.TrimPrefix(path+"/"+name, "./"), n.children[name])
		}
	}
	walk(".", m.root)
	kinds := map[byte]uint32{tar.TypeReg: unix.S_IFREG, tar.TypeDir: unix.S_IFDIR, tar.TypeSymlink: unix.S_IFLNK, tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK, tar.TypeFifo: unix.S_IFIFO}
	for path, n := range byPath {
		h := n.i.h
		o := node{mode: kinds[h.Typeflag] | uint32(h.Mode), uid: uint32(h.Uid), gid: uint32(h.Gid), sec: h.ModTime.Unix(), nsec: h.ModTime.Nanosecond()}
		if n.children == nil {
			o.links, o.same = links[n], first[n]
		}
		switch h.Typeflag {
		case tar.TypeReg:
			if err := o.setContent(strings.NewReader(n.i.body)); err != nil {
				panic(err)
			}
		case tar.TypeSymlink:
			o.mode, o.target = unix.S_IFLNK|0777, h.Linkname
		case tar.TypeChar, tar.TypeBlock:
			o.major, o.minor = uint32(h.Devmajor), uint32(h.Devminor)
		}
		var xattrs []string
		for _, k := range slices.Sorted(maps.Keys(h.PAXRecords)) {
			xattrs = append(xattrs, fmt.Sprintf("%s=%q", strings.TrimPrefix(k, paxXattr), h.PAXRecords[k]))
		}
		o.xattrs = strings.Join(xattrs, " ")
		out[path] = o
	}
	return out
}

// randomLayer invents a layer: few names, so that they meet often.
func randomLayer(r *rand.Rand, m *model) layer {
	name := func() string {
		var p []string
		for range 1 + r.IntN(4) {
			p = append(p, string(rune('a'+r.IntN(4))))
		}
		return strings.Join(p, "/")
	}
	var existing []string
	now := m.tree()
	for _, p := range slices.Sorted(maps.Keys(now)) {
		if p != "." {
			existing = append(existing, p)
		}
	}
	some := func() string {
		if len(existing) > 0 && r.IntN(3) > 0 {
			return existing[r.IntN(len(existing))]
		}
		return name()
	}
	body := func(path string) string {
		if n := m.file(path); n != nil && r.IntN(2) == 0 {
			return n.i.body
		}
		b := bytes.Repeat([]byte{byte('a' + r.IntN(26))}, []int{0, 1, 100, 4096, 5000, 70000, 200000}[r.IntN(7)])
		for range r.IntN(3) {
			if len(b) > 0 {
				clear(b[r.IntN(len(b)):])
				b[r.IntN(len(b))] = 'X'
			}
		}
		return string(b)
	}
	values := []string{"", "small", strings.Repeat("m", 80), strings.Repeat("b", 600), strings.Repeat("c", 1500)}
	attributes := func(i item) item {
		if i.h.Typeflag != tar.TypeSymlink {
			i = i.mode(int64(r.IntN(4096)))
		}
		i = i.owner(r.IntN(3)*70000, r.IntN(3)).mtime(time.Unix(r.Int64N(1<<33)-1<<31, int64(r.IntN(1e9))))
		if i.h.Typeflag == tar.TypeReg || i.h.Typeflag == tar.TypeDir {
			for range r.IntN(4) - 1 {
				i = i.xattr("user."+string(rune('a'+r.IntN(3))), values[1+r.IntN(len(values)-1)])
			}
		}
		return i
	}
	var l layer
	for range r.IntN(25) {
		p := some()
		switch r.IntN(14) {
		case 0, 1, 2, 3:
			l = append(l, attributes(file(p, body(p))))
		case 4, 5, 6:
			l = append(l, attributes(folder(p)))
		case 7:
			target := []string{some(), "../" + some(), "/" + some(), strings.Repeat("./", 40) + some()}[r.IntN(4)]
			l = append(l, attributes(symlink(p, target)))
		case 8, 9:
			i := attributes(link(p, some()))
			i.h.PAXRecords = nil
			l = append(l, i)
		case 10:
			l = append(l, attributes(device(p, "cbp"[r.IntN(3)], 0, 0)))
		case 11, 12:
			l = append(l, whiteout(p))
		case 13:
			if r.IntN(3) == 0 {
				p, _ = splitPath(p)
			}
			l = append(l, opaque(p))
		}
	}
	if r.IntN(10) == 0 {
		l = append(l, many(some(), r.IntN(400))...)
	}
	return l
}

// file returns the file at a path, nil if there is none.
func (m *model) file(path string) *modelNode {
	p := parts(path)
	d, err := m.resolve(p[:len(p)-1], false, nil)
	if err != nil {
		return nil
	}
	if n := d.children[p[len(p)-1]]; n != nil && n.i.h.Typeflag == tar.TypeReg {
		return n
	}
	return nil
}
