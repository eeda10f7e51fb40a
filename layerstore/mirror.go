package layerstore

import (
	"context"

	"github.com/opencontainers/go-digest"
)

// A Mirror has the disks of all images as well, where VMs are that cannot open the store's files. An image is
// in the store only when the mirror has it.
type Mirror interface {
	// Begin begins the mirror's part in a pull into from.
	Begin(ctx context.Context, from *Store) (Mirroring, error)
}

// A Mirroring is the mirror's part in one pull.
type Mirroring interface {
	// Layer tells that the store has a layer, so that its disk can be sent. The lowest come first. It does not wait, and
	// what fails is told by Commit.
	Layer(chain digest.Digest)
	// Sent tells how far the disk of a layer is that Layer was called with: how many bytes of how many. Done says
	// that the mirror has it; a layer without a disk is done.
	Sent(chain digest.Digest) (sent, total int64, done bool)
	// Commit returns when the mirror has an image with all disks that the layer on top of it needs. The store has the layers, and gets the image after that.
	Commit(image, top digest.Digest) error
	// Close ends it, with or without a Commit. After that the store has the image, or the mirror need not keep it.
	Close() error
}

// tellMirror tells the mirror of those of p's layers that have landed since it was last told, and puts into events how far
// their disks have come.
func (p *pull) tellMirror(events []ProgressEvent, landed int) {
	if p.mirroring == nil {
		return
	}
	for ; p.told < landed; p.told++ { // a layer lands after the one below it
		p.mirroring.Layer(p.riders[p.told].layer.chain)
	}
	for i, e := range events[landed:] {
		if e.Stage == StageDone { // a moment before it lands: the mirror does not have it, and it is to be told once that a layer is done
			events[landed+i].Stage = StageBound
		}
	}
	for i := range events[:landed] {
		if sent, total, done := p.mirroring.Sent(p.riders[i].layer.chain); !done {
			events[i].Stage, events[i].Sent, events[i].ToSend = StageSending, sent, total
		}
	}
}

// commitMirror has the mirror take in the image while p goes on to report.
func (p *pull) commitMirror(plan *plan) <-chan error {
	var top digest.Digest
	if n := len(plan.layers); n > 0 {
		top = plan.layers[n-1].chain
	}
	done := make(chan error, 1)
	go func() { done <- p.mirroring.Commit(plan.id, top) }()
	return done
}
