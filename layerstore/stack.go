package layerstore

import (
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"

	"vic/diskfs"
	"vic/vmdk"
)

// A stack is a layer and all below it, as what the next layer is bound to. It is
// handed from layer to layer, so that what is in memory of the file system need
// not be read again.
type stack struct {
	disk  digest.Digest // chain ID of the top disk; "" is the base disk
	index int           // see Layer.Index
	high  int64         // see Layer.High
	bound int           // number of disks that a container's chain may have

	open *Disk      // nil: not open yet
	fs   *diskfs.FS // on open
}

// stack returns that of a layer of the store, or of the base disk.
func (s *Store) stack(chain digest.Digest) (*stack, error) {
	if chain == "" {
		return &stack{high: s.info.BaseHigh, bound: s.info.Depth}, nil
	}
	l, err := s.dir.readLayer(chain)
	if err != nil {
		return nil, err
	}
	return &stack{disk: l.Disk, index: l.Index, high: l.High, bound: s.info.Depth}, nil
}

// mount makes the file system ready for use.
func (st *stack) mount(d Dir) error {
	if st.fs != nil {
		return nil
	}
	var err error
	if st.open, err = d.openDisk(st.disk); err != nil {
		return fmt.Errorf("open disk below: %w", err)
	}
	if st.fs, err = diskfs.Open(st.open, st.open.Capacity()); err != nil {
		return fmt.Errorf("open file system below: %w", err)
	}
	return nil
}

// close gives up what is open.
func (st *stack) close() {
	if st.open != nil {
		st.open.Close() // read only
	}
	st.open, st.fs = nil, nil
}

// bind puts a changeset, whose data w has, on the stack: w becomes a finished
// extent file, in f, and the stack the one with the layer on top. The record's
// fields about the disk are filled in. After an error the stack can only be
// closed.
func (st *stack) bind(l *Layer, cs *diskfs.Changeset, w *vmdk.LayerWriter, f *extentFile, recipe *recipeFile) error {
	delta, err := st.fs.Apply(cs, diskfs.ApplyOptions{Data: w, High: st.high})
	if err != nil {
		return err
	}
	l.Recipe, err = recipe.finish(func(out io.Writer) error { return delta.WriteSources(out, w) })
	if err != nil {
		return err
	}
	if err := writeDelta(w, delta); err != nil {
		return err
	}
	k := st.merged()
	if err := st.open.merge(w, k, func() error { return nil }); err != nil {
		return fmt.Errorf("merge %d disks: %w", k, err)
	}
	if err := w.Finish(); err != nil {
		return err
	}
	below := st.open.links[k].Descriptor
	desc := below.Child(diskName(l.Chain)+extentSuffix, st.open.names[k]+".vmdk", diskCID(l.Chain.String()))
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if err := f.closeDirect(); err != nil {
		return err
	}
	if l.Sum, err = f.checksum(fi.Size()); err != nil {
		return err
	}
	disk, err := st.open.replace(k, diskName(l.Chain), desc, f.File, fi.Size())
	if err != nil {
		return fmt.Errorf("read back: %w", err)
	}
	st.fs.Rebase(disk)
	st.open, st.disk, st.index, st.high = disk, l.Chain, st.index+1, delta.High
	l.ExtentSize = fi.Size()
	return nil
}

// note copies what the record of the layer on top must say about the disk.
func (st *stack) note(l *Layer) { l.Disk, l.Index, l.High = st.disk, st.index, st.high }

// writeDelta writes to an extent file whose stream has a changeset's data all else that the
// layer changes.
func writeDelta(w *vmdk.LayerWriter, delta *diskfs.Delta) error {
	if err := delta.WriteMeta(w); err != nil {
		return err
	}
	for _, r := range delta.Dead {
		if err := w.Zero(r.Off, r.Len); err != nil {
			return err
		}
	}
	for _, r := range delta.Map {
		if err := w.Map(r.Stream, r.Disk, r.N); err != nil {
			return err
		}
	}
	return delta.Fixed(w.WriteGrain)
}
