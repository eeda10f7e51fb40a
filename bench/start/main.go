// Command start measures how soon containers run, how fast their output comes and what they cost while
// they sleep. Three vic serve on this machine take turns, one that boots every VM, one that copies
// templates and one that has a VM ready besides, so that noise hits all alike. A turn is docker run --rm of
// a busybox that writes one line; it is timed from the client's start to that line, and to the client's end.
//
// It takes root, the docker client, QEMU and Debian's busybox-static.
package main

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"text/tabwriter"
	"time"

	"vic/bench"
	"vic/bench/testimage"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "start:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) (err error) {
	flags := flag.NewFlagSet("start", flag.ContinueOnError)
	runs := flags.Int("runs", 10, "turns")
	vic := flags.String("vic", "bin/vic", "the vic to measure")
	size := flags.Int64("size", 128, "how much output is read, MiB")
	idle := flags.Duration("idle", 20*time.Second, "how long a sleeping container is watched")
	if err := flags.Parse(args); err != nil {
		return err
	}
	work, err := os.MkdirTemp("", "vic-start-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	image := filepath.Join(work, "image.tar")
	if err := writeImage(image); err != nil {
		return err
	}
	hosts := []*host{
		{name: "boot", flags: []string{"--no-templates"}},
		{name: "template", flags: []string{"--no-spare"}, ready: "Start Templates: 1\n"},
		{name: "spare", ready: "Start Spares: 1\n"},
	}
	for _, h := range hosts {
		if err := h.start(ctx, *vic, filepath.Join(work, h.name), image); err != nil {
			return fmt.Errorf("vic serve %q: %w", h.flags, err)
		}
		defer func() { err = errors.Join(err, h.stop()) }()
	}
	for range *runs {
		for _, h := range hosts {
			if err := h.turn(ctx); err != nil {
				return fmt.Errorf("%s: %w", h.name, err)
			}
		}
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "start\tto first output, s\tbest\tto the client's end, s\tbest")
	for _, h := range hosts {
		fmt.Fprintf(w, "%s\t%.2f\t%.2f\t%.2f\t%.2f\n", h.name, bench.Median(h.first), slices.Min(h.first), bench.Median(h.whole), slices.Min(h.whole))
	}
	fmt.Fprintln(w)
	h := hosts[len(hosts)-1]
	for range 3 {
		if err := h.read(ctx, *size<<20); err != nil {
			return err
		}
	}
	fmt.Fprintf(w, "output\tMB/s\tbest\n")
	fmt.Fprintf(w, "attach\t%.0f\t%.0f\n", bench.Median(h.attach), slices.Max(h.attach))
	fmt.Fprintf(w, "logs\t%.0f\t%.0f\n", bench.Median(h.logs), slices.Max(h.logs))
	fmt.Fprintln(w)
	fmt.Fprintln(w, "asleep\tresident, MB\tits own share\tof a CPU, %")
	for _, h := range hosts {
		c, err := h.sleep(ctx, *idle)
		if err != nil {
			return fmt.Errorf("%s: %w", h.name, err)
		}
		fmt.Fprintf(w, "%s\t%.0f\t%.0f\t%.1f\n", h.name, float64(c.resident)/1e6, float64(c.share)/1e6, 100*c.cpu)
	}
	return w.Flush()
}

// writeImage writes a busybox as docker import takes it.
func writeImage(path string) (err error) {
	l, err := testimage.Busybox()
	if err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	b := bufio.NewWriter(f)
	w := tar.NewWriter(b)
	return errors.Join(l.Write(w), w.Close(), b.Flush())
}
