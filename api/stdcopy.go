package api

import (
	"encoding/binary"
	"io"
	"sync"
)

// The streams of a multiplexed connection. Bytes of a process without a terminal travel in frames:
//
//	0  1  stream
//	1  3  zeros
//	4  4  length of the payload, big-endian
//	8     payload
type stream byte

const (
	stdout stream = 1
	stderr stream = 2
)

const (
	frameHeader = 8
	// maxFrame keeps a frame within what clients read at once.
	maxFrame = 32 << 10
)

// A frameWriter writes frames to one connection. Several goroutines may use it.
type frameWriter struct {
	mu  sync.Mutex
	w   io.Writer
	buf []byte
}

func newFrameWriter(w io.Writer) *frameWriter {
	return &frameWriter{w: w, buf: make([]byte, 0, frameHeader+maxFrame)}
}

// write sends p on a stream, each frame with one Write of the connection, so that a client never waits
// for the payload of a header it has.
func (f *frameWriter) write(s stream, p []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for len(p) > 0 {
		n := min(len(p), maxFrame)
		f.buf = append(f.buf[:0], byte(s), 0, 0, 0)
		f.buf = binary.BigEndian.AppendUint32(f.buf, uint32(n))
		f.buf = append(f.buf, p[:n]...)
		if _, err := f.w.Write(f.buf); err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// on returns a writer whose bytes go out on one stream.
func (f *frameWriter) on(s stream) io.Writer { return streamWriter{f, s} }

type streamWriter struct {
	frames *frameWriter
	stream stream
}

func (w streamWriter) Write(p []byte) (int, error) {
	if err := w.frames.write(w.stream, p); err != nil {
		return 0, err
	}
	return len(p), nil
}
