package diskfs

import (
	"math/rand/v2"
	"testing"
)

// TestPlacer compares a placer with counting.
func TestPlacer(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	for range 200 {
		const size = 300
		base := rnd.Int64N(50)
		var reserved []clusterRange
		for range rnd.IntN(20) {
			reserved = append(reserved, clusterRange{rnd.Int64N(size), 1 + rnd.Int64N(20)})
		}
		taken := func(c int64) bool {
			for _, r := range reserved {
				if r.first <= c && c < r.first+r.n {
					return true
				}
			}
			return false
		}
		p := newPlacer(base, reserved)
		var room, k int64
		for c := range int64(size) {
			b, ok := p.streamBlock(c*clusterBlocks + 3)
			if want := c >= base && !taken(c); ok != want {
				t.Fatalf("base %d, without %v: cluster %d for the stream: %v", base, reserved, c, ok)
			} else if !ok {
				continue
			}
			room++
			if b != k*clusterBlocks+3 || p.block(b) != c*clusterBlocks+3 {
				t.Fatalf("base %d, without %v: cluster %d is the stream's %d, and that is %d; want %d", base, reserved, c, b/clusterBlocks, p.cluster(k), k)
			}
			k++
		}
		if got := p.room(size); got != room {
			t.Fatalf("base %d, without %v: room for %d, want %d", base, reserved, got, room)
		}
		at := int64(7)
		for _, r := range p.runs(nil, 7, 5, 40*clusterBlocks) {
			for i := range r.n {
				if r.at+i != at || r.where+i != p.block(at-2) {
					t.Fatalf("base %d, without %v: file block %d in %+v, want block %d", base, reserved, at, r, p.block(at-2))
				}
				at++
			}
		}
		if at != 7+40*clusterBlocks {
			t.Fatalf("runs end at %d", at)
		}
	}
}
