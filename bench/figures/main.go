// Command figures measures what bench/README.md shows: vic bench on a real image of 1.4 GB in six layers, which
// it makes if it is not there, with all peers and the growth. With -readme it puts the figures into that file and
// the chart beside it.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"vic/bench/testimage"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "figures:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out, errOut io.Writer) error {
	flags := flag.NewFlagSet("figures", flag.ContinueOnError)
	flags.SetOutput(errOut)
	bin := flags.String("bin", "bin", "folder of vic and of peers/; the image and the chart go there, too")
	runs := flags.Int("runs", 5, "how often everything is measured")
	readme := flags.String("readme", "", "file to put the figures into; the chart goes beside it")
	machine := flags.String("machine", "", "how that file describes the machine; empty is what vic bench finds")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if *machine != "" && *readme == "" {
		return errors.New("-machine is for -readme")
	}
	image := filepath.Join(*bin, "large")
	if err := testimage.KeepLayout(ctx, image, func() ([]testimage.Layer, error) { return large(ctx, errOut) }); err != nil {
		return fmt.Errorf("make the image: %w", err)
	}
	chart := filepath.Join(*bin, "bench.svg")
	var text bytes.Buffer
	cmd := exec.CommandContext(ctx, filepath.Join(*bin, "vic"), "bench", "--layout", image, "--growth",
		"--runs", strconv.Itoa(*runs), "--peers", filepath.Join(*bin, "peers"), "--svg", chart)
	cmd.Stdout, cmd.Stderr = io.MultiWriter(&text, out), errOut
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // it has to tidy up
	cmd.WaitDelay = time.Minute
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("vic bench: %w", err)
	}
	if *readme == "" {
		fmt.Fprintln(out, "the chart is", chart)
		return nil
	}
	return publish(*readme, text.String(), *machine, chart)
}

// large makes the image's layers.
func large(ctx context.Context, errOut io.Writer) ([]testimage.Layer, error) {
	fmt.Fprintln(errOut, "making an image of 1.4 GB")
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil, err
	}
	return testimage.Large(ctx, filepath.Join(cache, "vic"))
}

// The figures are between these two lines of the file.
const (
	begin = "<!-- figures: written by go run ./bench/figures -readme -->\n"
	end   = "<!-- end of figures -->\n"
)

// publish puts the figures and the chart into a file of documentation.
func publish(path, figures, machine, chart string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, rest, ok := strings.Cut(string(b), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		return fmt.Errorf("%s has no place for the figures: %q and %q", path, begin, end)
	}
	var text strings.Builder
	text.WriteString(before + begin + "\n")
	for line := range strings.Lines(strings.TrimSpace(figures)) {
		line = strings.TrimRight(line, " \n")
		if machine != "" && strings.HasPrefix(line, "machine: ") {
			line = "machine: " + machine
		}
		if line != "" {
			line = "    " + line
		}
		text.WriteString(line + "\n")
	}
	text.WriteString("\n" + end + after)
	drawing, err := os.ReadFile(chart)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(filepath.Dir(path), "figures.svg"), drawing, 0o644); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(text.String()), 0o644)
}
