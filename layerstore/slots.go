package layerstore

import (
	"context"
	"slices"
	"sync"
)

// slots bounds how many layers are fetched and unpacked at once. They are given
// out in the order in which tickets are taken.
type slots struct {
	mu    sync.Mutex
	free  int
	queue []*ticket
}

// A ticket is a place in the queue for a slot, or a slot.
type ticket struct {
	s     *slots
	ready chan struct{} // closed when the ticket is a slot
}

func newSlots(n int) *slots { return &slots{free: n} }

// take takes a place in the queue. Whoever does gives it back.
func (s *slots) take() *ticket {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := &ticket{s: s, ready: make(chan struct{})}
	s.queue = append(s.queue, t)
	s.serve()
	return t
}

// wait returns when the ticket is a slot.
func (t *ticket) wait(ctx context.Context) error {
	select {
	case <-t.ready:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// give gives the slot, or the place in the queue, back.
func (t *ticket) give() {
	s := t.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.queue, t); i >= 0 {
		s.queue = slices.Delete(s.queue, i, i+1)
	} else {
		s.free++
	}
	s.serve()
}

// serve makes tickets slots while there are any. The caller holds mu.
func (s *slots) serve() {
	for s.free > 0 && len(s.queue) > 0 {
		close(s.queue[0].ready)
		s.queue = s.queue[1:]
		s.free--
	}
}
