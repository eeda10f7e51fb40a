package layerstore

import (
	"testing"

	"github.com/opencontainers/go-digest"
)

// halfWay is a Mirroring that has sent nothing yet.
type halfWay struct{ layers int }

func (h *halfWay) Layer(digest.Digest)                             { h.layers++ }
func (*halfWay) Sent(digest.Digest) (sent, total int64, done bool) { return 1, 2, false }
func (*halfWay) Commit(digest.Digest, digest.Digest) error         { return nil }
func (*halfWay) Close() error                                      { return nil }

// A layer that is done a moment before it lands is not told to be done, and then to be sent.
func TestMirrorTellsDoneOnce(t *testing.T) {
	h := new(halfWay)
	p := &pull{mirroring: h, riders: []*rider{{}, {}}}
	events := []ProgressEvent{{Stage: StageDone}, {Stage: StageDone}}
	p.tellMirror(events, 1)
	if events[0].Stage != StageSending || events[1].Stage != StageBound || h.layers != 1 {
		t.Errorf("%+v, the mirror was told of %d", events, h.layers)
	}
}
