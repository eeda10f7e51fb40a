package qemu

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"vic/containervm"
	"vic/tether/wire"
)

// A spare is a copy of a template that runs already and has prepared itself, so that a VM need not even
// wait for QEMU to start, and QEMU has translated a good part of what the guest executes next. It is kept
// until a VM comes that it fits. That one gets
//
//   - its folder for sockets by a new name: who connects to a socket finds it by its file;
//   - its log and its console likewise, which is why a log that has something in it gets no spare;
//   - its root disk by another node behind the device, in place of an empty one;
//   - its configuration by the connection that the spare has been on from the beginning. If that ends before,
//     because this process did, the guest powers itself off.
type spare struct {
	key  string // of its template
	m    *machine
	conn net.Conn // to its control port
}

// spareName begins the names of the folders of spares: the one with sockets, beside those of the VMs,
// and the one for its log and console, beside the templates.
const spareName = "spare-"

// canBeSpare says whether a spare can become vm. Other disks have other sizes, and the
// order of several interfaces is not known.
func canBeSpare(vm containervm.VM) bool {
	return len(vm.Disks) == 0 && len(vm.Shares) == 0 && len(vm.NICs) <= 1 && len(vm.CPUSet) == 0
}

// takeSpare has the spare of a template become vm. It returns nil if there is none, or none that works.
func (d *Driver) takeSpare(ctx context.Context, t template, vm containervm.VM) *machine {
	ts := &d.templates
	if fi, err := os.Stat(vm.Log); !canBeSpare(vm) || err == nil && fi.Size() > 0 {
		return nil
	}
	if _, process, err := openProcess(vm); err == nil { // it runs already, as it will be told
		process.Close()
		return nil
	}
	ts.mu.Lock()
	s := ts.spare
	if s == nil || s.key != t.key {
		ts.mu.Unlock()
		return nil
	}
	ts.spare = nil
	ts.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, copyTimeout)
	defer cancel()
	was := s.m.vm
	if err := s.become(ctx, vm); err != nil {
		d.log().Warn("a spare VM is of no use", "container", vm.ID, "error", err)
		ts.mu.Lock()
		ts.failed[spareName+t.key]++
		ts.mu.Unlock()
		s.m.vm = was
		d.drop(s)
		if err := os.MkdirAll(vm.RuntimeDir, 0o700); err != nil {
			d.log().Warn("make a VM's folder again", "error", err)
		}
		return nil
	}
	ts.mu.Lock()
	delete(ts.failed, spareName+t.key)
	ts.mu.Unlock()
	if err := errors.Join(s.conn.Close(), os.RemoveAll(was.Dir)); err != nil {
		d.log().Warn("remove what a spare VM has left", "error", err)
	}
	return s.m
}

// become makes the spare vm.
func (s *spare) become(ctx context.Context, vm containervm.VM) error {
	m, was := s.m, s.m.vm
	const disk = "disk"
	if _, err := m.mon.Execute(ctx, "blockdev-add", vmdkNode(disk, containervm.Disk{Path: vm.Disk}, vm.Unsafe)); err != nil {
		return err
	}
	root := map[string]any{"driver": "raw", "node-name": rootNode, "file": disk}
	if _, err := m.mon.Execute(ctx, "blockdev-reopen", map[string]any{"options": []any{root}}); err != nil {
		return err
	}
	if err := os.RemoveAll(vm.RuntimeDir); err != nil {
		return err
	}
	for _, r := range [][2]string{{was.RuntimeDir, vm.RuntimeDir}, {was.Log, vm.Log}, {was.Console, vm.Console}} {
		if err := os.Rename(r[0], r[1]); err != nil {
			return err
		}
	}
	m.vm = vm
	return wire.SendConfig(ctx, s.conn, vm.Config)
}

// makeSpare makes a spare of a template, for VMs like vm.
func (d *Driver) makeSpare(ctx context.Context, t template, vm containervm.VM, p Platform) (_ *spare, err error) {
	ctx, cancel := context.WithTimeout(ctx, makeTimeout)
	defer cancel()
	var random [3]byte
	rand.Read(random[:])
	name := spareName + hex.EncodeToString(random[:])
	s := shape(vm)
	s.ID, s.Dir, s.RuntimeDir = name, filepath.Join(d.Templates, name), filepath.Join(filepath.Dir(vm.RuntimeDir), name)
	s.Log, s.Console = filepath.Join(s.Dir, "log"), filepath.Join(s.Dir, "console")
	for i := range s.NICs { // the guest gives it another; it is seen as the one that the hardware had
		s.NICs[i].MAC = fmt.Sprintf("52:54:%02x:%02x:%02x:%02x", random[0], random[1], random[2], i)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(s.Dir), os.RemoveAll(s.RuntimeDir))
		}
	}()
	if err := errors.Join(os.Mkdir(s.Dir, 0o700), os.Mkdir(s.RuntimeDir, 0o700)); err != nil {
		return nil, err
	}
	for _, path := range []string{s.Log, s.Console} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			return nil, err
		}
	}
	m, conn, err := d.wake(ctx, t, s, p)
	if err != nil {
		return nil, err
	}
	if err := wire.SendPrepare(ctx, conn); err != nil {
		return nil, &brokenError{errors.Join(err, conn.Close(), m.destroy(), said(s))}
	}
	return &spare{t.key, m, conn}, nil
}

// Spares is how many VMs are kept ready.
func (d *Driver) Spares() int {
	ts := &d.templates
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if ts.spare == nil {
		return 0
	}
	return 1
}

// end ends a spare that nobody wants.
func (s *spare) end() error {
	return errors.Join(s.conn.Close(), s.m.destroy(), os.RemoveAll(s.m.vm.Dir), os.RemoveAll(s.m.vm.RuntimeDir))
}

// spareLater sees to it that there is a spare for VMs like vm, made in the background.
func (d *Driver) spareLater(t template, vm containervm.VM, p Platform) {
	ts := &d.templates
	ts.mu.Lock()
	defer ts.mu.Unlock()
	ts.init()
	key := spareName + t.key
	if !d.Spare || !canBeSpare(vm) || ts.closed || ts.spare != nil && ts.spare.key == t.key || ts.busy[key] || ts.failed[key] >= maxFailures {
		return
	}
	ts.busy[key] = true
	ts.wg.Go(func() {
		ts.turn.Lock()
		defer ts.turn.Unlock()
		d.sweepSpares(filepath.Dir(vm.RuntimeDir))
		begin := time.Now()
		s, err := d.makeSpare(ts.ctx, t, vm, p)
		ts.mu.Lock()
		old := ts.spare
		delete(ts.busy, key)
		if err == nil {
			ts.spare = s
		} else if ts.ctx.Err() == nil {
			ts.failed[key]++
			d.log().Warn("keep a VM ready to start", "template", t.key, "error", err)
		}
		ts.mu.Unlock()
		if err == nil {
			d.log().Debug("keeps a VM ready to start", "template", t.key, "took", time.Since(begin).Round(time.Millisecond))
			if old != nil {
				d.drop(old)
			}
		}
	})
}

func (d *Driver) drop(s *spare) {
	if err := s.end(); err != nil {
		d.log().Warn("end a spare VM", "error", err)
	}
}

// sweepSpares removes what spares of a process that was killed have left, once. Call it in turn.
func (d *Driver) sweepSpares(runtimeDir string) {
	ts := &d.templates
	if ts.swept {
		return
	}
	ts.swept = true
	for _, dir := range []string{runtimeDir, d.Templates} {
		left, err := filepath.Glob(filepath.Join(dir, spareName+"*"))
		for _, path := range left {
			if pid, process, findErr := openProcess(containervm.VM{RuntimeDir: path}); findErr == nil {
				d.log().Info("end a spare VM that was left", "pid", pid)
				m := newMachine(containervm.VM{RuntimeDir: path}, containervm.MachineInfo{PID: pid}, process, nil)
				err = errors.Join(err, m.destroy())
			}
			err = errors.Join(err, os.RemoveAll(path))
		}
		if err != nil {
			d.log().Warn("remove what spare VMs have left", "error", err)
		}
	}
}
