package vsphere

import (
	"io"
	"net/http"
)

// reusing is a transport whose connections are used again also where the end of a reply was not read, as nobody does who has decoded its
// XML or seen from its status that there is nothing to read. Else each such reply costs a handshake.
type reusing struct{ http.RoundTripper }

func (t reusing) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := t.RoundTripper.RoundTrip(r)
	if err == nil {
		res.Body = &replyBody{ReadCloser: res.Body, left: res.ContentLength}
	}
	return res, err
}

// maxRest is how much of a reply is read to its end: more costs more than another connection.
const maxRest = 4 << 10

// A replyBody is read to its end when it is closed, if that is near. How long that takes is bounded as the request is.
type replyBody struct {
	io.ReadCloser
	left int64 // -1 if it is not known
	over bool  // its end, or an error, was read
}

func (b *replyBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.left > 0 {
		b.left -= int64(n)
	}
	b.over = b.over || err != nil
	return n, err
}

func (b *replyBody) Close() error {
	if !b.over && b.left <= maxRest {
		_, _ = io.CopyN(io.Discard, b.ReadCloser, maxRest) // one that ends badly is not used again
	}
	return b.ReadCloser.Close()
}
