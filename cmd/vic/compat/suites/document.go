package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
)

// A report is what came of all suites.
type report struct {
	suites   []tally
	failures []failure
	left     []leftOut
}

// A tally counts a suite's outcomes. What a test has within it counts by itself.
type tally struct {
	name                                  string
	passed, failed, skipped, left, notRun int // left out on purpose; not run yet
}

type failure struct{ suite, test, why string }

type leftOut struct {
	suite, why string
	tests      int
}

// report reads what all tests wrote that have been run.
func (w workshop) report() (*report, error) {
	r := new(report)
	for _, s := range suites {
		tests, err := w.tests(s)
		if err != nil {
			return nil, err
		}
		n := tally{name: s.name}
		for _, t := range tests {
			if why := left(t); why != "" {
				n.left++
				r.leave(s.name, why)
				continue
			}
			text, err := os.ReadFile(w.output(t))
			if errors.Is(err, fs.ErrNotExist) {
				n.notRun++
				continue
			}
			if err != nil {
				return nil, err
			}
			r.count(&n, t, string(text))
		}
		r.suites = append(r.suites, n)
	}
	return r, nil
}

func (r *report) count(n *tally, t test, text string) {
	for _, o := range outcomes(t, text) {
		switch o.verdict {
		case pass:
			n.passed++
		case skip:
			n.skipped++
		default:
			why, skips := explain(t.suite.name, o.name, text)
			if skips {
				n.skipped++
				r.leave(t.suite.name, why)
				continue
			}
			n.failed++
			r.failures = append(r.failures, failure{t.suite.name, o.name, why})
		}
	}
}

func (r *report) leave(suite, why string) {
	for i := range r.left {
		if l := &r.left[i]; l.suite == suite && l.why == why {
			l.tests++
			return
		}
	}
	r.left = append(r.left, leftOut{suite, why, 1})
}

// unexplained is an error if a test failed and known.go does not say why.
func (r *report) unexplained() error {
	var names []string
	for _, f := range r.failures {
		if f.why == "" {
			names = append(names, f.suite+"/"+f.test)
		}
	}
	if len(names) == 0 {
		return nil
	}
	return fmt.Errorf("%d tests failed and nobody knows why:\n%s", len(names), strings.Join(names, "\n"))
}

func (r *report) table(out io.Writer) {
	total := tally{name: "all"}
	fmt.Fprintf(out, "| suite | passed | failed | skipped | left out | not run |\n|---|---|---|---|---|---|\n")
	for _, n := range r.suites {
		total.passed += n.passed
		total.failed += n.failed
		total.skipped += n.skipped
		total.left += n.left
		total.notRun += n.notRun
	}
	for _, n := range append(slices.Clone(r.suites), total) {
		fmt.Fprintf(out, "| %s | %d | %d | %d | %d | %d |\n", n.name, n.passed, n.failed, n.skipped, n.left, n.notRun)
	}
}

// document is docs/suites.md.
func (r *report) document() []byte {
	var b bytes.Buffer
	b.WriteString(preface)
	r.table(&b)
	b.WriteString("\n## Tests that fail\n\nTests with the same reason are together.\n\n| suite | reason | tests |\n|---|---|---|\n")
	for _, s := range r.suites {
		var reasons []string
		tests := map[string][]string{}
		for _, f := range r.failures {
			if f.suite != s.name {
				continue
			}
			why := f.why
			if why == "" {
				why = "**not known**"
			}
			if tests[why] == nil {
				reasons = append(reasons, why)
			}
			tests[why] = append(tests[why], "`"+f.test+"`")
		}
		for _, why := range reasons {
			fmt.Fprintf(&b, "| %s | %s | %s |\n", s.name, why, strings.Join(tests[why], ", "))
		}
	}
	b.WriteString("\n## Tests that do not run\n\n| suite | reason | tests |\n|---|---|---|\n")
	for _, l := range r.left {
		fmt.Fprintf(&b, "| %s | %s | %d |\n", l.suite, l.why, l.tests)
	}
	return b.Bytes()
}

const preface = `# Docker's own test suites

What the integration tests of moby (` + "`moby/…`" + ` by the API, ` + "`moby-cli`" + ` by a docker client of version 20.10) and the end-to-end tests of
docker/cli find when they are run against ` + "`vic serve`" + `. This file is written by ` + "`make suites`" + `, which downloads, builds and runs them;
it takes hours where virtual machines are emulated, and goes on where it was interrupted. A test with others within it counts as those.
Skipped are tests that skip themselves and those that would start a dockerd; left out are those that are for dockerd alone.

`
