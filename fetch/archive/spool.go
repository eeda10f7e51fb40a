package archive

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// OpenFile opens a tar, which may be compressed. Temp makes the file that a compressed one is
// decompressed into, to be read at random; it is the archive's then.
func OpenFile(ctx context.Context, path string, temp func() (*os.File, error)) (*Archive, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	a, err := Read(ctx, f, temp)
	if err != nil {
		f.Close()
		return nil, err
	}
	a.closer = closers{a.closer, f}
	return a, nil
}

// Read reads a tar, which may be compressed, to its end. Of a regular file that is not compressed
// nothing is copied, and it must stay open until the archive is closed; all else goes into the file
// that temp makes, which is the archive's then.
func Read(ctx context.Context, r io.Reader, temp func() (*os.File, error)) (*Archive, error) {
	if f, ok := r.(*os.File); ok {
		if a, err := inPlace(f); a != nil || err != nil {
			return a, err
		}
	}
	f, err := temp()
	if err != nil {
		return nil, fmt.Errorf("read image archive: %w", err)
	}
	size, err := spool(f, &contextReader{ctx, r})
	if err != nil {
		f.Close()
		return nil, err
	}
	return openTar(f, size, f)
}

// FromTar makes an image whose top layer is the tar that a stream has, compressed or not. Config makes its
// configuration, given the layer's diff ID. Below are the layers that it stands on, whose blobs the
// image does not have. The file that temp makes is the archive's then.
func FromTar(ctx context.Context, r io.Reader, temp func() (*os.File, error), below []ocispec.Descriptor, config func(diffID digest.Digest) ([]byte, error)) (*Archive, error) {
	f, err := temp()
	if err != nil {
		return nil, fmt.Errorf("read layer: %w", err)
	}
	hash := digest.SHA256.Digester()
	size, err := spool(io.MultiWriter(f, hash.Hash()), &contextReader{ctx, r})
	if err != nil {
		f.Close()
		return nil, err
	}
	const name = "layer.tar"
	fsys := &tarFS{r: f, members: map[string]member{name: {size: size}}}
	e := &Entry{resolve: func(context.Context, *ocispec.Platform) (*Image, error) {
		cfg, err := config(hash.Digest())
		if err != nil {
			return nil, err
		}
		layer := ocispec.Descriptor{MediaType: dockerLayer, Digest: hash.Digest(), Size: size}
		types := typesAbove(below)
		if types == ociTypes {
			layer.MediaType = ocispec.MediaTypeImageLayer
		}
		return makeImage(fsys, types, cfg, append(slices.Clone(below), layer), map[digest.Digest]string{layer.Digest: name})
	}}
	return &Archive{fsys: fsys, closer: f, entries: []*Entry{e}}, nil
}

// FromLayers makes an image of a configuration and of layers whose blobs it does not have.
func FromLayers(layers []ocispec.Descriptor, config []byte) (*Image, error) {
	return makeImage(&tarFS{}, typesAbove(layers), config, layers, nil)
}

// typesAbove are the media types for an image upon layers: docker's if theirs are.
func typesAbove(layers []ocispec.Descriptor) documentTypes {
	if slices.ContainsFunc(layers, func(d ocispec.Descriptor) bool { return !strings.HasPrefix(d.MediaType, dockerPrefix) }) {
		return ociTypes
	}
	return dockerTypes
}

// inPlace opens a tar where it lies; it is nil if the file is not regular, is compressed, or has
// been read from.
func inPlace(f *os.File) (*Archive, error) {
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return nil, err
	}
	if at, err := f.Seek(0, io.SeekCurrent); err != nil || at != 0 {
		return nil, err
	}
	magic := make([]byte, magicSize)
	n, err := f.ReadAt(magic, 0)
	if err != nil && err != io.EOF {
		return nil, err
	}
	if compression(magic[:n]) != plain {
		return nil, nil
	}
	return openTar(f, info.Size(), closers{})
}

func openTar(r io.ReaderAt, size int64, closer io.Closer) (*Archive, error) {
	fsys, err := indexTar(r, size)
	if err != nil {
		closer.Close()
		return nil, err
	}
	return open(fsys, closer)
}

// What a file may be compressed with.
const (
	plain    = ""
	gzipped  = "gzip"
	zstdType = "zstd"
	bzip2    = "bzip2"
	xz       = "xz"
)

// magics are the first bytes of files that are compressed.
var magics = []struct{ magic, kind string }{
	{"\x1f\x8b", gzipped}, {"\x28\xb5\x2f\xfd", zstdType}, {"BZh", bzip2}, {"\xfd7zXZ\x00", xz},
}

const magicSize = 6

// compression tells by a file's first bytes what it is compressed with.
func compression(b []byte) string {
	for _, m := range magics {
		if bytes.HasPrefix(b, []byte(m.magic)) {
			return m.kind
		}
	}
	return plain
}

// Limits of decompressing: the window that a zstd frame may ask for, in bytes, and how many times
// longer than itself a stream may become once it has passed freeSpool bytes.
const (
	zstdWindow = 128 << 20
	maxRatio   = 500
	freeSpool  = 64 << 20
)

// Decompress returns what a stream holds, whether it is compressed with gzip, zstd or not at all; another
// compression is a *FormatError. Streams that grow without measure fail. It reads ahead.
func Decompress(r io.Reader) (io.ReadCloser, error) {
	d, err := decompress(&countReader{r: r})
	if err != nil {
		return nil, err
	}
	return d, nil
}

// A decompressor is what a stream holds.
type decompressor struct {
	io.Reader
	close func()
}

func (d *decompressor) Close() error {
	d.close()
	return nil
}

func decompress(in *countReader) (*decompressor, error) {
	b := bufio.NewReaderSize(in, 64<<10)
	magic, err := b.Peek(magicSize)
	if err != nil && err != io.EOF {
		return nil, fmt.Errorf("read archive: %w", err)
	}
	switch kind := compression(magic); kind {
	case plain:
		return &decompressor{b, func() {}}, nil
	case gzipped:
		z, err := gzip.NewReader(b)
		if err != nil {
			return nil, formatErrorf("", "%v", err)
		}
		return &decompressor{&ratioReader{r: z, in: in}, func() {}}, nil
	case zstdType:
		z, err := zstd.NewReader(b, zstd.WithDecoderMaxWindow(zstdWindow))
		if err != nil {
			return nil, fmt.Errorf("read archive: %w", err)
		}
		return &decompressor{&ratioReader{r: z, in: in}, z.Close}, nil
	default:
		return nil, &compressionError{FormatError{Msg: fmt.Sprintf("compressed with %s: gzip, zstd and no compression are supported", kind)}}
	}
}

// ErrCompression is the error for a stream that is compressed in a way that is not supported.
var ErrCompression = errors.New("archive: unsupported compression")

type compressionError struct{ FormatError }

func (*compressionError) Is(target error) bool { return target == ErrCompression }
func (e *compressionError) Unwrap() error      { return &e.FormatError }

// spool copies a stream, decompressed, and returns its length.
func spool(w io.Writer, r io.Reader) (int64, error) {
	in := &countReader{r: r}
	dec, err := decompress(in)
	if err != nil {
		return 0, err
	}
	defer dec.Close()
	n, err := io.Copy(w, dec)
	if err != nil {
		if _, disk := errors.AsType[*fs.PathError](err); !disk && in.err == nil && in.r.(*contextReader).ctx.Err() == nil {
			return 0, formatErrorf("", "%v", err)
		}
		return 0, fmt.Errorf("read image archive: %w", err)
	}
	return n, nil
}

// A countReader counts what it passes on, and keeps the error that ended it.
type countReader struct {
	r   io.Reader
	n   int64
	err error
}

func (c *countReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	if err != io.EOF {
		c.err = err
	}
	return n, err
}

// A ratioReader refuses what grows beyond reason when it is decompressed.
type ratioReader struct {
	r  io.Reader
	in *countReader
	n  int64
}

func (g *ratioReader) Read(p []byte) (int, error) {
	n, err := g.r.Read(p)
	if g.n += int64(n); g.n > freeSpool && g.n/maxRatio > g.in.n {
		return 0, fmt.Errorf("decompressed, it is more than %d times longer", maxRatio)
	}
	return n, err
}

// A contextReader ends with its context.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (r *contextReader) Read(p []byte) (int, error) {
	if err := context.Cause(r.ctx); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

// closers close one after the other.
type closers []io.Closer

func (c closers) Close() error {
	var errs []error
	for _, x := range c {
		errs = append(errs, x.Close())
	}
	return errors.Join(errs...)
}
