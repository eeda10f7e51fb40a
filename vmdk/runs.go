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
		var run Run
		for r, err := range d.present(off) {
			if err != nil {
				yield(Run{}, err)
				return
			}
			if r.state == zeroed {
				continue
			}
			if run.Off+run.Len == r.off && run.Link == r.link {
				run.Len += r.length
				continue
			}
			if run.Len > 0 && !yield(run, nil) {
				return
			}
			run = Run{Off: r.off, Len: r.length, Link: r.link}
		}
		if run.Len > 0 {
			yield(run, nil)
		}
	}
}

// present yields what some disk of the chain holds from byte off on, ascending,
// be it data or zeros. It ends after the first error.
func (d *Disk) present(off int64) iter.Seq2[run, error] {
	return func(yield func(run, error) bool) {
		var few fewLinks
		c := d.cursor(&few)
		window := int64(runWindow)
		for off := max(off, 0); off < d.capacity; {
			r, err := c.next(off, min(window, d.capacity-off), 0)
			if err != nil {
				yield(run{}, err)
				return
			}
			off += r.length
			if r.state == absent {
				window = min(2*window, maxRunWindow)
				continue
			}
			window = runWindow
			if !yield(r, nil) {
				return
			}
		}
	}
}
