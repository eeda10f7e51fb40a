package diskfs

import (
	"io/fs"
	"strings"
)

// Find resolves a path of any form as a process does whose root is this file system:
// from the root on, symlinks followed and never leading out, ".." of the root being the
// root. A symlink in the last place is followed if follow is set or a slash is behind it.
// It returns the name of what is there, as the other methods want names. The error is an
// *fs.PathError.
func (f *FS) Find(p string, follow bool) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	name, err := f.find(p, follow)
	if err != nil {
		return "", pathError("find", p, err)
	}
	return name, nil
}

func (f *FS) find(p string, follow bool) (string, error) {
	root, err := f.dir(rootInode)
	if err != nil {
		return "", err
	}
	// names lead to dirs, which has the root as well.
	var names []string
	dirs := []*dir{root}
	for todo, links := p, 0; todo != ""; {
		part, rest, more := strings.Cut(todo, "/")
		todo = rest
		switch part {
		case "", ".":
			continue
		case "..":
			if len(names) > 0 {
				names, dirs = names[:len(names)-1], dirs[:len(dirs)-1]
			}
			continue
		}
		d := dirs[len(dirs)-1]
		i := d.lookup(part)
		if i < 0 {
			return "", fs.ErrNotExist
		}
		e := d.ents[i]
		switch {
		case e.typ == fileTypeLink && (more || follow):
			if links++; links > maxSymlinks {
				return "", errLoop
			}
			target, err := f.readLink(e.ino)
			if err != nil {
				return "", err
			}
			if strings.HasPrefix(target, "/") {
				names, dirs = names[:0], dirs[:1]
			}
			if todo = target; more {
				todo += "/" + rest
			}
		case e.typ == fileTypeDir:
			sub, err := f.subdir(d, e)
			if err != nil {
				return "", err
			}
			names, dirs = append(names, part), append(dirs, sub)
		case more:
			return "", errNotDir
		default:
			return strings.Join(append(names, part), "/"), nil
		}
	}
	if len(names) == 0 {
		return ".", nil
	}
	return strings.Join(names, "/"), nil
}
