package qemu

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"vic/containervm"
	"vic/tether/wire"
)

// A template is a guest that was booted to where it waits for its configuration, and saved. It is a
// folder of Driver.Templates, named by the hash of all that it is made of:
//
//	ram            the guest's memory; sparse
//	state          all else, in QEMU's migration format
//	template.json  says that the two are whole; its time is when the template was last used
//
// A copy maps ram privately: pages that it does not write to are shared with all other copies, in the
// page cache. The root disk of a template is an empty one of the same size, of which the guest has read
// nothing that it keeps. For its other disks and its interfaces it has no driver while it waits (tether's
// hold), so nothing of one machine's gets into another's, and a copy has whatever is on its command line.
type template struct {
	key string
	dir string
}

// Files of a template's folder.
const (
	ramFile      = "ram"
	savedFile    = "state"
	templateFile = "template.json"
	unfinished   = "tmp-" // begins the name of a folder that is not a template yet
)

// maxSaved bounds a saved state without memory; it is some hundred KiB.
const maxSaved = 64 << 20

const (
	// makeTimeout is how long a template may take to be made, on a machine that is busy with other things.
	makeTimeout = 5 * time.Minute
	// copyTimeout is how long a copy may take until it has its configuration.
	copyTimeout = 20 * time.Second
)

// templateRecord is template.json.
type templateRecord struct {
	RAM   int64 `json:"ram"`   // size, bytes
	State int64 `json:"state"` // likewise
}

// shape is what vm has in common with all VMs that can begin from one template.
func shape(vm containervm.VM) containervm.VM {
	s := containervm.VM{ID: "template", Boot: vm.Boot, Memory: vm.Memory, CPUs: vm.CPUs, DiskSerial: vm.DiskSerial, DiskSize: vm.DiskSize}
	for i := range vm.NICs {
		s.NICs = append(s.NICs, containervm.NIC{End: fmt.Sprintf("net%d", i), MAC: fmt.Sprintf("52:54:00:00:00:%02x", i&0xff)})
	}
	for range vm.Disks {
		s.Disks = append(s.Disks, containervm.Disk{})
	}
	return s
}

// template names the template for VMs like vm, made or not.
func (d *Driver) template(vm containervm.VM, p Platform) (template, error) {
	a, err := args(shape(vm), p, origin{ram: ramFile, shared: true})
	if err != nil {
		return template{}, err
	}
	qemu, err := d.probeKey()
	if err != nil {
		return template{}, err
	}
	h := sha256.New()
	fmt.Fprintf(h, "vic template 1\n%s\n%q\n", qemu.Binary, a)
	for _, path := range []string{vm.Boot.Kernel, vm.Boot.Initrd, p.Firmware} {
		if path == "" {
			continue
		}
		fi, err := os.Stat(path)
		if err != nil {
			return template{}, err
		}
		fmt.Fprintf(h, "%d %d\n", fi.Size(), fi.ModTime().UnixNano())
	}
	key := hex.EncodeToString(h.Sum(nil)[:16])
	return template{key, filepath.Join(d.Templates, key)}, nil
}

// A brokenError says that a template does not work, and why.
type brokenError struct{ err error }

func (e *brokenError) Error() string { return e.err.Error() }
func (e *brokenError) Unwrap() error { return e.err }

// whole says whether the template is there.
func (t template) whole() bool {
	ram, saved, err := t.open()
	if err != nil {
		return false
	}
	ram.Close()
	saved.Close()
	return true
}

// open opens the template's two files, if they are there and whole.
func (t template) open() (ram, saved *os.File, err error) {
	text, err := os.ReadFile(filepath.Join(t.dir, templateFile))
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			err = &brokenError{err}
		}
	}()
	var rec templateRecord
	if err := json.Unmarshal(text, &rec); err != nil {
		return nil, nil, fmt.Errorf("parse %s: %w", templateFile, err)
	}
	if ram, err = openSized(filepath.Join(t.dir, ramFile), os.O_RDWR, rec.RAM); err != nil { // QEMU maps no file that it cannot write to
		return nil, nil, err
	}
	if saved, err = openSized(filepath.Join(t.dir, savedFile), os.O_RDONLY, rec.State); err != nil {
		ram.Close()
		return nil, nil, err
	}
	return ram, saved, nil
}

func openSized(path string, flag int, size int64) (*os.File, error) {
	f, err := os.OpenFile(path, flag, 0)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil && fi.Size() != size {
		err = fmt.Errorf("%s has %d bytes, not %d", path, fi.Size(), size)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// copyOf starts vm as a copy of a template. The error is fs.ErrNotExist if there is no such template, a
// *brokenError if it does not work; any other is vm's own, which will not boot either.
func (d *Driver) copyOf(ctx context.Context, t template, vm containervm.VM, p Platform) (*machine, error) {
	ctx, cancel := context.WithTimeout(ctx, copyTimeout)
	defer cancel()
	m, conn, err := d.wake(ctx, t, vm, p)
	if err != nil {
		return nil, err
	}
	defer conn.Close() // all was said
	if err := wire.SendConfig(ctx, conn, vm.Config); err != nil {
		return nil, &brokenError{errors.Join(err, m.destroy(), said(vm))}
	}
	return m, nil
}

// wake has vm begin where the template was saved: it waits for its configuration on the connection.
func (d *Driver) wake(ctx context.Context, t template, vm containervm.VM, p Platform) (*machine, net.Conn, error) {
	ram, saved, err := t.open()
	if err != nil {
		return nil, nil, err
	}
	defer ram.Close()
	defer saved.Close()
	// By its descriptor, since the name may be another file's by the time that QEMU opens it.
	a, err := args(vm, p, origin{ram: fmt.Sprintf("/proc/self/fd/%d", firstFile)})
	if err != nil {
		return nil, nil, err
	}
	m, err := d.run(ctx, vm, command{args: a, files: []*os.File{ram, saved}})
	if err != nil {
		return nil, nil, err
	}
	conn, err := m.adopt(ctx, fmt.Sprintf("fd:%d", firstFile+1))
	if err != nil {
		return nil, nil, &brokenError{errors.Join(err, m.destroy(), said(vm))}
	}
	return m, conn, nil
}

// adopt lets a copy begin where its template was saved. The guest was saved with a host on its control
// port, so it finds one there.
func (m *machine) adopt(ctx context.Context, saved string) (_ net.Conn, err error) {
	conn, err := m.Dial(ctx, "control")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			conn.Close()
		}
	}()
	if err := m.ignoreShared(ctx); err != nil {
		return nil, err
	}
	// No interface is to announce itself: it has no driver yet, and QEMU 7.2 ends if it happens before it
	// listens for the interface's other end.
	if _, err := m.mon.Execute(ctx, "migrate-set-parameters", map[string]any{"announce-rounds": 0}); err != nil {
		return nil, err
	}
	if _, err := m.mon.Execute(ctx, "migrate-incoming", map[string]any{"uri": saved}); err != nil {
		return nil, err
	}
	return conn, nil
}

// ignoreShared leaves memory that is a shared file out of the state that is saved, or to be expected.
func (m *machine) ignoreShared(ctx context.Context) error {
	_, err := m.mon.Execute(ctx, "migrate-set-capabilities", map[string]any{
		"capabilities": []any{map[string]any{"capability": "x-ignore-shared", "state": true}},
	})
	return err
}

// destroy ends the VM and waits for its end.
func (m *machine) destroy() error {
	err := m.Kill()
	<-m.done
	return errors.Join(err, m.Close())
}

// make boots a guest and saves it as the template, into a folder that gets its name last. A
// crash leaves a folder that sweep removes.
func (d *Driver) make(ctx context.Context, t template, vm containervm.VM, p Platform) (err error) {
	ctx, cancel := context.WithTimeout(ctx, makeTimeout)
	defer cancel()
	// QEMU is to end with this process, and does so with the thread that started it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	tmp, err := os.MkdirTemp(d.Templates, unfinished)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	s := shape(vm)
	s.Dir, s.RuntimeDir = tmp, filepath.Join(filepath.Dir(vm.RuntimeDir), "template")
	s.Log, s.Console = filepath.Join(tmp, "log"), filepath.Join(tmp, "console")
	if err := errors.Join(os.RemoveAll(s.RuntimeDir), os.MkdirAll(s.RuntimeDir, 0o700)); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(s.RuntimeDir)) }()
	a, err := args(s, p, origin{ram: filepath.Join(tmp, ramFile), shared: true})
	if err != nil {
		return err
	}
	m, err := d.run(ctx, s, command{args: a, bound: true})
	if err != nil {
		return err
	}
	err = m.save(ctx, filepath.Join(tmp, savedFile))
	if err = errors.Join(err, m.destroy()); err != nil {
		return err
	}
	for _, f := range []string{s.Log, s.Console} {
		if err := os.Remove(f); err != nil {
			return err
		}
	}
	return commitTemplate(tmp, t.dir)
}

// save waits until the guest waits, and saves all of it but its memory.
func (m *machine) save(ctx context.Context, path string) error {
	conn, err := m.Dial(ctx, "control")
	if err != nil {
		return err
	}
	defer conn.Close() // not before the state is saved: the guest shall not notice
	ended, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // ends with save
		select {
		case <-m.done:
			cancel()
		case <-ended.Done():
		}
	}()
	if err := wire.AwaitWaiting(ended, conn); err != nil {
		return err
	}
	if err := m.ignoreShared(ctx); err != nil {
		return err
	}
	socketPath := socket(m.vm, savedFile)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socketPath, Net: "unix"})
	if err != nil {
		return err
	}
	defer l.Close()
	defer context.AfterFunc(ended, func() { l.Close() })()
	if _, err := m.mon.Execute(ctx, "migrate", map[string]any{"uri": "unix:" + socketPath}); err != nil {
		return err
	}
	state, err := l.Accept()
	if err != nil {
		return err
	}
	defer state.Close()
	defer context.AfterFunc(ended, func() { state.Close() })()
	if err := copyToFile(path, state); err != nil {
		return err
	}
	return m.awaitSaved(ctx)
}

// copyToFile writes what comes from r to a new file.
func copyToFile(path string, r io.Reader) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	n, err := io.Copy(f, io.LimitReader(r, maxSaved+1))
	if err == nil && n > maxSaved {
		err = fmt.Errorf("state of the guest is larger than %d bytes", maxSaved)
	}
	return err
}

// awaitSaved asks QEMU, which has written all, whether it believes so too.
func (m *machine) awaitSaved(ctx context.Context) error {
	for {
		text, err := m.mon.Execute(ctx, "query-migrate", nil)
		if err != nil {
			return err
		}
		var info struct {
			Status string `json:"status"`
			Desc   string `json:"error-desc"`
		}
		if err := json.Unmarshal(text, &info); err != nil {
			return fmt.Errorf("query-migrate: %w", err)
		}
		switch info.Status {
		case "completed":
			return nil
		case "failed", "cancelled":
			return fmt.Errorf("save the guest's state: %s %s", info.Status, info.Desc)
		}
		select {
		case <-time.After(10 * time.Millisecond): // a thread of QEMU's is about to end
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// commitTemplate gives the template in tmp its record and its name.
func commitTemplate(tmp, dir string) error {
	var rec templateRecord
	for name, size := range map[string]*int64{ramFile: &rec.RAM, savedFile: &rec.State} {
		f, err := os.OpenFile(filepath.Join(tmp, name), os.O_RDWR, 0)
		if err != nil {
			return err
		}
		fi, err := f.Stat()
		if err == nil {
			*size = fi.Size()
			err = errors.Join(f.Chmod(0o600), f.Sync())
		}
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	text, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	if err := copyToFile(filepath.Join(tmp, templateFile), strings.NewReader(string(text))); err != nil {
		return err
	}
	if err := errors.Join(syncPath(filepath.Join(tmp, templateFile)), syncPath(tmp), os.RemoveAll(dir)); err != nil {
		return err
	}
	if err := os.Rename(tmp, dir); err != nil {
		return err
	}
	return syncPath(filepath.Dir(dir))
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
