package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"vic/bench/layout"
)

// Options say what to measure.
type Options struct {
	// Layout and Name are the image: the one of that name of an OCI layout; "" is the only one. Without a layout
	// there is only the growth.
	Layout layout.Dir
	Name   string
	// Work is the folder on whose file system is measured. "" is that of temporary files. It is left as it was.
	Work string
	// Runs is how often everything is measured. 0 means 5.
	Runs int
	// Vic are the vic programs to measure. The others' figures are compared with the first one's.
	Vic []string
	// Peers is a folder to look for other engines in, before $PATH.
	Peers string
	// Only are the names of the peers to measure. Nil means all that there are, empty means none.
	Only []string
	// Growth is how a pull's time grows with the image, if it has points.
	Growth Growth
	// Progress, if it is not nil, is told what is being done.
	Progress func(string)
}

// PeerNames are the names for Options.Only.
func PeerNames() []string {
	var names []string
	for _, p := range peersIn("") {
		names = append(names, p.name())
	}
	return names
}

func peersIn(dir string) []engine {
	return []engine{&containerd{peers: dir}, new(podman), &tar2ext4{peers: dir}, new(kernelTar), new(mke2fsDir)}
}

// A bench is one call of Run.
type bench struct {
	Options
	work    string
	engines []*contestant // vics first
	report  *Report
}

// A contestant is an engine and how it has done.
type contestant struct {
	engine
	version string
	samples []sample
	failed  error // it is not measured, and why
}

// Run measures. If ctx ends it returns ctx's error, and nothing is left behind.
func Run(ctx context.Context, o Options) (_ *Report, err error) {
	if o.Runs == 0 {
		o.Runs = 5
	}
	if o.Runs < 0 || len(o.Vic) == 0 {
		return nil, fmt.Errorf("measure: %d runs of %d vics", o.Runs, len(o.Vic))
	}
	b := &bench{Options: o, report: &Report{Runs: o.Runs, Time: time.Now().UTC().Truncate(time.Second)}}
	if b.work, err = makeWork(o.Work); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.work)) }()
	if b.report.Machine, err = thisMachine(b.work); err != nil {
		return nil, err
	}
	if err := b.find(ctx); err != nil {
		return nil, err
	}
	if o.Layout != "" {
		if err := b.image(ctx); err != nil {
			return nil, err
		}
	}
	if err := b.grow(ctx); err != nil {
		return nil, err
	}
	return b.report, nil
}

// makeWork makes a folder in dir and returns the path that /proc/mounts would have for it.
func makeWork(dir string) (string, error) {
	work, err := os.MkdirTemp(dir, "vic-bench-")
	if err != nil {
		return "", err
	}
	abs, err := filepath.Abs(work)
	if err == nil {
		abs, err = filepath.EvalSymlinks(abs)
	}
	if err != nil {
		return "", errors.Join(err, os.Remove(work))
	}
	return abs, nil
}

func (b *bench) say(format string, args ...any) {
	if b.Progress != nil {
		b.Progress(fmt.Sprintf(format, args...))
	}
}

// find finds out which engines there are. A vic that cannot run is an error, a peer is noted as missing.
func (b *bench) find(ctx context.Context) error {
	for i, bin := range b.Vic {
		title := "vic"
		if i > 0 {
			title = bin
		}
		v := &contestant{engine: &vic{title: title, bin: bin}}
		var err error
		if v.version, err = v.check(ctx); err != nil {
			return fmt.Errorf("measure %s: %w", bin, err)
		}
		b.engines = append(b.engines, v)
	}
	for _, name := range b.Only {
		if !slices.Contains(PeerNames(), name) {
			return fmt.Errorf("no peer is called %q: there are %s", name, strings.Join(PeerNames(), ", "))
		}
	}
	for _, p := range peersIn(b.Peers) {
		if b.Only != nil && !slices.Contains(b.Only, p.name()) {
			continue
		}
		c := &contestant{engine: p}
		c.version, c.failed = p.check(ctx)
		b.engines = append(b.engines, c)
	}
	return ctx.Err()
}

// image measures the image's stages and engines.
func (b *bench) image(ctx context.Context) (err error) {
	img, err := serve(ctx, b.Layout, b.Name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, img.close()) }()
	b.say("reading the image")
	for _, l := range img.layers {
		if _, err := img.fetch(ctx, l); err != nil { // it is in the page cache from now on, and verified
			return fmt.Errorf("read layer %s: %w", l.blob.Digest, err)
		}
	}
	m := &measured{}
	steps := []func(int) error{func(int) error { return b.stages(ctx, img, m) }}
	for _, c := range b.engines {
		steps = append(steps, func(run int) error {
			if c.failed == nil {
				b.say("run %d of %d: %s", run+1, b.Runs, c.name())
			}
			return b.run(ctx, c, img)
		})
	}
	for run := range b.Runs {
		for _, step := range steps {
			if err := step(run); err != nil {
				return err
			}
		}
		slices.Reverse(steps)
	}
	b.report.add(m, b.engines, runtime.GOMAXPROCS(0))
	return nil
}

// measured is what was measured of the parts, a value for each run.
type measured struct {
	passes      [][]layerCost
	medium      []usage
	mediumBytes int64 // per run
}

// stages measures the parts once.
func (b *bench) stages(ctx context.Context, img *image, m *measured) error {
	b.say("run %d of %d: each stage alone", len(m.passes)+1, b.Runs)
	costs, err := onePass(ctx, img, b.work)
	if err != nil {
		return err
	}
	m.passes = append(m.passes, costs)
	var stored int64
	for _, c := range costs {
		stored += c.stored
	}
	var u usage
	if m.mediumBytes, u, err = writeMedium(ctx, b.work, stored); err != nil {
		return fmt.Errorf("measure the medium: %w", err)
	}
	m.medium = append(m.medium, u)
	return nil
}

// run measures an engine once. A peer that fails is out; vic must not.
func (b *bench) run(ctx context.Context, c *contestant, img *image) error {
	if c.failed != nil {
		return nil
	}
	s, err := measure(ctx, c, img, b.work)
	if end := ctx.Err(); end != nil && errors.Is(err, end) {
		return err
	} else if end != nil {
		return errors.Join(end, err)
	}
	if _, ours := c.engine.(*vic); ours && err != nil {
		return fmt.Errorf("%s: %w", c.name(), err)
	}
	if err != nil {
		c.failed = err
		return nil
	}
	c.samples = append(c.samples, s)
	return nil
}
