package archive

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"strings"
)

// Limits of the index of a tar, which is held in memory, and of following links.
const (
	maxMembers   = 1 << 18
	maxNameBytes = 16 << 20 // of all names and links' targets
	maxLinks     = 16
)

// A tarFS opens the regular files of a tar.
type tarFS struct {
	r       io.ReaderAt
	members map[string]member
}

// A member is what the tar has under a name.
type member struct {
	off, size int64
	link      string // another member, which this one is a link to
	damage    string // why it cannot be read; "" if it can
}

// indexTar reads the headers of a tar.
func indexTar(r io.ReaderAt, size int64) (*tarFS, error) {
	t := &tarFS{r: r, members: make(map[string]member)}
	section := io.NewSectionReader(r, 0, size)
	names := 0
	for tr, n := tar.NewReader(section), 0; ; n++ {
		h, err := tr.Next()
		if err == io.EOF {
			if n == 0 {
				return nil, formatErrorf("", "an empty tar")
			}
			return t, nil
		}
		if err != nil {
			return nil, tarError(err)
		}
		if names += len(h.Name) + len(h.Linkname); n == maxMembers || names > maxNameBytes {
			return nil, formatErrorf("", "more than %d members, or %d bytes of names", maxMembers, maxNameBytes)
		}
		// The reader has read whole blocks, up to where the member's data begins.
		off, err := section.Seek(0, io.SeekCurrent)
		if err != nil {
			return nil, err
		}
		t.add(h, off, size)
	}
}

// tarError makes what is wrong with a tar, and not with the file that it is in, the archive's
// fault.
func tarError(err error) error {
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF) {
		return formatErrorf("", "%v", err)
	}
	return fmt.Errorf("read tar: %w", err)
}

func (t *tarFS) add(h *tar.Header, off, size int64) {
	name := path.Clean(strings.TrimPrefix(h.Name, "./"))
	if !fs.ValidPath(name) {
		return // nothing can be meant by it
	}
	m := member{off: off, size: h.Size}
	switch h.Typeflag {
	case tar.TypeReg, '\x00':
		for key := range maps.Keys(h.PAXRecords) {
			if strings.HasPrefix(key, "GNU.sparse.") {
				m.damage = "is stored as a sparse file"
			}
		}
		if off+h.Size > size {
			m.damage = "is cut short"
		}
	case tar.TypeLink:
		m.link = path.Clean(strings.TrimPrefix(h.Linkname, "./"))
	case tar.TypeSymlink:
		m.link = path.Join(path.Dir(name), h.Linkname)
		if path.IsAbs(h.Linkname) {
			m.link = h.Linkname
		}
	case tar.TypeDir:
		if _, there := t.members[name]; there {
			return // docker lists folders more than once
		}
		m.damage = "is a folder"
	default:
		m.damage = fmt.Sprintf("is not a regular file, its type is %q", h.Typeflag)
	}
	if _, there := t.members[name]; there {
		m = member{damage: "is there twice"}
	}
	t.members[name] = m
}

// Open opens a member, or the one that it is a link to.
func (t *tarFS) Open(name string) (fs.File, error) {
	at := name
	for range maxLinks {
		m, ok := t.members[at]
		switch {
		case !ok && at == name:
			return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
		case !ok:
			return nil, formatErrorf(name, "is a link to %.80q, which is not there", at)
		case m.damage != "":
			return nil, formatErrorf(at, "%s", m.damage)
		case m.link == "":
			return &tarFile{io.NewSectionReader(t.r, m.off, m.size), path.Base(at)}, nil
		}
		at = m.link
	}
	return nil, formatErrorf(name, "is a link to a link, %d times over", maxLinks)
}

// A tarFile is an open member.
type tarFile struct {
	*io.SectionReader
	name string
}

func (f *tarFile) Stat() (fs.FileInfo, error) {
	h := tar.Header{Typeflag: tar.TypeReg, Name: f.name, Size: f.Size()}
	return h.FileInfo(), nil
}

// Close does nothing: the archive's file stays open.
func (f *tarFile) Close() error { return nil }
