package layerstore

import (
	"context"
	"fmt"
	"hash/crc32"
	"io"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum returns the CRC-32C of the first n bytes of r.
func checksum(ctx context.Context, r io.ReaderAt, n int64) (uint32, error) {
	var sum uint32
	buf := make([]byte, min(n, 1<<20))
	for off := int64(0); off < n; {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		m, err := r.ReadAt(buf[:min(n-off, int64(len(buf)))], off)
		if m == 0 {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return 0, fmt.Errorf("read at byte %d of %d: %w", off, n, err)
		}
		sum = crc32.Update(sum, castagnoli, buf[:m])
		off += int64(m)
	}
	return sum, nil
}

// joinSums returns the CRC-32C of a followed by b, given that of each and the length of b.
//
// A CRC is a polynomial over GF(2), modulo the generator: that of a is multiplied by x to
// the power of b's bits, and b's is added.
func joinSums(a, b uint32, n int64) uint32 {
	if n == sumPiece {
		return multiply(a, pieceShift) ^ b
	}
	return multiply(a, shift(n)) ^ b
}

var pieceShift = shift(sumPiece)

// shift returns x to the power of 8n.
func shift(n int64) uint32 {
	power, square := uint32(1<<31), uint32(1<<31>>8) // 1 and x^8
	for ; n > 0; n >>= 1 {
		if n&1 != 0 {
			power = multiply(power, square)
		}
		square = multiply(square, square)
	}
	return power
}

// multiply multiplies polynomials modulo the generator of CRC-32C, whose coefficients run
// from the highest bit down, as those of all CRCs here.
func multiply(a, b uint32) uint32 {
	var p uint32
	for m := uint32(1 << 31); m != 0; m >>= 1 {
		if a&m != 0 {
			p ^= b
		}
		if b&1 != 0 {
			b = b>>1 ^ crc32.Castagnoli
		} else {
			b >>= 1
		}
	}
	return p
}
