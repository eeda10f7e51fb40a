package qemu

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"vic/containervm"
)

// What a Driver keeps of templates; the least recently used go first.
const (
	maxTemplates     = 8
	maxTemplateBytes = 2 << 30
)

// maxFailures is how often a template may fail, to be made or to work, until this Driver does without.
const maxFailures = 3

// templates are those of a Driver. They are made one at a time, beside all else.
type templates struct {
	wg   sync.WaitGroup
	turn sync.Mutex // held to make one; before mu

	mu     sync.Mutex
	busy   map[string]bool // by key: is being made, or will be
	failed map[string]int  // by key: how often
	spare  *spare          // nil if there is none now
	swept  bool            // guarded by turn: what was left of spares is removed
	ctx    context.Context // of the making; ends with the Driver
	cancel context.CancelFunc
	closed bool
}

// init makes the zero value usable. Call it with mu held.
func (ts *templates) init() {
	if ts.busy == nil {
		ts.busy, ts.failed = map[string]bool{}, map[string]int{}
		ts.ctx, ts.cancel = context.WithCancel(context.Background())
	}
}

// startCopy starts vm as a copy of a template, if there is one that works, and else has one made and
// returns nil.
func (d *Driver) startCopy(ctx context.Context, vm containervm.VM, p Platform) containervm.Machine {
	if d.Templates == "" || p.Accel != TCG || len(vm.Shares) > 0 { // who serves shares needs the memory itself
		return nil
	}
	t, err := d.template(vm, p)
	if err != nil {
		d.log().Warn("name template", "container", vm.ID, "error", err)
		return nil
	}
	m := d.takeSpare(ctx, t, vm)
	if m == nil {
		m, err = d.copyOf(ctx, t, vm, p)
	}
	if err == nil {
		now := time.Now()
		_ = os.Chtimes(filepath.Join(t.dir, templateFile), now, now) // it only may be removed sooner
		return m
	}
	if ctx.Err() != nil {
		return nil
	}
	var broken *brokenError
	if errors.As(err, &broken) {
		d.log().Warn("a template does not work, booting", "container", vm.ID, "template", t.key, "error", err)
		d.discard(t)
	}
	d.makeLater(t, vm, p)
	return nil
}

// Prepare implements containervm.Hypervisor.
func (d *Driver) Prepare(ctx context.Context, vm containervm.VM) error {
	if d.Templates == "" {
		return nil
	}
	p, err := d.Platform(ctx, vm.Boot.Kernel)
	if err != nil || p.Accel != TCG {
		return err
	}
	t, err := d.template(vm, p)
	if err != nil {
		return err
	}
	if t.whole() {
		d.spareLater(t, vm, p)
	} else {
		d.makeLater(t, vm, p)
	}
	return nil
}

// makeLater makes a template in the background, unless it is there or has failed too often.
func (d *Driver) makeLater(t template, vm containervm.VM, p Platform) {
	if t.whole() {
		return
	}
	ts := &d.templates
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if ts.closed || ts.busy[t.key] || ts.failed[t.key] >= maxFailures {
		return
	}
	ts.init()
	ts.busy[t.key] = true
	ts.wg.Go(func() {
		next := func() {}
		defer func() { next() }()
		ts.turn.Lock()
		defer ts.turn.Unlock()
		begin := time.Now()
		err := d.sweep()
		if err == nil {
			err = d.make(ts.ctx, t, vm, p)
		}
		ts.mu.Lock()
		defer ts.mu.Unlock()
		delete(ts.busy, t.key)
		switch {
		case err == nil:
			d.log().Info("made a template to start containers from", "template", t.key, "memory", vm.Memory, "CPUs", vm.CPUs, "took", time.Since(begin).Round(time.Millisecond))
			next = func() { d.spareLater(t, vm, p) }
		case ts.ctx.Err() == nil:
			ts.failed[t.key]++
			d.log().Warn("make a template to start containers from", "template", t.key, "error", err)
		}
	})
}

// discard removes a template that does not work.
func (d *Driver) discard(t template) {
	ts := &d.templates
	ts.mu.Lock()
	defer ts.mu.Unlock()
	ts.init()
	ts.failed[t.key]++
	if err := os.RemoveAll(t.dir); err != nil {
		d.log().Warn("remove template", "template", t.key, "error", err)
	}
}

// Ready is how many templates there are to start VMs from.
func (d *Driver) Ready() int {
	records, _ := filepath.Glob(filepath.Join(d.Templates, "*", templateFile)) // fails for a bad pattern only
	n := 0
	for _, r := range records {
		if !strings.HasPrefix(filepath.Base(filepath.Dir(r)), unfinished) {
			n++
		}
	}
	return n
}

// sweep makes room for another template, and removes what a crash has left.
func (d *Driver) sweep() error {
	if err := os.MkdirAll(d.Templates, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(d.Templates)
	if err != nil {
		return err
	}
	type used struct {
		path string
		at   time.Time
		size int64
	}
	var all []used
	for _, e := range entries {
		u := used{path: filepath.Join(d.Templates, e.Name())}
		fi, err := os.Stat(filepath.Join(u.path, templateFile))
		ram, ramErr := os.Stat(filepath.Join(u.path, ramFile))
		if strings.HasPrefix(e.Name(), spareName) {
			continue
		}
		if strings.HasPrefix(e.Name(), unfinished) || err != nil || ramErr != nil {
			if err := os.RemoveAll(u.path); err != nil {
				return err
			}
			continue
		}
		u.at = fi.ModTime()
		if st, ok := ram.Sys().(*syscall.Stat_t); ok {
			u.size = st.Blocks * 512
		}
		all = append(all, u)
	}
	slices.SortFunc(all, func(a, b used) int { return b.at.Compare(a.at) })
	var size int64
	for i, u := range all {
		if size += u.size; i < maxTemplates-1 && size < maxTemplateBytes {
			continue
		}
		if err := os.RemoveAll(u.path); err != nil {
			return err
		}
	}
	return nil
}

// Close ends what is done in the background. VMs run on.
func (d *Driver) Close() error {
	ts := &d.templates
	ts.mu.Lock()
	ts.closed = true
	if ts.cancel != nil {
		ts.cancel()
	}
	ts.mu.Unlock()
	ts.wg.Wait()
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if s := ts.spare; s != nil {
		ts.spare = nil
		return s.end()
	}
	return nil
}
