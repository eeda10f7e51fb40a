package fetch

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A farRegistry serves blobs slowly on each connection, and as fast as may be on all.
type farRegistry struct {
	*fakeRegistry
	blob          []byte
	silent        bool                                                          // does not say that it has ranges
	answer        func(w http.ResponseWriter, r *http.Request, off, n int) bool // to a range, in its own way
	busy, busiest atomic.Int32
}

func newFarRegistry(t *testing.T, size int) *farRegistry {
	f := &farRegistry{fakeRegistry: newFakeRegistry(t), blob: randomBytes(size)}
	f.addImage(t, amd64, ocispec.MediaTypeImageLayer, [][]byte{f.blob}, "latest")
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, digest.FromBytes(f.blob).String()) {
			return false
		}
		n := f.busy.Add(1)
		for old := f.busiest.Load(); n > old && !f.busiest.CompareAndSwap(old, n); old = f.busiest.Load() {
		}
		defer f.busy.Add(-1)
		off, length := 0, len(f.blob)
		if span, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes="); ok {
			first, last, _ := strings.Cut(span, "-")
			off, _ = strconv.Atoi(first)
			if length -= off; last != "" {
				end, _ := strconv.Atoi(last)
				length = end + 1 - off
				if f.answer != nil && f.answer(w, r, off, length) {
					return true
				}
			}
			w.Header().Set("Content-Range", "bytes "+strconv.Itoa(off)+"-"+strconv.Itoa(off+length-1)+"/"+strconv.Itoa(len(f.blob)))
		} else if !f.silent {
			w.Header().Set("Accept-Ranges", "bytes")
		}
		w.Header().Set("Content-Length", strconv.Itoa(length))
		if off > 0 {
			w.WriteHeader(http.StatusPartialContent)
		}
		for p := f.blob[off : off+length]; len(p) > 0; {
			m := min(len(p), 16<<10)
			if _, err := w.Write(p[:m]); err != nil {
				return true
			}
			p = p[m:]
			time.Sleep(10 * time.Millisecond) // the long way
		}
		return true
	}
	return f
}

func (f *farRegistry) open(t *testing.T, ctx context.Context) io.ReadCloser {
	t.Helper()
	c := quick()
	c.pieces = 64 << 10
	img := mustResolve(t, c, f.host+"/a", ResolveOptions{})
	r, err := img.Blob(ctx, img.Layers()[0])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func TestBlobWide(t *testing.T) {
	const size = 640<<10 + 12345
	for _, tc := range []struct {
		name  string
		set   func(f *farRegistry)
		wide  bool
		class error
	}{
		{name: "ranges", set: func(*farRegistry) {}, wide: true},
		{name: "none offered", set: func(f *farRegistry) { f.silent = true }},
		{name: "ranges answered with all", set: func(f *farRegistry) {
			f.answer = func(w http.ResponseWriter, r *http.Request, off, n int) bool {
				w.Write(f.blob)
				return true
			}
		}, wide: true},
		{name: "ranges refused", set: func(f *farRegistry) {
			f.answer = func(w http.ResponseWriter, r *http.Request, off, n int) bool {
				sayError(w, http.StatusTooManyRequests, "TOOMANYREQUESTS", "one at a time")
				return true
			}
		}, wide: true},
		{name: "a range broken", set: func(f *farRegistry) {
			var once sync.Once
			f.answer = func(w http.ResponseWriter, r *http.Request, off, n int) (done bool) {
				once.Do(func() {
					done = true
					w.Header().Set("Content-Range", "bytes "+strconv.Itoa(off)+"-"+strconv.Itoa(off+n-1)+"/"+strconv.Itoa(size))
					w.Header().Set("Content-Length", strconv.Itoa(n))
					w.WriteHeader(http.StatusPartialContent)
					w.Write(f.blob[off : off+n/2])
				})
				return done
			}
		}, wide: true},
		{name: "a range of something else", set: func(f *farRegistry) {
			var once sync.Once
			f.answer = func(w http.ResponseWriter, r *http.Request, off, n int) bool {
				once.Do(func() { f.blob[off+n/2] ^= 1 })
				return false
			}
		}, wide: true, class: ErrVerification},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			f := newFarRegistry(t, size)
			want := bytes.Clone(f.blob)
			sum := digest.FromBytes(want).String()
			tc.set(f)
			r := f.open(t, t.Context())
			got, err := io.ReadAll(r)
			if tc.class != nil {
				if !errors.Is(err, tc.class) {
					t.Fatalf("%d bytes, %v", len(got), err)
				}
				return
			}
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("%d bytes of %d, %v", len(got), size, err)
			}
			asked := f.asked(sum)
			if wide := len(asked) > 1; wide != tc.wide {
				t.Errorf("requests: %q", asked)
			}
			if tc.name == "ranges" && (f.busiest.Load() < 3 || len(asked) > 11) {
				t.Errorf("%d connections at once, requests: %q", f.busiest.Load(), asked)
			}
		})
	}
}

// A reader that takes its time is not the line's fault.
func TestBlobNotWide(t *testing.T) {
	f := newFarRegistry(t, 400<<10)
	r := f.open(t, t.Context())
	buf := make([]byte, 16<<10)
	for {
		if _, err := io.ReadFull(r, buf); err != nil {
			if err != io.EOF {
				t.Fatal(err)
			}
			break
		}
		time.Sleep(30 * time.Millisecond) // unpacking
	}
	if asked := f.asked(digest.FromBytes(f.blob).String()); len(asked) != 1 {
		t.Errorf("requests: %q", asked)
	}
}

func TestBlobWideCancel(t *testing.T) {
	f := newFarRegistry(t, 4<<20)
	reason := errors.New("changed my mind")
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	r := f.open(t, ctx)
	got := 0
	buf := make([]byte, 4<<10)
	for {
		n, err := r.Read(buf)
		if got += n; err != nil {
			if !errors.Is(err, reason) {
				t.Fatal(err)
			}
			break
		}
		if f.busiest.Load() > 2 {
			cancel(reason)
		}
	}
	if got == 4<<20 {
		t.Error("all came although it was cancelled")
	}
}
