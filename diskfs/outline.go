package diskfs

import (
	"archive/tar"
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"
)

// An Outline is what a layer's own changeset has: the tree of the names in its tar, where
// whiteouts are files called .wh.NAME, as in the tar. It knows the names alone. All else is
// read from the layer's file system, where a path has what the last entry of that name put
// there: this is why an Outline needs neither data nor attributes, and has those that
// directories have which the tar does not name. A hard link to a file of the layers below
// is that file.
//
// Its entries have numbers from 0, the root, on; equal layers give equal numbers. Its
// methods may be used concurrently.
type Outline struct {
	fs      *FS
	entries []outlined
	hidden  map[int32]Stat // of whiteouts
}

// outlined is one name of an Outline.
type outlined struct {
	name     string
	children []int32 // sorted by name, once all is read
	parent   int32
	ino      uint32 // in the layer's file system; 0: not looked up yet
	typ      uint16 // as in Name; 0 for a hard link
	implied  bool   // the tar has names below it, but not this one
	dead     bool   // replaced by a later entry
}

// outlineReader builds an Outline.
type outlineReader struct {
	o     *Outline
	index map[outlineKey]int32
	links map[int32]string // targets of symlinks
	lim   Limits
	names int64
}

type outlineKey struct {
	parent int32
	name   string
}

// ReadOutline reads a layer's changeset from the skeleton of its tar. f is the layer's file
// system, with which the Outline stays tied. It reads no file data, and no more of the
// skeleton than Limits allow of a tar by default.
func (f *FS) ReadOutline(skeleton io.Reader) (*Outline, error) {
	r := outlineReader{
		o:     &Outline{fs: f, entries: []outlined{{typ: modeDir, implied: true}}, hidden: make(map[int32]Stat)},
		index: make(map[outlineKey]int32), links: make(map[int32]string), lim: Limits{}.orDefault(),
	}
	in := tar.NewReader(newSkeletonTar(skeleton))
	for n := 0; ; n++ {
		h, err := in.Next()
		if err == io.EOF {
			break
		}
		if err == nil && n >= r.lim.Entries {
			err = fmt.Errorf("more than %d entries", r.lim.Entries)
		}
		if err == nil {
			err = r.entry(h)
		}
		if err != nil {
			return nil, fmt.Errorf("read skeleton after %d entries: %w", n, err)
		}
	}
	for i := range r.o.entries {
		if e := &r.o.entries[i]; i > 0 && !e.dead {
			p := &r.o.entries[e.parent]
			p.children = append(p.children, int32(i))
		}
	}
	for _, e := range r.o.entries {
		slices.SortFunc(e.children, func(a, b int32) int { return strings.Compare(r.o.entries[a].name, r.o.entries[b].name) })
	}
	return r.o, nil
}

// entry adds what one header names. Which names count is ReadTar's decision.
func (r *outlineReader) entry(h *tar.Header) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := cleanPath(h.Name)
	if err != nil {
		return err
	}
	if r.names += int64(len(h.Name) + len(h.Linkname)); r.names > r.lim.Names {
		return fmt.Errorf("names exceed %d bytes", r.lim.Names)
	}
	dir, base := path.Split(name)
	if base != opaqueName && strings.HasPrefix(base, aufsPrefix) || strings.HasPrefix(name, aufsPrefix) && dir != "" {
		return nil // aufs' own
	}
	if name == "" {
		r.o.entries[0].implied = false
		return nil
	}
	parent, err := r.walk(dir)
	if err == errLoop {
		return nil // a whiteout of nothing: Apply refuses all else
	}
	if err != nil {
		return err
	}
	e := outlined{name: strings.Clone(base), parent: parent}
	whiteout := strings.HasPrefix(base, whiteoutPrefix)
	switch h.Typeflag {
	case tar.TypeDir:
		e.typ = modeDir
	case tar.TypeSymlink:
		e.typ = modeLink
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		e.typ = modeFile
	case tar.TypeChar:
		e.typ = modeChar
	case tar.TypeBlock:
		e.typ = modeBlock
	case tar.TypeFifo:
		e.typ = modeFIFO
	}
	if whiteout {
		e.typ = modeFile
	}
	i, err := r.put(e)
	switch {
	case err != nil:
		return err
	case whiteout:
		s := Stat{Mode: modeFile | uint16(h.Mode&07777), Links: 1, UID: uint32(h.Uid), GID: uint32(h.Gid), Mtime: h.ModTime, Atime: h.ModTime, Ctime: h.ModTime}
		r.o.hidden[i] = s
	case e.typ == modeLink:
		r.links[i] = strings.Clone(h.Linkname)
	}
	return nil
}

// put adds an entry, or puts it in the place of the one that has its name.
func (r *outlineReader) put(e outlined) (int32, error) {
	key := outlineKey{e.parent, e.name}
	if i, ok := r.index[key]; ok {
		old := &r.o.entries[i]
		if old.typ == modeDir && e.typ != modeDir {
			r.kill(i)
		}
		old.typ, old.implied = e.typ, e.implied
		delete(r.links, i)
		return i, nil
	}
	i := int32(len(r.o.entries))
	if int(i) > r.lim.Entries {
		return 0, fmt.Errorf("more than %d names", r.lim.Entries)
	}
	r.o.entries = append(r.o.entries, e)
	r.index[key] = i
	return i, nil
}

// kill removes all that is below a directory. It is rare, and looks at everything.
func (r *outlineReader) kill(dir int32) {
	gone := map[int32]bool{dir: true}
	for i := int(dir) + 1; i < len(r.o.entries); i++ { // parents come first
		if e := &r.o.entries[i]; gone[e.parent] && !e.dead {
			gone[int32(i)], e.dead = true, true
			delete(r.index, outlineKey{e.parent, e.name})
			delete(r.links, int32(i))
			delete(r.o.hidden, int32(i))
		}
	}
}

// walk finds the directory at a clean path, adding those that are missing, by way of the
// symlinks that the layer itself has.
func (r *outlineReader) walk(p string) (int32, error) {
	cur, links := int32(0), 0
	for todo := p; todo != ""; {
		var name string
		name, todo, _ = strings.Cut(todo, "/")
		switch name {
		case "", ".":
			continue
		case "..":
			cur = r.o.entries[cur].parent
			continue
		}
		i, ok := r.index[outlineKey{cur, name}]
		if !ok {
			if len(name) > maxNameLen {
				return 0, fmt.Errorf("name component of %d bytes, the limit is %d", len(name), maxNameLen)
			}
			var err error
			if i, err = r.put(outlined{name: strings.Clone(name), parent: cur, typ: modeDir, implied: true}); err != nil {
				return 0, err
			}
		}
		if target, ok := r.links[i]; ok {
			if links++; links > maxSymlinks {
				return 0, errLoop
			}
			if strings.HasPrefix(target, "/") {
				cur = 0
			}
			todo = target + "/" + todo
			continue
		}
		cur = i
	}
	return cur, nil
}

// entry returns an entry by its number.
func (o *Outline) entry(i uint32) (*outlined, error) {
	if int64(i) >= int64(len(o.entries)) || o.entries[i].dead {
		return nil, &FormatError{Off: -1, Field: fmt.Sprintf("entry %d", i), Msg: "no such entry in the layer"}
	}
	return &o.entries[i], nil
}

// Stat describes an entry. Inode is 0 for what the file system does not have: whiteouts, and
// directories that are there for the sake of whiteouts alone, which look as Apply makes
// missing ones.
func (o *Outline) Stat(i uint32) (Stat, error) {
	e, err := o.entry(i)
	if err != nil {
		return Stat{}, err
	}
	if s, ok := o.hidden[int32(i)]; ok {
		return s, nil
	}
	n, err := o.Node(i)
	var s Stat
	switch {
	case err == nil:
		s, err = n.Stat()
	case e.implied && errors.Is(err, fs.ErrNotExist):
		zero := time.Unix(0, 0)
		s, err = Stat{Mode: modeDir | 0755, Mtime: zero, Atime: zero, Ctime: zero}, nil
	}
	if s.Mode&modeType == modeDir {
		s.Links = 2
		for _, c := range e.children {
			if o.entries[c].typ == modeDir && s.Links < maxLinks {
				s.Links++
			}
		}
	}
	return s, err
}

// Node returns the file that an entry is in the layer's file system. The error is
// fs.ErrNotExist for what that does not have, see Stat.
func (o *Outline) Node(i uint32) (Node, error) {
	e, err := o.entry(i)
	if err != nil {
		return Node{}, err
	}
	if _, ok := o.hidden[int32(i)]; ok {
		return Node{}, fs.ErrNotExist
	}
	o.fs.mu.Lock()
	defer o.fs.mu.Unlock()
	if e.ino == 0 {
		if e.ino, err = o.find(int32(i)); err != nil {
			return Node{}, err
		}
	}
	return o.fs.Node(e.ino), nil
}

// find looks an entry up in the directory that its parent is. The caller holds the lock of the
// file system.
func (o *Outline) find(i int32) (uint32, error) {
	if i == 0 {
		return rootInode, nil
	}
	e := &o.entries[i]
	p := &o.entries[e.parent]
	if p.ino == 0 {
		var err error
		if p.ino, err = o.find(e.parent); err != nil {
			return 0, err
		}
	}
	in, err := o.fs.inode(p.ino)
	if err != nil {
		return 0, err
	}
	if in.kind() != modeDir {
		return 0, fs.ErrNotExist // replaced under another name
	}
	d, err := o.fs.dir(p.ino)
	if err != nil {
		return 0, err
	}
	k := d.lookup(e.name)
	switch {
	case k < 0:
		return 0, fs.ErrNotExist
	case !e.implied || d.ents[k].typ == fileTypeDir:
		return d.ents[k].ino, nil
	case d.ents[k].typ != fileTypeLink:
		return 0, fs.ErrNotExist
	}
	return o.follow(i) // a symlink of the layers below, by way of which the tar names things
}

// follow finds the directory that an entry leads to by way of symlinks.
func (o *Outline) follow(i int32) (uint32, error) {
	p := "."
	for ; i != 0; i = o.entries[i].parent {
		p = path.Join(o.entries[i].name, p)
	}
	ino, err := o.fs.lookup(p, true)
	if err == nil {
		var in rawInode
		if in, err = o.fs.inode(ino); err == nil && in.kind() != modeDir {
			err = errNotDir
		}
	}
	if isAbsent(err) {
		err = fs.ErrNotExist
	}
	if err != nil {
		return 0, err // 0 is an inode that was not found yet
	}
	return ino, nil
}

// Lookup returns the entry that a name is in a directory. The error is fs.ErrNotExist if
// there is none.
func (o *Outline) Lookup(dir uint32, name string) (uint32, error) {
	e, err := o.entry(dir)
	if err != nil {
		return 0, err
	}
	k, ok := slices.BinarySearchFunc(e.children, name, func(c int32, name string) int { return strings.Compare(o.entries[c].name, name) })
	if !ok {
		return 0, fs.ErrNotExist
	}
	return uint32(e.children[k]), nil
}

// Names lists a directory, sorted; Inode is the entry's number. Left out is what the layer
// itself replaced under another name, by way of a symlink of the layers below.
func (o *Outline) Names(dir uint32) (names []Name, parent uint32, err error) {
	e, err := o.entry(dir)
	if err != nil {
		return nil, 0, err
	}
	names = make([]Name, 0, len(e.children))
	for _, c := range e.children {
		x := &o.entries[c]
		s, err := o.Stat(uint32(c))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			s.Mode = x.typ // who looks it up will be told
		}
		names = append(names, Name{x.name, uint32(c), s.Mode & modeType})
	}
	return names, uint32(e.parent), nil
}

// A skeletonTar reads a skeleton as the tar that it is of, with zeros for data, and passes
// over that without reading it.
type skeletonTar struct {
	in          *bufio.Reader
	piece, data int64 // bytes left of the piece of the skeleton, and of the data behind it
	off         int64
}

func newSkeletonTar(r io.Reader) *skeletonTar { return &skeletonTar{in: bufio.NewReader(r)} }

// next sees to it that something is left of a piece or of data.
func (s *skeletonTar) next() error {
	for s.piece == 0 && s.data == 0 {
		n, err := binary.ReadUvarint(s.in)
		if err == io.EOF {
			return io.EOF
		}
		if err == nil && n > maxPiece {
			return badRecipe("a piece of %d bytes", n)
		}
		if err != nil {
			return recipeError("skeleton", err)
		}
		s.piece = int64(n)
		if s.piece == 0 {
			if err := s.length(); err != nil {
				return err
			}
		}
	}
	return nil
}

// length reads how much data follows a piece.
func (s *skeletonTar) length() error {
	n, err := binary.ReadUvarint(s.in)
	if err != nil {
		return recipeError("skeleton", err)
	}
	if n > 1<<62 {
		return badRecipe("data of %d bytes", n)
	}
	s.data = int64(n)
	return nil
}

// take passes over at most n bytes; p, unless it is nil, gets them.
func (s *skeletonTar) take(p []byte, n int64) (int64, error) {
	if err := s.next(); err != nil {
		return 0, err
	}
	if s.piece == 0 {
		n = min(n, s.data)
		if p != nil {
			clear(p[:n])
		}
		s.data -= n
		s.off += n
		return n, nil
	}
	n = min(n, s.piece)
	var err error
	if p != nil {
		_, err = io.ReadFull(s.in, p[:n])
	} else {
		_, err = s.in.Discard(int(n))
	}
	if err != nil {
		return 0, recipeError("skeleton", err)
	}
	s.piece -= n
	s.off += n
	if s.piece == 0 {
		err = s.length()
	}
	return n, err
}

// Read implements io.Reader.
func (s *skeletonTar) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	n, err := s.take(p, int64(len(p)))
	return int(n), err
}

var errSeek = errors.New("seek in a skeleton other than forwards")

// Seek implements io.Seeker, forwards from where it stands: what tar.Reader does.
func (s *skeletonTar) Seek(off int64, whence int) (int64, error) {
	if whence != io.SeekCurrent || off < 0 {
		return s.off, errSeek
	}
	for off > 0 {
		n, err := s.take(nil, off)
		if off -= n; err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return s.off, err
		}
	}
	return s.off, nil
}
