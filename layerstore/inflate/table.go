package inflate

import "math/bits"

// Entries of the decoding tables, from the lowest bit:
//
//	 0..7   bits to drop: the code's and the extra bits after it
//	 8..11  the code's bits alone; of a link, the index bits of the table it leads to
//	12..15  flags
//	16..31  literal, or base of the length or distance, or where the linked table begins
const (
	dropMask  = 1<<6 - 1 // no more than 28 bits are ever dropped
	codeShift = 8
	codeMask  = 15
	isBad     = 1 << 12 // no symbol has this code
	isLink    = 1 << 13 // look further
	isEnd     = 1 << 14 // of the block
	isLiteral = 1 << 15
	special   = isBad | isLink | isEnd
	valueAt   = 16
)

const (
	maxCodeLen = 15 // RFC 1951, section 3.2.7

	litBits  = 11 // index bits of a table, links not counted
	distBits = 9
	preBits  = 7

	// Tables with links for so many symbols and index bits have up to 2342 and 594 entries
	// (zlib's examples/enough.c). They are powers of two, so that a mask bounds an index.
	litSize  = 4096
	distSize = 1024
	preSize  = 1 << preBits

	numLit     = 288
	numDist    = 32
	numPre     = 19
	maxLit     = 286 // symbols that may be used
	maxDist    = 30
	endOfBlock = 256
)

// workspace is what building tables needs.
type workspace struct {
	lens   [numLit + numDist]byte
	sorted [numLit]uint16
	pre    [preSize]uint32
}

// The symbols' entries, without the bits of their codes.
var litEntries, distEntries, preEntries = entries()

func entries() (lit [numLit]uint32, dist [numDist]uint32, pre [numPre]uint32) {
	for s := range endOfBlock {
		lit[s] = isLiteral | uint32(s)<<valueAt
	}
	lit[endOfBlock] = isEnd
	base := uint32(3)
	for s := 257; s < 285; s++ { // RFC 1951, section 3.2.5
		extra := uint32(max(0, (s-261)/4))
		lit[s] = base<<valueAt | extra
		base += 1 << extra
	}
	lit[285] = 258 << valueAt
	base = 1
	for s := range maxDist {
		extra := uint32(max(0, s/2-1))
		dist[s] = base<<valueAt | extra
		base += 1 << extra
	}
	for s := range pre {
		pre[s] = uint32(s) << valueAt
	}
	lit[286], lit[287], dist[30], dist[31] = isBad, isBad, isBad, isBad
	return lit, dist, pre
}

// build makes the decoding table of a Huffman code, given the code lengths of its symbols
// (RFC 1951, section 3.2.2), and reports whether there is such a code. It must be complete,
// or have a single symbol whose code is one bit, or none.
//
// Codes come with their first bit lowest, so codes are counted up with their bits reversed.
func (w *workspace) build(table, entries []uint32, lens []byte, index uint) bool {
	var count [maxCodeLen + 1]int
	for _, l := range lens {
		count[l]++
	}
	var start [maxCodeLen + 2]int
	left, longest := 1, 0
	for l := 1; l <= maxCodeLen; l++ {
		if left = left<<1 - count[l]; left < 0 {
			return false
		}
		if count[l] > 0 {
			longest = l
		}
		start[l+1] = start[l] + count[l]
	}
	if left > 0 {
		if longest > 1 {
			return false
		}
		for i := range 1 << index {
			table[i] = isBad
		}
	}
	symbols := w.sorted[:start[maxCodeLen+1]]
	for s, l := range lens {
		if l > 0 {
			symbols[start[l]] = uint16(s)
			start[l]++
		}
	}
	code := uint32(0) // of the next symbol, reversed
	l := uint(1)
	for ; l <= index; l++ {
		n := count[l]
		for _, s := range symbols[:n] {
			table[code] = entries[s] + uint32(l) + uint32(l)<<codeShift
			code = nextCode(code, l)
		}
		symbols = symbols[n:]
		if l < index && left == 0 {
			copy(table[1<<l:1<<(l+1)], table[:1<<l])
		}
	}
	if left > 0 && longest == 1 { // one code, 0; it stands in table[0] so far
		for i := 0; i < 1<<index; i += 2 {
			table[i] = table[0]
		}
	}
	// Longer codes share a table if their first index bits are the same.
	end := uint32(1) << index
	prefix, first, sub := ^uint32(0), uint32(0), uint(0)
	for ; len(symbols) > 0; l++ {
		for n := count[l]; n > 0; n-- {
			if p := code & (1<<index - 1); p != prefix {
				prefix, first, sub = p, end, l-index
				for used := n; used < 1<<sub; {
					sub++
					used = used<<1 + count[index+sub]
				}
				end += 1 << sub
				table[p] = isLink | uint32(index) | uint32(sub)<<codeShift | first<<valueAt
			}
			k := uint32(l - index)
			e := entries[symbols[0]] + k + k<<codeShift
			for i := code >> index; i < 1<<sub; i += 1 << k {
				table[first+i] = e
			}
			symbols = symbols[1:]
			code = nextCode(code, l)
		}
	}
	return true
}

// nextCode adds one to a code of l bits, reversed. After the last one it returns that.
func nextCode(code uint32, l uint) uint32 {
	zeros := code ^ (1<<l - 1)
	if zeros == 0 {
		return code
	}
	bit := uint32(1) << (bits.Len32(zeros) - 1)
	return code&(bit-1) | bit
}

// fixedTables builds those of RFC 1951, section 3.2.6.
func (z *Reader) fixedTables() {
	lens := &z.work.lens
	for s := range numLit {
		switch {
		case s < 144:
			lens[s] = 8
		case s < 256:
			lens[s] = 9
		case s < 280:
			lens[s] = 7
		default:
			lens[s] = 8
		}
	}
	z.work.build(z.lit[:], litEntries[:], lens[:numLit], litBits)
	for s := range numDist {
		lens[s] = 5
	}
	z.work.build(z.dists[:], distEntries[:], lens[:numDist], distBits)
	z.fixed = true
}

// preOrder is the order in which the lengths of code length codes come.
var preOrder = [numPre]byte{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// dynamicTables reads the codes of a block (RFC 1951, section 3.2.7).
func (z *Reader) dynamicTables() error {
	if err := z.need(14); err != nil {
		return err
	}
	nlit, ndist, npre := int(z.take(5))+257, int(z.take(5))+1, int(z.take(4))+4
	if nlit > maxLit || ndist > maxDist {
		return z.corrupt("%d literal and %d distance codes: too many", nlit, ndist)
	}
	w := &z.work
	z.fixed = false
	clear(w.lens[:numPre])
	for _, s := range preOrder[:npre] {
		if err := z.need(3); err != nil {
			return err
		}
		w.lens[s] = byte(z.take(3))
	}
	if !w.build(w.pre[:], preEntries[:], w.lens[:numPre], preBits) {
		return z.corrupt("impossible code length codes")
	}
	lens := w.lens[:nlit+ndist]
	for i := 0; i < len(lens); {
		if z.nbits < preBits+7 && z.end-z.pos >= 8 {
			for z.nbits < 56 {
				z.addByte()
			}
		}
		e := w.pre[z.bits&(preSize-1)]
		for z.nbits < uint(e&dropMask) || e&isBad != 0 && z.nbits < preBits { // the input has less than a code
			if err := z.need(z.nbits + 1); err != nil {
				return err
			}
			e = w.pre[z.bits&(preSize-1)]
		}
		if e&isBad != 0 {
			return z.corrupt("code length of no code")
		}
		z.take(uint(e & dropMask))
		sym := byte(e >> valueAt)
		if sym < 16 {
			lens[i] = sym
			i++
			continue
		}
		var l byte
		n, extra := 3, uint(2)
		switch sym {
		case 16:
			if i == 0 {
				return z.corrupt("repetition of no code length")
			}
			l = lens[i-1]
		case 17:
			extra = 3
		case 18:
			n, extra = 11, 7
		}
		if err := z.need(extra); err != nil {
			return err
		}
		if n += int(z.take(extra)); n > len(lens)-i {
			return z.corrupt("more code lengths than codes")
		}
		for range n {
			lens[i] = l
			i++
		}
	}
	if !w.build(z.lit[:], litEntries[:], lens[:nlit], litBits) {
		return z.corrupt("impossible literal codes")
	}
	if !w.build(z.dists[:], distEntries[:], lens[nlit:], distBits) {
		return z.corrupt("impossible distance codes")
	}
	return nil
}
