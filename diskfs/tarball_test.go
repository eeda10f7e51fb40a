package diskfs

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"
)

// An item is one entry of a layer's tar, or bytes that stand in its place.
type item struct {
	h    tar.Header
	body string
	raw  []byte
}

// A layer is the items of one tar, in order.
type layer []item

func file(name, body string) item {
	return item{h: tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0644, Size: int64(len(body)), ModTime: entryTime}, body: body}
}

func folder(name string) item {
	return item{h: tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0755, ModTime: entryTime}}
}

func symlink(name, target string) item {
	return item{h: tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0777, ModTime: entryTime}}
}

func link(name, target string) item {
	return item{h: tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, Mode: 0644, ModTime: entryTime}}
}

// device is a character device 'c', a block device 'b' or a fifo 'p'.
func device(name string, kind byte, major, minor int64) item {
	typ := map[byte]byte{'c': tar.TypeChar, 'b': tar.TypeBlock, 'p': tar.TypeFifo}[kind]
	return item{h: tar.Header{Typeflag: typ, Name: name, Devmajor: major, Devminor: minor, Mode: 0644, ModTime: entryTime}}
}

// whiteout removes a path of the layers below.
func whiteout(path string) item {
	dir, base := splitPath(path)
	if dir != "" {
		dir += "/"
	}
	return file(dir+".wh."+base, "").mode(0)
}

// opaque empties a directory of the layers below; "" is the root.
func opaque(dir string) item {
	if dir != "" {
		dir += "/"
	}
	return file(dir+".wh..wh..opq", "").mode(0)
}

func (i item) mode(m int64) item         { i.h.Mode = m; return i }
func (i item) owner(uid, gid int) item   { i.h.Uid, i.h.Gid = uid, gid; return i }
func (i item) mtime(t time.Time) item    { i.h.ModTime, i.h.Format = t, tar.FormatPAX; return i }
func (i item) typeflag(b byte) item      { i.h.Typeflag = b; return i }
func (i item) format(f tar.Format) item  { i.h.Format = f; return i }
func (i item) xattr(name, v string) item { return i.pax("SCHILY.xattr."+name, v) }

func (i item) pax(key, value string) item {
	records := map[string]string{key: value}
	for k, v := range i.h.PAXRecords {
		records[k] = v
	}
	i.h.PAXRecords = records
	return i
}

// rawHeader is a ustar header that archive/tar would not write. Fields are as they stand
// in the header; the checksum is filled in.
func rawHeader(name string, typeflag byte, size string, set func(h []byte)) item {
	h := make([]byte, 512)
	copy(h[0:100], name)
	copy(h[100:], "0000644\x00")
	copy(h[108:], "0000000\x00")
	copy(h[116:], "0000000\x00")
	copy(h[124:136], size)
	copy(h[136:], fmt.Sprintf("%011o\x00", entryTime.Unix()))
	h[156] = typeflag
	copy(h[257:], "ustar\x0000")
	if set != nil {
		set(h)
	}
	sealHeader(h)
	return item{raw: h}
}

// sealHeader fills in a header's checksum.
func sealHeader(h []byte) {
	copy(h[148:156], "        ")
	sum := 0
	for _, b := range h {
		sum += int(b)
	}
	copy(h[148:156], fmt.Sprintf("%06o\x00 ", sum))
}

// rawBytes are any bytes, in whole tar blocks.
func rawBytes(s string) item {
	p := []byte(s)
	return item{raw: append(p, make([]byte, -len(p)&511)...)}
}

// tar writes the layer as a tar.
func (l layer) tar(t testing.TB) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := l.write(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func (l layer) write(w io.Writer) error {
	tw := tar.NewWriter(w)
	for _, i := range l {
		if i.raw != nil {
			if err := tw.Flush(); err != nil {
				return err
			}
			if _, err := w.Write(i.raw); err != nil {
				return err
			}
			continue
		}
		if err := tw.WriteHeader(&i.h); err != nil {
			return fmt.Errorf("%q: %w", i.h.Name, err)
		}
		if _, err := io.Copy(tw, strings.NewReader(i.body)); err != nil {
			return fmt.Errorf("%q: %w", i.h.Name, err)
		}
	}
	return tw.Close()
}

// many is a directory with n files whose names and contents tell them apart.
func many(dir string, n int) layer {
	l := layer{folder(dir)}
	for i := range n {
		l = append(l, file(fmt.Sprintf("%s/f%d", dir, i), fmt.Sprint("content ", i)))
	}
	return l
}

// files lists a layer's files as tree.describe would.
func (l layer) files() string {
	var lines []string
	for _, i := range l {
		if i.h.Typeflag == tar.TypeReg {
			lines = append(lines, fmt.Sprintf("%s %q", i.h.Name, i.body))
		}
	}
	return strings.Join(lines, " | ")
}
