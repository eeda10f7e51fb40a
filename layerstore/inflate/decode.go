package inflate

import "unsafe"

const (
	// inMargin is what one turn of the fast loop may load: it refills twice, which takes up
	// to 7 bytes each, and each load is of 8.
	inMargin = 2 * 8
	// outMargin is what one turn may write: three literals, a match of 258, and the words
	// past its end.
	outMargin = 3 + 258 + 32
)

// decode decodes the symbols of a block into buf[out:], whose matches may refer to
// buf[low:]. It returns where it ended: at the block's end, or the buffer's.
func (z *Reader) decode(buf []byte, out, low int) (int, error) {
	for {
		if z.length > 0 {
			if out = z.copyMatch(buf, out); out == len(buf) {
				return out, nil
			}
		}
		if z.end-z.pos >= inMargin && len(buf)-out >= outMargin {
			var err error
			if out, err = z.fast(buf, out, low); err != nil || z.state != inCodes {
				return out, err
			}
			continue
		}
		if z.end-z.pos < inMargin && z.rerr == nil {
			if err := z.fill(); err == nil {
				continue
			}
		}
		if out == len(buf) {
			return out, nil
		}
		var err error
		if out, err = z.slow(buf, out, low); err != nil || z.state != inCodes {
			return out, err
		}
	}
}

// copyMatch copies what buf has room for of the match that is under way.
func (z *Reader) copyMatch(buf []byte, out int) int {
	n := min(z.length, len(buf)-out)
	z.length -= n
	for ; n > 0; n-- {
		buf[out] = buf[out-z.dist]
		out++
	}
	return out
}

// symbol looks up the next code of a table with that many index bits, and drops it with
// its extra bits, which it returns added to the value.
func (z *Reader) symbol(table []uint32, index uint) (e uint32, value int, err error) {
	for {
		e = table[z.bits&(1<<index-1)]
		have := z.nbits
		b := z.bits
		if e&isLink != 0 {
			if have >= index {
				have -= index
				b >>= index
				sub := e >> codeShift & codeMask
				e = table[uint64(e>>valueAt)+b&(1<<sub-1)]
			} else {
				have = 0
			}
		}
		if drop := uint(e & dropMask); e&(isLink|isBad) == 0 && drop <= have {
			code := uint(e >> codeShift & codeMask)
			value = int(e>>valueAt) + int(b&(1<<drop-1)>>code)
			z.bits, z.nbits = b>>drop, have-drop
			return e, value, nil
		}
		if e&isBad != 0 && z.nbits >= maxCodeLen {
			return 0, 0, z.corrupt("code of no symbol")
		}
		if err := z.need(z.nbits + 1); err != nil {
			return 0, 0, err
		}
	}
}

// slow decodes one symbol, reading no byte of the input that is not needed.
func (z *Reader) slow(buf []byte, out, low int) (int, error) {
	z.bits &= 1<<z.nbits - 1
	e, v, err := z.symbol(z.lit[:], litBits)
	switch {
	case err != nil:
		return out, err
	case e&isLiteral != 0:
		buf[out] = byte(v)
		return out + 1, nil
	case e&isEnd != 0:
		z.state = atBlock
		return out, nil
	}
	length := v
	if _, v, err = z.symbol(z.dists[:], distBits); err != nil {
		return out, err
	}
	if v > out-low {
		return out, z.corrupt("distance %d, but there are %d bytes", v, out-low)
	}
	z.length, z.dist = length, v
	return out, nil
}

// fast decodes while there is room on both sides.
//
// A turn begins with the next symbol's entry, and at least 56 bits less what the entry will
// drop. Three literals take up to 15 bits each; what follows them is preceded by a refill.
func (z *Reader) fast(buf []byte, out, low int) (int, error) {
	in := unsafe.Pointer(unsafe.SliceData(z.in))
	dst := unsafe.Pointer(unsafe.SliceData(buf))
	lit, dists := &z.lit, &z.dists
	pos, inEnd := z.pos, z.end-inMargin
	outEnd := len(buf) - outMargin
	b, n := z.bits, z.nbits
	var e uint32
	var err error

	for pos <= inEnd && out <= outEnd {
		b |= *(*uint64)(unsafe.Add(in, pos)) << (n & 63)
		pos += int((63 - n) >> 3)
		n |= 56
		e = lit[b&(1<<litBits-1)]
		if e&isLiteral != 0 {
			b >>= e & dropMask
			n -= uint(e & dropMask)
			*(*byte)(unsafe.Add(dst, out)) = byte(e >> valueAt)
			out++
			e = lit[b&(1<<litBits-1)]
			if e&isLiteral != 0 {
				b >>= e & dropMask
				n -= uint(e & dropMask)
				*(*byte)(unsafe.Add(dst, out)) = byte(e >> valueAt)
				out++
				e = lit[b&(1<<litBits-1)]
				if e&isLiteral != 0 {
					b >>= e & dropMask
					n -= uint(e & dropMask)
					*(*byte)(unsafe.Add(dst, out)) = byte(e >> valueAt)
					out++
					continue
				}
			}
		}
		if e&special != 0 {
			if e&isLink != 0 {
				b >>= litBits
				n -= litBits
				e = lit[(uint64(e>>valueAt)+b&(1<<(e>>codeShift&codeMask)-1))&(litSize-1)]
			}
			if e&isLiteral != 0 {
				b >>= e & dropMask
				n -= uint(e & dropMask)
				*(*byte)(unsafe.Add(dst, out)) = byte(e >> valueAt)
				out++
				continue
			}
			if e&isEnd != 0 {
				b >>= e & dropMask
				n -= uint(e & dropMask)
				z.state = atBlock
				break
			}
			if e&isBad != 0 {
				err = z.corrupt("code of no symbol")
				break
			}
		}
		// Of 56 bits, two literals of up to 11 and this length, up to 20 with its extra
		// bits, leave 14: too few for a distance.
		length := int(e>>valueAt) + int(b&(1<<(e&dropMask)-1)>>(e>>codeShift&codeMask))
		b >>= e & dropMask
		n -= uint(e & dropMask)
		if n < maxCodeLen+13 {
			b |= *(*uint64)(unsafe.Add(in, pos)) << (n & 63)
			pos += int((63 - n) >> 3)
			n |= 56
		}
		e = dists[b&(1<<distBits-1)]
		if e&special != 0 {
			if e&isLink != 0 {
				b >>= distBits
				n -= distBits
				e = dists[(uint64(e>>valueAt)+b&(1<<(e>>codeShift&codeMask)-1))&(distSize-1)]
			}
			if e&isBad != 0 {
				err = z.corrupt("code of no symbol")
				break
			}
		}
		dist := int(e>>valueAt) + int(b&(1<<(e&dropMask)-1)>>(e>>codeShift&codeMask))
		b >>= e & dropMask
		n -= uint(e & dropMask)
		if dist > out-low {
			err = z.corrupt("distance %d, but there are %d bytes", dist, out-low)
			break
		}
		to := unsafe.Add(dst, out)
		from := unsafe.Add(to, -dist)
		out += length
		switch {
		case dist >= 8:
			*(*uint64)(to) = *(*uint64)(from)
			*(*uint64)(unsafe.Add(to, 8)) = *(*uint64)(unsafe.Add(from, 8))
			for k := 16; k < length; k += 16 {
				*(*uint64)(unsafe.Add(to, k)) = *(*uint64)(unsafe.Add(from, k))
				*(*uint64)(unsafe.Add(to, k+8)) = *(*uint64)(unsafe.Add(from, k+8))
			}
		case dist == 1:
			v := uint64(*(*byte)(from)) * 0x0101010101010101
			for k := 0; k < length; k += 8 {
				*(*uint64)(unsafe.Add(to, k)) = v
			}
		default:
			// Each word repeats the dist bytes before it, and more of them than it has advanced.
			for k := 0; k < length; k += dist {
				*(*uint64)(unsafe.Add(to, k)) = *(*uint64)(unsafe.Add(from, k))
			}
		}
	}
	z.pos, z.bits, z.nbits = pos, b, n
	return out, err
}
