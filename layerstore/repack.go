package layerstore

import (
	"bufio"
	"bytes"
	stdgzip "compress/gzip"
	"context"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"os"
	"strings"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A packer compresses as some builder of images does, to the bit. There are those that Go programs
// have at hand, in the releases that this program is built with: docker, containerd, BuildKit, ko,
// kaniko. The writers of zlib, GNU gzip and pgzip, whose blocks depend on its release, are not
// among them.
type packer struct {
	kind string // gzip or zstd; "" copies
	open func(io.Writer) (io.WriteCloser, error)
}

const (
	kindGzip = "gzip"
	kindZstd = "zstd"
)

// plainPacker does not compress.
var plainPacker = packer{open: func(w io.Writer) (io.WriteCloser, error) { return nopWriteCloser{w}, nil }}

// packers are tried all at once, the most likely first.
var packers = []packer{
	{kindGzip, standardGzip(stdgzip.DefaultCompression)},
	{kindGzip, klauspostGzip(gzip.DefaultCompression)},
	{kindGzip, standardGzip(stdgzip.BestSpeed)},
	{kindGzip, klauspostGzip(gzip.BestSpeed)},
	{kindGzip, standardGzip(stdgzip.BestCompression)},
	{kindGzip, klauspostGzip(gzip.BestCompression)},
	{kindZstd, zstdPacker(zstd.SpeedDefault)},
	{kindZstd, zstdPacker(zstd.SpeedFastest)},
	{kindZstd, zstdPacker(zstd.SpeedBetterCompression)},
}

// repackers make the blobs of layers whose own cannot be made: fast ones, by kind.
var repackers = map[string]*packer{
	kindGzip: {kindGzip, klauspostGzip(gzip.DefaultCompression)},
	kindZstd: {kindZstd, zstdPacker(zstd.SpeedDefault)},
}

func standardGzip(level int) func(io.Writer) (io.WriteCloser, error) {
	return func(w io.Writer) (io.WriteCloser, error) { return stdgzip.NewWriterLevel(w, level) }
}

func klauspostGzip(level int) func(io.Writer) (io.WriteCloser, error) {
	return func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriterLevel(w, level) }
}

func zstdPacker(level zstd.EncoderLevel) func(io.Writer) (io.WriteCloser, error) {
	return func(w io.Writer) (io.WriteCloser, error) {
		return zstd.NewWriter(w, zstd.WithEncoderLevel(level), zstd.WithEncoderConcurrency(1))
	}
}

type nopWriteCloser struct{ io.Writer }

func (nopWriteCloser) Close() error { return nil }

// headSize is how much of a blob's beginning is kept: a gzip header without options.
const headSize = 10

// fits tells whether the packer may have made a blob that begins so. Headers of gzip say something
// of the level and of the system, and Klaus Post's have a time that is none.
func (p *packer) fits(head []byte) bool {
	if !isGzip(head) {
		return p.kind == kindZstd && isZstd(head)
	}
	if p.kind != kindGzip {
		return false
	}
	var b bytes.Buffer
	z, err := p.open(&b)
	return err == nil && z.Close() == nil && bytes.HasPrefix(b.Bytes(), head)
}

// blobKind is what a layer's media type says that it is compressed with.
func blobKind(mediaType string) string {
	for _, kind := range []string{kindGzip, kindZstd} {
		if strings.HasSuffix(mediaType, kind) {
			return kind
		}
	}
	return ""
}

// withKind is a layer's media type, compressed otherwise. Schema 2 knows gzip alone.
func withKind(mediaType, kind string) string {
	if strings.HasPrefix(mediaType, dockerLayer) {
		return dockerLayer + "diff.tar." + kind
	}
	return ocispec.MediaTypeImageLayer + "+" + kind
}

// A packed is a blob that can be had: it lies in a file, or is made again.
type packed struct {
	desc  ocispec.Descriptor
	dir   Dir
	layer *Layer
	how   *packer
	file  *os.File // or nil
}

// open returns the blob's bytes.
func (p *packed) open(ctx context.Context) (io.ReadCloser, error) {
	if p.file != nil {
		return io.NopCloser(io.NewSectionReader(p.file, 0, p.desc.Size)), nil
	}
	return pipe(ctx, func(ctx context.Context, w io.Writer) error {
		z, err := p.how.open(w)
		if err != nil {
			return err
		}
		buffered := bufio.NewWriterSize(z, packChunk)
		return errors.Join(p.dir.writeTar(ctx, p.layer, buffered), buffered.Flush(), z.Close())
	}), nil
}

func (p *packed) close() {
	if p.file != nil {
		p.file.Close() // nobody reads it again
	}
}

// repack makes a layer's original blob, if it can be found out how, or else another. A layer that
// was not compressed stays so, but in a manifest of schema 2, which knows no such layer: it was
// made for an archive of docker's.
func (d Dir) repack(ctx context.Context, l *Layer, original ocispec.Descriptor) (*packed, error) {
	oci := strings.HasPrefix(original.MediaType, ociLayer)
	kind := blobKind(original.MediaType)
	var candidates []*packer
	switch {
	case original.Digest == l.DiffID && (oci || kind != ""):
		return &packed{desc: original, dir: d, layer: l, how: &plainPacker}, nil
	case original.Digest != l.DiffID:
		var head []byte
		if l.Blob == original.Digest {
			head, _ = hex.DecodeString(l.BlobHead) // a record of earlier has none
		}
		for i := range packers {
			p := &packers[i]
			if len(head) == headSize && p.fits(head) || len(head) == 0 && p.kind == kind {
				candidates = append(candidates, p)
			}
		}
	}
	if len(candidates) > 0 {
		if p, err := d.tryPackers(ctx, l, candidates, original); p != nil || err != nil {
			return p, err
		}
	}
	if kind != kindZstd || !oci {
		kind = kindGzip
	}
	other := ocispec.Descriptor{MediaType: withKind(original.MediaType, kind), Annotations: original.Annotations}
	return d.tryPackers(ctx, l, []*packer{repackers[kind]}, other)
}

// A trial is a packer at work. Of its blob nothing is kept but what describes it, and if there is
// a file, the bytes.
type trial struct {
	*packer
	in   *io.PipeReader
	hash hash.Hash
	size int64
	file *os.File
	err  error
}

func (t *trial) Write(p []byte) (int, error) {
	t.size += int64(len(p))
	t.hash.Write(p)
	if t.file != nil {
		return t.file.Write(p)
	}
	return len(p), nil
}

func (t *trial) run() {
	out := bufio.NewWriterSize(t, packChunk)
	z, err := t.open(out)
	if err == nil {
		_, err = io.CopyBuffer(z, t.in, make([]byte, packChunk))
		err = errors.Join(err, z.Close(), out.Flush())
	}
	t.err = err
	t.in.CloseWithError(err)
}

// packChunk is what packers are handed at once: one works on it while the next gets its own.
const packChunk = 256 << 10

// tryPackers makes the layer's tar once, and of it the blobs of all candidates, the first into a
// file. It returns the one that has the digest of want, if it has one, or nil.
func (d Dir) tryPackers(ctx context.Context, l *Layer, candidates []*packer, want ocispec.Descriptor) (_ *packed, err error) {
	file, err := d.tempFile()
	if err != nil {
		return nil, err
	}
	kept := false
	defer func() {
		if !kept {
			file.Close()
		}
	}()
	algorithm := digest.SHA256
	if want.Digest != "" {
		algorithm = want.Digest.Algorithm()
	}
	var wg sync.WaitGroup
	var trials []*trial
	var ins []*io.PipeWriter
	var writers []io.Writer
	for i, p := range candidates {
		in, out := io.Pipe()
		t := &trial{packer: p, in: in, hash: algorithm.Hash()}
		if i == 0 {
			t.file = file
		}
		trials, ins, writers = append(trials, t), append(ins, out), append(writers, out)
		wg.Go(t.run)
	}
	buffered := bufio.NewWriterSize(io.MultiWriter(writers...), packChunk)
	err = errors.Join(d.writeTar(ctx, l, buffered), buffered.Flush())
	for _, in := range ins {
		in.CloseWithError(err) // nil is io.EOF
	}
	wg.Wait()
	if err != nil {
		return nil, err
	}
	for _, t := range trials {
		if t.err != nil {
			return nil, t.err
		}
		got := digest.NewDigest(algorithm, t.hash)
		if want.Digest != "" && got != want.Digest {
			continue
		}
		p := &packed{desc: want, dir: d, layer: l, how: t.packer, file: t.file}
		p.desc.Digest, p.desc.Size = got, t.size
		kept = t.file != nil
		return p, nil
	}
	return nil, nil
}
