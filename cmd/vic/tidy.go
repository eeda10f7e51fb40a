package main

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"vic/containervm"
	"vic/containervm/vsphere"
	"vic/layerstore"
	datastore "vic/layerstore/vsphere"
)

// A tidier has the image store on a datastore forget the images that the VCH needs no more, and their disks go, and notes the names of the
// others.
type tidier struct {
	published func() []digest.Digest                 // images that the datastore got since the beginning
	needed    func() (map[digest.Digest]bool, error) // images that are there, or that containers are made of
	tidy      func(context.Context) error
	note      func(context.Context) error // notes what images are called
	reach     func(context.Context) error // waits for vSphere
	log       *slog.Logger

	wake chan struct{} // has one when an image or a container may have gone
}

const (
	// firstTidyRest and longestTidyRest are how long after one failure it is tried again.
	firstTidyRest   = time.Second
	longestTidyRest = 5 * time.Minute
)

// tidy keeps the image store tidy until what it returns is called.
func (h *host) tidy(images *datastore.Store, driver *vsphere.Driver, log *slog.Logger) (stop func() error) {
	t := &tidier{published: images.Published, needed: func() (map[digest.Digest]bool, error) { return neededImages(h.store) }, reach: driver.Reach, log: log, wake: make(chan struct{}, 1)}
	t.tidy = func(ctx context.Context) error {
		if err := images.Tidy(ctx, h.store); err != nil {
			return err
		}
		removed, err := images.Sweep(ctx)
		if len(removed.Disks) > 0 {
			log.Info("disks removed from the datastore", "disks", len(removed.Disks), "bytes", removed.Bytes)
		}
		return err
	}
	t.note = func(ctx context.Context) error { return noteNames(ctx, h.store, images) }
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	unsubscribe := h.containers.Subscribe(func(e containervm.Event) {
		if e.Type == "container" && e.Action == "destroy" {
			t.look()
		}
	})
	wg.Go(func() { t.run(ctx) })
	wg.Go(func() {
		if err := h.store.Watch(ctx, t.look); err != nil {
			log.Warn("watch for removed images", "error", err)
		}
	})
	return func() error {
		unsubscribe()
		cancel()
		wg.Wait()
		return nil
	}
}

func neededImages(local *layerstore.Store) (map[digest.Digest]bool, error) {
	ids, err := local.ImageIDs()
	if err != nil {
		return nil, err
	}
	roots, err := local.ContainerImages() // after the images: a container is there before its image can go
	needed := map[digest.Digest]bool{}
	for _, id := range append(ids, roots...) {
		needed[id] = true
	}
	return needed, err
}

// look has run look. Several looks may become one.
func (t *tidier) look() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// run tidies when an image is needed no more, and after the first look, until ctx ends. What fails is done again, once vSphere is there.
// A local store without images is new, or has been lost, and is no reason to remove any.
func (t *tidier) run(ctx context.Context) {
	var before map[digest.Digest]bool
	for {
		select {
		case <-t.wake:
		case <-ctx.Done():
			return
		}
		for rest := firstTidyRest; ; rest = min(2*rest, longestTidyRest) {
			published := t.published() // before: what comes meanwhile is not gone
			now, err := t.needed()
			if err == nil && (isLess(now, before) || lacks(now, slices.Values(published))) {
				err = t.tidy(ctx)
			}
			if err == nil {
				err = t.note(ctx)
			}
			if err == nil {
				before = now
				break
			}
			if ctx.Err() != nil {
				return
			}
			t.log.Warn("bring the image store on the datastore up to date", "error", err)
			select {
			case <-time.After(rest):
			case <-ctx.Done():
				return
			}
			if errors.Is(err, datastore.ErrUnavailable) && t.reach(ctx) != nil {
				return // with ctx
			}
		}
	}
}

// isLess says whether something is needed no more that was. Nobody knows what was before the first look.
func isLess(now, before map[digest.Digest]bool) bool {
	if before == nil {
		return len(now) > 0
	}
	return lacks(now, maps.Keys(before))
}

func lacks(now map[digest.Digest]bool, ids iter.Seq[digest.Digest]) bool {
	for id := range ids {
		if !now[id] {
			return true
		}
	}
	return false
}

// noteNames notes on the datastore what the images of the local store are called: by tags, or by digests where there are none.
func noteNames(ctx context.Context, local *layerstore.Store, images *datastore.Store) error {
	refs, err := local.Names()
	if err != nil {
		return err
	}
	names := map[digest.Digest][]string{}
	for id, list := range refs {
		tags := slices.DeleteFunc(slices.Clone(list), func(ref reference.Named) bool { _, tagged := ref.(reference.Tagged); return !tagged })
		if len(tags) == 0 {
			tags = list
		}
		for _, ref := range tags {
			names[id] = append(names[id], ref.String())
		}
	}
	return images.NoteNames(ctx, names)
}
