package layerstore

import (
	"bufio"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"vic/diskfs"
)

// A Recipe is what a layer's record says of the file that its tar is rebuilt by: the
// parts that diskfs describes, each a zstd frame, the skeleton first.
type Recipe struct {
	// Skeleton and Sources are the lengths of the frames in bytes.
	Skeleton int64 `json:"skeleton"`
	Sources  int64 `json:"sources"`
	// Sum is the CRC-32C of the file.
	Sum uint32 `json:"crc32c"`
}

// recipeSuffix ends the names of recipes.
const recipeSuffix = ".recipe"

// A recipeFile is a recipe on its way into the store. Write is for the skeleton.
type recipeFile struct {
	f   *os.File
	out *bufio.Writer
	z   *zstd.Encoder
	n   int64
	sum uint32
}

func createRecipe(path string) (*recipeFile, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	r := &recipeFile{f: f}
	r.out = bufio.NewWriterSize(countWriter{r}, 64<<10)
	// Headers repeat themselves: the fastest level makes a thirtieth of them, in a window
	// that costs little memory for every layer in flight.
	r.z, err = zstd.NewWriter(r.out, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(256<<10), zstd.WithLowerEncoderMem(true))
	if err != nil {
		f.Close()
		return nil, err
	}
	return r, nil
}

// countWriter writes to a recipe's file.
type countWriter struct{ r *recipeFile }

func (w countWriter) Write(p []byte) (int, error) {
	n, err := w.r.f.Write(p)
	w.r.n += int64(n)
	w.r.sum = crc32.Update(w.r.sum, castagnoli, p[:n])
	return n, err
}

func (r *recipeFile) Write(p []byte) (int, error) { return r.z.Write(p) }

// finish ends the skeleton and adds what sources writes. The caller closes and syncs.
func (r *recipeFile) finish(sources func(io.Writer) error) (*Recipe, error) {
	if err := r.endFrame(); err != nil {
		return nil, err
	}
	skeleton := r.n
	r.z.Reset(r.out)
	if err := sources(r.z); err != nil {
		return nil, fmt.Errorf("write recipe: %w", err)
	}
	if err := r.endFrame(); err != nil {
		return nil, err
	}
	return &Recipe{Skeleton: skeleton, Sources: r.n - skeleton, Sum: r.sum}, nil
}

// endFrame brings what was written so far into the file.
func (r *recipeFile) endFrame() error {
	err := r.z.Close()
	if err == nil {
		err = r.out.Flush()
	}
	if err != nil {
		return fmt.Errorf("write recipe: %w", err)
	}
	return nil
}

func (r *recipeFile) close() error {
	r.z.Close() // what matters was flushed by finish
	return r.f.Close()
}

// ErrNoRecipe is the error for the tar of a layer that was stored without a recipe.
var ErrNoRecipe = errors.New("the layer was stored without what its tar is rebuilt by: remove the image and pull it again")

// WriteTar writes the tar that a layer was made from, bit for bit. A layer that is not in
// the store gives fs.ErrNotExist. What comes out is verified: an error at the end says that
// it is not the tar.
func (s *Store) WriteTar(ctx context.Context, chain digest.Digest, w io.Writer) error {
	l, err := s.Layer(chain)
	if err != nil {
		return err
	}
	if err := s.dir.writeTar(ctx, l, w); err != nil {
		return fmt.Errorf("tar of layer %s: %w", chain, err)
	}
	return nil
}

// writeTar writes a layer's tar and verifies it.
func (d Dir) writeTar(ctx context.Context, l *Layer, w io.Writer) error {
	hash := sha256.New()
	if err := d.rebuildTar(ctx, l, io.MultiWriter(hash, w)); err != nil {
		return err
	}
	if got := digest.NewDigest(digest.SHA256, hash); got != l.DiffID {
		return fmt.Errorf("rebuilt, its digest is %s, not %s: vic check --deep tells what is damaged", got, l.DiffID)
	}
	return nil
}

// rebuildTar writes what the disk and the recipe make of a layer's tar.
func (d Dir) rebuildTar(ctx context.Context, l *Layer, w io.Writer) error {
	w = &contextWriter{ctx, w}
	if n, ok := emptyDiffIDs[l.DiffID]; ok && l.Recipe == nil {
		_, err := w.Write(make([]byte, n))
		return err
	}
	if l.Recipe == nil {
		return ErrNoRecipe
	}
	disk, err := d.openDisk(cmp.Or(l.In, l.Disk))
	if err != nil {
		return err
	}
	defer disk.Close()
	f, err := os.Open(d.recipe(l.Chain))
	if err != nil {
		return err
	}
	defer f.Close()
	skeleton, err := newFrame(f, 0, l.Recipe.Skeleton)
	if err != nil {
		return err
	}
	defer skeleton.Close()
	sources, err := newFrame(f, l.Recipe.Skeleton, l.Recipe.Sources)
	if err != nil {
		return err
	}
	defer sources.Close()
	return diskfs.RebuildTar(w, skeleton, sources, disk, disk.Capacity())
}

// Skeleton opens the part of a layer's recipe that diskfs.FS.ReadOutline reads. It stays
// readable if the layer is removed meanwhile. A layer without a recipe gives ErrNoRecipe.
func (s *Store) Skeleton(l *Layer) (io.ReadCloser, error) {
	if l.Recipe == nil {
		return nil, fmt.Errorf("layer %s: %w", l.Chain, ErrNoRecipe)
	}
	f, err := os.Open(s.dir.recipe(l.Chain))
	if err != nil {
		return nil, err
	}
	z, err := newFrame(f, 0, l.Recipe.Skeleton)
	if err != nil {
		f.Close()
		return nil, err
	}
	return &skeletonReader{z, f}, nil
}

type skeletonReader struct {
	*zstd.Decoder
	f *os.File
}

func (r *skeletonReader) Close() error {
	r.Decoder.Close()
	return r.f.Close()
}

func newFrame(f *os.File, off, n int64) (*zstd.Decoder, error) {
	return zstd.NewReader(io.NewSectionReader(f, off, n), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(1<<20))
}

// A contextWriter fails when its context has ended.
type contextWriter struct {
	ctx context.Context
	w   io.Writer
}

func (w *contextWriter) Write(p []byte) (int, error) {
	if err := w.ctx.Err(); err != nil {
		return 0, err
	}
	return w.w.Write(p)
}

// A rebuilt is a Source of the blobs of one layer that the store can rebuild: its tar, not
// compressed.
type rebuilt struct {
	Source
	dir   Dir
	layer *Layer
}

// Blob returns the tar, whatever blob is asked for. Its digest is for the pull to verify,
// as that of every tar.
func (r rebuilt) Blob(ctx context.Context, _ ocispec.Descriptor) (io.ReadCloser, error) {
	return pipe(ctx, func(ctx context.Context, w io.Writer) error { return r.dir.rebuildTar(ctx, r.layer, w) }), nil
}

// pipe returns what write writes, while it does. Closing it early ends the context of write.
func pipe(ctx context.Context, write func(context.Context, io.Writer) error) io.ReadCloser {
	in, out := io.Pipe()
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		out.CloseWithError(write(ctx, out))
	}()
	return &pipeReader{in, cancel, done}
}

type pipeReader struct {
	*io.PipeReader
	cancel context.CancelFunc
	done   chan struct{}
}

// Close waits for write.
func (b *pipeReader) Close() error {
	b.cancel()
	err := b.PipeReader.Close()
	<-b.done
	return err
}

// chains are the layers that must stay for the tar of l to be rebuilt.
func (l *Layer) chains() []digest.Digest {
	if l.In != "" {
		return []digest.Digest{l.Chain, l.In}
	}
	return []digest.Digest{l.Chain}
}

// donors finds layers of the store that were made from the same tars as some that are
// missing, over other parents. If there is no other, one that is to be made again may be its
// own: what is damaged of it need not be what its tar is made of.
func (d Dir) donors(missing []planLayer) (map[digest.Digest]*Layer, error) {
	wanted, again := make(map[digest.Digest]bool), make(map[digest.Digest]bool)
	for _, l := range missing {
		if _, empty := emptyDiffIDs[l.diffID]; !empty {
			wanted[l.diffID] = true
		}
		again[l.chain] = l.again
	}
	if len(wanted) == 0 {
		return nil, nil
	}
	chains, err := d.chains()
	if err != nil {
		return nil, err
	}
	found := make(map[digest.Digest]*Layer)
	for _, c := range chains {
		l, err := d.readLayer(c)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil || !wanted[l.DiffID] || l.Recipe == nil || !d.isComplete(c) && (l.In == "" || !d.isComplete(l.In)) {
			continue
		}
		if other := found[l.DiffID]; other == nil || again[other.Chain] && !again[c] {
			found[l.DiffID] = l
		}
	}
	return found, nil
}
