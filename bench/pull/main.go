// Command pull compares how long engines take to pull one image from a registry on
// loopback into a cold store, sync included: vic, containerd (ctr) and podman, in turns
// within one run. It prints medians of wall time, CPU seconds and bytes on disk, and
// the ratios of the times.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"vic/bench/testimage"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "pull:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) (err error) {
	flags := flag.NewFlagSet("pull", flag.ContinueOnError)
	runs := flags.Int("runs", 5, "pulls per engine")
	vic := flags.String("vic", "bin/vic", "the vic to measure")
	image := flags.String("image", "", "reference to pull; empty makes one of 1.4 GB and serves it on loopback")
	peers := flags.String("containerd", "", "folder of the containerd and ctr to compare with; empty takes those in $PATH")
	only := flags.String("only", "", "names of the engines to measure, separated by commas; empty means all")
	if err := flags.Parse(args); err != nil {
		return err
	}
	work, err := os.MkdirTemp("", "vic-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if *image == "" {
		ref, registry, err := makeImage(ctx)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, registry.Stop()) }()
		*image = ref
	}
	engines := []engine{
		&vicEngine{bin: *vic, root: filepath.Join(work, "vic")},
		&containerd{bin: *peers, root: filepath.Join(work, "containerd")},
		&podman{root: filepath.Join(work, "podman")},
	}
	if *only != "" {
		engines = slices.DeleteFunc(engines, func(e engine) bool { return !slices.Contains(strings.Split(*only, ","), e.name()) })
		if len(engines) == 0 {
			return fmt.Errorf("-only %s: the engines are vic, containerd and podman", *only)
		}
	}
	results := make([][]sample, len(engines))
	for i := range *runs {
		for k, e := range engines { // in turns: noise hits all alike
			s, err := measure(ctx, e, *image)
			if err != nil {
				return fmt.Errorf("%s, run %d: %w", e.name(), i+1, err)
			}
			results[k] = append(results[k], s)
		}
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, "engine\twall s\tCPU s\tMB on disk")
	for _, e := range engines[1:] {
		fmt.Fprintf(w, "\twall, of %s\tCPU, of %s", e.name(), e.name())
	}
	fmt.Fprintln(w, "\tall runs")
	for k, e := range engines {
		m := median(results[k])
		fmt.Fprintf(w, "%s\t%.2f\t%.2f\t%d", e.name(), m.wall.Seconds(), m.cpu.Seconds(), m.bytes>>20)
		for i := range engines[1:] {
			ref := median(results[i+1])
			fmt.Fprintf(w, "\t%.2f\t%.2f", m.wall.Seconds()/ref.wall.Seconds(), m.cpu.Seconds()/ref.cpu.Seconds())
		}
		var all []string
		for _, s := range results[k] {
			all = append(all, fmt.Sprintf("%.2f", s.wall.Seconds()))
		}
		fmt.Fprintf(w, "\t%s\n", strings.Join(all, " "))
	}
	return w.Flush()
}

// makeImage makes the large image, unless that was done before, and serves it.
func makeImage(ctx context.Context) (string, *testimage.Registry, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", nil, err
	}
	cache = filepath.Join(cache, "vic")
	registry, err := testimage.StartRegistry(ctx, filepath.Join(cache, "registry"))
	if err != nil {
		return "", nil, err
	}
	ref, err := registry.Keep(ctx, "bench/large:1", func() (v1.Image, error) {
		layers, err := testimage.Large(ctx, cache)
		if err != nil {
			return nil, err
		}
		return testimage.Build(v1.Config{Cmd: []string{"bash"}}, layers...)
	})
	if err != nil {
		return "", nil, errors.Join(err, registry.Stop())
	}
	return ref, registry, nil
}

// An engine pulls images into a store that prepare makes new.
type engine interface {
	name() string
	prepare(ctx context.Context) error
	pull(ctx context.Context, ref string) (cpu time.Duration, err error)
	remove(ctx context.Context) error
	dir() string
}

type sample struct {
	wall, cpu time.Duration
	bytes     int64
}

func measure(ctx context.Context, e engine, ref string) (s sample, err error) {
	if err := e.prepare(ctx); err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, e.remove(ctx)) }()
	syscall.Sync()
	begin := time.Now()
	if s.cpu, err = e.pull(ctx, ref); err != nil {
		return s, err
	}
	syscall.Sync()
	s.wall = time.Since(begin)
	s.bytes, err = allocated(e.dir())
	return s, err
}

// allocated sums the bytes that files below dir occupy.
func allocated(dir string) (int64, error) {
	var n int64
	err := filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok && (st.Nlink == 1 || d.IsDir()) {
			n += st.Blocks * 512
		}
		return nil
	})
	return n, err
}

func median(list []sample) sample {
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b sample) int { return int(a.wall - b.wall) })
	return list[len(list)/2]
}

// command runs a program and returns the CPU time of it and its children.
func command(ctx context.Context, name string, args ...string) (time.Duration, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out[max(0, len(out)-2000):])
	}
	return cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), nil
}
