package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/cespare/xxhash/v2"
)

// MaxPayload is the most bytes one frame carries.
const MaxPayload = 16 << 10

// Overhead is how much longer a frame is than its payload, unless that looks like the beginning of one.
const Overhead = headerSize

const (
	headerSize = 28
	// maxStuffed is the size of the worst payload once stuffed: the stuffed
	// sequence over and over.
	maxStuffed = MaxPayload + MaxPayload/3
)

var (
	magic      = []byte{0xF5, 'V', 'I', 'C'}
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

const stuffing = 0x00 // follows magic[:3] in a payload

// A sum says how a payload's checksum is made.
type sum byte

const (
	sumCRC32C sum = 0
	// sumXXH64 is the low half of XXH64. Under emulation it takes a tenth of the time: there are no
	// instructions for a CRC.
	sumXXH64 sum = 1
)

func (s sum) of(p []byte) uint32 {
	if s == sumXXH64 {
		return uint32(xxhash.Sum64(p))
	}
	return crc32.Checksum(p, castagnoli)
}

// A frame is one unit of the log or the control stream.
type frame struct {
	typ     byte
	sum     sum
	channel uint16
	stamp   uint64
	payload []byte
}

// appendFrame appends f as it is sent.
func appendFrame(b []byte, f frame) []byte {
	if len(f.payload) > MaxPayload {
		panic(fmt.Sprintf("wire: frame of %d bytes", len(f.payload)))
	}
	start := len(b)
	b = append(b, magic...)
	b = append(b, f.typ, byte(f.sum))
	b = binary.LittleEndian.AppendUint16(b, f.channel)
	b = binary.LittleEndian.AppendUint64(b, f.stamp)
	b = append(b, make([]byte, headerSize-16)...)
	b = appendStuffed(b, f.payload)
	head, body := b[start:start+headerSize], b[start+headerSize:]
	binary.LittleEndian.PutUint32(head[16:], uint32(len(body)))
	binary.LittleEndian.PutUint32(head[20:], f.sum.of(body))
	binary.LittleEndian.PutUint32(head[24:], crc32.Checksum(head[:24], castagnoli))
	return b
}

func appendStuffed(b, p []byte) []byte {
	for {
		i := bytes.Index(p, magic[:3])
		if i < 0 {
			return append(b, p...)
		}
		b = append(b, p[:i+3]...)
		b = append(b, stuffing)
		p = p[i+3:]
	}
}

// unstuff undoes appendStuffed in place. It reports false if p is not what
// appendStuffed makes.
func unstuff(p []byte) ([]byte, bool) {
	i := bytes.Index(p, magic[:3])
	if i < 0 {
		return p, true
	}
	out, rest := p[:i+3], p[i+3:]
	for {
		if len(rest) == 0 || rest[0] != stuffing {
			return nil, false
		}
		rest = rest[1:]
		i := bytes.Index(rest, magic[:3])
		if i < 0 {
			return append(out, rest...), true
		}
		out = append(out, rest[:i+3]...)
		rest = rest[i+3:]
	}
}

var errMoreNeeded = errors.New("wire: frame goes on past the buffer")

// parseFrame finds the first whole frame in b and returns it, its offset in b and
// its size as sent. The payload is unstuffed in b's memory. If there is none the error is
// errMoreNeeded, and off is where one may still begin: bytes before it are damage.
func parseFrame(b []byte) (f frame, off, size int, err error) {
	for {
		i := bytes.Index(b[off:], magic)
		if i < 0 {
			return f, off + len(b[off:]) - partialMagic(b[off:]), 0, errMoreNeeded
		}
		off += i
		h := b[off:]
		if len(h) < headerSize {
			return f, off, 0, errMoreNeeded
		}
		length := binary.LittleEndian.Uint32(h[16:])
		if crc32.Checksum(h[:24], castagnoli) != binary.LittleEndian.Uint32(h[24:]) || sum(h[5]) > sumXXH64 || length > maxStuffed {
			off += len(magic)
			continue
		}
		size = headerSize + int(length)
		body := h[headerSize:min(size, len(h))]
		if bytes.Contains(h[headerSize:min(size+len(magic)-1, len(h))], magic) { // cut short
			off += len(magic)
			continue
		}
		if len(h) < size {
			return f, off, 0, errMoreNeeded
		}
		if sum(h[5]).of(body) != binary.LittleEndian.Uint32(h[20:]) {
			off += len(magic)
			continue
		}
		payload, ok := unstuff(body)
		if !ok || len(payload) > MaxPayload {
			off += len(magic)
			continue
		}
		return frame{
			typ:     h[4],
			sum:     sum(h[5]),
			channel: binary.LittleEndian.Uint16(h[6:]),
			stamp:   binary.LittleEndian.Uint64(h[8:]),
			payload: payload,
		}, off, size, nil
	}
}

// partialMagic is how many bytes at the end of b may begin a magic.
func partialMagic(b []byte) int {
	for n := min(len(magic)-1, len(b)); n > 0; n-- {
		if bytes.HasPrefix(magic, b[len(b)-n:]) {
			return n
		}
	}
	return 0
}

// frameReader finds the frames in a stream. It holds one frame at most.
type frameReader struct {
	r          io.Reader
	buf        []byte
	start, end int   // of what was read and not consumed
	off        int64 // of buf[start] in the stream
	skipped    int64 // bytes that belonged to no frame
	maxSkipped int64 // of them; 0 for any number
}

func newFrameReader(r io.Reader) *frameReader {
	return &frameReader{r: r, buf: make([]byte, 32<<10)}
}

// next returns the next frame and its offset. The payload is valid until the
// next call. An error is the stream's; the bytes of an unfinished frame are kept, so
// next may be called again when the stream has more.
func (r *frameReader) next() (frame, int64, error) {
	for idle := 0; ; {
		f, skip, size, err := parseFrame(r.buf[r.start:r.end])
		r.start += skip
		r.off += int64(skip)
		r.skipped += int64(skip)
		if err == nil {
			at := r.off
			r.start += size
			r.off += int64(size)
			return f, at, nil
		}
		if r.maxSkipped > 0 && r.skipped > r.maxSkipped {
			return frame{}, 0, fmt.Errorf("%w: %d bytes that are no frames", ErrProtocol, r.skipped)
		}
		if r.start > 0 {
			copy(r.buf, r.buf[r.start:r.end])
			r.start, r.end = 0, r.end-r.start
		}
		n, err := r.r.Read(r.buf[r.end:])
		r.end += n
		if n > 0 {
			continue // an error that came with bytes comes again
		}
		if err != nil {
			return frame{}, 0, err
		}
		if idle++; idle > 100 {
			return frame{}, 0, io.ErrNoProgress
		}
	}
}
