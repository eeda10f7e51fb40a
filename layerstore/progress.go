package layerstore

import (
	"time"

	"github.com/opencontainers/go-digest"
)

// A Stage is how far a layer has come.
type Stage int

// The stages of a layer, in order. One whose source failed may begin again, with
// another pull's.
const (
	StageQueued   Stage = iota // the layer is missing
	StageWaiting               // for other layers, or for another process that brings it
	StageFetching              // Current of Total bytes of the blob have come
	StageFetched               // blob and tar are verified; it waits for the layer below
	StageBound                 // its disk is complete, and is being made durable
	StageSending               // it is in the store, and Sent of ToSend bytes of its disk in the store's Mirror
	StageDone                  // it is in the store
	StageExists                // it was in the store already
)

// A ProgressEvent tells of one layer of an image, or, the last one, of the image.
type ProgressEvent struct {
	// Layer is the digest of the layer's blob, "" for the image.
	Layer digest.Digest
	Stage Stage
	// Current and Total count bytes of the blob, from StageFetching on.
	Current, Total int64
	// Sent and ToSend count bytes of the layer's disk, in StageSending.
	Sent, ToSend int64
	// Updated, in the last event, is false if the store had all that was pulled:
	// the image is up to date.
	Updated bool
}

// progressInterval is how often bytes are reported.
const progressInterval = 100 * time.Millisecond

// A reporter turns what a pull sees of its flights into events, each told once.
type reporter struct {
	fn   func(ProgressEvent)
	last []ProgressEvent // of the missing layers
}

// newReporter tells of each layer whether it is missing; the missing ones are the
// last of layers.
func newReporter(fn func(ProgressEvent), layers, missing []planLayer) *reporter {
	if fn == nil {
		return &reporter{}
	}
	r := &reporter{fn: fn, last: make([]ProgressEvent, len(missing))}
	there := len(layers) - len(missing)
	for i, l := range layers {
		e := ProgressEvent{Layer: l.blob.Digest, Stage: StageExists}
		if i >= there {
			e.Stage = StageQueued
			r.last[i-there] = e
		}
		fn(e)
	}
	return r
}

// report tells what is new. A layer that was fetched in less time than it takes to
// look twice is still seen being fetched.
func (r *reporter) report(events []ProgressEvent) {
	if r.fn == nil {
		return
	}
	for i, e := range events {
		last := r.last[i]
		if e == last {
			continue
		}
		if e.Total > 0 && last.Stage < StageFetched && StageFetched < e.Stage && e.Stage != StageExists {
			r.fn(ProgressEvent{Layer: e.Layer, Stage: StageFetched, Current: e.Current, Total: e.Total})
		}
		r.last[i] = e
		r.fn(e)
	}
}
