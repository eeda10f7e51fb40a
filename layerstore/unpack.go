package layerstore

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"vic/diskfs"
	"vic/layerstore/inflate"
)

// unpacking is the first stage of a layer's way: its blob is fetched,
// decompressed, verified and taken apart, all at the same time.
type unpacking struct {
	src     Source
	layer   planLayer
	lim     Limits
	fetched *atomic.Int64 // bytes of the blob that have come so far
	tarSize int64
	head    []byte // of the blob, if it is compressed
}

// A sourceError is the fault of one Source: another may do better.
type sourceError struct{ err error }

func (e *sourceError) Error() string { return e.err.Error() }
func (e *sourceError) Unwrap() error { return e.err }

// run returns what the layer's tar holds; the data of its files it appends to
// out, the skeleton of its recipe to skeleton. An error that does not come from these is a
// *sourceError.
func (u *unpacking) run(ctx context.Context, out, skeleton io.Writer) (*diskfs.Changeset, error) {
	w, sk := &stickyWriter{w: out}, &stickyWriter{w: skeleton}
	cs, err := u.unpack(ctx, w, sk)
	if err != nil && w.err == nil && sk.err == nil {
		err = &sourceError{err}
	}
	return cs, err
}

// unpack runs the pipe
//
//	Source ─► pump ─► decompressor ─► tarGuard ─► pump with hash ─► ReadTar ─► out
//
// of which each pump and ReadTar are a goroutine.
func (u *unpacking) unpack(ctx context.Context, out, skeleton io.Writer) (*diskfs.Changeset, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	blob, err := u.src.Blob(ctx, u.layer.blob)
	if err != nil {
		return nil, err
	}
	defer blob.Close()
	raw := newPump(&countReader{blob, u.fetched}, nil)
	defer raw.close()
	defer cancel() // or raw might wait for the network
	b := bufio.NewReaderSize(raw, blobBuffer)
	if head, _ := b.Peek(headSize); isGzip(head) || isZstd(head) {
		u.head = bytes.Clone(head)
	}
	dec, err := decompress(b)
	if err != nil {
		return nil, u.blame(ctx, raw, err)
	}
	defer dec.Close()
	guard := &tarGuard{r: dec, fetched: u.fetched, max: u.lim.TarSize, ratio: u.lim.Ratio}
	hash := sha256.New()
	tar := newPump(guard, hash)
	cs, err := diskfs.ReadTar(tar, out, skeleton, u.lim.Tar)
	tar.close()
	if err != nil {
		return nil, u.blame(ctx, raw, err)
	}
	// The tar has ended. Whether the blob has, and was the right one, its last
	// Read tells.
	if _, err := io.Copy(io.Discard, raw); err != nil {
		return nil, err
	}
	u.tarSize = guard.n
	if got := digest.NewDigest(digest.SHA256, hash); got != u.layer.diffID {
		return nil, fmt.Errorf("diff ID is %s, but the config says %s", got, u.layer.diffID)
	}
	return cs, nil
}

// blameLimit is how much of a blob is fetched just to tell why it is bad.
const blameLimit = 64 << 20

// blame returns the reason for an error in the middle of a blob: if the blob is
// not the right one, that, since it explains the rest.
func (u *unpacking) blame(ctx context.Context, raw io.Reader, err error) error {
	if ctx.Err() != nil || u.layer.blob.Size-u.fetched.Load() > blameLimit {
		return err
	}
	if _, rawErr := io.Copy(io.Discard, raw); rawErr != nil {
		return rawErr
	}
	return err
}

// blobBuffer is how much of a blob is held to look at its beginning.
const blobBuffer = 64 << 10

// decompress returns the content of a blob, whatever it is compressed with;
// without a known magic number it is what it is. Several gzip members or zstd
// frames are the concatenation of their contents.
func decompress(r io.Reader) (io.ReadCloser, error) {
	b := bufio.NewReaderSize(r, blobBuffer) // r itself, if it is one
	magic, err := b.Peek(4)
	if err != nil && err != io.EOF {
		return nil, err
	}
	switch {
	case isGzip(magic):
		return gunzip{inflate.NewReader(b)}, nil
	case isZstd(magic):
		z, err := zstd.NewReader(b, zstd.WithDecoderMaxWindow(zstdWindow))
		if err != nil {
			return nil, fmt.Errorf("decompress zstd: %w", err)
		}
		return unzstd{z}, nil
	}
	return io.NopCloser(b), nil
}

// zstdWindow is the greatest window that a zstd frame may ask for, and so the
// memory that decompressing one takes: what zstd --ultra uses.
const zstdWindow = 128 << 20

func isGzip(magic []byte) bool { return len(magic) >= 2 && magic[0] == 0x1f && magic[1] == 0x8b }

// isZstd knows frames and skippable frames (RFC 8878, 3.1).
func isZstd(magic []byte) bool {
	if len(magic) < 4 {
		return false
	}
	n := uint32(magic[0]) | uint32(magic[1])<<8 | uint32(magic[2])<<16 | uint32(magic[3])<<24
	return n == 0xfd2fb528 || n&^0xf == 0x184d2a50
}

// gunzip and unzstd name their format in their errors.
type gunzip struct{ z *inflate.Reader }

func (g gunzip) Read(p []byte) (int, error) {
	n, err := g.z.Read(p)
	return n, decompressError("gzip", err)
}

// Next makes gunzip a nexter.
func (g gunzip) Next(buf []byte, at int) (int, error) {
	n, err := g.z.Next(buf, at)
	return n, decompressError("gzip", err)
}

func (gunzip) Close() error { return nil }

type unzstd struct{ z *zstd.Decoder }

func (u unzstd) Read(p []byte) (int, error) {
	n, err := u.z.Read(p)
	return n, decompressError("zstd", err)
}

func (u unzstd) Close() error {
	u.z.Close()
	return nil
}

func decompressError(format string, err error) error {
	if err != nil && err != io.EOF {
		err = fmt.Errorf("decompress %s: %w", format, err)
	}
	return err
}

// A countReader counts the bytes that it passes on.
type countReader struct {
	r io.Reader
	n *atomic.Int64
}

func (c *countReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n.Add(int64(n))
	return n, err
}

// A tarGuard refuses a tar that is too long, or too long for its blob.
type tarGuard struct {
	r          io.Reader
	fetched    *atomic.Int64
	n          int64
	max, ratio int64
}

func (g *tarGuard) Read(p []byte) (int, error) {
	n, err := g.r.Read(p)
	return g.pass(n, err)
}

// Next makes tarGuard a nexter, whether r is one or not.
func (g *tarGuard) Next(buf []byte, at int) (int, error) {
	next, ok := g.r.(nexter)
	if !ok {
		n, err := fill(g.r, buf[at:])
		return g.pass(n, err)
	}
	n, err := next.Next(buf, at)
	return g.pass(n, err)
}

func (g *tarGuard) pass(n int, err error) (int, error) {
	g.n += int64(n)
	if g.n > g.max {
		return 0, fmt.Errorf("tar is longer than %d bytes", g.max)
	}
	if g.n > freeRatio && g.n/g.ratio > g.fetched.Load() {
		return 0, fmt.Errorf("tar is more than %d times longer than its blob: %d bytes from %d", g.ratio, g.n, g.fetched.Load())
	}
	return n, err
}

// A stickyWriter remembers that it failed.
type stickyWriter struct {
	w   io.Writer
	err error
}

func (w *stickyWriter) Write(p []byte) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	n, err := w.w.Write(p)
	w.err = err
	return n, err
}
