package layerstore

import (
	"hash"
	"io"

	"vic/layerstore/inflate"
)

// Sizes of a pump: chunks are long enough that passing one on costs nothing, and
// few enough that a layer in flight takes little memory (2 MiB in its two pumps). Before
// each is room for what a decompressor refers back to.
const (
	pumpHead   = inflate.Window
	pumpChunk  = 256 << 10
	pumpChunks = 4
)

// A pump reads ahead: a goroutine fills chunks from a reader while the caller
// consumes earlier ones, and a second one, if asked for, hashes them on the way.
// So one layer keeps several CPUs busy: its blob is hashed, its tar unpacked,
// the tar hashed, and the tar parsed, each in a goroutine of its own.
type pump struct {
	chunks chan chunk    // to Read, in order
	free   chan []byte   // back from Read; nil is a chunk not allocated yet
	stop   chan struct{} // closed by close
	done   chan struct{} // closed when the goroutines have ended
	cur    chunk         // being read
	pos    int
}

// A chunk is some bytes, and the error that came after them.
type chunk struct {
	buf []byte // pumpHead bytes, and then room for the chunk
	b   []byte // in it
	err error
}

// A nexter reads into buf[at:], behind what it read before or at least the last pumpHead
// bytes of that. It fills buf unless there is an error.
type nexter interface {
	Next(buf []byte, at int) (int, error)
}

// newPump starts a pump. h, which may be nil, has hashed all of r once Read has
// returned an error.
func newPump(r io.Reader, h hash.Hash) *pump {
	p := &pump{
		chunks: make(chan chunk, pumpChunks),
		free:   make(chan []byte, pumpChunks),
		stop:   make(chan struct{}),
		done:   make(chan struct{}),
	}
	for range pumpChunks {
		p.free <- nil
	}
	filled := p.chunks
	hashed := make(chan struct{})
	if h == nil {
		close(hashed)
	} else {
		filled = make(chan chunk, pumpChunks)
		go func() {
			defer close(hashed)
			p.hash(h, filled)
		}()
	}
	go func() {
		defer close(p.done)
		p.read(r, filled)
		close(filled)
		<-hashed
	}()
	return p
}

func (p *pump) read(r io.Reader, to chan<- chunk) {
	next, isNexter := r.(nexter)
	var last []byte // the end of the chunk before; nobody else writes to it
	for {
		var buf []byte
		select {
		case buf = <-p.free:
		case <-p.stop:
			return
		}
		if buf == nil {
			buf = make([]byte, pumpHead+pumpChunk)
		}
		var n int
		var err error
		if isNexter {
			copy(buf[:pumpHead], last)
			n, err = next.Next(buf, pumpHead)
			last = buf[n : n+pumpHead]
		} else {
			n, err = fill(r, buf[pumpHead:])
		}
		select {
		case to <- chunk{buf, buf[pumpHead : pumpHead+n], err}:
		case <-p.stop:
			return
		}
		if err != nil {
			return
		}
	}
}

func (p *pump) hash(h hash.Hash, from <-chan chunk) {
	for c := range from {
		h.Write(c.b)
		select {
		case p.chunks <- c:
		case <-p.stop:
			return
		}
	}
}

// fill is io.ReadFull, but leaves the reader's error as it is.
func fill(r io.Reader, b []byte) (n int, err error) {
	for idle := 0; n < len(b) && err == nil; {
		var m int
		m, err = r.Read(b[n:])
		n += m
		if m > 0 {
			idle = 0
		} else if idle++; idle == 100 && err == nil {
			err = io.ErrNoProgress
		}
	}
	return n, err
}

// Read returns the reader's bytes and then its error. After close the error is
// io.ErrClosedPipe.
func (p *pump) Read(b []byte) (int, error) {
	for p.pos == len(p.cur.b) {
		if p.cur.err != nil {
			return 0, p.cur.err
		}
		if p.cur.b != nil {
			p.free <- p.cur.buf // has room for all chunks there are
		}
		p.pos = 0
		select {
		case p.cur = <-p.chunks:
		case <-p.stop:
			p.cur = chunk{err: io.ErrClosedPipe}
		}
	}
	n := copy(b, p.cur.b[p.pos:])
	p.pos += n
	return n, nil
}

// close ends the pump and waits for its goroutines, and so for a Read of the
// reader that they may be in. It may be called once.
func (p *pump) close() {
	close(p.stop)
	<-p.done
}
