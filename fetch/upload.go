package fetch

import (
	"io"
	"net/http"
	"sync"
	"sync/atomic"
)

// An upload is the body of a request. The zero value is a body of no bytes.
type upload struct {
	open        func() (io.ReadCloser, error) // the body, from its beginning; nil if size is 0
	size        int64
	contentType string
	report      func(sent int64) // or nil
}

// attach makes u the body of a request. A nil u is none.
func (u *upload) attach(req *http.Request) error {
	if u == nil {
		return nil
	}
	if u.contentType != "" {
		req.Header.Set("Content-Type", u.contentType)
	}
	if u.size == 0 {
		req.Body = nil // net/http says Content-Length: 0 by itself
		return nil
	}
	r, err := u.open()
	if err != nil {
		return &uploadError{err}
	}
	// Without GetBody a redirect is not followed, and nothing is sent elsewhere.
	req.Body, req.ContentLength = &uploadBody{r: r, left: u.size, upload: u}, u.size
	return nil
}

// An uploadBody is an upload on its way. That the source of the bytes is slow is no silence of
// the registry; that the source fails is no failure of the registry's.
type uploadBody struct {
	r      io.ReadCloser
	left   int64
	upload *upload
	guard  *idleGuard
	closed atomic.Bool

	mu     sync.Mutex
	ended  bool  // the attempt is over: the guard is another's
	failed error // of r
}

// An uploadError is why the bytes to upload could not be had: no other attempt will have them.
type uploadError struct{ cause error }

func (e *uploadError) Error() string { return e.cause.Error() }
func (e *uploadError) Unwrap() error { return e.cause }

func (b *uploadBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended {
		return 0, io.ErrClosedPipe
	}
	b.guard.timer.Stop()
	n, err := b.r.Read(p)
	b.left -= int64(n)
	switch {
	case b.left < 0 || err == io.EOF && b.left > 0:
		err = verificationError("what is uploaded has not the %d bytes of its descriptor", b.upload.size)
		b.failed = &uploadError{err}
	case err != nil && err != io.EOF && !b.closed.Load():
		b.failed = &uploadError{err}
	}
	if n > 0 && b.upload.report != nil {
		b.upload.report(b.upload.size - b.left)
	}
	b.guard.timer.Reset(b.guard.limit)
	return n, err
}

// Close may be called during a Read, when the attempt has failed.
func (b *uploadBody) Close() error {
	b.closed.Store(true)
	return b.r.Close()
}

// end is called when the reply has come, or an error. It returns the source's error. A nil b is no
// body.
func (b *uploadBody) end() error {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ended = true
	return b.failed
}
