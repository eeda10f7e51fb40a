package layerstore

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync/atomic"

	"vic/diskfs"
	"vic/vmdk"
)

// A flight is a layer on its way into the store, for all pulls of this process
// that want it: its riders. The first rider's Source is used; if that fails, the
// next one's. A rider that leaves does not matter to the others; when the last
// one has left, the flight is cancelled.
//
// A pull boards the flights of all its missing layers at once and leaves them at
// once. So whoever rides on a flight rides on the one below as well, unless that
// had landed before; and a flight that waits for the one below is cancelled if
// that one is.
type flight struct {
	s      *Store
	layer  planLayer // its blob is the first rider's
	below  *flight   // of the parent; nil if that is in the store
	twin   *flight   // of the same tar over another parent, which began before; or nil
	cancel context.CancelFunc
	done   chan struct{} // closed when the goroutine has ended

	fetched atomic.Int64 // bytes of the blob
	total   atomic.Int64 // bytes that the blob has

	ticket *ticket // the goroutine's; nil if it has none

	// Guarded by Store.mu.
	riders    []*rider
	stage     Stage
	submitted bool          // its commit is in the queue
	landed    bool          // it is committed
	gone      bool          // it is cancelled, or landed and forgotten
	failed    bool          // a rider's Source, or the datastore, failed it
	stack     *stack        // with this layer on top, for one child to take
	changed   chan struct{} // closed, and replaced, when any of these changes
}

// A rider is a pull's interest in a flight.
type rider struct {
	p     *pull
	f     *flight
	src   Source
	layer planLayer
	tried bool  // its Source has been used
	err   error // why the rider will not arrive
}

// board makes p ride on the flights of the layers that it misses, bottom first,
// starting those that there are none of yet.
func (s *Store) board(ctx context.Context, p *pull, src Source, missing []planLayer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var started []*flight
	for _, l := range missing {
		f := s.flights[l.chain]
		if f == nil {
			f = &flight{
				s: s, layer: l, below: s.flights[l.parent], twin: s.twin(l),
				done: make(chan struct{}), changed: make(chan struct{}),
			}
			s.flights[l.chain] = f
			started = append(started, f)
		}
		r := &rider{p: p, f: f, src: src, layer: l}
		f.riders = append(f.riders, r)
		p.riders = append(p.riders, r)
		f.notify()
	}
	largestFirst(started)
	for _, f := range started {
		var fctx context.Context
		fctx, f.cancel = context.WithCancel(context.WithoutCancel(ctx))
		f.ticket = s.slots.take()
		go f.run(fctx)
	}
}

// leave takes p off its flights, cancels those that nobody is left on, and
// returns when these have cleaned up.
func (s *Store) leave(p *pull) {
	s.mu.Lock()
	var empty []*flight
	for _, r := range p.riders {
		f := r.f
		f.riders = slices.DeleteFunc(f.riders, func(x *rider) bool { return x == r })
		if len(f.riders) == 0 {
			delete(s.flights, f.layer.chain)
			f.cancel()
			f.gone = true
			f.notify()
			empty = append(empty, f)
		}
	}
	s.mu.Unlock()
	for _, f := range empty {
		<-f.done
		if st := f.takeStack(); st != nil {
			st.close()
		}
	}
}

// update changes what Store.mu guards and tells those who wait for it.
func (f *flight) update(change func()) {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	change()
	f.notify()
}

func (f *flight) notify() {
	close(f.changed)
	f.changed = make(chan struct{})
	for _, r := range f.riders {
		select {
		case r.p.wake <- struct{}{}:
		default: // it has been told and not looked yet
		}
	}
}

func (f *flight) setStage(st Stage) { f.update(func() { f.stage = st }) }

// await waits until cond, which is called with Store.mu held, is true of f.
func (f *flight) await(ctx context.Context, cond func() bool) error {
	for {
		f.s.mu.Lock()
		ok, changed := cond(), f.changed
		f.s.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// run brings the layer into the store, with one rider's Source after the other.
func (f *flight) run(ctx context.Context) {
	defer close(f.done)
	defer f.giveTicket()
	var lock *fileLock
	defer func() {
		if lock != nil {
			lock.unlock()
		}
	}()
	for {
		r, err := f.nextRider(ctx)
		if err != nil {
			return // nobody wants it any more
		}
		if lock == nil {
			if err = f.awaitTwin(ctx); err != nil {
				return
			}
			if lock, err = f.lock(ctx); err != nil {
				f.fail(nil, err)
				continue
			}
		}
		if err = f.attempt(ctx, r); err == nil {
			return
		}
		if cleanErr := f.s.dir.cleanLayer(f.layer.chain); cleanErr != nil {
			err = errors.Join(err, cleanErr)
		}
		var se *sourceError
		if errors.As(err, &se) {
			f.fail(r, err)
		} else {
			f.fail(nil, err)
		}
	}
}

// lock takes the layer's lock. While another process has it there is no point in
// keeping a place in the queue.
func (f *flight) lock(ctx context.Context) (*fileLock, error) {
	lock, err := f.s.dir.tryLockChain(f.layer.chain)
	if lock != nil || err != nil {
		return lock, err
	}
	f.giveTicket()
	f.setStage(StageWaiting)
	return f.s.dir.lockChain(ctx, f.layer.chain)
}

func (f *flight) giveTicket() {
	if f.ticket != nil {
		f.ticket.give()
		f.ticket = nil
	}
}

// nextRider waits for a rider whose Source has not been tried.
func (f *flight) nextRider(ctx context.Context) (*rider, error) {
	var next *rider
	err := f.await(ctx, func() bool {
		for _, r := range f.riders {
			if !r.tried {
				r.tried, next = true, r
				return true
			}
		}
		return false
	})
	return next, err
}

// fail tells one rider, or all of them, that they will not arrive.
func (f *flight) fail(one *rider, err error) {
	f.update(func() {
		f.stage, f.submitted, f.failed = StageQueued, false, true
		if f.stack != nil {
			f.stack.close()
			f.stack = nil
		}
		for _, r := range f.riders {
			if one == nil || r == one {
				r.tried, r.err = true, err
			}
		}
	})
}

// attempt brings the layer into the store with r's Source. The caller removes
// what is in tmp after an error.
func (f *flight) attempt(ctx context.Context, r *rider) error {
	if there, err := f.isThere(ctx); there || err != nil {
		return err
	}
	l := &Layer{
		Chain: r.layer.chain, Parent: r.layer.parent, DiffID: r.layer.diffID,
		Blob: r.layer.blob.Digest, BlobSize: r.layer.blob.Size,
	}
	var st *stack
	var err error
	if _, empty := emptyDiffIDs[l.DiffID]; empty {
		f.giveTicket()
		st, err = f.parentStack(ctx)
	} else {
		st, err = f.make(ctx, r, l)
	}
	if err != nil {
		if st != nil {
			st.close()
		}
		return err
	}
	st.note(l)
	if r.layer.again {
		if err := f.s.dir.sameAsBefore(ctx, l); err != nil {
			st.close()
			return err
		}
	}
	var desc *vmdk.Descriptor
	if !l.Empty() {
		desc = st.open.descriptor()
	}
	f.update(func() { f.stage, f.stack = StageBound, st }) // st is another's from here on
	return f.commit(ctx, l, desc)
}

// isThere lands the flight if the layer is in the store: another process has
// brought it, or only layers below were missing. Those must land first, since
// without them it is not complete.
func (f *flight) isThere(ctx context.Context) (bool, error) {
	d := f.s.dir
	if f.layer.again || !d.isComplete(f.layer.chain) {
		return false, nil
	}
	if b := f.below; b != nil {
		f.giveTicket()
		if err := b.await(ctx, func() bool { return b.landed || b.gone }); err != nil {
			return false, err
		}
		if !d.isComplete(f.layer.chain) {
			return false, nil
		}
	}
	f.update(func() { f.stage, f.landed = StageExists, true })
	return true, nil
}

// parentStack returns the stack that the layer goes on: the one that its parent
// just made, if no other child has taken that, or what the store has.
func (f *flight) parentStack(ctx context.Context) (*stack, error) {
	if b := f.below; b != nil {
		var st *stack
		err := b.await(ctx, func() bool {
			st, b.stack = b.stack, nil
			return st != nil || b.landed || b.gone
		})
		if st != nil || err != nil {
			return st, err
		}
	}
	return f.s.stack(f.layer.parent)
}

func (f *flight) takeStack() *stack {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	st := f.stack
	f.stack = nil
	return st
}

// make makes the layer: of what the store has, or has now, if it was made from the same
// tar over another parent, else of r's Source.
func (f *flight) make(ctx context.Context, r *rider, l *Layer) (*stack, error) {
	donor := r.layer.donor
	if donor == nil {
		var lease *lease
		if donor, lease = f.landedTwin(); donor != nil {
			defer lease.release()
		}
	}
	if donor != nil {
		own := &rider{src: rebuilt{r.src, f.s.dir, donor}, layer: r.layer}
		own.layer.blob.Size = donor.TarSize
		st, err := f.fetchAndBind(ctx, own, l)
		if donor.Blob == l.Blob {
			l.BlobHead = donor.BlobHead
		}
		var se *sourceError
		if !errors.As(err, &se) || ctx.Err() != nil {
			return st, err
		}
		if donor.Chain == l.Chain {
			return f.fetchAndBind(ctx, r, l) // it was worth a try
		}
		f.s.log.Warn("layer cannot be made from one of the store, and is fetched", "chain", l.Chain, "from", donor.Chain, "error", err)
	}
	return f.fetchAndBind(ctx, r, l)
}

// smallBlob is the size in bytes below which a blob's layer goes through the page cache.
const smallBlob = 4 << 20

// fetchAndBind streams the layer into an extent file of tmp and binds it to its
// parent, once that is bound. A layer that turns out empty leaves the stack as
// it is.
func (f *flight) fetchAndBind(ctx context.Context, r *rider, l *Layer) (_ *stack, err error) {
	file, err := createExtentFile(f.s.dir.tmpExtent(l.Chain), r.layer.blob.Size < smallBlob || f.s.mirror != nil)
	if err != nil {
		return nil, err
	}
	kept := false // by the stack
	defer func() {
		if !kept {
			file.Close()
		}
	}()
	w, err := vmdk.NewLayerWriter(file, f.s.info.Capacity)
	if err != nil {
		return nil, err
	}
	recipe, err := createRecipe(f.s.dir.tmpRecipe(l.Chain))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, recipe.close()) }()
	cs, err := f.fetch(ctx, r, l, w, recipe)
	if err != nil {
		return nil, err
	}
	f.setStage(StageFetched)
	st, err := f.parentStack(ctx)
	if err != nil {
		return nil, err
	}
	if cs.Len() == 0 {
		l.Recipe, err = recipe.finish(func(io.Writer) error { return nil })
		return st, err
	}
	if err = st.mount(f.s.dir); err == nil {
		err = st.bind(l, cs, w, file, recipe)
	}
	if err != nil {
		st.close()
		return nil, fmt.Errorf("bind to the layer below: %w", err)
	}
	kept = true
	return st, nil
}

// fetch unpacks the layer's blob into w. It holds a slot meanwhile.
func (f *flight) fetch(ctx context.Context, r *rider, l *Layer, w *vmdk.LayerWriter, recipe io.Writer) (*diskfs.Changeset, error) {
	if f.ticket == nil {
		f.ticket = f.s.slots.take()
	}
	defer f.giveTicket()
	f.setStage(StageWaiting)
	if err := f.ticket.wait(ctx); err != nil {
		return nil, err
	}
	f.fetched.Store(0)
	f.total.Store(r.layer.blob.Size)
	f.setStage(StageFetching)
	u := unpacking{src: r.src, layer: r.layer, lim: f.s.lim, fetched: &f.fetched}
	cs, err := u.run(ctx, w, recipe)
	l.TarSize, l.BlobHead = u.tarSize, hex.EncodeToString(u.head)
	if err == nil {
		for _, warning := range cs.Warnings() {
			f.s.log.Warn("layer does not fit ext4 in full", "chain", l.Chain, "warning", warning)
		}
	}
	return cs, err
}

// commit makes the layer durable and then, after its parent, visible.
func (f *flight) commit(ctx context.Context, l *Layer, desc *vmdk.Descriptor) error {
	if err := f.s.dir.makeDurable(l, desc); err != nil {
		return fmt.Errorf("make layer durable: %w", err)
	}
	if b := f.below; b != nil {
		if err := b.await(ctx, func() bool { return b.submitted || b.landed || b.gone }); err != nil {
			return err
		}
	}
	c := f.s.queue.enqueue(l)
	f.update(func() { f.submitted = true })
	if err := f.s.queue.run(f.s.dir, c); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	f.update(func() { f.stage, f.landed = StageDone, true })
	return nil
}

// largestFirst sorts flights so that those start first that take longest: the
// last one to end then ends earlier.
func largestFirst(flights []*flight) {
	slices.SortStableFunc(flights, func(a, b *flight) int { return cmp.Compare(b.layer.blob.Size, a.layer.blob.Size) })
}
