package inflate

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"encoding/binary"
	"hash/crc32"
	"io"
	"math/bits"
	"math/rand/v2"
	"testing"
	"time"

	kflate "github.com/klauspost/compress/flate"
	kgzip "github.com/klauspost/compress/gzip"
)

// plainHeader is that of a member without a name.
var plainHeader = []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255}

// limit is how much the peers are let decompress.
const limit = 1 << 20

// holdDeflate holds the decoder against two others on a DEFLATE stream that may be
// damaged: what they take it takes, with the same content, and it takes nothing else. It
// returns whether they do.
func holdDeflate(t *testing.T, raw []byte, size int) bool {
	t.Helper()
	in := bytes.NewReader(raw) // an io.ByteReader, so that no more is read than needed
	want, wantErr := io.ReadAll(io.LimitReader(flate.NewReader(in), limit))
	if len(want) == limit {
		return true
	}
	other, err := io.ReadAll(io.LimitReader(kflate.NewReader(bytes.NewReader(raw)), limit))
	if (err == nil) != (wantErr == nil) || !bytes.Equal(other, want) && err == nil {
		t.Skip("the others do not agree")
	}
	z := append(bytes.Clone(plainHeader), raw[:len(raw)-in.Len()]...)
	z = binary.LittleEndian.AppendUint32(z, crc32.ChecksumIEEE(want))
	z = binary.LittleEndian.AppendUint32(z, uint32(len(want)))
	got, err := readAll(bytes.NewReader(z), size)
	if (err == nil) != (wantErr == nil) {
		t.Fatalf("error %v, compress/flate has %v", err, wantErr)
	}
	if err == nil && !bytes.Equal(got, want) {
		t.Fatalf("%d bytes, compress/flate has %d others", len(got), len(want))
	}
	return err == nil
}

func FuzzDeflate(f *testing.F) {
	for _, data := range samples(f) {
		for _, level := range []int{0, 1, 6, flate.HuffmanOnly} {
			var b bytes.Buffer
			w, err := flate.NewWriter(&b, level)
			if err != nil {
				f.Fatal(err)
			}
			w.Write(data[:min(len(data), 3000)])
			w.Close()
			f.Add(b.Bytes(), uint16(700))
		}
	}
	for seed := range uint64(20) {
		g := newGenerator(seed)
		g.block(50, true)
		f.Add(g.w.bytes(), uint16(99))
	}
	f.Fuzz(func(t *testing.T, raw []byte, size uint16) { holdDeflate(t, raw, int(size)+1) })
}

func FuzzGzip(f *testing.F) {
	for _, data := range samples(f) {
		f.Add(compress(f, data[:min(len(data), 1000)], 6))
	}
	f.Fuzz(func(t *testing.T, z []byte) {
		var want []byte
		r, wantErr := gzip.NewReader(bytes.NewReader(z))
		if wantErr == nil {
			want, wantErr = io.ReadAll(io.LimitReader(r, limit))
		}
		if len(want) == limit {
			return
		}
		if r, err := kgzip.NewReader(bytes.NewReader(z)); err == nil {
			if _, err = io.Copy(io.Discard, r); (err == nil) != (wantErr == nil) {
				t.Skip("the others do not agree")
			}
		}
		got, err := readAll(bytes.NewReader(z), 5000)
		if (err == nil) != (wantErr == nil) || err == nil && !bytes.Equal(got, want) {
			t.Fatalf("%d bytes and error %v, compress/gzip has %d and %v", len(got), err, len(want), wantErr)
		}
	})
}

// TestGenerated: blocks as no compressor makes them, with codes of all lengths for all
// symbols.
func TestGenerated(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	for i := range uint64(300) {
		g := newGenerator(seed + i)
		for range g.rng.IntN(4) {
			g.block(g.rng.IntN(3000), false)
		}
		g.block(g.rng.IntN(3000), true)
		if !holdDeflate(t, g.w.bytes(), 1+g.rng.IntN(10000)) {
			t.Fatalf("seed %d: no decoder takes what was generated", seed+i)
		}
	}
}

// A generator writes blocks of random codes and symbols.
type generator struct {
	rng *rand.Rand
	w   bitWriter
	n   int // bytes that the blocks so far decode to
}

func newGenerator(seed uint64) *generator {
	return &generator{rng: rand.New(rand.NewPCG(seed, 3))}
}

// code returns code lengths for some of n symbols, those of must included: a random
// complete code of at most 15 bits.
func (g *generator) code(n int, must ...int) []byte {
	used := map[int]bool{}
	for _, s := range must {
		used[s] = true
	}
	for range g.rng.IntN(n) {
		used[g.rng.IntN(n)] = true
	}
	for len(used) < 2 {
		used[g.rng.IntN(n)] = true
	}
	leaves := []byte{0}
	deep := g.rng.IntN(2) == 0 // always split the newest: the longest codes there can be
	for len(leaves) < len(used) {
		i := g.rng.IntN(len(leaves))
		if deep && leaves[len(leaves)-1] < maxCodeLen {
			i = len(leaves) - 1
		}
		if leaves[i] < maxCodeLen {
			leaves[i]++
			leaves = append(leaves, leaves[i])
		}
	}
	lens := make([]byte, n)
	for s := range n {
		if used[s] {
			i := g.rng.IntN(len(leaves))
			lens[s] = leaves[i]
			leaves[i] = leaves[len(leaves)-1]
			leaves = leaves[:len(leaves)-1]
		}
	}
	return lens
}

// codes are the codes for lengths, by counting (RFC 1951, section 3.2.2).
func codes(lens []byte) []uint32 {
	list := make([]uint32, len(lens))
	code := uint32(0)
	for l := byte(1); l <= maxCodeLen; l++ {
		code <<= 1
		for s := range lens {
			if lens[s] == l {
				list[s] = bits.Reverse32(code) >> (32 - l)
				code++
			}
		}
	}
	return list
}

func (g *generator) block(symbols int, final bool) {
	lit, dist := g.code(maxLit, endOfBlock), g.code(maxDist)
	w := &g.w
	if final {
		w.put(1, 1)
	} else {
		w.put(0, 1)
	}
	w.put(2, 2)
	w.put(maxLit-257, 5)
	w.put(maxDist-1, 5)
	w.put(numPre-4, 4)
	pre := make([]byte, numPre)
	for s := range pre { // 13 codes of 4 bits and 6 of 5 are complete
		if pre[s] = 4; s >= 13 {
			pre[s] = 5
		}
	}
	for _, s := range preOrder {
		w.put(uint32(pre[s]), 3)
	}
	preCodes := codes(pre)
	for _, l := range append(bytes.Clone(lit), dist...) {
		w.put(preCodes[l], uint(pre[l]))
	}
	litCodes, distCodes := codes(lit), codes(dist)
	for range symbols {
		s := g.rng.IntN(maxLit)
		if lit[s] == 0 || s == endOfBlock {
			continue
		}
		e := litEntries[s]
		if e&isLiteral != 0 {
			w.put(litCodes[s], uint(lit[s]))
			g.n++
			continue
		}
		d := g.rng.IntN(maxDist)
		de := distEntries[d]
		extra := g.rng.Uint32() & (1<<(de&dropMask) - 1)
		if far := int(de>>valueAt) + int(extra); dist[d] == 0 || far > g.n {
			continue
		}
		w.put(litCodes[s], uint(lit[s]))
		lx := g.rng.Uint32() & (1<<(e&dropMask) - 1)
		w.put(lx, uint(e&dropMask))
		w.put(distCodes[d], uint(dist[d]))
		w.put(extra, uint(de&dropMask))
		g.n += int(e>>valueAt) + int(lx)
	}
	w.put(litCodes[endOfBlock], uint(lit[endOfBlock]))
}

// A bitWriter packs bits, the lowest first.
type bitWriter struct {
	b    []byte
	acc  uint64
	have uint
}

func (w *bitWriter) put(v uint32, n uint) {
	w.acc |= uint64(v) << w.have
	for w.have += n; w.have >= 8; w.have -= 8 {
		w.b = append(w.b, byte(w.acc))
		w.acc >>= 8
	}
}

func (w *bitWriter) bytes() []byte { return append(bytes.Clone(w.b), byte(w.acc)) }
