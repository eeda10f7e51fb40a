package containervm

import (
	"errors"
	"io/fs"
	"path"
	"strings"
	"syscall"
)

// maxSymlinks is how many symlinks are followed on the way to a file, as the kernel does it.
const maxSymlinks = 40

// Resolve finds a path of a container's file system as the kernel would, inside its root. The name it
// returns has no symlinks in it but the last part, unless follow is set. If missing is set parts that are not there stand for
// themselves, and info is nil.
func Resolve(f FileSystem, p string, follow, missing bool) (name string, info fs.FileInfo, err error) {
	fail := func(err error) (string, fs.FileInfo, error) {
		return "", nil, &fs.PathError{Op: "lstat", Path: p, Err: err}
	}
	if strings.HasSuffix(p, "/") || strings.HasSuffix(p, "/.") {
		follow = true
	}
	mustBeDir := follow && (strings.HasSuffix(p, "/") || strings.HasSuffix(p, "/."))
	rest := strings.Split(p, "/")
	done := "."
	if info, err = f.Lstat(done); err != nil {
		return "", nil, err
	}
	for links := 0; len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			done = path.Dir(done)
			if info, err = f.Lstat(done); err != nil && !missing {
				return fail(err)
			}
			continue
		}
		if info != nil && !info.IsDir() {
			return fail(syscall.ENOTDIR)
		}
		done = path.Join(done, part)
		if info == nil { // below what is not there
			continue
		}
		if info, err = f.Lstat(done); errors.Is(err, fs.ErrNotExist) && missing {
			info = nil
			continue
		} else if err != nil {
			return fail(cause(err))
		}
		last := strings.Trim(strings.Join(rest, "/"), "/.") == ""
		if info.Mode()&fs.ModeSymlink == 0 || last && !follow {
			continue
		}
		if links++; links > maxSymlinks {
			return fail(syscall.ELOOP)
		}
		target, err := f.ReadLink(done)
		if err != nil {
			return fail(cause(err))
		}
		done = path.Dir(done)
		if path.IsAbs(target) {
			done = "."
		}
		if info, err = f.Lstat(done); err != nil {
			return fail(cause(err))
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	if mustBeDir && info != nil && !info.IsDir() {
		return fail(syscall.ENOTDIR)
	}
	return done, info, nil
}

// A FileSystem is what Resolve needs of one.
type FileSystem interface {
	Lstat(name string) (fs.FileInfo, error)
	ReadLink(name string) (string, error)
}

// cause takes off what a file system wraps around the error.
func cause(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}
