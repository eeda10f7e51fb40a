package vmdk

import "iter"

// runWindow is how far Runs looks ahead in one disk before it turns to the
// parent, at first and after data: a caller that stops early has not paid for
// the rest. It doubles, up to maxRunWindow, while there is nothing.
const (
	runWindow    = 32 << 20
	maxRunWindow = 8 << 30
)

// A Run is a piece of a disk whose data is stored, all in one disk of the chain.
type Run struct {
	Off, Len int64 // bytes of the disk
	Link     int   // which disk of the chain has it; 0 is the top
}

// Runs yields what is stored of the disk from byte off on, in ascending order:
// what is between reads as zeros. Neighbours differ in their Link. It ends
// after the first error. It may run concurrently with ReadAt, not with WriteAt.
func (d *Disk) Runs(off int64) iter.Seq2[Run, error] {
	return func(yield func(Run, error) bool) {
		var few fewLinks
		c := d.cursor(&few)
		var run Run
		window := int64(runWindow)
		for off := max(off, 0); off < d.capacity; {
			r, err := c.next(off, min(window, d.capacity-off), 0)
			if err != nil {
				yield(Run{}, err)
				return
			}
			if r.state == absent {
				window = min(2*window, maxRunWindow)
			} else {
				window = runWindow
			}
			if r.state == stored || r.state == compressed {
				if run.Off+run.Len == off && run.Link == r.link && run.Len > 0 {
					run.Len += r.length
				} else {
					if run.Len > 0 && !yield(run, nil) {
						return
					}
					run = Run{Off: off, Len: r.length, Link: r.link}
				}
			} else if run.Len > 0 {
				if !yield(run, nil) {
					return
				}
				run = Run{}
			}
			off += r.length
		}
		if run.Len > 0 {
			yield(run, nil)
		}
	}
}
