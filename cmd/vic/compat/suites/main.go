// Command suites runs the tests of Docker's own makers against vic serve: moby's integration tests, those that drive
// its API and those that drive the docker client, and docker/cli's end-to-end tests. It writes docs/suites.md, where
// each test that fails has its reason beside it.
//
// The suites come as Go modules, are built in a folder of their own, and are run test by test, each with a time of its
// own. Their images are made here, in the shape of those that they name (images.go). What they expect of dockerd's own
// insides, a virtual machine has not: known.go says which tests ask for that.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "suites:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out, errOut io.Writer) (err error) {
	flags := flag.NewFlagSet("suites", flag.ContinueOnError)
	flags.SetOutput(errOut)
	bin := flags.String("bin", "bin", "folder of vic, tether and peers/")
	work := flags.String("work", "bin/suites", "folder for the suites, their programs, the store and each test's output")
	pattern := flags.String("run", "", "run only the tests whose suite and name, as SUITE/TEST, match this `regexp`")
	document := flags.String("document", "", "`file` to write the results to; all tests have to be run")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if *document != "" && *pattern != "" {
		return errors.New("-document is for a run of all tests")
	}
	only, err := regexp.Compile(*pattern)
	if err != nil {
		return err
	}
	var dirs [2]string
	for i, dir := range []string{*bin, *work} {
		if dirs[i], err = filepath.Abs(dir); err != nil {
			return err
		}
	}
	w := workshop{bin: dirs[0], dir: dirs[1], out: out}
	if err := w.prepare(ctx); err != nil {
		return err
	}
	h, err := w.serve(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.close()) }()
	if err := w.loadImages(ctx, h); err != nil {
		return fmt.Errorf("load the suites' images: %w", err)
	}
	var all []outcome
	for _, s := range suites {
		found, err := w.run(ctx, h, s, only)
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		all = append(all, found...)
	}
	report := newReport(all)
	report.summary(out)
	if *document == "" {
		return nil
	}
	return os.WriteFile(*document, report.document(), 0o644)
}
