package vsphere

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"vic/bench/vcsim"
)

// TestReadAhead counts the requests that reading a file takes, in order, by several at once, and after an error.
func TestReadAhead(t *testing.T) {
	s, ctx := newSite(t, vcsim.Options{}), t.Context()
	f, c := s.behind()
	d := s.datastore(c, "store")
	if err := d.MakeFolder(ctx, "disks"); err != nil {
		t.Fatal(err)
	}
	want := noise(20<<20 + 17) // 81 chunks
	if err := d.Put(ctx, "disks/x", int64(len(want)), file(want), nil); err != nil {
		t.Fatal(err)
	}
	var requests, broken atomic.Int64
	f.set(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, "/disks/x") {
			return false
		}
		requests.Add(1)
		if broken.Load() > 0 {
			w.WriteHeader(http.StatusForbidden)
			return true
		}
		return false
	})
	open := func(ctx context.Context, c *cache) *remoteFile {
		return &remoteFile{ctx: ctx, d: d, name: "disks/x", size: int64(len(want)), cache: c}
	}
	read := func(f *remoteFile, buffer int) {
		t.Helper()
		var got bytes.Buffer
		r := io.NewSectionReader(f, 0, f.size)
		if _, err := io.CopyBuffer(struct{ io.Writer }{&got}, struct{ io.Reader }{r}, make([]byte, buffer)); err != nil || !bytes.Equal(got.Bytes(), want) {
			t.Errorf("read %d bytes, %v", got.Len(), err)
		}
	}
	for _, tt := range []struct {
		name            string
		buffer, readers int
		most            int64
	}{
		{"small", 4096, 1, 10}, // 1, 2, 4, 8, then 16 chunks each
		{"odd", 100_001, 1, 10},
		{"large", 8 << 20, 1, 7},
		{"several", 32 << 10, 4, 10},
	} {
		t.Run(tt.name, func(t *testing.T) {
			requests.Store(0)
			shared := newCache()
			var wg sync.WaitGroup
			for range tt.readers {
				wg.Go(func() { read(open(ctx, shared), tt.buffer) })
			}
			wg.Wait()
			if n := requests.Load(); n > tt.most {
				t.Errorf("%d requests, at most %d are needed", n, tt.most)
			}
			read(open(ctx, shared), tt.buffer)
			if n := requests.Load(); n > tt.most {
				t.Errorf("%d requests with what was read before", n)
			}
		})
	}
	t.Run("error", func(t *testing.T) {
		shared := newCache()
		broken.Store(1)
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				if _, err := open(ctx, shared).ReadAt(make([]byte, 10), 5); err == nil {
					t.Error("read what cannot be read")
				}
			})
		}
		wg.Wait()
		broken.Store(0)
		ended, cancel := context.WithCancel(ctx)
		cancel()
		if _, err := open(ended, shared).ReadAt(make([]byte, 10), 5); !errors.Is(err, context.Canceled) {
			t.Errorf("read after the end: %v", err)
		}
		read(open(ctx, shared), 4096)
	})
}
