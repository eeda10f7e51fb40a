package layerstore

import (
	"context"
	"testing"
	"time"
)

// TestWatch: pulls and removals of this Store and of another one on the same folder are told.
func TestWatch(t *testing.T) {
	s := openStore(t, Options{})
	other := openStoreIn(t, s.Dir(), Options{})
	ctx, stop := context.WithCancel(t.Context())
	changed, ended := make(chan struct{}, 1), make(chan error, 1)
	go func() {
		ended <- s.Watch(ctx, func() {
			select {
			case changed <- struct{}{}:
			default: // nobody has looked since the last
			}
		})
	}()
	until := func(what string, ok func() bool) {
		t.Helper()
		for over := time.After(time.Minute); !ok(); {
			select {
			case <-changed:
			case err := <-ended:
				t.Fatalf("%s: watch ended: %v", what, err)
			case <-over:
				t.Fatalf("%s: watch does not tell", what)
			}
		}
	}
	has := func(n int) func() bool {
		return func() bool {
			names, err := s.Names()
			if err != nil {
				t.Fatal(err)
			}
			ids, err := s.ImageIDs()
			if err != nil {
				t.Fatal(err)
			}
			chains, err := s.Chains()
			if err != nil {
				t.Fatal(err)
			}
			return len(names) == n && len(ids) == n && len(chains) == n
		}
	}
	select {
	case <-changed: // it looks once when it begins
	case <-time.After(time.Minute):
		t.Fatal("watch does not begin")
	}
	img := pullImage(t, other, makeImage(t, memLayer{tar: makeTar(t, file("a", "a"))}), "one")
	until("pull", has(1))
	if got, err := s.ImageByID(img.ID); err != nil || got.ID != img.ID {
		t.Errorf("image by ID: %v, %v", got, err)
	}
	if _, err := other.Remove("one", RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	until("remove", has(0))
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
