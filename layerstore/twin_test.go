package layerstore

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A blob that an image has twice is fetched once.
func TestTwinInOneImage(t *testing.T) {
	a := memLayer{tar: makeTar(t, file("a", string(randomBytes(1, 300_000))))}
	b := memLayer{tar: makeTar(t, file("a", "changed"), file("b", "b"))}
	src := makeImage(t, a, b, a, b, a)
	s := openStore(t, Options{Parallel: 1})
	pullImage(t, s, src, "twins")
	for d, n := range src.fetched {
		if n != 1 {
			t.Errorf("blob %s was fetched %d times", d, n)
		}
	}
	checkClean(t, s)
}

// pullTogether pulls images at once, beginning in order: no blob ends before all flights have begun.
func pullTogether(t *testing.T, s *Store, images ...*memImage) []error {
	t.Helper()
	begun := make(chan struct{})
	errs := make([]error, len(images))
	var wg sync.WaitGroup
	for i, m := range images {
		hook := m.hook
		m.hook = func(ctx context.Context, d ocispec.Descriptor, r io.Reader) io.Reader {
			if hook != nil {
				r = hook(ctx, d, r)
			}
			return &heldReader{ctx, begun, r}
		}
		boarded := make(chan struct{})
		wg.Go(func() {
			first := sync.OnceFunc(func() { close(boarded) })
			_, errs[i] = s.Pull(t.Context(), m, nil, PullOptions{Progress: func(e ProgressEvent) {
				if e.Stage >= StageWaiting {
					first()
				}
			}})
		})
		<-boarded
	}
	close(begun)
	wg.Wait()
	return errs
}

// A heldReader waits for a channel to be closed.
type heldReader struct {
	ctx  context.Context
	open <-chan struct{}
	r    io.Reader
}

func (r *heldReader) Read(p []byte) (int, error) {
	select {
	case <-r.open:
		return r.r.Read(p)
	case <-r.ctx.Done():
		return 0, r.ctx.Err()
	}
}

// Blobs that two pulls want over different parents are fetched once, by whichever comes first.
func TestTwinsOfTwoPulls(t *testing.T) {
	a := memLayer{tar: makeTar(t, file("a", string(randomBytes(1, 300_000))))}
	b := memLayer{tar: makeTar(t, file("b", string(randomBytes(2, 300_000))))}
	one, two := makeImage(t, a, b), makeImage(t, b, a)
	s := openStore(t, Options{})
	if err := errors.Join(pullTogether(t, s, one, two)...); err != nil {
		t.Fatal(err)
	}
	for d := range one.blobs {
		if n := one.fetched[d] + two.fetched[d]; n != 1 {
			t.Errorf("blob %s was fetched %d times", d, n)
		}
	}
	checkClean(t, s)
}

// What fails one pull does not fail the other.
func TestTwinFails(t *testing.T) {
	a := memLayer{tar: makeTar(t, file("a", string(randomBytes(1, 300_000))))}
	b := memLayer{tar: makeTar(t, file("b", "b"))}
	bad, good := makeImage(t, a), makeImage(t, b, a)
	bad.hook = func(_ context.Context, _ ocispec.Descriptor, r io.Reader) io.Reader {
		return io.MultiReader(io.LimitReader(r, 1000), bytes.NewReader([]byte("not what follows")))
	}
	s := openStore(t, Options{})
	errs := pullTogether(t, s, bad, good)
	if errs[0] == nil || errs[1] != nil {
		t.Errorf("the bad image: %v, the good one: %v", errs[0], errs[1])
	}
	checkClean(t, s)
}
