package vmdk

import (
	"fmt"
	"io"
)

// Plain tells where the bytes of the disk from off on stand as they are: in the
// n bytes of file from pos on, which are as many as follow each other, at most
// limit. file is nil if these n bytes read as zeros or are compressed: they stand
// nowhere as they are. file is what OpenExtent was given. At the end of the disk n
// is 0. It may run concurrently with ReadAt, not with WriteAt.
func (d *Disk) Plain(off, limit int64) (file io.ReaderAt, pos, n int64, err error) {
	if off < 0 {
		return nil, 0, 0, fmt.Errorf("read disk: negative offset %d", off)
	}
	if off >= d.capacity || limit <= 0 {
		return nil, 0, 0, nil
	}
	var few fewLinks
	c := d.cursor(&few)
	r, err := c.next(off, min(limit, d.capacity-off), 0)
	if err != nil {
		return nil, 0, 0, fmt.Errorf("read disk at byte %d: %w", off, err)
	}
	if r.state != stored {
		return nil, 0, r.length, nil
	}
	left := r.extent.size - r.pos // of a last grain that is cut short
	if left <= 0 {
		return nil, 0, r.length, nil
	}
	return r.extent.r, r.pos, min(r.length, left), nil
}
