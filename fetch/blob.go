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

	open   func(off int64) (io.ReadCloser, error) // the blob from off on
	sleep  func(d time.Duration, cause error) error
	ended  func() error // why the download shall end, or nil
	report func(received int64)

	body   io.ReadCloser // nil: not connected
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
		hash:   d.Digest.Algorithm().Hash(),
		open:   func(off int64) (io.ReadCloser, error) { return s.openBlob(ctx, d, off) },
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
		n, err := r.body.Read(p[:min(int64(len(p)), r.desc.Size-r.off)])
		if n > 0 {
			r.hash.Write(p[:n])
			r.off += int64(n)
			r.report(r.off)
		}
		if err != nil && r.off < r.desc.Size {
			if err == io.EOF {
				// Whether the blob is too short or a connection without a
				// length broke cannot be told.
				err = verificationError("blob ended after %d bytes, its descriptor says %d", r.off, r.desc.Size)
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
		body, err := r.open(r.off)
		if err == nil {
			r.body = body
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
		r.body = nil
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

// openBlob requests a blob from off on.
func (s *session) openBlob(ctx context.Context, d ocispec.Descriptor, off int64) (io.ReadCloser, error) {
	req := request{url: s.base.JoinPath("v2", s.name, "blobs", d.Digest.String()), off: off, pinned: true}
	for {
		resp, err := s.get(ctx, req)
		if err != nil {
			return nil, blobError(err, d)
		}
		body, err := position(resp, d.Size, off)
		if err == nil {
			return body, nil
		}
		resp.Body.Close()
		if req.off == 0 || !errors.Is(err, errNoRange) {
			return nil, err
		}
		req.off = 0
	}
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
