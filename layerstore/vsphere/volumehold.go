//go:build linux

package vsphere

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"

	"vic/layerstore"
)

// A holding is a volume's disk that is attached to the virtual machine in which this runs, for all who read and write it at a time.
//
// A file in the volume's folder says so before, for a VCH that breaks off. Who starts a container looks for such files after it has noted that
// containers mount the volume, and who attaches looks for those notes after it has made its file: so one of the two sees the other. The server keeps
// a disk that is attached here from other VMs, but no longer than this one runs.
type holding struct {
	key      string // the disk
	volume   string
	d        *Datastore
	disk     *ownDisk
	capacity int64
	free     func()        // makes room for another disk
	ready    chan struct{} // closed when it is attached, or is not because of an error
	ended    chan struct{} // closed when it is detached

	// What Volumes.heldMu guards.
	users     int
	readers   map[*heldReader]struct{}
	taken     bool // nobody else may join
	unsettled bool // of an earlier Write, or of one of now
}

// maxRead bounds how many disks are attached to be read: as long as clients take, unlike those that are written. A controller has fifteen places.
const maxRead = 4

// hold has a disk attached, or joins those for whom it is. Room says whether there is room for another.
func (v *Volumes) hold(ctx context.Context, disk string, room func(context.Context) (free func(), err error)) (*holding, error) {
	for {
		left := v.isLeft(disk)
		v.heldMu.Lock()
		h := v.held[disk]
		if h == nil {
			h = &holding{key: disk, users: 1, unsettled: left, readers: map[*heldReader]struct{}{}, ready: make(chan struct{}), ended: make(chan struct{})}
			v.held[disk] = h
			v.heldMu.Unlock()
			if err := v.attach(ctx, h, room); err != nil {
				v.drop(h)
				return nil, err
			}
			close(h.ready)
			return h, nil
		}
		wait := h.ended
		joined := !h.taken
		if joined {
			h.users++
			wait = h.ready
		}
		v.heldMu.Unlock()
		select {
		case <-wait:
		case <-h.ended: // it could not be attached for the other
			joined = false
		case <-ctx.Done():
			if joined {
				return nil, errors.Join(ctx.Err(), v.letGo(ctx, h))
			}
			return nil, ctx.Err()
		}
		if joined {
			return h, nil
		}
	}
}

// drop forgets a holding that is over.
func (v *Volumes) drop(h *holding) {
	v.heldMu.Lock()
	delete(v.held, h.key)
	v.heldMu.Unlock()
	close(h.ended)
}

// attach attaches the disk of a holding. After an error nobody is kept from it, but for what an earlier Write has left.
func (v *Volumes) attach(ctx context.Context, h *holding, room func(context.Context) (func(), error)) (err error) {
	d, name, err := v.find(h.key)
	if err != nil {
		return err
	}
	volume, id, err := splitName(name)
	if err != nil {
		return err
	}
	desc, err := d.descriptor(ctx, name)
	if err != nil {
		return fmt.Errorf("disk %s: %w", d.Path(name+".vmdk"), err)
	}
	h.d, h.volume, h.capacity = d, volume, desc.Capacity()
	if h.free, err = room(ctx); err != nil {
		return err
	}
	v.setLeft(h.key, true)
	if err = d.putRecord(ctx, v.marks(volume), struct{}{}); err == nil {
		err = v.alone(ctx, d, volume, id)
	}
	if err == nil {
		h.disk, err = v.own.attachAgain(ctx, d.Path(name+".vmdk"), h.capacity)
	}
	if err != nil {
		v.finish(ctx, h, err)
	}
	return err
}

// letGo is the end of hold. Who lets go last detaches the disk, and lets other hosts to it.
func (v *Volumes) letGo(ctx context.Context, h *holding) error {
	v.heldMu.Lock()
	h.users--
	last := h.users == 0
	h.taken = h.taken || last
	v.heldMu.Unlock()
	if !last {
		return nil
	}
	defer v.drop(h)
	err := h.disk.detach(ctx)
	v.finish(ctx, h, err)
	return err
}

// finish lets other hosts to a disk that has been detached, unless it still may be attached, by the error of that, or is unsettled.
func (v *Volumes) finish(ctx context.Context, h *holding, err error) {
	h.free()
	v.heldMu.Lock()
	unsettled := h.unsettled
	v.heldMu.Unlock()
	if attached := (*detachError)(nil); unsettled || errors.As(err, &attached) {
		return
	}
	if undo := v.unmark(context.WithoutCancel(ctx), h.d, h.key, h.volume); undo != nil {
		v.log.Warn("let other hosts to the disk of a volume", "volume", h.volume, "error", undo) // when it is used again
	}
}

// heldSettled tells whether a disk is attached and there is nothing to finish on it.
func (v *Volumes) heldSettled(disk string) bool {
	v.heldMu.Lock()
	defer v.heldMu.Unlock()
	h := v.held[disk]
	return h != nil && !h.unsettled
}

// openAttached is Open for a disk that is no file.
func (v *Volumes) openAttached(ctx context.Context, disk string) (layerstore.VolumeReader, int64, error) {
	h, err := v.hold(ctx, disk, v.roomToRead)
	if err != nil {
		return nil, 0, err
	}
	r := &heldReader{v: v, h: h}
	v.heldMu.Lock()
	taken := h.taken
	if !taken {
		h.readers[r] = struct{}{}
	}
	v.heldMu.Unlock()
	if taken {
		return nil, 0, errors.Join(r.taken(), v.letGo(ctx, h))
	}
	return r, h.capacity, nil
}

// roomToRead tells whether another disk may be attached to be read.
func (v *Volumes) roomToRead(context.Context) (free func(), err error) {
	v.heldMu.Lock()
	defer v.heldMu.Unlock()
	if v.reading == maxRead {
		return nil, fmt.Errorf("%d other volumes are attached to this container host to be read, and no more can be: try again when their files are copied", maxRead)
	}
	v.reading++
	return func() {
		v.heldMu.Lock()
		defer v.heldMu.Unlock()
		v.reading--
	}, nil
}

// Release implements layerstore.VolumeDisks.
func (v *Volumes) Release(disk string) error {
	ctx, cancel := volumeContext()
	defer cancel()
	v.heldMu.Lock()
	h := v.held[disk]
	var readers []*heldReader
	if h != nil {
		h.taken = true
		for r := range h.readers {
			readers = append(readers, r)
		}
	}
	v.heldMu.Unlock()
	if h == nil {
		return nil
	}
	for _, r := range readers {
		if err := r.end(r.taken()); err != nil {
			return err
		}
	}
	select {
	case <-h.ended: // who writes it, or is about to read it, lets go
		return nil
	case <-ctx.Done():
		return fmt.Errorf("volume %s is attached to this container host: %w", volumeOf(disk), ctx.Err())
	}
}

// A heldReader reads a holding's disk.
type heldReader struct {
	v *Volumes
	h *holding

	mu  sync.RWMutex // held while it is read
	err error        // of reads that come; nil until it has ended
}

func (r *heldReader) taken() error {
	return fmt.Errorf("volume %s %w", r.h.volume, layerstore.ErrTaken)
}

func (r *heldReader) ReadAt(p []byte, off int64) (int, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if r.err != nil {
		return 0, r.err
	}
	return r.h.disk.ReadAt(p, off)
}

// Close lets go of the disk. It may be called after Release has.
func (r *heldReader) Close() error { return r.end(fs.ErrClosed) }

// end ends all reads, with an error.
func (r *heldReader) end(why error) error {
	r.mu.Lock()
	ended := r.err != nil
	if !ended {
		r.err = why
	}
	r.mu.Unlock()
	if ended {
		return nil
	}
	r.v.heldMu.Lock()
	delete(r.h.readers, r)
	r.v.heldMu.Unlock()
	ctx, cancel := volumeContext()
	defer cancel()
	err := r.v.letGo(ctx, r.h)
	if err != nil {
		r.v.log.Warn("detach the disk of a volume", "volume", r.h.volume, "error", err) // when it is used again
	}
	return err
}
