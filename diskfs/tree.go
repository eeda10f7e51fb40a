package diskfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
)

// maxSymlinks bounds the symlinks followed on one path.
const maxSymlinks = 255

var (
	errNotExist = errors.New("no such file or directory")
	errNotDir   = errors.New("not a directory")
	errLoop     = errors.New("too many levels of symbolic links")
)

// isAbsent says that a path led nowhere, as opposed to a disk that cannot be read.
func isAbsent(err error) bool {
	return errors.Is(err, errNotExist) || errors.Is(err, errNotDir) || errors.Is(err, errLoop)
}

// splitPath cuts a clean path into its directory and its last name.
func splitPath(p string) (dir, base string) {
	i := strings.LastIndexByte(p, '/')
	if i < 0 {
		return "", p
	}
	return p[:i], p[i+1:]
}

// parent is walk with missing directories made, remembering the directory resolved last.
func (a *apply) parent(p string) (*dir, error) {
	if a.lastDir != nil && a.lastPath == p {
		return a.lastDir, nil
	}
	d, err := a.walk(p, true, nil)
	if err != nil {
		return nil, err
	}
	a.lastPath, a.lastDir = p, d
	return d, nil
}

// walk resolves a clean path to a directory, following symlinks inside the root. With
// create, missing directories are made (0755, root, time zero). real, if not nil, holds
// the paths at which the layer being applied has directories of its own: a symlink of
// the layers below at one of those is about to be replaced, so it leads nowhere.
func (a *apply) walk(p string, create bool, real map[string]struct{}) (*dir, error) {
	cur, err := a.dir(rootInode)
	if err != nil {
		return nil, err
	}
	// todo is what is left to resolve; own counts the bytes of it that come from p itself.
	todo, own, links := p, len(p), 0
	for todo != "" {
		name, rest, _ := strings.Cut(todo, "/")
		if len(rest) < own {
			own = len(rest)
		}
		todo = rest
		switch name {
		case "", ".":
			continue
		case "..":
			if cur, err = a.dir(cur.parent); err != nil {
				return nil, err
			}
			continue
		}
		i := cur.lookup(name)
		if i < 0 {
			if !create {
				return nil, errNotExist
			}
			if len(name) > maxNameLen {
				return nil, fmt.Errorf("name of %d bytes: %w", len(name), errNotExist)
			}
			if err := a.create(cur, name, &entry{kind: kindDir, mode: 0755}); err != nil {
				return nil, err
			}
			i = cur.lookup(name)
		}
		switch e := cur.ents[i]; e.typ {
		case fileTypeDir:
			if cur, err = a.subdir(cur, e); err != nil {
				return nil, err
			}
		case fileTypeLink:
			if links++; links > maxSymlinks {
				return nil, errLoop
			}
			lexical := strings.TrimSuffix(p[:len(p)-own], "/")
			if _, ok := real[lexical]; ok {
				return nil, errNotExist
			}
			target, err := a.readLink(e.ino)
			if err != nil {
				return nil, err
			}
			if strings.HasPrefix(target, "/") {
				if cur, err = a.dir(rootInode); err != nil {
					return nil, err
				}
			}
			todo = target + "/" + rest
		default:
			return nil, errNotDir
		}
	}
	return cur, nil
}

// readLink returns a symlink's target.
func (f *FS) readLink(ino uint32) (string, error) {
	in, err := f.inode(ino)
	if err != nil {
		return "", err
	}
	n := in.size()
	switch {
	case in.kind() != modeLink:
		return "", badInode(ino, "not a symlink")
	case in.fastLink():
		return string(in.blockArea()[:n]), nil
	case n <= 0 || n >= BlockSize:
		return "", badInode(ino, "symlink of %d bytes", n)
	}
	var target string
	err = f.extents(ino, in, func(r run, unwritten bool) error {
		if r.at != 0 || unwritten {
			return badInode(ino, "symlink without its first block")
		}
		b, err := f.load(r.where)
		if err == nil {
			target = string(b.data[:n])
		}
		return err
	}, nil)
	if err == nil && (target == "" || strings.Contains(target, "\x00")) {
		err = badInode(ino, "symlink target holds a zero byte")
	}
	return target, err
}

// removeAt removes the name at position i of d, and all below it.
func (a *apply) removeAt(d *dir, i int) error {
	e := d.ents[i]
	d.remove(i)
	if e.typ != fileTypeFile {
		a.lastDir = nil // a directory or symlink that paths may lead through
	}
	if e.typ != fileTypeDir {
		return a.dropLink(e.ino)
	}
	for todo := []uint32{e.ino}; len(todo) > 0; {
		ino := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		d, err := a.dir(ino)
		if err != nil {
			return err
		}
		for _, e := range d.ents {
			switch {
			case e.ino == 0:
			case e.typ == fileTypeDir:
				todo = append(todo, e.ino)
			default:
				if err := a.dropLink(e.ino); err != nil {
					return err
				}
				a.cool()
			}
		}
		d.ents, d.index, d.removed, d.changed = nil, nil, 0, false
		if err := a.release(ino, true); err != nil {
			return err
		}
		delete(a.dirs, ino)
	}
	return nil
}

// dropLink takes one name from a file, and releases it with the last.
func (a *apply) dropLink(ino uint32) error {
	in, err := a.changeInode(ino)
	if err != nil {
		return err
	}
	switch n := in.links(); {
	case n == 0 || in.kind() == modeDir:
		return badInode(ino, "named as a file, but mode is %#o with %d links", in.mode(), n)
	case n > 1:
		in.setLinks(n - 1)
		return nil
	}
	return a.release(ino, false)
}

// release gives back an inode and all it occupies.
func (a *apply) release(ino uint32, dir bool) error {
	in, err := a.changeInode(ino)
	if err != nil {
		return err
	}
	if dir != (in.kind() == modeDir) {
		return badInode(ino, "mode %#o contradicts its directory entry", in.mode())
	}
	if err := a.releaseContents(ino, in); err != nil {
		return err
	}
	clear(in)
	return a.freeInode(ino, dir)
}

// releaseContents gives back the blocks of an inode.
func (a *apply) releaseContents(ino uint32, in rawInode) error {
	if at := in.xattrBlock(); at != 0 {
		if err := a.dropXattrBlock(ino, at); err != nil {
			return err
		}
		in.setXattrBlock(0)
	}
	if in.flags()&inodeExtents == 0 {
		return nil // device, fifo, fast symlink
	}
	return a.extents(ino, in,
		func(r run, _ bool) error {
			if in.kind() == modeLink {
				a.drop(r.where) // see freeMeta
			}
			return a.freeBlocks(r.where, r.n)
		},
		a.freeMeta)
}

// freeBlocks gives back disk blocks: of the layers below in the bitmaps, of this one
// before they get there.
func (a *apply) freeBlocks(at, n int64) error {
	if b, ok := a.place.streamBlock(at); ok {
		if b+n > a.cs.blocks+a.length {
			return &FormatError{Off: at * BlockSize, Field: fmt.Sprintf("block %d", at), Msg: "a file has it, and it is free"}
		}
		a.dead = append(a.dead, run{where: b, n: n})
		return nil
	}
	return a.markBlocks(at, n, false)
}

// freeMeta is freeBlocks for one block that may be in the cache. What the cache holds of
// it must not reach the disk: it would depend on what was read before.
func (a *apply) freeMeta(at int64) error {
	a.drop(at)
	return a.freeBlocks(at, 1)
}

// sameData says whether the entry's data equals that of an inode of the layers below, and
// where on the disk they have it.
func (a *apply) sameData(ino uint32, in rawInode, e *entry) ([]run, bool, error) {
	if a.data == nil || e.kind != kindFile || in.kind() != modeFile || e.size != in.size() || e.size == 0 {
		return nil, false, nil
	}
	old := fileReader{disk: a.disk, size: e.size}
	err := a.extents(ino, in, func(r run, unwritten bool) error {
		if _, ok := a.place.streamBlock(r.where); ok {
			return errNotExist // of this layer: not on the disk yet
		}
		if !unwritten {
			old.runs = append(old.runs, r)
		}
		return nil
	}, nil)
	if err == errNotExist {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	next := fileReader{disk: a.data, size: e.size, runs: e.runs}
	size := BlockSize
	x, y := make([]byte, min(e.size, tarChunk)), make([]byte, min(e.size, tarChunk))
	for off := int64(0); off < e.size; size = tarChunk { // most that differ do so at once
		n := int(min(int64(size), e.size-off))
		if _, err := old.ReadAt(x[:n], off); err != nil && err != io.EOF {
			return nil, false, fmt.Errorf("read inode %d of the layer below: %w", ino, err)
		}
		if _, err := next.ReadAt(y[:n], off); err != nil && err != io.EOF {
			return nil, false, fmt.Errorf("read back the layer's data: %w", err)
		}
		if !bytes.Equal(x[:n], y[:n]) {
			return nil, false, nil
		}
		off += int64(n)
	}
	return old.runs, true, nil
}
