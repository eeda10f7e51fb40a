package fetch

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A blob begins on one connection. Where that is what its reader waits for, as on a long way,
// whose connections are slow each for itself, and the registry has ranges, the rest of it is
// fetched in pieces over several. A reader that is slower than one connection is left with
// that: more would only cost.

const (
	// wideConns is the number of connections of a wide blob, and of the pieces that are in
	// memory. So many pieces must be left of a blob, and must have come the last time, for
	// more connections to be worth while.
	wideConns = 4
	// pieceSize is the length of a piece in bytes, and after how many bytes it is looked at
	// who waits for whom.
	pieceSize = 4 << 20
)

// A pace measures how much of the time is spent waiting for a connection.
type pace struct {
	begun  time.Time
	n      int64
	waited time.Duration
}

// starved counts n bytes that were waited for. It says, once for each piece, whether most of
// the time that it took was waiting.
func (p *pace) starved(n int, waited time.Duration, piece int64) bool {
	if p.n == 0 {
		p.begun = time.Now().Add(-waited)
	}
	p.n += int64(n)
	p.waited += waited
	if p.n < piece {
		return false
	}
	slow := 2*p.waited > time.Since(p.begun)
	*p = pace{}
	return slow
}

// A wideBody is a blob from some byte on, fetched in pieces, several at once.
type wideBody struct {
	pieces chan *piece // in order; closed after the last
	free   chan []byte
	now    *piece // being read
	cancel context.CancelFunc
	done   sync.WaitGroup
}

// A piece is some bytes of the blob, or why they did not come.
type piece struct {
	ready chan struct{} // closed when the rest is valid
	data  []byte
	read  int
	err   error
}

// widen returns the blob from off on.
func (s *session) widen(ctx context.Context, d ocispec.Descriptor, off int64) *wideBody {
	ctx, cancel := context.WithCancel(ctx)
	size := s.client.piece()
	b := &wideBody{pieces: make(chan *piece, wideConns), free: make(chan []byte, wideConns), cancel: cancel}
	for range wideConns {
		b.free <- nil
	}
	b.done.Go(func() {
		defer close(b.pieces)
		for ; off < d.Size; off += size {
			var buf []byte
			select {
			case buf = <-b.free:
			case <-ctx.Done():
				return
			}
			if buf == nil {
				buf = make([]byte, size)
			}
			at, p := off, &piece{ready: make(chan struct{}), data: buf[:min(size, d.Size-off)]}
			b.pieces <- p
			b.done.Go(func() {
				p.err = s.readPiece(ctx, d, at, p.data)
				close(p.ready)
			})
		}
	})
	return b
}

// readPiece fills p with the blob's bytes from off on.
func (s *session) readPiece(ctx context.Context, d ocispec.Descriptor, off int64, p []byte) error {
	body, err := s.openRange(ctx, d, off, int64(len(p)))
	if err != nil {
		return err
	}
	defer body.Close()
	if n, err := io.ReadFull(body, p); err != nil {
		return fmt.Errorf("range of %d bytes at %d ended after %d: %w", len(p), off, n, err)
	}
	return nil
}

// Read implements io.Reader.
func (b *wideBody) Read(p []byte) (int, error) {
	for b.now == nil || b.now.err == nil && b.now.read == len(b.now.data) {
		if b.now != nil {
			b.free <- b.now.data[:cap(b.now.data)]
		}
		if b.now = <-b.pieces; b.now == nil {
			return 0, io.EOF
		}
		<-b.now.ready
	}
	if b.now.err != nil {
		return 0, b.now.err
	}
	n := copy(p, b.now.data[b.now.read:])
	b.now.read += n
	return n, nil
}

// Close ends what is under way.
func (b *wideBody) Close() error {
	b.cancel()
	b.done.Wait()
	return nil
}
