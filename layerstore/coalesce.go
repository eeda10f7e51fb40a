package layerstore

import (
	"fmt"

	"vic/vmdk"
)

// # Coalescing
//
// An image may have more layers than a chain should have disks: vSphere refuses more than
// 32, and each costs a little of every read. So some layers' disks hold, besides their own
// grains, those of the disks right below, and stand on a disk further down in place of
// these. Which ones do depends on nothing but how many disks are below, so that images
// which share their first layers share those layers' disks, whatever is above.
//
// Let the disks of an image be numbered from 1, 0 being the base disk. The lower half of
// the disks that a chain may have are never merged: it is there that the bytes are. Above
// them numbers go in runs, each as long as the chain has room for; what follows on a full
// run stands where the run began and holds all of it, and with it on the chain the next
// run is one shorter. (Bound 6: 1, 2 | 3 4, and 5 = 3-5 on 2; 6, and 7 = 6-7 on 5.) When
// there is no room left at all, one disk holds everything since the lower half, and it
// begins anew above that. With a bound of 30 each grain is written once up to 28 layers,
// at most twice up to 133, three times up to 693.

const (
	// DefaultDepth is the bound of a store whose Options name none.
	DefaultDepth = 30
	// minDepth leaves room for the base disk, one layer below, one above, and the
	// container's disk.
	minDepth = 4
	// maxDepth is what QEMU has been seen to open.
	maxDepth = 500
)

// parentIndex returns the number of the disk that disk n, from 1, stands on, if a
// container's chain may have bound disks, its own and the base disk included. 0 is no
// bound.
func parentIndex(n, bound int) int {
	if bound == 0 {
		return n - 1
	}
	room := bound - 2
	never := room / 2
	if n <= never {
		return n - 1
	}
	room -= never
	n -= never
	levels := 1
	for reach(room, levels) < n {
		levels++
	}
	start := 0 // number of the disk that what is looked at stands on
	for {
		if levels == 1 {
			return never + n - 1
		}
		switch inner := reach(room, levels-1); {
		case n-start <= inner:
			levels--
		case n-start == inner+1:
			return never + start
		default:
			start += inner + 1
			room--
		}
	}
}

// reach returns how many disks fit above one that leaves room for so many on a chain, if
// each grain may be written at most levels times: binomial(room+levels, levels) - 1.
func reach(room, levels int) int {
	n := 1
	for i := 1; i <= levels; i++ {
		n = n * (room + i) / i
	}
	return n - 1
}

// merged returns how many disks on top of the stack the next one takes the place of.
func (st *stack) merged() int {
	parent := parentIndex(st.index+1, st.bound)
	k := 0
	for i := st.index; i > parent; i = parentIndex(i, st.bound) {
		k++
	}
	lowest := len(st.open.links) - 1
	if k <= lowest {
		return k
	}
	// The disks on which it would stand are in a flattened one. That stays as it is.
	if st.bound != 0 && lowest+3 > st.bound {
		return lowest
	}
	return 0
}

// merge writes to w what the k top disks of the chain have and w does not. step is called
// now and then, and stops it with an error.
func (d *Disk) merge(w *vmdk.LayerWriter, k int, step func() error) error {
	if k == 0 {
		return nil
	}
	const grain = vmdk.DefaultGrainSize
	buf := make([]byte, 16*grain)
	for r, err := range d.Runs(0) {
		if err != nil {
			return err
		}
		if r.Link >= k {
			continue
		}
		for off := r.Off; off < r.Off+r.Len; {
			p := buf[:min(int64(len(buf)), r.Off+r.Len-off)]
			if n, err := d.ReadAt(p, off); n < len(p) {
				return fmt.Errorf("read disks below: %w", err)
			}
			if err := step(); err != nil {
				return err
			}
			for len(p) > 0 {
				if !w.Mapped(off / grain) {
					if err := w.WriteGrain(off/grain, p[:grain]); err != nil {
						return err
					}
				}
				p, off = p[grain:], off+grain
			}
		}
	}
	return nil
}
