// Package inflate decompresses gzip (RFC 1952), faster than the packages that are there.
// Decompression is most of what pulling an image costs, and nothing else of a layer can
// begin before it.
//
// What makes it fast, all known from libdeflate:
//
//   - 64 bits of input at a time: a refill is one load, and lasts for up to three literals
//     or for a length with its distance.
//   - One table look-up a symbol: an entry says what the symbol is, how many bits it took,
//     and how many of them are extra bits. Only codes longer than the table's index need a
//     second look-up.
//   - Matches are copied in words, past their end where the buffer has room.
//   - What is decoded goes straight into the caller's buffer, behind the 32 KiB before it,
//     which matches refer to.
//
// All this needs room at both ends: 8 bytes of input per refill, 258 bytes and a few words
// of output per match. Where there is less, a second loop decodes with a bound checked for
// each step. Both loops use the same tables.
//
//	r ─► [ in, 128 KiB ] ─► bits ─► symbols ─► [ 32 KiB before | p ... ]
//
// Input is hostile. The fast loop uses unsafe loads and stores; each is within bounds by
// the loop's condition, which the comments there account for, and distances are checked
// against what has been decoded. The package is fuzzed against compress/flate and
// klauspost/compress.
package inflate

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
)

// Window is how far back in bytes a match may refer (RFC 1951, section 2).
const Window = 32 << 10

// A FormatError reports input that is not gzip, or damaged.
type FormatError struct {
	Off int64 // in the input, roughly: where reading had come to
	Msg string
}

func (e *FormatError) Error() string { return fmt.Sprintf("gzip at byte %d: %s", e.Off, e.Msg) }

// inputSize is how much is read at once.
const inputSize = 128 << 10

// A Reader decompresses a gzip file: the concatenation of its members' contents. It is not
// for concurrent use.
type Reader struct {
	r    io.Reader
	in   []byte // [pos:end) is not decoded yet
	pos  int
	end  int
	read int64 // bytes of r that are in [0, end) or before
	rerr error // of r

	bits  uint64 // from the lowest; those above nbits may be there already
	nbits uint

	state  state
	final  bool // the block is the member's last
	stored int  // bytes left of a stored block
	length int  // bytes left of a match that the output had no room for
	dist   int
	err    error

	window []byte // of Read
	unread []byte // what it has to return, in window

	since int64  // bytes of this member that were decoded
	crc   uint32 // of them
	done  int64  // members

	lit   [litSize]uint32
	dists [distSize]uint32
	fixed bool // lit and dists are those of the fixed codes
	work  workspace
}

type state byte

const (
	atMember state = iota
	atBlock
	inStored
	inCodes
	atTrailer
)

// NewReader returns a Reader of what r has. It reads r ahead, in large pieces.
func NewReader(r io.Reader) *Reader { return &Reader{r: r, in: make([]byte, inputSize)} }

// Next decodes into buf[at:] and returns how many bytes it did. buf[:at] ends with the
// last bytes that were decoded before, Window of them if there were so many; it is not
// changed. All of buf[at:] may be written to. Next fills buf unless there is an error,
// which may come with data: io.EOF at the end of the input, a *FormatError, or the error
// of the underlying reader, io.ErrUnexpectedEOF if it ended early.
func (z *Reader) Next(buf []byte, at int) (int, error) {
	if z.err != nil {
		return 0, z.err
	}
	out := at
	for out < len(buf) && z.err == nil {
		from := out
		switch z.state {
		case atMember:
			z.err = z.member()
		case atBlock:
			z.err = z.block()
		case inStored:
			out, z.err = z.copyStored(buf, out)
		case inCodes:
			// What lies before low is another member's.
			low := max(0, out-int(min(z.since, Window)))
			out, z.err = z.decode(buf, out, low)
		case atTrailer:
			z.err = z.trailer()
		}
		if out > from {
			z.crc = crc32.Update(z.crc, crc32.IEEETable, buf[from:out])
			z.since += int64(out - from)
		}
	}
	return out - at, z.err
}

// Read is io.Reader's, for who cannot keep a window.
func (z *Reader) Read(p []byte) (int, error) {
	if z.window == nil {
		z.window = make([]byte, Window+inputSize)
		z.unread = z.window[:0]
	}
	if len(z.unread) == 0 && len(p) > 0 {
		if z.err != nil {
			return 0, z.err
		}
		copy(z.window, z.window[len(z.window)-Window:])
		n, err := z.Next(z.window, Window)
		if err != nil && n == 0 {
			return 0, err
		}
		z.unread = z.window[Window : Window+n]
	}
	n := copy(p, z.unread)
	z.unread = z.unread[n:]
	return n, nil
}

// fill reads more of the input. It returns io.ErrUnexpectedEOF at its end.
func (z *Reader) fill() error {
	if z.rerr != nil {
		return z.inputError()
	}
	keep := min(z.pos, 8) // bytes in bits, which align gives back
	copy(z.in, z.in[z.pos-keep:z.end])
	z.end -= z.pos - keep
	z.pos = keep
	for idle := 0; z.rerr == nil; {
		n, err := z.r.Read(z.in[z.end:])
		z.end += n
		z.read += int64(n)
		if idle++; err == nil && n == 0 && idle == 100 {
			err = io.ErrNoProgress
		}
		z.rerr = err
		if n > 0 {
			return nil
		}
	}
	return z.inputError()
}

// inputError is the error of the input for who needs more of it.
func (z *Reader) inputError() error {
	if z.rerr == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return z.rerr
}

// need makes n bits available, n at most 48.
func (z *Reader) need(n uint) error {
	for z.nbits < n {
		if z.pos == z.end {
			if err := z.fill(); err != nil {
				return err
			}
		}
		z.addByte()
	}
	return nil
}

func (z *Reader) addByte() {
	z.bits |= uint64(z.in[z.pos]) << z.nbits
	z.pos++
	z.nbits += 8
}

// take removes n bits, which must be there.
func (z *Reader) take(n uint) uint64 {
	v := z.bits & (1<<n - 1)
	z.bits >>= n
	z.nbits -= n
	return v
}

// align drops the rest of a byte, and gives whole bytes back to the input.
func (z *Reader) align() {
	z.take(z.nbits & 7)
	z.pos -= int(z.nbits / 8)
	z.bits, z.nbits = 0, 0
}

func (z *Reader) corrupt(format string, args ...any) error {
	return &FormatError{z.read - int64(z.end-z.pos) - int64(z.nbits/8), fmt.Sprintf(format, args...)}
}

// bytes returns the next n bytes of the input, which is aligned.
func (z *Reader) bytes(n int) ([]byte, error) {
	for z.end-z.pos < n {
		if err := z.fill(); err != nil {
			return nil, err
		}
	}
	b := z.in[z.pos : z.pos+n]
	z.pos += n
	return b, nil
}

// member reads the header of a member (RFC 1952, section 2.3), or finds the end.
func (z *Reader) member() error {
	if z.done > 0 && z.pos == z.end {
		if err := z.fill(); err != nil {
			if z.rerr == io.EOF {
				return io.EOF
			}
			return err
		}
	}
	h, err := z.bytes(10)
	if err != nil {
		return err
	}
	if h[0] != 0x1f || h[1] != 0x8b {
		return z.corrupt("no gzip header")
	}
	const (
		hasCRC = 1 << iota << 1
		hasExtra
		hasName
		hasComment
	)
	flags := h[3] // those that are not known are passed over, as compress/gzip does
	if h[2] != 8 {
		return z.corrupt("compression method %d is not known", h[2])
	}
	crc := crc32.ChecksumIEEE(h)
	next := func(n int) ([]byte, error) {
		b, err := z.bytes(n)
		crc = crc32.Update(crc, crc32.IEEETable, b)
		return b, err
	}
	if flags&hasExtra != 0 {
		b, err := next(2)
		if err != nil {
			return err
		}
		if _, err = next(int(binary.LittleEndian.Uint16(b))); err != nil {
			return err
		}
	}
	for _, f := range []byte{hasName, hasComment} {
		for flags&f != 0 {
			b, err := next(1)
			if err != nil {
				return err
			}
			if b[0] == 0 {
				break
			}
		}
	}
	if flags&hasCRC != 0 {
		want := uint16(crc)
		b, err := z.bytes(2)
		if err != nil {
			return err
		}
		if binary.LittleEndian.Uint16(b) != want {
			return z.corrupt("wrong checksum of the header")
		}
	}
	z.state, z.since, z.crc = atBlock, 0, 0
	return nil
}

// trailer compares what was decoded with what the member says of it.
func (z *Reader) trailer() error {
	z.align()
	b, err := z.bytes(8)
	if err != nil {
		return err
	}
	if binary.LittleEndian.Uint32(b) != z.crc {
		return z.corrupt("wrong checksum")
	}
	if binary.LittleEndian.Uint32(b[4:]) != uint32(z.since) {
		return z.corrupt("wrong length")
	}
	z.state = atMember
	z.done++
	return nil
}

// block reads a block's header (RFC 1951, section 3.2.3).
func (z *Reader) block() error {
	if z.final {
		z.final = false
		z.state = atTrailer
		return nil
	}
	if err := z.need(3); err != nil {
		return err
	}
	z.final = z.take(1) == 1
	switch z.take(2) {
	case 0:
		z.align()
		b, err := z.bytes(4)
		if err != nil {
			return err
		}
		n := binary.LittleEndian.Uint16(b)
		if binary.LittleEndian.Uint16(b[2:]) != ^n {
			return z.corrupt("damaged length of a stored block")
		}
		z.stored, z.state = int(n), inStored
	case 1:
		if !z.fixed {
			z.fixedTables()
		}
		z.state = inCodes
	case 2:
		if err := z.dynamicTables(); err != nil {
			return err
		}
		z.state = inCodes
	default:
		return z.corrupt("block of unknown type")
	}
	return nil
}

func (z *Reader) copyStored(buf []byte, out int) (int, error) {
	for z.stored > 0 && out < len(buf) {
		if z.pos == z.end {
			if err := z.fill(); err != nil {
				return out, err
			}
		}
		n := copy(buf[out:], z.in[z.pos:min(z.end, z.pos+z.stored)])
		z.pos += n
		z.stored -= n
		out += n
	}
	if z.stored == 0 {
		z.state = atBlock
	}
	return out, nil
}
