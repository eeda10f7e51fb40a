package layerstore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"vic/diskfs"
)

func TestDecompress(t *testing.T) {
	a, b := randomBytes(1, 100_000), bytes.Repeat([]byte("text "), 50_000)
	skippable := []byte{0x53, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 'x', 'y', 'z'}
	for _, test := range []struct {
		name string
		blob []byte
		want []byte
	}{
		{"plain", a, a},
		{"empty", nil, nil},
		{"one byte", []byte{0x1f}, []byte{0x1f}},
		{"gzip", packGzip.pack(t, a), a},
		{"gzip of nothing", packGzip.pack(t, nil), nil},
		{"gzip in members", slices.Concat(packGzip.pack(t, a), packGzip.pack(t, nil), packGzip.pack(t, b)), slices.Concat(a, b)},
		{"zstd", packZstd.pack(t, b), b},
		{"zstd in frames", slices.Concat(packZstd.pack(t, b), packZstd.pack(t, a)), slices.Concat(b, a)},
		{"zstd after a skippable frame", slices.Concat(skippable, packZstd.pack(t, a), skippable, packZstd.pack(t, b)), slices.Concat(a, b)},
		{"gzip(1)", pipeThrough(t, b, "gzip", "-9"), b},
		{"zstd(1) with a window of 128 MiB", pipeThrough(t, b, "zstd", "--ultra", "-22", "--long=27"), b},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.blob == nil && test.want != nil {
				t.Skip("its program is not installed")
			}
			for name, r := range map[string]io.Reader{"whole": bytes.NewReader(test.blob), "in pieces": iotest.HalfReader(bytes.NewReader(test.blob))} {
				z, err := decompress(r)
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				got, err := io.ReadAll(z)
				if err != nil || !bytes.Equal(got, test.want) {
					t.Errorf("%s: %d bytes, %v; want %d", name, len(got), err, len(test.want))
				}
				if err := z.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// pipeThrough returns what a program writes when it reads b, nil without it.
func pipeThrough(t *testing.T, b []byte, name string, args ...string) []byte {
	if _, err := exec.LookPath(name); err != nil {
		return nil
	}
	cmd := exec.Command(name, append(args, "-c")...)
	cmd.Stdin = bytes.NewReader(b)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return out
}

func FuzzDecompress(f *testing.F) {
	for _, p := range []packing{packGzip, packZstd, packPlain} {
		f.Add(p.pack(f, []byte("some text, some text, some text")))
	}
	f.Fuzz(func(t *testing.T, blob []byte) {
		var fetched atomic.Int64
		z, err := decompress(&countReader{bytes.NewReader(blob), &fetched})
		if err != nil {
			return
		}
		defer z.Close()
		const most = 1 << 20
		n, _ := io.Copy(io.Discard, &tarGuard{r: z, fetched: &fetched, max: most, ratio: 500})
		if n > most+64<<10 {
			t.Fatalf("%d bytes got past the limit of %d", n, most)
		}
	})
}

// A tar that is much longer than its blob is refused, once it is long.
func TestBomb(t *testing.T) {
	bomb := packZstd.pack(t, make([]byte, freeRatio+1<<20))
	for _, test := range []struct {
		name string
		lim  Limits
		want string
	}{
		{"ratio", Limits{Ratio: 100}, "100 times longer"},
		{"length", Limits{TarSize: 1 << 20}, "longer than 1048576"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var fetched atomic.Int64
			src := &memImage{blobs: map[digest.Digest][]byte{"bomb": bomb}, fetched: make(map[digest.Digest]int)}
			u := unpacking{
				src: src, lim: test.lim.orDefault(64 << 30), fetched: &fetched,
				layer: planLayer{blob: ocispec.Descriptor{Digest: "bomb", Size: int64(len(bomb))}},
			}
			// Zeros are an empty tar; what comes after is only hashed.
			_, err := u.run(t.Context(), io.Discard, io.Discard)
			var se *sourceError
			if !errors.As(err, &se) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want a *sourceError with %q", err, test.want)
			}
		})
	}
}

// An error of the datastore is nobody's but the datastore's.
func TestUnpackWriteError(t *testing.T) {
	full := errors.New("full")
	src := webImage(t)
	p, err := makePlan(src, Limits{}.orDefault(testCapacity))
	if err != nil {
		t.Fatal(err)
	}
	var fetched atomic.Int64
	u := unpacking{src: src, layer: p.layers[0], lim: Limits{}.orDefault(testCapacity), fetched: &fetched}
	_, err = u.run(t.Context(), writerFunc(func([]byte) (int, error) { return 0, full }), io.Discard)
	var se *sourceError
	if !errors.Is(err, full) || errors.As(err, &se) {
		t.Errorf("error %v, a %T", err, err)
	}
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestPump(t *testing.T) {
	broken := errors.New("broken")
	for _, n := range []int{0, 1, pumpChunk - 1, pumpChunk, pumpChunk + 1, 7*pumpChunk + 3} {
		data := randomBytes(uint64(n), n)
		for _, end := range []error{io.EOF, broken, io.ErrUnexpectedEOF} {
			h := sha256.New()
			p := newPump(io.MultiReader(iotest.HalfReader(bytes.NewReader(data)), iotest.ErrReader(end)), h)
			var got bytes.Buffer
			_, err := io.Copy(&got, iotest.OneByteReader(io.LimitReader(p, 10)))
			if err == nil {
				_, err = io.Copy(&got, p)
			}
			if end == io.EOF {
				end = nil
			}
			if err != end || !bytes.Equal(got.Bytes(), data) {
				t.Errorf("%d bytes: got %d, %v, want %v", n, got.Len(), err, end)
			}
			if sum := sha256.Sum256(data); !bytes.Equal(h.Sum(nil), sum[:]) {
				t.Errorf("%d bytes: hash differs", n)
			}
			p.close()
		}
	}
	p := newPump(iotest.ErrReader(nil), nil) // (0, nil) for ever
	if _, err := p.Read(make([]byte, 1)); err != io.ErrNoProgress {
		t.Errorf("no progress: %v", err)
	}
	p.close()
	p = newPump(zeroReader{}, sha256.New())
	if _, err := io.CopyN(io.Discard, p, 3*pumpChunk+1); err != nil {
		t.Error(err)
	}
	p.close()
	for range 2 * pumpChunks {
		if _, err := p.Read(make([]byte, pumpChunk)); err != nil {
			if err != io.ErrClosedPipe {
				t.Errorf("closed pump: %v", err)
			}
			return
		}
	}
	t.Error("closed pump reads on")
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// Slots go to those who came first, and those who leave the queue are not missed.
func TestSlots(t *testing.T) {
	s := newSlots(2)
	var tickets []*ticket
	for range 6 {
		tickets = append(tickets, s.take())
	}
	holds := func(want ...int) {
		t.Helper()
		for i, k := range tickets {
			got := false
			select {
			case <-k.ready:
				got = true
			default:
			}
			if got != slices.Contains(want, i) {
				t.Errorf("ticket %d is a slot: %v", i, got)
			}
		}
	}
	holds(0, 1)
	tickets[2].give()
	holds(0, 1)
	tickets[0].give()
	holds(0, 1, 3)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := tickets[4].wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("wait: %v", err)
	}
	tickets[4].give()
	tickets[1].give()
	tickets[3].give()
	holds(0, 1, 3, 5)
	if err := tickets[5].wait(ctx); err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// BenchmarkUnpack is the first stage alone: fetch from memory, decompress, verify
// and parse, of source code as it is.
func BenchmarkUnpack(b *testing.B) {
	tar := benchTar(b, "src")
	for name, p := range map[string]packing{"gzip": packGzip, "zstd": packZstd, "plain": packPlain} {
		b.Run(name, func(b *testing.B) {
			m := makeImage(b, memLayer{tar: tar, packing: p})
			plan, err := makePlan(m, Limits{}.orDefault(64<<30))
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(len(tar)))
			b.ReportAllocs()
			for b.Loop() {
				var fetched atomic.Int64
				u := unpacking{src: m, layer: plan.layers[0], lim: Limits{}.orDefault(64 << 30), fetched: &fetched}
				if _, err := u.run(b.Context(), io.Discard, io.Discard); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkReadTar is the part of BenchmarkUnpack that no decompressor and no hash
// has a part in.
func BenchmarkReadTar(b *testing.B) {
	tar := benchTar(b, "src")
	b.SetBytes(int64(len(tar)))
	for b.Loop() {
		if _, err := diskfs.ReadTar(bytes.NewReader(tar), io.Discard, nil, diskfs.Limits{}); err != nil {
			b.Fatal(err)
		}
	}
}
