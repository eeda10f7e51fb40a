package fetch

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// worthwhile is how many bytes an attempt must bring to be no failure.
const worthwhile = 1 << 20

// A blobReader delivers a blob over as many connections as it takes.
type blobReader struct {
	desc   ocispec.Descriptor
	policy retryPolicy
	piece  int64 // see pieceSize

	open   func(off int64) (body io.ReadCloser, ranges bool, err error) // the blob from off on; may ranges of it be asked for?
	widen  func(off int64) io.ReadCloser                                // the same, over several connections
	sleep  func(d time.Duration, cause error) error
	ended  func() error // why the download shall end, or nil
	report func(received int64)

	body   io.ReadCloser // nil: not connected
	ranges bool          // body may be exchanged for a wide one
	pace   pace          // of a body that may
	wideAt int64         // off when body became wide; -1: it is not
	narrow bool          // wide bodies bring nothing
	hash   hash.Hash
	off    int64 // bytes received, hashed and delivered
	mark   int64 // off at the last failure
	failed int   // attempts in a row that brought too little
	lost   error // why body broke off, to be handled by the next Read
	err    error // what all further Reads return
}

// blob opens a blob.
func (s *session) blob(ctx context.Context, d ocispec.Descriptor, policy retryPolicy) (*blobReader, error) {
	if err := checkDescriptor(d); err != nil {
		return nil, err
	}
	r := &blobReader{
		desc:   d,
		policy: policy,
		piece:  s.client.piece(),
		hash:   d.Digest.Algorithm().Hash(),
		open:   func(off int64) (io.ReadCloser, bool, error) { return s.openBlob(ctx, d, off) },
		widen:  func(off int64) io.ReadCloser { return s.widen(ctx, d, off) },
		wideAt: -1,
		ended:  func() error { return context.Cause(ctx) },
		report: func(received int64) {
			if s.progress != nil {
				s.progress(Event{Digest: d.Digest, Received: received, Total: d.Size})
			}
		},
	}
	notify := s.notifyRetry(d, func() int64 { return r.off })
	r.sleep = func(t time.Duration, cause error) error { return sleep(ctx, t, cause, notify) }
	if err := r.connect(); err != nil {
		return nil, err
	}
	return r, nil
}

// Read is as Image.Blob says.
func (r *blobReader) Read(p []byte) (int, error) {
	for r.err == nil && len(p) > 0 {
		if r.lost != nil {
			r.err = r.fail(r.lost)
			r.lost = nil
			continue
		}
		if r.off == r.desc.Size {
			r.err = r.finish()
			continue
		}
		if r.body == nil {
			r.err = r.connect()
			continue
		}
		begin := time.Now()
		n, err := r.body.Read(p[:min(int64(len(p)), r.desc.Size-r.off)])
		waited := time.Since(begin)
		if n > 0 {
			r.hash.Write(p[:n])
			r.off += int64(n)
			r.report(r.off)
		}
		if r.ranges && err == nil && r.pace.starved(n, waited, r.piece) && r.desc.Size-r.off >= wideConns*r.piece {
			r.disconnect()
			r.body, r.wideAt = r.widen(r.off), r.off
		}
		if err != nil && r.off < r.desc.Size {
			if err == io.EOF {
				// Whether the blob is too short or a connection without a
				// length broke cannot be told.
				err = verificationError("blob ended after %d bytes, its descriptor says %d", r.off, r.desc.Size)
			}
			if r.wideAt >= 0 && r.off-r.wideAt < wideConns*r.piece {
				r.narrow = true
			}
			r.disconnect()
			r.lost = &brokenError{err}
		}
		if n > 0 {
			return n, nil
		}
	}
	if r.err != nil {
		r.disconnect()
	}
	return 0, r.err
}

// Close ends the download.
func (r *blobReader) Close() error {
	r.disconnect()
	if r.err == nil {
		r.err = errors.New("fetch: read of a closed blob")
	}
	return nil
}

// connect opens the blob where it broke off, until it succeeds or there is no
// point in going on.
func (r *blobReader) connect() error {
	for {
		body, ranges, err := r.open(r.off)
		if err == nil {
			r.body, r.ranges, r.pace = body, ranges && !r.narrow, pace{}
			return nil
		}
		if err := r.fail(err); err != nil {
			return err
		}
	}
}

// disconnect drops the connection. Errors of closing what was only read, and
// is not read on, say nothing.
func (r *blobReader) disconnect() {
	if r.body != nil {
		r.body.Close()
		r.body, r.ranges, r.wideAt = nil, false, -1
	}
}

// fail counts a failure and waits, or returns the error that ends it all.
func (r *blobReader) fail(err error) error {
	if cause := r.ended(); cause != nil {
		return cause
	}
	if r.off-r.mark >= worthwhile {
		r.failed = 0
	}
	r.mark = r.off
	r.failed++
	d, again := r.policy.wait(r.failed, err)
	if !again {
		return err
	}
	return r.sleep(d, err)
}

// finish returns io.EOF if all that was received is right.
func (r *blobReader) finish() error {
	if r.body != nil {
		var more [1]byte
		for {
			n, err := r.body.Read(more[:])
			if n > 0 {
				return verificationError("blob has more bytes than the %d of its descriptor", r.desc.Size)
			}
			if err != nil {
				break // an end, clean or not: the digest decides
			}
		}
	}
	if cause := r.ended(); cause != nil {
		return cause
	}
	if got := digest.NewDigest(r.desc.Digest.Algorithm(), r.hash); got != r.desc.Digest {
		return verificationError("filesystem layer verification failed for digest %s", r.desc.Digest)
	}
	return io.EOF
}

// openBlob requests a blob from off on. It tells whether the registry has ranges of it.
func (s *session) openBlob(ctx context.Context, d ocispec.Descriptor, off int64) (_ io.ReadCloser, ranges bool, _ error) {
	req := s.blobRequest(d, off)
	for {
		resp, err := s.send(ctx, req)
		if err != nil {
			return nil, false, blobError(err, d)
		}
		body, err := position(resp, d.Size, off)
		if err == nil {
			return body, resp.StatusCode == http.StatusPartialContent || resp.Header.Get("Accept-Ranges") == "bytes", nil
		}
		resp.Body.Close()
		if req.off == 0 || !errors.Is(err, errNoRange) {
			return nil, false, err
		}
		req.off = 0
	}
}

// openRange requests n bytes of a blob, from off on. What comes may be longer.
func (s *session) openRange(ctx context.Context, d ocispec.Descriptor, off, n int64) (io.ReadCloser, error) {
	req := s.blobRequest(d, off)
	req.n = n
	resp, err := s.send(ctx, req)
	if err != nil {
		return nil, blobError(err, d)
	}
	if resp.StatusCode != http.StatusPartialContent {
		resp.Body.Close()
		return nil, errNoRange
	}
	body, err := position(resp, d.Size, off)
	if err != nil {
		resp.Body.Close()
	}
	return body, err
}

func (s *session) blobRequest(d ocispec.Descriptor, off int64) request {
	return request{url: s.base.JoinPath("v2", s.name, "blobs", d.Digest.String()), off: off, pinned: true}
}

// errNoRange: the whole blob must be asked for.
var errNoRange = errors.New("fetch: no such range")

// position makes a reply's body begin at off.
func position(resp *http.Response, size, off int64) (io.ReadCloser, error) {
	if resp.StatusCode != http.StatusOK {
		first, total, ok := parseContentRange(resp.Header.Get("Content-Range"))
		if ok && total >= 0 && total != size {
			return nil, verificationError("blob has %d bytes, its descriptor says %d", total, size)
		}
		if !ok || resp.StatusCode != http.StatusPartialContent || first != off {
			return nil, errNoRange
		}
		return resp.Body, nil
	}
	if resp.ContentLength >= 0 && resp.ContentLength != size {
		return nil, verificationError("blob has %d bytes, its descriptor says %d", resp.ContentLength, size)
	}
	if n, err := io.CopyN(io.Discard, resp.Body, off); err == io.EOF {
		return nil, &brokenError{verificationError("blob ended after %d bytes, its descriptor says %d", n, size)}
	} else if err != nil {
		return nil, &brokenError{err}
	}
	return resp.Body, nil
}

// parseContentRange reads "bytes 5-9/10", "bytes 5-9/*" and "bytes */10" (RFC
// 9110, section 14.4). What is not told is -1.
func parseContentRange(h string) (first, total int64, ok bool) {
	unit, h, _ := strings.Cut(strings.TrimSpace(h), " ")
	span, size, found := strings.Cut(h, "/")
	if !strings.EqualFold(unit, "bytes") || !found {
		return 0, 0, false
	}
	total = -1
	if size != "*" {
		if total, ok = parseCount(size); !ok {
			return 0, 0, false
		}
	}
	if span == "*" {
		return -1, total, true
	}
	a, b, _ := strings.Cut(span, "-")
	first, ok1 := parseCount(a)
	last, ok2 := parseCount(b)
	if !ok1 || !ok2 || last < first || total >= 0 && last >= total {
		return 0, 0, false
	}
	return first, total, true
}

func parseCount(s string) (int64, bool) {
	n, err := strconv.ParseUint(s, 10, 63)
	return int64(n), err == nil
}

// blobError words what a registry has to say about a blob.
func blobError(err error, d ocispec.Descriptor) error {
	if !errors.Is(err, ErrNotFound) {
		return err
	}
	if isForeign(d.MediaType) {
		return &classError{
			class: ErrMediaType,
			msg:   fmt.Sprintf("the registry does not hold this layer of type %s, and layers are not fetched from elsewhere", d.MediaType),
			cause: err,
		}
	}
	return &classError{class: ErrNotFound, msg: "unknown blob", cause: err}
}
