package corpus

import (
	"archive/tar"
	"bufio"
	"context"
	"encoding/binary"
	"io"
	"math"
	"math/rand/v2"
	"slices"
)

// A layer is the files that one adds and those that it removes.
type layer struct {
	first, end int   // files [first, end)
	removed    []int // files of layers below, ascending
}

// plan deals out files and whiteouts.
func (s Shape) plan() []layer {
	rng := rand.New(rand.NewPCG(s.Seed, 0))
	layers := make([]layer, s.Layers)
	gone := make(map[int]bool)
	for i := range layers {
		l := &layers[i]
		l.first, l.end = i*s.Files/s.Layers, (i+1)*s.Files/s.Layers
		n := int(math.Round(s.Whiteouts * float64(l.end-l.first)))
		for n = min(n, l.first-len(gone)); len(l.removed) < n; {
			if f := rng.IntN(l.first); !gone[f] {
				gone[f] = true
				l.removed = append(l.removed, f)
			}
		}
		slices.Sort(l.removed)
	}
	return layers
}

// writeTar writes a layer: folders before what is in them, then the whiteouts.
func (s Shape) writeTar(ctx context.Context, out io.Writer, l layer) error {
	buffered := bufio.NewWriterSize(out, 256<<10)
	w := tar.NewWriter(buffered)
	made := make(map[string]bool)
	var data []byte
	for f := l.first; f < l.end; f++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		dirs, name := path(f)
		for _, dir := range dirs {
			if made[dir] {
				continue
			}
			made[dir] = true
			if err := w.WriteHeader(&tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: 0o755, ModTime: epoch}); err != nil {
				return err
			}
		}
		rng := rand.New(rand.NewPCG(s.Seed, uint64(f)+1))
		size := s.Sizes.draw(rng)
		if err := w.WriteHeader(&tar.Header{Name: dirs[1] + name, Typeflag: tar.TypeReg, Mode: 0o644, Size: size, ModTime: epoch}); err != nil {
			return err
		}
		for left := size; left > 0; left -= int64(len(data)) {
			data = s.fill(data[:0], int(min(left, 1<<20)), rng)
			if _, err := w.Write(data); err != nil {
				return err
			}
		}
	}
	for _, f := range l.removed {
		if err := w.WriteHeader(&tar.Header{Name: whiteout(f), Typeflag: tar.TypeReg, Mode: 0o644, ModTime: epoch}); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	return buffered.Flush()
}

// text is what compressors take away: they have seen it before.
const text = "It is the same line as the one before, and as the one after it.\n"

// piece is the length in bytes of what is either text or random.
const piece = 4 * len(text)

// fill appends n bytes, as compressible as the shape wants them.
func (s Shape) fill(p []byte, n int, rng *rand.Rand) []byte {
	for n > 0 {
		m := min(n, piece)
		n -= m
		if rng.Float64() < s.Compressible {
			for m > 0 {
				part := text[:min(m, len(text))]
				p, m = append(p, part...), m-len(part)
			}
			continue
		}
		for ; m >= 8; m -= 8 {
			p = binary.LittleEndian.AppendUint64(p, rng.Uint64())
		}
		for ; m > 0; m-- {
			p = append(p, byte(rng.Uint32()))
		}
	}
	return p
}
