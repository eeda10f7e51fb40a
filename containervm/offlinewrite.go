package containervm

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"

	"vic/layerstore"
)

// writeStopped extracts a tar into a container that does not run, through its file systems' own
// structures: it takes as long as the data, where a VM to do it takes seconds to boot. The tar is
// put aside first, for nobody shall wait for the container as long as a client takes to send it.
func (c *Container) writeStopped(ctx context.Context, dest string, o WriteOptions, from io.Reader) error {
	err := c.checkDest(ctx, dest)
	for errors.Is(err, layerstore.ErrTaken) {
		err = c.checkDest(ctx, dest)
	}
	if err != nil {
		return err // before all is sent
	}
	aside, err := os.CreateTemp(c.dir, ".tmp-")
	if err != nil {
		return err
	}
	defer aside.Close()
	if err := os.Remove(aside.Name()); err != nil {
		return err
	}
	if _, err := io.Copy(aside, from); err != nil {
		return fmt.Errorf("read tar: %w", err)
	}
	if err := c.acquire(ctx); err != nil {
		return err
	}
	defer c.releaseOp()
	return c.applyTar(ctx, dest, o, aside)
}

func (c *Container) checkDest(ctx context.Context, dest string) error {
	v, err := c.openStopped(ctx)
	if err != nil {
		return err
	}
	defer v.Close()
	_, err = v.destOf(dest)
	return err
}

// destOf finds the folder to extract to.
func (v *view) destOf(dest string) (string, error) {
	name, info, err := v.resolve(path.Join("/", dest), true, false)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", refuse(ErrNotFound, "%v", err)
	case err != nil:
		return "", err
	case !info.IsDir():
		return "", refuse(ErrInvalid, "extraction point is not a directory")
	}
	switch m := v.mountAt(name); {
	case m == nil && v.c.spec.ReadOnlyRoot:
		return "", refuse(ErrInvalid, "container rootfs is marked read-only")
	case m != nil && m.ReadOnly:
		return "", refuse(ErrInvalid, "mounted volume is marked read-only")
	}
	return name, nil
}

// applyTar applies the tar as a layer, or as one for each file system that its entries lead to: those of volumes first. What was
// written to one stays if another then fails. The caller holds op.
func (c *Container) applyTar(ctx context.Context, dest string, o WriteOptions, aside *os.File) error {
	c.mu.Lock()
	if c.removed || c.run != nil {
		c.mu.Unlock()
		return refuse(ErrConflict, "container %s was started, or removed, before the files were copied", c.id)
	}
	c.mu.Unlock()
	var held []string // volumes that the entries lead to, as far as is known
	for {
		missing, err := c.applyHolding(ctx, dest, o, aside, held)
		if errors.Is(err, layerstore.ErrTaken) { // another was faster, and nothing is written yet
			continue
		}
		if err != nil || missing == nil {
			return err
		}
		held = append(held, missing...)
	}
}

// applyHolding is applyTar with these volumes held. If it takes more it does nothing and returns them.
func (c *Container) applyHolding(ctx context.Context, dest string, o WriteOptions, aside *os.File, held []string) (missing []string, err error) {
	release, err := c.m.holdToWrite(ctx, held)
	if err != nil {
		return nil, err
	}
	defer release()
	v, err := c.openView(ctx, held)
	if err != nil {
		return nil, err
	}
	defer v.Close()
	p := extractionPlan{v: v, o: o, made: map[string]*madeFile{}, volumes: map[string]string{}}
	if p.dir, err = v.destOf(dest); err != nil {
		return nil, err
	}
	if err := p.read(aside); err != nil {
		return nil, v.reason(err)
	}
	touched := slices.Sorted(maps.Keys(p.volumes))
	for _, name := range touched {
		if name != "" && !slices.Contains(held, name) {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		return missing, nil
	}
	for _, name := range slices.Backward(touched) { // "", the root, comes last
		if err := c.applyPart(ctx, &p, name, aside); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// applyPart applies what of a plan leads to a volume, or to the root file system if that is "".
func (c *Container) applyPart(ctx context.Context, p *extractionPlan, volume string, aside *os.File) error {
	f := p.v.root
	if volume != "" {
		f = p.v.opened[volume].fs
	}
	if f.Foreign() {
		return refuse(ErrNotImplemented, "a guest has left %s in a state in which only a guest can write to it: start a container that has it",
			map[bool]string{true: "the container's disk", false: "volume " + volume}[volume == ""])
	}
	if volume == "" {
		c.setBusy(true)
		defer c.setBusy(false)
	}
	in, out := io.Pipe()
	done := make(chan struct{})
	var written error
	go func() {
		defer close(done)
		written = p.write(out, volume, aside)
		out.CloseWithError(written)
	}()
	var err error
	if volume == "" {
		err = c.m.o.Disks.ApplyToContainer(ctx, c.id, in)
	} else {
		err = volumeError(c.m.o.Volumes.ApplyToVolume(ctx, volume, in))
	}
	in.Close()
	<-done
	if written != nil && !errors.Is(written, io.ErrClosedPipe) {
		return written // the reason for the other
	}
	return err
}

// write writes the layer of a volume, or of the root file system if that is "": what the volume is filled with, and the plan's
// entries that lead there.
func (p *extractionPlan) write(to io.Writer, volume string, aside io.ReadSeeker) error {
	w := tar.NewWriter(to)
	if source := p.volumes[volume]; source != "" {
		if err := fillLayer(w, p.v.root, source); err != nil {
			return fmt.Errorf("copy the image's /%s into volume %s: %w", source, volume, err)
		}
	}
	if _, err := aside.Seek(0, io.SeekStart); err != nil {
		return err
	}
	r := tar.NewReader(aside)
	for _, e := range p.entries {
		h, err := r.Next()
		if err == nil && e.there && e.volume == volume {
			err = p.writeEntry(w, h, e, r)
		}
		if err != nil {
			return fmt.Errorf("read tar: %w", err)
		}
	}
	return w.Close()
}

// fillLayer writes a layer that makes of what there is in a volume the folder of a name.
func fillLayer(w *tar.Writer, f *layerstore.FS, name string) error {
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: ".wh..wh..opq", Mode: 0o600}); err != nil {
		return err
	}
	in, out := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		out.CloseWithError(f.WriteTree(out, name, "."))
	}()
	defer func() { in.Close(); <-done }()
	for r := tar.NewReader(in); ; {
		h, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.Copy(w, r); err != nil {
			return err
		}
	}
}
