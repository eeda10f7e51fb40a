package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	datastore "vic/layerstore/vsphere"
)

// A shed has what a tidier looks after.
type shed struct {
	mu     sync.Mutex
	needed map[digest.Digest]bool
	sent   []digest.Digest
	fails  []error // of the next tidyings, one after another
	tidied int
	away   chan struct{} // closed when vSphere is there
}

func (s *shed) need(ids ...digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.needed = map[digest.Digest]bool{}
	for _, id := range ids {
		s.needed[id] = true
	}
}

func (s *shed) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tidied
}

func TestTidier(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &shed{away: make(chan struct{})}
		x := &tidier{
			published: func() []digest.Digest {
				s.mu.Lock()
				defer s.mu.Unlock()
				return s.sent
			},
			needed: func() (map[digest.Digest]bool, error) {
				s.mu.Lock()
				defer s.mu.Unlock()
				return s.needed, nil
			},
			tidy: func(context.Context) error {
				s.mu.Lock()
				defer s.mu.Unlock()
				if len(s.fails) > 0 {
					err := s.fails[0]
					s.fails = s.fails[1:]
					return err
				}
				s.tidied++
				s.sent = nil
				return nil
			},
			reach: func(ctx context.Context) error {
				select {
				case <-s.away:
					return nil
				case <-ctx.Done():
					return ctx.Err()
				}
			},
			note: func(context.Context) error { return nil },
			log:  slog.New(slog.DiscardHandler), wake: make(chan struct{}, 1),
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { x.run(ctx) })
		const a, b, c = digest.Digest("a"), digest.Digest("b"), digest.Digest("c")
		for _, step := range []struct {
			name   string
			needed []digest.Digest
			sent   []digest.Digest
			fails  []error
			want   int
		}{
			{"an empty store is none that was emptied", nil, nil, nil, 0},
			{"images come", []digest.Digest{a, b, c}, []digest.Digest{c}, nil, 0},
			{"nothing has changed", []digest.Digest{a, b, c}, []digest.Digest{c}, nil, 0},
			{"one came and went while nobody looked", []digest.Digest{a, b, c}, []digest.Digest{c, "d"}, nil, 1},
			{"one goes", []digest.Digest{a, b}, nil, nil, 2},
			{"one goes, and something fails twice", []digest.Digest{a}, nil, []error{errors.New("x"), errors.New("y")}, 3},
			{"the last goes while vSphere is away", nil, nil, []error{fmt.Errorf("x: %w", datastore.ErrUnavailable)}, 3},
		} {
			s.need(step.needed...)
			s.mu.Lock()
			s.fails, s.sent = step.fails, step.sent
			s.mu.Unlock()
			for range 3 {
				x.look()
			}
			time.Sleep(longestTidyRest) // in the bubble
			if got := s.count(); got != step.want {
				t.Errorf("%s: tidied %d times, want %d", step.name, got, step.want)
			}
		}
		close(s.away)
		synctest.Wait()
		if got := s.count(); got != 4 {
			t.Errorf("when vSphere is back: tidied %d times, want 4", got)
		}
		cancel()
		wg.Wait()
	})
}
