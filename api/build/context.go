package build

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"time"
)

// Limits of a context. What there is of its files but their data is held in memory.
const (
	maxEntries   = 1 << 20
	maxNames     = 256 << 20 // bytes of all names, links' targets and attributes
	maxName      = 4096      // bytes of one
	freeData     = 64 << 20  // bytes that files may have in any case
	maxExpansion = 500       // how many times longer than the tar the files may be: sparse ones can
	maxTail      = 64 << 20  // bytes after the tar's end
)

// A Context is the files that a build may copy, out of a tar. It implements io/fs.FS. Close it.
type Context struct {
	root *inode
	data *os.File // all files' data, one after the other
	size int64

	entries, names int // what limits
}

// An inode is a file of a context; hard links share one.
type inode struct {
	header  tar.Header // without a name
	off     int64      // of the data of a regular file
	links   int
	entries map[string]*inode // of a folder
}

func (n *inode) isDir() bool { return n.header.Typeflag == tar.TypeDir }

func newFolder(at time.Time) *inode {
	return &inode{header: tar.Header{Typeflag: tar.TypeDir, Mode: 0o755, ModTime: at}, links: 1, entries: map[string]*inode{}}
}

func newContext(temp func() (*os.File, error)) (*Context, error) {
	f, err := temp()
	if err != nil {
		return nil, err
	}
	return &Context{root: newFolder(time.Now()), data: f}, nil
}

// ReadContext reads a tar to its end, and r as well. The file that temp makes is the Context's. The error is ErrInvalid
// for a tar that is none, or more than is allowed.
func ReadContext(ctx context.Context, r io.Reader, temp func() (*os.File, error)) (*Context, error) {
	c, err := newContext(temp)
	if err != nil {
		return nil, fmt.Errorf("read build context: %w", err)
	}
	in := &counter{ctx: ctx, r: r}
	if err := c.read(in); err != nil {
		c.Close()
		if in.err != nil {
			err = in.err // the reason for the other
		}
		return nil, fmt.Errorf("read build context: %w", err)
	}
	return c, nil
}

// A counter counts what it passes on, and ends with its context.
type counter struct {
	ctx context.Context
	r   io.Reader
	n   int64
	err error // that ended it
}

func (c *counter) Read(p []byte) (int, error) {
	if err := context.Cause(c.ctx); err != nil {
		c.err = err
		return 0, err
	}
	n, err := c.r.Read(p)
	c.n += int64(n)
	if err != nil && err != io.EOF {
		c.err = err
	}
	return n, err
}

func (c *Context) read(in *counter) error {
	for tr := tar.NewReader(in); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return invalid("Error processing tar file: %w", err)
		}
		if err := c.add(h, tr, in); err != nil {
			return err
		}
	}
	// What follows is padding. All of it must be read: the server sees only then that a client leaves.
	n, err := io.Copy(io.Discard, io.LimitReader(in, maxTail))
	if err == nil && n == maxTail {
		return invalid("more than %d bytes follow the tar", maxTail)
	}
	return err
}

// add adds an entry of the tar.
func (c *Context) add(h *tar.Header, data io.Reader, in *counter) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	extra := len(h.Linkname)
	for key, value := range h.PAXRecords {
		extra += len(key) + len(value)
	}
	c.entries++
	if c.names += len(h.Name) + extra; c.entries > maxEntries || c.names > maxNames {
		return invalid("more than %d files, or %d bytes of names", maxEntries, maxNames)
	}
	parts, err := splitName(h.Name)
	if err != nil {
		return err
	}
	n := &inode{header: *h, links: 1}
	n.header.Name, n.header.Format, n.header.PAXRecords = "", tar.FormatPAX, xattrs(h)
	switch h.Typeflag {
	case tar.TypeDir:
		n.entries = map[string]*inode{}
	case tar.TypeReg, tar.TypeGNUSparse:
		n.header.Typeflag = tar.TypeReg
		if err := c.store(n, data, in); err != nil {
			return err
		}
	case tar.TypeLink:
		target, err := splitName(h.Linkname)
		if err != nil {
			return err
		}
		if n = c.find(target); n == nil || n.isDir() {
			return invalid("%.200q is a link to %.200q, which is no file", h.Name, h.Linkname)
		}
		n.links++
	case tar.TypeSymlink, tar.TypeFifo, tar.TypeChar, tar.TypeBlock:
		n.header.Size = 0
	default:
		return invalid("%.200q is of the unknown type %q", h.Name, h.Typeflag)
	}
	return c.put(parts, n)
}

// splitName returns the parts of a name, which may not lead out of the context.
func splitName(name string) ([]string, error) {
	clean := path.Clean(name)
	if clean == ".." || strings.HasPrefix(clean, "../") || len(name) > maxName || strings.ContainsRune(name, 0) {
		return nil, invalid("the name %.200q leads out of the context, or is too long", name)
	}
	clean = strings.TrimPrefix(path.Clean("/"+name), "/")
	if clean == "" {
		return nil, nil
	}
	return strings.Split(clean, "/"), nil
}

// store keeps a file's data.
func (c *Context) store(n *inode, data io.Reader, in *counter) error {
	n.off = c.size
	buf := make([]byte, 256<<10)
	for {
		k, err := data.Read(buf)
		if k > 0 {
			if _, err := c.data.WriteAt(buf[:k], c.size); err != nil {
				return err
			}
			if c.size += int64(k); c.size > freeData && c.size/maxExpansion > in.n {
				return invalid("the files are more than %d times longer than their tar", maxExpansion)
			}
		}
		if err == io.EOF {
			n.header.Size = c.size - n.off
			return nil
		}
		if err != nil {
			return invalid("Error processing tar file: %w", err)
		}
	}
}

// find returns what has a name, nil if nothing does.
func (c *Context) find(parts []string) *inode {
	n := c.root
	for _, p := range parts {
		if n == nil || !n.isDir() {
			return nil
		}
		n = n.entries[p]
	}
	return n
}

// put gives an inode a name. A folder keeps what is in it; everything else is replaced.
func (c *Context) put(parts []string, n *inode) error {
	dir := c.root
	if len(parts) == 0 {
		if !n.isDir() {
			return invalid("the tar has a root that is no folder")
		}
		dir.header = n.header
		return nil
	}
	last := len(parts) - 1
	for _, p := range parts[:last] {
		sub := dir.entries[p]
		if sub == nil {
			if c.entries++; c.entries > maxEntries {
				return invalid("more than %d files", maxEntries)
			}
			sub = newFolder(c.root.header.ModTime)
			dir.entries[p] = sub
		}
		if !sub.isDir() {
			return invalid("%.200q is in something that is no folder", strings.Join(parts, "/"))
		}
		dir = sub
	}
	if old := dir.entries[parts[last]]; old != nil && old.isDir() && n.isDir() {
		n.entries = old.entries
	}
	dir.entries[parts[last]] = n
	return nil
}

// remove takes a name away, if it is there.
func (c *Context) remove(name string) {
	parts := strings.Split(name, "/")
	last := len(parts) - 1
	if dir := c.find(parts[:last]); dir != nil && dir.isDir() {
		delete(dir.entries, parts[last])
	}
}

// Close lets go of the data.
func (c *Context) Close() error { return c.data.Close() }

func (c *Context) lookup(op, name string) (*inode, error) {
	err := fs.ErrInvalid
	if fs.ValidPath(name) {
		var parts []string
		if name != "." {
			parts = strings.Split(name, "/")
		}
		if n := c.find(parts); n != nil {
			return n, nil
		}
		err = fs.ErrNotExist
	}
	return nil, &fs.PathError{Op: op, Path: name, Err: err}
}

// info describes an inode under a name.
func (n *inode) info(name string) fs.FileInfo {
	h := n.header
	h.Name = path.Base(name)
	return h.FileInfo()
}

// Lstat describes a file.
func (c *Context) Lstat(name string) (fs.FileInfo, error) {
	n, err := c.lookup("lstat", name)
	if err != nil {
		return nil, err
	}
	return n.info(name), nil
}

// ReadLink returns where a symlink leads.
func (c *Context) ReadLink(name string) (string, error) {
	n, err := c.lookup("readlink", name)
	if err != nil {
		return "", err
	}
	if n.header.Typeflag != tar.TypeSymlink {
		return "", &fs.PathError{Op: "readlink", Path: name, Err: fs.ErrInvalid}
	}
	return n.header.Linkname, nil
}

// ReadDir lists a folder, names ascending.
func (c *Context) ReadDir(name string) ([]fs.DirEntry, error) {
	n, err := c.lookup("readdir", name)
	if err != nil {
		return nil, err
	}
	var list []fs.DirEntry
	for _, e := range slices.Sorted(maps.Keys(n.entries)) {
		list = append(list, fs.FileInfoToDirEntry(n.entries[e].info(e)))
	}
	return list, nil
}

// Open opens a file; of a symlink there is nothing to read.
func (c *Context) Open(name string) (fs.File, error) {
	n, err := c.lookup("open", name)
	if err != nil {
		return nil, err
	}
	return &contextFile{io.NewSectionReader(c.data, n.off, n.header.Size), n.info(name)}, nil
}

// A contextFile is an open file of a context.
type contextFile struct {
	*io.SectionReader
	info fs.FileInfo
}

func (f *contextFile) Stat() (fs.FileInfo, error) { return f.info, nil }

// Close does nothing: the data is the context's.
func (f *contextFile) Close() error { return nil }

// WriteTree implements tree.
func (c *Context) WriteTree(w io.Writer, file, as string) error {
	n, err := c.lookup("read", file)
	if err != nil {
		return err
	}
	t := &contextWriter{c: c, w: tar.NewWriter(w), first: map[*inode]string{}}
	if err := t.write(n, as); err != nil {
		return err
	}
	return t.w.Close()
}

// A contextWriter writes inodes as a tar.
type contextWriter struct {
	c     *Context
	w     *tar.Writer
	first map[*inode]string // the name of each inode that has several
}

// write writes an inode and what is in it. Names have at most maxName bytes, and so no more than half as many parts.
func (t *contextWriter) write(n *inode, name string) error {
	h := n.header
	h.Name = name
	if n.isDir() {
		h.Name += "/"
	} else if first := t.first[n]; first != "" {
		h.Typeflag, h.Linkname, h.Size, h.PAXRecords = tar.TypeLink, first, 0, nil
		return t.w.WriteHeader(&h)
	} else if n.links > 1 {
		t.first[n] = name
	}
	if err := t.w.WriteHeader(&h); err != nil {
		return err
	}
	if h.Typeflag == tar.TypeReg {
		if _, err := io.Copy(t.w, io.NewSectionReader(t.c.data, n.off, h.Size)); err != nil {
			return err
		}
	}
	for _, e := range slices.Sorted(maps.Keys(n.entries)) {
		if err := t.write(n.entries[e], name+"/"+e); err != nil {
			return err
		}
	}
	return nil
}
