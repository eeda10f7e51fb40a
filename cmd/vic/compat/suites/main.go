// Command suites runs the tests of Docker's own makers against vic serve: moby's integration tests, those that drive
// its API and those that drive the docker client, and docker/cli's end-to-end tests. It writes docs/suites.md, where
// each test that fails has its reason beside it.
//
// The suites come as Go modules, are built in a folder of their own, and are run test by test, each with a time of its
// own. Their images are made here, in the shape of those that they name (images.go). A test whose output is there is
// not run again, so that what was interrupted goes on, unless -run names it. known.go says why tests fail, and which are
// not run.
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
	pattern := flags.String("run", "", "run only the tests whose suite and name, as SUITE/TEST, match this `regexp`, again if they have been run")
	document := flags.String("document", "", "`file` to write all results to, of earlier runs too")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
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
	tests, err := w.list(only, *pattern != "")
	if err != nil {
		return err
	}
	if len(tests) > 0 {
		if err := w.run(ctx, tests); err != nil {
			return err
		}
	}
	r, err := w.report()
	if err != nil {
		return err
	}
	r.table(out)
	if *document != "" {
		err = os.WriteFile(*document, r.document(), 0o644)
	}
	return errors.Join(err, r.unexplained())
}

// run starts a vic serve and runs tests against it.
func (w workshop) run(ctx context.Context, tests []test) (err error) {
	h, err := w.serve(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.close()) }()
	if err := w.loadImages(ctx, h); err != nil {
		return fmt.Errorf("load the suites' images: %w", err)
	}
	for _, t := range tests {
		if err := w.runTest(ctx, h, t); err != nil {
			return fmt.Errorf("%s: %w", t, err)
		}
	}
	return nil
}
