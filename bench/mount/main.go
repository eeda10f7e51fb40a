// Command mount compares how fast programs show a chain of VMDKs as a raw file: vic mount,
// qemu-storage-daemon's FUSE export and libvmdk's vmdkmount, in turns within one run. Each is
// started, its file is read twice from the start, and it is ended. The first pass has the
// extent files in the page cache and nothing else; the second what the program lets the kernel
// keep. It prints medians, the best, and the median of the ratios within a turn.
//
// It takes Debian's fuse3, qemu-system-common and libvmdk-utils, and as root: vic mount may then read
// ahead as far as it likes.
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

	"vic/bench"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "mount:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) (err error) {
	flags := flag.NewFlagSet("mount", flag.ContinueOnError)
	runs := flags.Int("runs", 7, "turns")
	vic := flags.String("vic", "bin/vic", "the vic to measure")
	store := flags.String("store", "", "the store to show")
	image := flags.String("image", "", "name of the image whose disk is read")
	size := flags.Int64("size", 1536, "how much is read, MiB from the disk's start: no more than has data")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *store == "" || *image == "" {
		return errors.New("-store and -image are needed: vic pull --store DIR REF makes them")
	}
	top, err := exec.CommandContext(ctx, *vic, "disk", "--store", *store, *image).Output()
	if err != nil {
		return fmt.Errorf("vic disk: %w", err)
	}
	work, err := os.MkdirTemp("", "vic-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	engines := []engine{
		&vicEngine{bin: *vic, store: *store, image: *image, dir: filepath.Join(work, "vic")},
		&qemu{disk: strings.TrimSpace(string(top)), file: filepath.Join(work, "disk.raw")},
		&libvmdk{disk: strings.TrimSpace(string(top)), dir: filepath.Join(work, "vmdk")},
	}
	extents, err := filepath.Glob(filepath.Join(*store, "disks", "*"))
	if err != nil {
		return err
	}
	results := make([][]sample, len(engines))
	for i := range *runs {
		for k, e := range engines { // in turns: noise hits all alike
			for _, x := range extents {
				if _, err := read(x, 1<<62); err != nil {
					return err
				}
			}
			s, err := measure(ctx, e, *size<<20)
			if err != nil {
				return fmt.Errorf("%s, turn %d: %w", e.name(), i+1, err)
			}
			results[k] = append(results[k], s)
		}
	}
	return report(out, engines, results)
}

func report(out io.Writer, engines []engine, results [][]sample) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "engine\tfirst MB/s\tbest\tsecond MB/s\tbest\tfirst, vic is faster\tsecond, vic is faster")
	for k, e := range engines {
		var first, second, byFirst, bySecond []float64
		for i, s := range results[k] {
			first, second = append(first, s.first), append(second, s.second)
			byFirst = append(byFirst, results[0][i].first/s.first)
			bySecond = append(bySecond, results[0][i].second/s.second)
		}
		fmt.Fprintf(w, "%s\t%.0f\t%.0f\t%.0f\t%.0f\t%.2f times\t%.2f times\n", e.name(), bench.Median(first), slices.Max(first), bench.Median(second), slices.Max(second), bench.Median(byFirst), bench.Median(bySecond))
	}
	return w.Flush()
}

// A sample is one turn of an engine, in megabytes a second.
type sample struct{ first, second float64 }

func measure(ctx context.Context, e engine, size int64) (s sample, err error) {
	file, stop, err := e.start(ctx)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	for _, rate := range []*float64{&s.first, &s.second} {
		begin := time.Now()
		n, err := read(file, size)
		if err != nil {
			return s, err
		}
		*rate = float64(n) / 1e6 / time.Since(begin).Seconds()
	}
	return s, nil
}

// read reads a file, up to a size, and returns how much it was.
func read(path string, size int64) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var n int64
	for buf := make([]byte, 1<<20); n < size; {
		k, err := f.Read(buf)
		n += int64(k)
		if err == io.EOF {
			break
		}
		if err != nil {
			return n, err
		}
	}
	return n, nil
}
