package build

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	"vic/containervm"
)

// A tree is files to copy from: a context's, or an image's. Names are as in io/fs.
type tree interface {
	containervm.FileSystem
	Open(name string) (fs.File, error)
	ReadDir(name string) ([]fs.DirEntry, error)
	// WriteTree writes a file, or a folder with all that is in it, as a tar, under another name.
	WriteTree(w io.Writer, file, as string) error
}

// resolve finds a file of a tree, symlinks followed inside it.
func resolve(t tree, name string) (string, fs.FileInfo, error) {
	found, info, err := containervm.Resolve(t, "/"+name, true, false)
	if err != nil {
		// Where the tree is, is nobody's business.
		if p, ok := errors.AsType[*fs.PathError](err); ok {
			err = p.Err
		}
		if errors.Is(err, fs.ErrNotExist) {
			err = fs.ErrNotExist
		}
		return "", nil, &fs.PathError{Op: "stat", Path: name, Err: err}
	}
	return found, info, nil
}

// glob lists the names that match a pattern, in ascending order. Symlinks on the way are not followed.
func glob(t tree, pattern string) ([]string, error) {
	found := []string{"."}
	for _, part := range strings.Split(path.Clean(pattern), "/") {
		var next []string
		for _, dir := range found {
			info, err := t.Lstat(dir)
			if err != nil || !info.IsDir() {
				continue
			}
			list, err := t.ReadDir(dir)
			if err != nil {
				return nil, err
			}
			for _, e := range list {
				if ok, err := path.Match(part, e.Name()); ok && err == nil {
					next = append(next, path.Join(dir, e.Name()))
				}
			}
		}
		found = next
	}
	slices.Sort(found)
	return found, nil
}

// isPattern tells whether a name has wildcards in it.
func isPattern(name string) bool {
	for i := 0; i < len(name); i++ {
		switch name[i] {
		case '\\':
			i++
		case '*', '?', '[':
			return true
		}
	}
	return false
}

// sum is the digest, in hex, of what copying a file or folder copies: all but times and owners.
func sum(t tree, name string) (string, error) {
	hash := sha256.New()
	err := readPipe(func(w io.Writer) error { return t.WriteTree(w, name, "x") }, func(r io.Reader) error {
		lines := json.NewEncoder(hash)
		for tr := tar.NewReader(r); ; {
			h, err := tr.Next()
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
			if err := lines.Encode(tar.Header{
				Typeflag: h.Typeflag, Name: h.Name, Linkname: h.Linkname, Size: h.Size, Mode: h.Mode,
				Devmajor: h.Devmajor, Devminor: h.Devminor, PAXRecords: xattrs(h),
			}); err != nil {
				return err
			}
			if _, err := io.Copy(hash, tr); err != nil {
				return err
			}
		}
	})
	return hex.EncodeToString(hash.Sum(nil)), err
}

// xattrPrefix begins the PAX records of extended attributes.
const xattrPrefix = "SCHILY.xattr."

// xattrs are the PAX records that say more than what the header does.
func xattrs(h *tar.Header) map[string]string {
	var kept map[string]string
	for key, value := range h.PAXRecords {
		if strings.HasPrefix(key, xattrPrefix) {
			if kept == nil {
				kept = make(map[string]string)
			}
			kept[key] = value
		}
	}
	return kept
}
