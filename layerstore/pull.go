package layerstore

import (
	"context"
	"fmt"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// PullOptions are how Pull goes about it.
type PullOptions struct {
	// Progress is told of what happens, by the goroutine that called Pull and so
	// one event at a time. A slow one misses intermediate events and delays its
	// own pull only. nil is silent.
	Progress func(ProgressEvent)
	// Tags are further names for the image, which appear with it. They have tags, or get latest.
	Tags []reference.Named
	// Descent is what the image was made of. It is kept if the image is new.
	Descent Descent
}

// A pull is one call of Pull.
type pull struct {
	cancel context.CancelCauseFunc
	wake   chan struct{} // something about a flight has changed; one is enough
	riders []*rider      // of the missing layers, bottom first

	mirroring Mirroring // nil without a mirror
	told      int       // of how many of riders the mirror knows
}

// Pull brings an image and its layers into the store, unless they are there, and
// makes name name it: a tag, latest if there is none, also names the image by its
// digest; nil gives it no name. Layers that another pull is bringing are waited
// for. What the image replaces keeps existing, without the name.
//
// If it fails or ctx is cancelled, the store is as it was, except for layers that
// were complete; they make the next pull shorter, or the next sweep takes them.
// Errors are those of the Source, a *FormatError for a manifest or config that
// cannot be pulled, diskfs's for a tar that cannot be unpacked, or the
// datastore's.
func (s *Store) Pull(ctx context.Context, src Source, name reference.Named, o PullOptions) (*Image, error) {
	p := &pull{wake: make(chan struct{}, 1)}
	ctx, err := s.begin(ctx, p)
	if err != nil {
		return nil, err
	}
	defer s.end(p)
	plan, err := makePlan(src, s.lim)
	if err != nil {
		return nil, fmt.Errorf("pull image: %w", err)
	}
	plan.descent = o.Descent
	names, err := plan.names(name)
	if err != nil {
		return nil, fmt.Errorf("pull image: %w", err)
	}
	for _, tag := range o.Tags {
		tag, err := tagName(tag)
		if err != nil {
			return nil, fmt.Errorf("pull image: %w", err)
		}
		names = append(names, tag)
	}
	chains := make([]digest.Digest, len(plan.layers))
	for i, l := range plan.layers {
		chains[i] = l.chain
	}
	lease, err := s.dir.lease(chains)
	if err != nil {
		return nil, fmt.Errorf("pull image: %w", err)
	}
	defer lease.release()
	if s.mirror != nil {
		if p.mirroring, err = s.mirror.Begin(ctx, s); err != nil {
			return nil, fmt.Errorf("pull image: %w", err)
		}
		defer func() {
			if err := p.mirroring.Close(); err != nil {
				s.log.Warn("end the mirror's part in a pull", "image", plan.id, "error", err)
			}
		}()
	}
	if err := s.pullLayers(ctx, p, src, plan, o.Progress); err != nil {
		return nil, fmt.Errorf("pull image: %w", err)
	}
	updated, err := s.commitImage(plan, names)
	if err != nil {
		return nil, fmt.Errorf("pull image: %w", err)
	}
	if o.Progress != nil {
		o.Progress(ProgressEvent{Stage: StageDone, Updated: updated})
	}
	return s.Image(plan.id.String())
}

// names returns the names that pulling by a reference gives the image.
func (p *plan) names(ref reference.Named) ([]reference.Named, error) {
	if ref == nil {
		return nil, nil
	}
	ref, err := storedName(ref)
	if err != nil {
		return nil, err
	}
	if c, ok := ref.(reference.Canonical); ok {
		if c.Digest() != p.digest {
			return nil, fmt.Errorf("%s is asked for, the source has %s", ref, p.digest)
		}
		return []reference.Named{ref}, nil
	}
	byDigest, err := reference.WithDigest(reference.TrimNamed(ref), p.digest)
	if err != nil {
		return nil, err
	}
	// The tag last: whoever sees it sees all.
	return []reference.Named{byDigest, ref}, nil
}

// findDonors looks for layers of the store that missing ones can be made from, and leases
// them. The lease is nil if there are none.
func (s *Store) findDonors(missing []planLayer) (*lease, error) {
	found, err := s.dir.donors(missing)
	if err != nil || len(found) == 0 {
		return nil, err
	}
	var chains []digest.Digest
	for i, l := range missing {
		if donor := found[l.diffID]; donor != nil {
			missing[i].donor = donor
			chains = append(chains, donor.chains()...)
		}
	}
	return s.dir.lease(chains)
}

// pullLayers brings those layers of an image, bottom first, that are missing, and then the image into the mirror.
func (s *Store) pullLayers(ctx context.Context, p *pull, src Source, plan *plan, progress func(ProgressEvent)) error {
	layers := plan.layers
	missing := layers
	for len(missing) > 0 && !missing[0].again && s.dir.serves(missing[0].chain, missing[1:]) {
		missing = missing[1:]
	}
	lease, err := s.findDonors(missing)
	if err != nil {
		return err
	}
	if lease != nil {
		defer lease.release()
	}
	rep := newReporter(progress, layers, missing)
	s.board(ctx, p, src, missing)
	defer s.leave(p)
	var tick <-chan time.Time
	var mirrored <-chan error
	if progress != nil && (len(missing) > 0 || p.mirroring != nil) {
		t := time.NewTicker(progressInterval)
		defer t.Stop()
		tick = t.C
	}
	for {
		events, left, err := s.look(p)
		p.tellMirror(events, len(events)-left)
		rep.report(events)
		if err != nil || left == 0 && p.mirroring == nil {
			return err
		}
		if left == 0 && mirrored == nil {
			mirrored = p.commitMirror(plan)
		}
		select {
		case err := <-mirrored:
			if err == nil {
				events, _, _ = s.look(p) // all have landed
				rep.report(events)
			}
			return err
		case <-p.wake:
		case <-tick:
		case <-ctx.Done():
			if mirrored != nil { // it ends with ctx
				<-mirrored
			}
			return context.Cause(ctx)
		}
	}
}

// look returns where p's flights are, how many have not landed, and the error of
// the first that will not.
func (s *Store) look(p *pull) (events []ProgressEvent, left int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range p.riders {
		f := r.f
		if r.err != nil && err == nil {
			err = fmt.Errorf("layer %s: %w", r.layer.blob.Digest, r.err)
		}
		e := ProgressEvent{Layer: r.layer.blob.Digest, Stage: f.stage}
		if f.stage >= StageFetching {
			e.Current, e.Total = f.fetched.Load(), f.total.Load()
		}
		if !f.landed {
			left++
		}
		events = append(events, e)
	}
	return events, left, err
}

// begin registers a pull, or refuses it because the store is closed.
func (s *Store) begin(ctx context.Context, p *pull) (context.Context, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	ctx, p.cancel = context.WithCancelCause(ctx)
	s.pulls[p] = struct{}{}
	s.pulling.Add(1)
	return ctx, nil
}

func (s *Store) end(p *pull) {
	p.cancel(nil)
	s.mu.Lock()
	delete(s.pulls, p)
	s.mu.Unlock()
	s.pulling.Done()
}
