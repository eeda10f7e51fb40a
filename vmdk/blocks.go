package vmdk

import (
	"bytes"
	"fmt"
	"io"
	"iter"
)

// blockBuffer is how much Blocks reads at once, and the alignment on the disk
// at which its reads end.
const blockBuffer = 1 << 20

// A Block is a piece of a disk and what it holds.
type Block struct {
	Off  int64  // byte of the disk
	Data []byte // valid until the next block
}

// A diskSpan is a piece of a disk.
type diskSpan struct{ off, length int64 }

// Blocks yields what has to be written to a device that shows what the disks
// below the top ones do, for it to show what the whole chain does: for a top of
// 1 what a layer changed; for Depth(), when nothing is below and the device
// reads as zeros, everything. Blocks ascend, and begin and end at multiples of
// unit bytes, a power of two, but for the end of the disk. They have at most
// 1 MiB, or one unit. A unit of zeros is left out where nothing is stored below.
// The sequence ends after the first error. It may run concurrently with ReadAt,
// not with WriteAt.
func (d *Disk) Blocks(top int, unit int64) iter.Seq2[Block, error] {
	return func(yield func(Block, error) bool) {
		var few fewLinks
		b := blockReader{top: top, zeros: make([]byte, unit), below: d.cursor(&few)}
		buf := make([]byte, max(unit, blockBuffer))
		var done int64 // what is before has been read
		for s, err := range d.delta(top) {
			if err != nil {
				yield(Block{}, err)
				return
			}
			// Whole units, of which a span may have parts only.
			off, end := max(done, s.off/unit*unit), min(roundUp(s.off+s.length, unit), d.capacity)
			for off < end {
				n := min(int64(len(buf))-off%int64(len(buf)), end-off)
				if _, err := d.ReadAt(buf[:n], off); err != nil {
					yield(Block{}, err)
					return
				}
				if !b.yield(buf[:n], off, yield) {
					return
				}
				off += n
			}
			done = max(done, end)
		}
	}
}

type blockReader struct {
	top   int    // disks above the device
	zeros []byte // a unit of them
	below cursor
}

// yield passes on the pieces of p, at byte off, that are not zeros over nothing, neighbours
// at once. It reports whether more are wanted; after an error that it passed on they are not.
func (b *blockReader) yield(p []byte, off int64, yield func(Block, error) bool) bool {
	for i := 0; i < len(p); {
		j := i
		for j < len(p) {
			q := p[j:min(j+len(b.zeros), len(p))]
			if bytes.Equal(q, b.zeros[:len(q)]) {
				under, err := b.stored(off+int64(j), int64(len(q)))
				if err != nil {
					yield(Block{}, err)
					return false
				}
				if !under {
					break
				}
			}
			j += len(q)
		}
		if j == i {
			i += min(len(b.zeros), len(p)-i)
			continue
		}
		if !yield(Block{off + int64(i), p[i:j]}, nil) {
			return false
		}
		i = j
	}
	return true
}

// stored reports whether the disks below store any of n bytes at off. It is called with
// ascending offsets.
func (b *blockReader) stored(off, n int64) (bool, error) {
	for n > 0 {
		r, err := b.below.next(off, n, b.top)
		if err != nil || r.state == stored || r.state == compressed {
			return err == nil, err
		}
		off, n = off+r.length, n-r.length
	}
	return false, nil
}

// delta yields the pieces of the disk, ascending and not adjacent, that the top disks hold
// and that are not zeros which the disks below show as well, having nothing there.
func (d *Disk) delta(top int) iter.Seq2[diskSpan, error] {
	return func(yield func(diskSpan, error) bool) {
		var few fewLinks
		below := d.cursor(&few)
		var span diskSpan
		add := func(off, n int64) bool {
			if span.off+span.length == off {
				span.length += n
				return true
			}
			more := span.length == 0 || yield(span, nil)
			span = diskSpan{off, n}
			return more
		}
		upper := Disk{links: d.links[:top], capacity: d.capacity}
		for r, err := range upper.present(0) {
			if err != nil {
				yield(diskSpan{}, err)
				return
			}
			if r.state != zeroed {
				if !add(r.off, r.length) {
					return
				}
				continue
			}
			for off, end := r.off, r.off+r.length; off < end; {
				under, err := below.next(off, end-off, top)
				if err != nil {
					yield(diskSpan{}, err)
					return
				}
				if under.state != absent && under.state != zeroed && !add(off, under.length) {
					return
				}
				off += under.length
			}
		}
		if span.length > 0 {
			yield(span, nil)
		}
	}
}

// CopyTo writes what the chain shows to dst, which reads as zeros: pieces of unit bytes, a
// power of two, that are all zeros are left out.
func (d *Disk) CopyTo(dst io.WriterAt, unit int64) error {
	for b, err := range d.Blocks(len(d.links), unit) {
		if err != nil {
			return fmt.Errorf("copy disk: %w", err)
		}
		if _, err := dst.WriteAt(b.Data, b.Off); err != nil {
			return fmt.Errorf("copy disk: write at byte %d: %w", b.Off, err)
		}
	}
	return nil
}
