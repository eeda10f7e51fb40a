package fetch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A step answers one request for a blob.
type step func(t *testing.T, w http.ResponseWriter, r *http.Request, blob []byte)

// send serves a blob as it should be.
func send(_ *testing.T, w http.ResponseWriter, r *http.Request, blob []byte) {
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(blob))
}

// whole ignores Range.
func whole(_ *testing.T, w http.ResponseWriter, _ *http.Request, blob []byte) {
	w.Header().Set("Content-Length", fmt.Sprint(len(blob)))
	w.Write(blob)
}

// cut breaks the connection after n bytes.
func cut(n int) step {
	return func(t *testing.T, w http.ResponseWriter, r *http.Request, blob []byte) {
		off := rangeStart(t, r)
		w.Header().Set("Content-Length", fmt.Sprint(len(blob)-off))
		if off > 0 {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", off, len(blob)-1, len(blob)))
			w.WriteHeader(http.StatusPartialContent)
		}
		w.Write(blob[off : off+n])
		http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
}

// reply sends a status and headers ("Name: value"), and bytes.
func reply(status int, body []byte, headers ...string) step {
	return func(_ *testing.T, w http.ResponseWriter, _ *http.Request, _ []byte) {
		for _, h := range headers {
			name, value, _ := strings.Cut(h, ": ")
			w.Header().Set(name, value)
		}
		w.WriteHeader(status)
		w.Write(body)
	}
}

// chunked sends bytes without telling beforehand how many.
func chunked(b []byte) step {
	return func(_ *testing.T, w http.ResponseWriter, _ *http.Request, _ []byte) {
		http.NewResponseController(w).Flush()
		w.Write(b)
	}
}

// raw writes to the connection and closes it.
func raw(s string) step {
	return func(t *testing.T, w http.ResponseWriter, _ *http.Request, _ []byte) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		io.WriteString(conn, s)
		conn.Close()
	}
}

func TestBlobFaults(t *testing.T) {
	blob := randomBytes(1000)
	size := len(blob)
	flipped := slices.Clone(blob)
	flipped[500] ^= 1

	for _, tc := range []struct {
		name   string
		steps  []step   // the last is repeated
		ranges []string // of the requests
		class  error    // of the error; nil if the blob arrives
		msg    string   // in the error
	}{
		{name: "good", steps: []step{send}, ranges: []string{""}},
		{name: "chunked", steps: []step{chunked(blob)}, ranges: []string{""}},
		{name: "broken before the first byte", steps: []step{cut(0), send}, ranges: []string{"", ""}},
		{name: "no reply", steps: []step{raw(""), raw(""), send}, ranges: []string{"", "", ""}},
		{name: "resumed with 206", steps: []step{cut(100), send}, ranges: []string{"", "bytes=100-"}},
		{name: "resumed twice", steps: []step{cut(100), cut(899), send}, ranges: []string{"", "bytes=100-", "bytes=999-"}},
		{name: "resumed after the last byte", steps: []step{
			raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3e8\r\n" + string(blob) + "\r\n")}, ranges: []string{""}},
		{name: "resumed with 200", steps: []step{cut(100), whole}, ranges: []string{"", "bytes=100-"}},
		{name: "resumed with 200, broken while skipping", steps: []step{cut(500),
			raw(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", size, blob[:400])), send},
			ranges: []string{"", "bytes=500-", "bytes=500-"}},
		{name: "resumed with 200 of something else", steps: []step{cut(100), reply(200, flipped)},
			ranges: []string{"", "bytes=100-"}, class: ErrVerification},
		{name: "resumed with 416", steps: []step{cut(100), reply(416, nil), whole}, ranges: []string{"", "bytes=100-", ""}},
		{name: "resumed with 416 and the size", steps: []step{cut(100), reply(416, nil, "Content-Range: bytes */1000"), whole},
			ranges: []string{"", "bytes=100-", ""}},
		{name: "resumed with 416 and another size", steps: []step{cut(100), reply(416, nil, "Content-Range: bytes */100")},
			ranges: []string{"", "bytes=100-"}, class: ErrVerification, msg: "blob has 100 bytes, its descriptor says 1000"},
		{name: "resumed elsewhere", steps: []step{cut(100), reply(206, blob[99:], "Content-Range: bytes 99-999/1000"), whole},
			ranges: []string{"", "bytes=100-", ""}},
		{name: "resumed nowhere", steps: []step{cut(100), reply(206, blob[100:]), whole}, ranges: []string{"", "bytes=100-", ""}},
		{name: "resumed with multipart", steps: []step{cut(100), reply(206, nil, "Content-Type: multipart/byteranges; boundary=x"), whole},
			ranges: []string{"", "bytes=100-", ""}},
		{name: "resumed with another size", steps: []step{cut(100), reply(206, blob[100:], "Content-Range: bytes 100-999/1001")},
			ranges: []string{"", "bytes=100-"}, class: ErrVerification, msg: "blob has 1001 bytes"},
		{name: "resumed with an unknown size", steps: []step{cut(100), reply(206, blob[100:], "Content-Range: bytes 100-999/*")},
			ranges: []string{"", "bytes=100-"}},
		{name: "resumed with less than asked for", steps: []step{cut(100), reply(206, blob[100:200], "Content-Range: bytes 100-199/1000"), send},
			ranges: []string{"", "bytes=100-", "bytes=200-"}},
		{name: "resumed with more than there is", steps: []step{cut(100), chunkedRange(blob[100:], []byte("more"))},
			ranges: []string{"", "bytes=100-"}, class: ErrVerification, msg: "more bytes than the 1000"},
		{name: "206 unasked", steps: []step{reply(206, blob, "Content-Range: bytes 0-999/1000")},
			ranges: []string{""}, msg: "received unexpected HTTP status: 206 Partial Content"},
		{name: "204", steps: []step{reply(204, nil)}, ranges: []string{""}, msg: "received unexpected HTTP status: 204 No Content"},

		{name: "wrong digest", steps: []step{reply(200, flipped)}, ranges: []string{""},
			class: ErrVerification, msg: "filesystem layer verification failed for digest " + digest.FromBytes(blob).String()},
		{name: "wrong digest, chunked", steps: []step{chunked(flipped)}, ranges: []string{""}, class: ErrVerification},
		{name: "longer", steps: []step{reply(200, append(slices.Clone(blob), 0))}, ranges: []string{""},
			class: ErrVerification, msg: "blob has 1001 bytes, its descriptor says 1000"},
		{name: "longer, chunked", steps: []step{chunked(append(slices.Clone(blob), 0))}, ranges: []string{""},
			class: ErrVerification, msg: "more bytes than the 1000"},
		{name: "shorter", steps: []step{reply(200, blob[:999])}, ranges: []string{""},
			class: ErrVerification, msg: "blob has 999 bytes, its descriptor says 1000"},
		{name: "shorter, chunked", steps: []step{chunked(blob[:999]), reply(416, nil, "Content-Range: bytes */999")},
			ranges: []string{"", "bytes=999-"}, class: ErrVerification, msg: "blob has 999 bytes"},
		{name: "shorter, chunked, no ranges", steps: []step{chunked(blob[:999])},
			ranges: []string{"", "bytes=999-", "bytes=999-", "bytes=999-", "bytes=999-"}, class: ErrVerification,
			msg: "blob ended after 999 bytes, its descriptor says 1000"},
		{name: "empty", steps: []step{reply(200, nil)}, ranges: []string{""}, class: ErrVerification},
		{name: "more follows than Content-Length says", steps: []step{
			raw(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%sHTTP/1.1 200 OK\r\n\r\n", size, blob))}, ranges: []string{""}},
		{name: "less follows than Content-Length says", steps: []step{
			raw(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", size, blob[:10])), send}, ranges: []string{"", "bytes=10-"}},
		{name: "no length, closed early", steps: []step{
			raw("HTTP/1.0 200 OK\r\n\r\n" + string(blob[:10])), send}, ranges: []string{"", "bytes=10-"}},
		{name: "malformed chunk", steps: []step{
			raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\n" + string(blob[:10]) + "\r\nZZZ\r\n"), send},
			ranges: []string{"", "bytes=10-"}},
		{name: "negative Content-Length", steps: []step{
			raw("HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n" + string(blob))}, ranges: []string{""}, msg: "bad Content-Length"},

		{name: "500 once", steps: []step{reply(500, nil), send}, ranges: []string{"", ""}},
		{name: "502, 503, 504 on resuming", steps: []step{cut(1), reply(502, nil), reply(503, nil), reply(504, nil), send},
			ranges: []string{"", "bytes=1-", "bytes=1-", "bytes=1-", "bytes=1-"}},
		{name: "500 for ever", steps: []step{reply(500, nil)}, ranges: []string{"", "", "", "", ""},
			msg: "received unexpected HTTP status: 500 Internal Server Error"},
		{name: "one byte at a time", steps: []step{cut(1)},
			ranges: []string{"", "bytes=1-", "bytes=2-", "bytes=3-", "bytes=4-"}, msg: "unexpected EOF"},
		{name: "404", steps: []step{reply(404, nil)}, ranges: []string{""}, class: ErrNotFound, msg: "unknown blob"},
		{name: "404 on resuming", steps: []step{cut(1), reply(404, nil)}, ranges: []string{"", "bytes=1-"}, class: ErrNotFound},
		{name: "400", steps: []step{reply(400, []byte("go\x1b[31m away"))}, ranges: []string{""},
			msg: `error parsing HTTP 400 response body: "go [31m away"`},
		{name: "429 once", steps: []step{reply(429, nil), send}, ranges: []string{"", ""}},
		{name: "429 and come back next week", steps: []step{
			reply(429, []byte(`{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your pull rate limit."}]}`), "Retry-After: 604800")},
			ranges: []string{""}, class: ErrTooManyRequests, msg: "toomanyrequests: You have reached your pull rate limit."},
		{name: "503 and come back next century", steps: []step{
			reply(503, nil, "Retry-After: Fri, 31 Dec 2099 23:59:59 GMT")}, ranges: []string{""}, msg: "503"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFakeRegistry(t)
			f.addImage(t, amd64, ocispec.MediaTypeImageLayerGzip, [][]byte{blob}, "latest")
			want := digest.FromBytes(blob)
			n := 0
			f.before = func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.HasSuffix(r.URL.Path, want.String()) {
					return false
				}
				s := tc.steps[min(n, len(tc.steps)-1)]
				n++
				s(t, w, r, blob)
				return true
			}
			img := mustResolve(t, quick(), f.host+"/a", ResolveOptions{})
			got, err := readBlob(t, img, img.Layers()[0])

			var ranges []string
			for _, l := range f.asked(want.String()) {
				_, after, _ := strings.Cut(l, want.String())
				ranges = append(ranges, strings.TrimSpace(after))
			}
			if !slices.Equal(ranges, tc.ranges) {
				t.Errorf("ranges asked for: %q, want %q", ranges, tc.ranges)
			}
			if tc.class == nil && tc.msg == "" {
				if err != nil {
					t.Fatalf("error: %v", err)
				}
				if !bytes.Equal(got, blob) {
					t.Errorf("got %d other bytes", len(got))
				}
				return
			}
			if err == nil {
				t.Fatal("no error")
			}
			if tc.class != nil && !errors.Is(err, tc.class) {
				t.Errorf("error is no %v: %v", tc.class, err)
			}
			if !strings.Contains(err.Error(), tc.msg) {
				t.Errorf("error: %v, want %q in it", err, tc.msg)
			}
		})
	}
}

// chunkedRange sends a 206 that goes on behind its range.
func chunkedRange(b, more []byte) step {
	return func(_ *testing.T, w http.ResponseWriter, _ *http.Request, blob []byte) {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", len(blob)-len(b), len(blob)-1, len(blob)))
		w.WriteHeader(http.StatusPartialContent)
		http.NewResponseController(w).Flush()
		w.Write(b)
		w.Write(more)
	}
}

// An error stays, and nothing is read behind it.
func TestBlobErrorStays(t *testing.T) {
	blob := randomBytes(100)
	f := newFakeRegistry(t)
	d := f.addImage(t, amd64, ocispec.MediaTypeImageLayer, [][]byte{blob}, "latest")
	f.blobs[digest.FromBytes(blob)] = randomBytes(99)
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, digest.FromBytes(blob).String()) {
			chunked(bytes.Repeat([]byte{1}, 100))(t, w, r, nil)
			return true
		}
		return false
	}
	img := mustResolve(t, quick(), f.host+"/a@"+d.Digest.String(), ResolveOptions{})
	r, err := img.Blob(t.Context(), img.Layers()[0])
	if err != nil {
		t.Fatal(err)
	}
	_, first := io.ReadAll(r)
	if !errors.Is(first, ErrVerification) {
		t.Fatalf("error: %v", first)
	}
	if n, err := r.Read(make([]byte, 10)); n != 0 || err != first {
		t.Errorf("second Read: %d, %v", n, err)
	}
	if err := r.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	if n, err := r.Read(make([]byte, 10)); n != 0 || err != first {
		t.Errorf("Read after Close: %d, %v", n, err)
	}
}

// A large blob on a bad line arrives in the end, though there are more breaks
// than attempts.
func TestBlobProgressForgives(t *testing.T) {
	blob := randomBytes(8*worthwhile + 77)
	f := newFakeRegistry(t)
	f.addImage(t, amd64, ocispec.MediaTypeImageLayer, [][]byte{blob}, "latest")
	n := 0
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, digest.FromBytes(blob).String()) {
			return false
		}
		if n++; n <= 8 {
			cut(worthwhile)(t, w, r, blob)
		}
		return false
	}
	c := quick()
	c.Attempts = 2
	img := mustResolve(t, c, f.host+"/a", ResolveOptions{})
	got, err := readBlob(t, img, img.Layers()[0])
	if err != nil || !bytes.Equal(got, blob) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if n != 9 {
		t.Errorf("%d requests, want 9", n)
	}
}

// Both forms of Retry-After are obeyed.
func TestRetryAfter(t *testing.T) {
	for _, form := range []string{"seconds", "date"} {
		t.Run(form, func(t *testing.T) {
			t.Parallel()
			f := newFakeRegistry(t)
			f.addImage(t, amd64, ocispec.MediaTypeImageLayer, nil, "latest")
			var due time.Time
			f.before = func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.Contains(r.URL.Path, "/manifests/") {
					return false
				}
				if !due.IsZero() {
					if early := time.Until(due); early > 0 {
						t.Errorf("came back %v early", early)
					}
					return false
				}
				due = time.Now().Add(time.Second)
				h := "1"
				if form == "date" {
					due = due.Add(time.Second).Truncate(time.Second)
					h = due.UTC().Format(http.TimeFormat)
				}
				w.Header().Set("Retry-After", h)
				w.WriteHeader(http.StatusTooManyRequests)
				return true
			}
			var waits []Event
			c := quick()
			mustResolve(t, c, f.host+"/a", ResolveOptions{Progress: func(e Event) {
				if e.Retry != 0 {
					waits = append(waits, e)
				}
			}})
			if len(waits) == 0 || !errors.Is(waits[0].Err, ErrTooManyRequests) || waits[0].Retry%time.Second != 0 {
				t.Errorf("told of waits: %+v", waits)
			}
		})
	}
}

// A server that falls silent is left, and the blob resumed.
func TestBlobIdle(t *testing.T) {
	blob := randomBytes(1000)
	f := newFakeRegistry(t)
	f.addImage(t, amd64, ocispec.MediaTypeImageLayer, [][]byte{blob}, "latest")
	var n atomic.Int32 // of a connection of its own each
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, digest.FromBytes(blob).String()) {
			return false
		}
		switch n.Add(1) {
		case 1: // not even a header
			<-r.Context().Done()
			return true
		case 2: // half of it
			w.Header().Set("Content-Length", "1000")
			w.Write(blob[:500])
			http.NewResponseController(w).Flush()
			<-r.Context().Done()
			return true
		}
		return false
	}
	var events []Event
	c := quick()
	c.IdleTimeout = time.Second
	img := mustResolve(t, c, f.host+"/a", ResolveOptions{Progress: func(e Event) { events = append(events, e) }})
	got, err := readBlob(t, img, img.Layers()[0])
	if err != nil || !bytes.Equal(got, blob) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if n := n.Load(); n != 3 {
		t.Errorf("%d requests, want 3", n)
	}
	idle := 0
	for _, e := range events {
		if e.Retry != 0 && e.Digest == digest.FromBytes(blob) && errors.Is(e.Err, errIdle) {
			idle++
		}
	}
	if idle != 2 {
		t.Errorf("told of %d silences, want 2: %v", idle, events)
	}
	if last := events[len(events)-1]; last.Received != 1000 || last.Total != 1000 || last.Digest != digest.FromBytes(blob) {
		t.Errorf("last event: %+v", last)
	}
}

// The time that whoever reads takes does not count as silence.
func TestBlobSlowReader(t *testing.T) {
	blob := randomBytes(1000)
	f := newFakeRegistry(t)
	f.addImage(t, amd64, ocispec.MediaTypeImageLayer, [][]byte{blob}, "latest")
	c := quick()
	c.IdleTimeout = time.Second
	img := mustResolve(t, c, f.host+"/a", ResolveOptions{})
	r, err := img.Blob(t.Context(), img.Layers()[0])
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	<-time.After(c.IdleTimeout + c.IdleTimeout/2)
	got, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(got, blob) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if asked := f.asked(digest.FromBytes(blob).String()); len(asked) != 1 {
		t.Errorf("asked %d times", len(asked))
	}
}

// Cancelling ends whatever is under way, with the canceller's reason.
func TestCancel(t *testing.T) {
	reason := errors.New("changed my mind")
	blob := randomBytes(1000)
	block := func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	half := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "1000")
		w.Write(blob[:500])
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}
	for _, tc := range []struct {
		name  string
		path  string // of the request that is answered by reply
		reply func(http.ResponseWriter, *http.Request)
		at    func(Event) bool // when to cancel; nil: when reply is called
	}{
		{"waiting for the ping", "/v2/", block, nil},
		{"waiting for the manifest", "/manifests/", block, nil},
		{"waiting for the blob", "/blobs/" + digest.FromBytes(blob).String(), block, nil},
		{"in the middle of the blob", "/blobs/" + digest.FromBytes(blob).String(), half, func(e Event) bool { return e.Received == 500 }},
		{"between attempts at the manifest", "/manifests/", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) },
			func(e Event) bool { return e.Retry != 0 }},
		{"between attempts at the blob", "/blobs/" + digest.FromBytes(blob).String(), func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) },
			func(e Event) bool { return e.Retry != 0 }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFakeRegistry(t)
			f.addImage(t, amd64, ocispec.MediaTypeImageLayer, [][]byte{blob}, "latest")
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			f.before = func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.Contains(r.URL.Path, tc.path) || tc.path == "/v2/" && r.URL.Path != "/v2/" {
					return false
				}
				if tc.at == nil {
					cancel(reason)
				}
				tc.reply(w, r)
				return true
			}
			c := &Client{Backoff: time.Hour}
			err := func() error {
				img, err := c.Resolve(ctx, named(t, f.host+"/a"), ResolveOptions{Platform: &amd64, Progress: func(e Event) {
					if tc.at != nil && e.Digest != "" == strings.Contains(tc.path, "blobs") && tc.at(e) {
						cancel(reason)
					}
				}})
				if err != nil {
					return err
				}
				r, err := img.Blob(ctx, img.Layers()[0])
				if err != nil {
					return err
				}
				defer r.Close()
				_, err = io.Copy(io.Discard, r)
				return err
			}()
			if !errors.Is(err, reason) {
				t.Errorf("error: %v", err)
			}
		})
	}
}

// The reader of a blob ends with the context of Blob, not with Resolve's.
func TestBlobOutlivesResolve(t *testing.T) {
	blob := randomBytes(1000)
	f := newFakeRegistry(t)
	f.addImage(t, amd64, ocispec.MediaTypeImageLayer, [][]byte{blob}, "latest")
	ctx, cancel := context.WithCancel(t.Context())
	img, err := quick().Resolve(ctx, named(t, f.host+"/a"), ResolveOptions{})
	cancel()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := readBlob(t, img, img.Layers()[0]); err != nil || !bytes.Equal(got, blob) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestBlobDescriptor(t *testing.T) {
	f := newFakeRegistry(t)
	f.addImage(t, amd64, ocispec.MediaTypeImageLayer, nil, "latest")
	img := mustResolve(t, quick(), f.host+"/a", ResolveOptions{})
	empty := f.addBlob("", nil)
	if got, err := readBlob(t, img, empty); err != nil || len(got) != 0 {
		t.Errorf("empty blob: %q, %v", got, err)
	}
	for name, d := range map[string]ocispec.Descriptor{
		"no digest":     {Size: 1},
		"bad digest":    {Digest: "sha256:../../../etc/passwd", Size: 1},
		"md5":           {Digest: "md5:d41d8cd98f00b204e9800998ecf8427e", Size: 1},
		"negative size": {Digest: empty.Digest, Size: -1},
		"wrong size":    {Digest: empty.Digest, Size: 1},
	} {
		if _, err := readBlob(t, img, d); !errors.Is(err, ErrVerification) {
			t.Errorf("%s: %v", name, err)
		}
	}
	big := randomBytes(100)
	d := ocispec.Descriptor{Digest: digest.SHA512.FromBytes(big), Size: 100}
	f.blobs[d.Digest] = big
	if got, err := readBlob(t, img, d); err != nil || !bytes.Equal(got, big) {
		t.Errorf("sha512: %d bytes, %v", len(got), err)
	}
}

// A layer that a registry need not hold is taken from it if it does, and from
// nowhere else.
func TestForeignLayer(t *testing.T) {
	blob := randomBytes(100)
	elsewhere := newFakeRegistry(t)
	for _, held := range []bool{true, false} {
		f := newFakeRegistry(t)
		m := testManifest(f, t, amd64, dockerForeignLayer+".gzip", [][]byte{blob})
		m.Layers[0].URLs = []string{elsewhere.URL + "/layer"}
		f.addManifest(t, m.MediaType, m, "latest")
		if !held {
			delete(f.blobs, m.Layers[0].Digest)
		}
		img := mustResolve(t, quick(), f.host+"/a", ResolveOptions{})
		got, err := readBlob(t, img, img.Layers()[0])
		if held {
			if err != nil || !bytes.Equal(got, blob) {
				t.Errorf("held: %d bytes, %v", len(got), err)
			}
			continue
		}
		if !errors.Is(err, ErrMediaType) || !strings.Contains(err.Error(), "rootfs.foreign.diff.tar.gzip") {
			t.Errorf("not held: %v", err)
		}
		if asked := elsewhere.asked("/"); len(asked) != 0 {
			t.Errorf("asked elsewhere: %q", asked)
		}
	}
}

func FuzzParseContentRange(f *testing.F) {
	for _, s := range []string{"bytes 0-9/10", "bytes 5-9/*", "bytes */10", "bytes 9-5/10", "items 0-1/2", "bytes 0-9223372036854775807/*", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		first, total, ok := parseContentRange(s)
		if !ok && (first != 0 || total != 0) {
			t.Errorf("%q: %d, %d without ok", s, first, total)
		}
		if ok && (first < -1 || total < -1 || total >= 0 && first >= total) {
			t.Errorf("%q: %d of %d", s, first, total)
		}
	})
}

func BenchmarkBlob(b *testing.B) {
	blob := randomBytes(64 << 20)
	f := newFakeRegistry(b)
	f.addImage(b, amd64, ocispec.MediaTypeImageLayer, [][]byte{blob}, "latest")
	img := mustResolve(b, new(Client), f.host+"/a", ResolveOptions{})
	b.SetBytes(int64(len(blob)))
	b.ReportAllocs()
	buf := make([]byte, 1<<20)
	for b.Loop() {
		r, err := img.Blob(b.Context(), img.Layers()[0])
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, r, buf); err != nil {
			b.Fatal(err)
		}
		r.Close()
	}
}
