package containervm

import (
	"context"
	"errors"
	"fmt"

	"vic/layerstore"
)

// copies are those who read or write a volume's files without a VM. Who reads has lost when somebody is about to
// write the volume, be it a VM; who writes has all of the data already, and is waited for.
type copies struct {
	readers map[*context.CancelCauseFunc]struct{}
	writing chan struct{} // closed when it is written; nil if nobody writes
}

// copiesOf returns those of a volume. Call it with Manager.volumes held.
func (m *Manager) copiesOf(volume string) *copies {
	c := m.copies[volume]
	if c == nil {
		c = &copies{readers: map[*context.CancelCauseFunc]struct{}{}}
		m.copies[volume] = c
	}
	return c
}

// forgetCopies drops the entry of a volume that nobody copies. Call it with Manager.volumes held.
func (m *Manager) forgetCopies(volume string) {
	if c := m.copies[volume]; c != nil && len(c.readers) == 0 && c.writing == nil {
		delete(m.copies, volume)
	}
}

// awaitCopies waits until nobody writes any of the volumes without a VM. Call it with Manager.volumes held, which is given up
// meanwhile.
func (m *Manager) awaitCopies(ctx context.Context, volumes ...string) error {
	for i := 0; i < len(volumes); i++ {
		c := m.copies[volumes[i]]
		if c == nil || c.writing == nil {
			continue
		}
		done := c.writing
		m.volumes.Unlock()
		select {
		case <-done:
		case <-ctx.Done():
		}
		m.volumes.Lock()
		if err := ctx.Err(); err != nil {
			return err
		}
		i = -1 // others may have come
	}
	return nil
}

// copied tells whether somebody writes a volume without a VM.
func (m *Manager) copied(volume string) bool {
	m.volumes.Lock()
	defer m.volumes.Unlock()
	c := m.copies[volume]
	return c != nil && c.writing != nil
}

// dropCopies ends all reading of a volume's files. Call it with Manager.volumes held.
func (m *Manager) dropCopies(volume string) {
	if c := m.copies[volume]; c != nil {
		for cancel := range c.readers {
			(*cancel)(fmt.Errorf("volume %s %w", volume, layerstore.ErrTaken))
		}
	}
}

// holdToRead takes hold of a volume that no VM writes, for who reads its files: until the context that it returns has ended,
// with the reason, or release is called. The error is ErrConflict if the volume is in use.
func (m *Manager) holdToRead(ctx context.Context, volume string) (reading context.Context, release func(), err error) {
	m.volumes.Lock()
	defer m.volumes.Unlock()
	if err := m.awaitCopies(ctx, volume); err != nil {
		return nil, nil, err
	}
	for _, h := range m.holders[volume] {
		if h.writes {
			return nil, nil, inUseByVM(volume, h)
		}
	}
	reading, cancel := context.WithCancelCause(ctx)
	m.copiesOf(volume).readers[&cancel] = struct{}{}
	return reading, func() {
		m.volumes.Lock()
		defer m.volumes.Unlock()
		delete(m.copiesOf(volume).readers, &cancel)
		m.forgetCopies(volume)
		cancel(nil)
	}, nil
}

// holdToWrite takes hold of volumes that no VM has, for who writes them without one; all of them or none, so that nobody waits
// for who waits for others. The error is ErrConflict if one is in use.
func (m *Manager) holdToWrite(ctx context.Context, volumes []string) (release func(), err error) {
	m.volumes.Lock()
	defer m.volumes.Unlock()
	if err := m.awaitCopies(ctx, volumes...); err != nil {
		return nil, err
	}
	for _, name := range volumes {
		if h := m.holders[name]; len(h) > 0 {
			return nil, inUseByVM(name, h[0])
		}
	}
	done := make(chan struct{})
	for _, name := range volumes {
		m.copiesOf(name).writing = done
		m.dropCopies(name)
	}
	return func() {
		m.volumes.Lock()
		defer m.volumes.Unlock()
		for _, name := range volumes {
			m.copiesOf(name).writing = nil
			m.forgetCopies(name)
		}
		close(done)
	}, nil
}

// inUseByVM is inUse for who copies.
func inUseByVM(volume string, h holder) error {
	i := h.c.Info()
	return refuse(ErrConflict, "volume %s is in use by running container %s (%s): a volume is a disk with a file system, which cannot be looked into or written to "+
		"beside a virtual machine that does; copy its files by that container, or stop it first", volume, i.Name, i.ID[:12])
}

// volumeError tells what a volume's disk is not good for.
func volumeError(err error) error {
	var distant *layerstore.DistantVolumeError
	switch busy := (*layerstore.VolumeBusyError)(nil); {
	case errors.As(err, &distant):
		return refuse(ErrNotImplemented, "%v", err)
	case errors.Is(err, layerstore.ErrNotFound):
		return refuse(ErrNotFound, "%v", err)
	case errors.As(err, &busy):
		return refuse(ErrConflict, "%v", err)
	}
	return err
}
