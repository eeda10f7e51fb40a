package vsphere

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"syscall"
	"time"

	datastore "vic/layerstore/vsphere"
)

const (
	// piece is how much of a log is read at once, and of a console at most.
	piece      = 256 << 10
	maxConsole = 16 << 10
	// shortRest and longRest are how long after a failure the log, or the bell, is tried again.
	shortRest = time.Second
	longRest  = 30 * time.Second
)

// listen mirrors the log whenever the bell rings, until the VM has ended. What came while nobody listened is there when the
// bell's connection is made.
func (m *machine) listen() {
	rest := shortRest
	for m.ctx.Err() == nil {
		conn, err := m.d.o.Ports.Dial(m.ctx, m.uuid, BellService)
		if err == nil {
			stop := context.AfterFunc(m.ctx, func() { conn.Close() })
			began := time.Now()
			err = m.hear(conn)
			stop()
			conn.Close()
			if time.Since(began) > longRest {
				rest = shortRest
			}
		}
		select {
		case <-m.done:
			return
		case <-m.ctx.Done():
			return
		case <-time.After(rest):
		}
		m.d.log.Debug("bell", "container", m.vm.ID, "error", err)
		rest = min(2*rest, longRest)
		if errors.Is(err, datastore.ErrUnavailable) && m.d.watch.reach(m.ctx) == nil { // what came meanwhile is awaited
			rest = shortRest
		}
	}
}

// hear mirrors the log now, and when something comes, until nothing does.
func (m *machine) hear(bell io.Reader) error {
	rings := make([]byte, 512)
	for {
		if err := m.mirror(m.ctx); err != nil {
			return err
		}
		if _, err := bell.Read(rings); err != nil {
			return err
		}
	}
}

// mirror appends to the local log what the VM has written since.
func (m *machine) mirror(ctx context.Context) (err error) {
	m.mirroring.Lock()
	defer m.mirroring.Unlock()
	f, err := os.OpenFile(m.vm.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	off := st.Size() - m.part.base
	if off < 0 {
		return fmt.Errorf("%s has %d bytes, and had %d when the VM was started", m.vm.Log, st.Size(), m.part.base)
	}
	name := path.Join(m.vm.ID, logName(m.part.run))
	buf := make([]byte, piece)
	for {
		var n int
		err := m.d.watch.asked(ctx, func(ctx context.Context) (err error) {
			n, err = m.d.o.Containers.ReadAvailable(ctx, name, buf, off)
			return err
		})
		if err == io.EOF || errors.Is(err, fs.ErrNotExist) { // it makes the file when it begins
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := f.Write(buf[:n]); err != nil {
			return err
		}
		off += int64(n)
	}
}

// end brings all that a run has left: the rest of its log, and the end of its console.
func (m *machine) end(ctx context.Context) error {
	m.hardware.Lock()
	defer m.hardware.Unlock()
	if m.rec.Mirrored {
		return nil
	}
	if err := m.insist(ctx, func() error { return m.mirror(ctx) }); err != nil {
		return err
	}
	if err := syncFile(m.vm.Log); err != nil { // the record is not to say more than a power cut leaves
		return err
	}
	if err := m.insist(ctx, func() error { return m.lastWords(ctx) }); err != nil {
		m.d.log.Warn("read a VM's console", "container", m.vm.ID, "error", err)
	}
	m.explain()
	if m.state() != gone {
		if err := m.d.free(ctx, m.ref, m.rec); err != nil {
			m.d.log.Warn("take the volumes out of a VM", "container", m.vm.ID, "error", err) // before it is destroyed, at the latest
		} else {
			m.rec.Disks = false
		}
	}
	m.rec.Mirrored = true
	return m.insist(ctx, func() error { return m.rec.write(m.vm.Dir) })
}

// insist does what vSphere is needed for, again until vSphere is there, and this process can open files.
func (m *machine) insist(ctx context.Context, fn func() error) error {
	for {
		err := fn()
		if !errors.Is(err, datastore.ErrUnavailable) && !errors.Is(err, syscall.EMFILE) && !errors.Is(err, syscall.ENFILE) {
			return err
		}
		m.d.log.Debug("try again", "container", m.vm.ID, "error", err)
		if err := m.d.watch.reach(ctx); err != nil {
			return err
		}
		select {
		case <-time.After(shortRest):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// lastWords brings the end of the console.
func (m *machine) lastWords(ctx context.Context) error {
	name := path.Join(m.vm.ID, consoleName(m.part.run))
	size, err := m.d.o.Containers.Stat(ctx, name)
	if errors.Is(err, fs.ErrNotExist) {
		size, err = 0, nil
	}
	if err != nil {
		return err
	}
	text := make([]byte, min(size, maxConsole))
	if err := m.d.o.Containers.ReadRange(ctx, name, text, size-int64(len(text))); err != nil {
		return err
	}
	return os.WriteFile(m.vm.Console, text, 0o600)
}

// explain says why a VM has ended, where its guest did not.
func (m *machine) explain() {
	crashed := m.d.watch.lookUp(m.uuid).told.crashed
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.power == gone {
		m.reason = "its virtual machine was deleted"
		return
	}
	if st, err := os.Stat(m.vm.Console); err != nil || st.Size() == 0 {
		m.reason = "its virtual machine was powered off"
		if crashed {
			m.reason = "its virtual machine, or the host that it was on, has failed"
		}
	}
}
