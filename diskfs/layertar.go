package diskfs

import (
	"archive/tar"
	"fmt"
	"io"
	"strings"
)

// A LayerWriter writes a tar of changes: entries of what there is, whiteouts of what is gone.
type LayerWriter struct{ e *exporter }

// NewLayerWriter makes a LayerWriter of changes that led to this file system. Close ends the tar.
func (f *FS) NewLayerWriter(w io.Writer) *LayerWriter { return &LayerWriter{f.newExporter(w)} }

// Write writes a change. A file whose own name would be taken for a whiteout cannot be in a
// layer, and is an error.
func (l *LayerWriter) Write(c Change) error {
	name := strings.TrimPrefix(c.Path, "/")
	dir, base := splitPath(name)
	if strings.HasPrefix(base, whiteoutPrefix) {
		return fmt.Errorf("%s: in a layer the name says that a file is gone", c.Path)
	}
	if c.Kind == Deleted {
		if dir != "" {
			dir += "/"
		}
		h := &tar.Header{Typeflag: tar.TypeReg, Name: dir + whiteoutPrefix + base, Mode: 0600, Format: tar.FormatPAX}
		return l.e.w.WriteHeader(h)
	}
	ino, kind, err := l.e.fs.kindOf(name)
	if err != nil {
		return err
	}
	if kind == modeDir {
		name += "/"
	}
	if err := l.e.inode(ino, name); err != nil {
		return fmt.Errorf("%q: %w", c.Path, err)
	}
	return nil
}

// Close ends the tar.
func (l *LayerWriter) Close() error { return l.e.w.Close() }
