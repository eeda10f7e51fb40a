package bench

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"vic/diskfs"
	"vic/layerstore/inflate"
	"vic/vmdk"
)

// chunkSize is how many bytes of a tar go from stage to stage at once, as in a pull.
const chunkSize = 256 << 10

// A layerCost is what the stages of one layer took, and what went through them.
type layerCost struct {
	spent   [numStages]usage
	blob    int64 // bytes as fetched
	tar     int64 // bytes decompressed
	stored  int64 // bytes of the extent file
	entries int
}

// A pass takes an image through the stages, layer by layer, one step at a time.
type pass struct {
	dir   string // of the extent files
	clock *clock
	fs    *diskfs.FS
	links []vmdk.Link // of the disk that fs is on, top first
	files []*mediumFile
	high  int64
}

// onePass measures every stage of every layer of an image once. It leaves dir as it was.
func onePass(ctx context.Context, img *image, dir string) (costs []layerCost, err error) {
	work, err := os.MkdirTemp(dir, "stages-")
	if err != nil {
		return nil, err
	}
	p := &pass{dir: work, clock: new(clock)}
	defer func() { err = errors.Join(err, p.close(), os.RemoveAll(work)) }()
	if err := p.format(); err != nil {
		return nil, fmt.Errorf("make the empty disk: %w", err)
	}
	for i, l := range img.layers {
		p.clock = new(clock)
		cost, err := p.layer(ctx, img, l)
		if err != nil {
			return nil, fmt.Errorf("layer %d: %w", i, err)
		}
		cost.spent = p.clock.spent
		costs = append(costs, cost)
	}
	return costs, nil
}

func (p *pass) close() error {
	var errs []error
	for _, f := range p.files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// format makes the disk under all layers.
func (p *pass) format() error {
	fs, delta, err := diskfs.Format(diskfs.FormatOptions{})
	if err != nil {
		return err
	}
	p.fs = fs
	f, w, err := p.createExtent()
	if err != nil {
		return err
	}
	return p.finish(f, w, w, delta)
}

func (p *pass) createExtent() (*mediumFile, *vmdk.LayerWriter, error) {
	f, err := createMediumFile(filepath.Join(p.dir, strconv.Itoa(len(p.files))))
	if err != nil {
		return nil, nil, err
	}
	p.files = append(p.files, f)
	w, err := vmdk.NewLayerWriter(f, diskfs.DefaultCapacity)
	return f, w, err
}

// layer takes one layer through all stages.
func (p *pass) layer(ctx context.Context, img *image, l imageLayer) (cost layerCost, err error) {
	p.clock.to(StageFetch)
	if cost.blob, err = img.fetch(ctx, l); err != nil {
		return cost, err
	}
	p.clock.to(stageIdle)
	blob, err := os.Open(img.dir.Blob(l.blob.Digest))
	if err != nil {
		return cost, err
	}
	defer blob.Close()
	in := &tarSource{ctx: ctx, clock: p.clock, hash: sha256.New()}
	if err := in.open(&blobSource{clock: p.clock, r: blob, hash: sha256.New()}); err != nil {
		return cost, err
	}
	defer in.dec.close()
	f, w, err := p.createExtent()
	if err != nil {
		return cost, err
	}
	sink := &streamSink{clock: p.clock, w: w}
	buffered := bufio.NewWriterSize(sink, chunkSize)
	p.clock.to(StageTar)
	cs, err := diskfs.ReadTar(in, buffered, io.Discard, diskfs.Limits{Data: diskfs.DefaultCapacity})
	if err == nil {
		err = buffered.Flush()
	}
	if err != nil {
		return cost, err
	}
	if got := digest.NewDigest(digest.SHA256, in.hash); got != l.diffID {
		return cost, fmt.Errorf("diff ID is %s, but the config says %s", got, l.diffID)
	}
	cost.tar, cost.entries = in.n, cs.Len()
	if cs.Len() == 0 {
		p.clock.to(stageIdle)
		return cost, nil
	}
	p.clock.to(StageBind)
	delta, err := p.fs.Apply(cs, diskfs.ApplyOptions{Data: w, High: p.high})
	if err != nil {
		return cost, err
	}
	if err := p.finish(f, w, sink, delta); err != nil {
		return cost, err
	}
	p.clock.to(stageIdle)
	fi, err := f.Stat()
	cost.stored = fi.Size()
	return cost, err
}

// finish completes an extent file and puts its disk on the chain. meta writes to w.
func (p *pass) finish(f *mediumFile, w *vmdk.LayerWriter, meta io.Writer, delta *diskfs.Delta) error {
	if err := delta.WriteMeta(meta); err != nil {
		return err
	}
	for _, r := range delta.Dead {
		if err := w.Zero(r.Off, r.Len); err != nil {
			return err
		}
	}
	for _, r := range delta.Map {
		if err := w.Map(r.Stream, r.Disk, r.N); err != nil {
			return err
		}
	}
	p.clock.to(StageWrite)
	if err := delta.Fixed(w.WriteGrain); err != nil {
		return err
	}
	if err := w.Finish(); err != nil {
		return err
	}
	p.clock.to(StageSync)
	if err := f.Sync(); err != nil {
		return err
	}
	p.clock.to(StageBind)
	p.high = delta.High
	return p.push(f)
}

// push puts the disk of a finished extent file on top of the chain.
func (p *pass) push(f *mediumFile) error {
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	e, err := vmdk.OpenExtent(f.File, fi.Size())
	if err != nil {
		return err
	}
	name := filepath.Base(f.Name())
	desc := vmdk.NewDescriptor(name, diskfs.DefaultCapacity, vmdk.CIDFor(name))
	if len(p.links) > 0 {
		desc = p.links[0].Descriptor.Child(name, "below.vmdk", vmdk.CIDFor(name))
	}
	p.links = append([]vmdk.Link{{Descriptor: desc, Extents: []*vmdk.Extent{e}}}, p.links...)
	disk, err := vmdk.OpenDisk(p.links)
	if err != nil {
		return err
	}
	p.fs.Rebase(disk)
	return nil
}

// A blobSource reads a blob and hashes it, each on its own time.
type blobSource struct {
	clock *clock
	r     io.Reader
	hash  hash.Hash
}

func (b *blobSource) Read(p []byte) (int, error) {
	was := b.clock.to(stageIdle)
	n, err := b.r.Read(p)
	b.clock.to(StageBlobHash)
	b.hash.Write(p[:n])
	b.clock.to(was)
	return n, err
}

// A tarSource decompresses a blob and hashes the tar, each on its own time.
type tarSource struct {
	ctx   context.Context
	clock *clock
	dec   decompressor
	hash  hash.Hash
	buf   []byte // inflate.Window bytes, then room for a chunk
	copy  []byte // of the chunk
	rest  []byte // of copy, not read yet
	n     int64
	err   error // after rest
}

// A decompressor fills buf[at:], given that what it wrote before ends at buf[at].
type decompressor struct {
	next  func(buf []byte, at int) (int, error)
	close func()
}

// open finds out what the blob is compressed with. zstd's decoder is told to use one thread: a pull's uses
// several.
func (t *tarSource) open(blob io.Reader) error {
	was := t.clock.to(stageIdle)
	defer t.clock.to(was)
	t.buf, t.copy = make([]byte, inflate.Window+chunkSize), make([]byte, chunkSize)
	b := bufio.NewReaderSize(blob, 64<<10)
	magic, err := b.Peek(4)
	if err != nil && err != io.EOF {
		return err
	}
	t.dec = decompressor{func(buf []byte, at int) (int, error) { return readFull(b, buf[at:]) }, func() {}}
	switch {
	case len(magic) >= 2 && magic[0] == 0x1f && magic[1] == 0x8b:
		t.dec.next = inflate.NewReader(b).Next
	case len(magic) == 4 && string(magic) == "\x28\xb5\x2f\xfd":
		z, err := zstd.NewReader(b, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20))
		if err != nil {
			return err
		}
		t.dec = decompressor{func(buf []byte, at int) (int, error) { return readFull(z, buf[at:]) }, z.Close}
	}
	return nil
}

// readFull is io.ReadFull, but says io.EOF at the end.
func readFull(r io.Reader, p []byte) (int, error) {
	n, err := io.ReadFull(r, p)
	if err == io.ErrUnexpectedEOF {
		err = io.EOF
	}
	return n, err
}

func (t *tarSource) Read(p []byte) (int, error) {
	for len(t.rest) == 0 {
		if t.err != nil {
			return 0, t.err
		}
		if t.err = t.ctx.Err(); t.err == nil {
			t.fill()
		}
	}
	n := copy(p, t.rest)
	t.rest = t.rest[n:]
	return n, nil
}

func (t *tarSource) fill() {
	was := t.clock.to(StageInflate)
	var n int
	n, t.err = t.dec.next(t.buf, inflate.Window)
	chunk := t.buf[inflate.Window : inflate.Window+n]
	t.clock.to(StageTarHash)
	t.hash.Write(chunk)
	t.clock.to(StageCopy)
	t.rest = t.copy[:copy(t.copy, chunk)]
	t.clock.to(stageIdle)
	copy(t.buf, t.buf[n:n+inflate.Window]) // what the next chunk refers back to
	t.n += int64(n)
	t.clock.to(was)
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// A streamSink takes a checksum of what it writes, each on its own time.
type streamSink struct {
	clock *clock
	w     io.Writer
	sum   uint32
}

func (s *streamSink) Write(p []byte) (int, error) {
	was := s.clock.to(StageChecksum)
	s.sum = crc32.Update(s.sum, castagnoli, p)
	s.clock.to(StageWrite)
	n, err := s.w.Write(p)
	s.clock.to(was)
	return n, err
}
