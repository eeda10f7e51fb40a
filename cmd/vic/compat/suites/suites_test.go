package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
)

// TestOutcomes reads what go test -v wrote of tests that passed, failed, were skipped and did not end.
func TestOutcomes(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		want       []outcome
	}{
		{"one", "=== RUN   TestX\n--- PASS: TestX (0.01s)\nPASS\n", []outcome{{"TestX", pass}}},
		{"skipped", "=== RUN   TestX\n    x_test.go:1: why\n--- SKIP: TestX (0.00s)\n", []outcome{{"TestX", skip}}},
		{"within", "=== RUN   TestX\n=== RUN   TestX/a\n=== RUN   TestX/b\n--- FAIL: TestX (1.00s)\n    --- PASS: TestX/a (0.5s)\n    --- FAIL: TestX/b (0.5s)\n",
			[]outcome{{"TestX/a", pass}, {"TestX/b", fail}}},
		{"itself", "=== RUN   TestX\n=== RUN   TestX/a\n--- FAIL: TestX (1.00s)\n    --- PASS: TestX/a (0.5s)\n", []outcome{{"TestX", fail}, {"TestX/a", pass}}},
		{"in parallel", "=== RUN   TestX\n=== RUN   TestX/a\n=== PAUSE TestX/a\n=== CONT  TestX/a\n--- PASS: TestX (0.0s)\n    --- PASS: TestX/a (0.0s)\n", []outcome{{"TestX/a", pass}}},
		{"not ended", "=== RUN   TestX\npanic: test timed out\n", []outcome{{"TestX", fail}}},
		{"not begun", "panic: no daemon\n", []outcome{{"TestX", fail}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := outcomes(test{name: "TestX"}, tt.text); !slices.Equal(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

// newWorkshop has a module with tests of both kinds, of which one has been run.
func newWorkshop(t *testing.T) (workshop, suite) {
	t.Helper()
	m := module{"example.org/m", "v1"}
	w, s := workshop{dir: t.TempDir()}, suite{name: "moby-cli", module: m, pkg: "pkg", methods: true}
	write := func(path, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	dir := filepath.Join(w.source(m), s.pkg)
	write(filepath.Join(dir, "a_test.go"), "package a\n\nfunc TestMain(m *testing.M) {}\n\nfunc TestOne(t *testing.T) {\n}\n\n"+
		"func (s *RunSuite) TestRun(ctx context.Context, c *testing.T) {\n}\n\nfunc (s *DockerDaemonSuite) TestBoot(c *testing.T) {\n}\n")
	write(filepath.Join(dir, "a_windows_test.go"), "package a\n\nfunc (s *RunSuite) TestNever(c *testing.T) {\n}\n\nfunc TestNever(t *testing.T) {\n}\n")
	return w, s
}

func TestTests(t *testing.T) {
	w, s := newWorkshop(t)
	for _, tt := range []struct {
		methods bool
		want    []string
	}{
		{false, []string{"TestOne"}},
		{true, []string{"TestRunSuite/TestRun", "TestDockerDaemonSuite/TestBoot"}},
	} {
		s.methods = tt.methods
		tests, err := w.tests(s)
		var names []string
		for _, t := range tests {
			names = append(names, t.name)
		}
		if err != nil || !slices.Equal(names, tt.want) {
			t.Errorf("got %v, %v, want %v", names, err, tt.want)
		}
	}
}

// TestReport counts what was run, what was not, and what is not to be.
func TestReport(t *testing.T) {
	w, s := newWorkshop(t)
	old := suites
	suites = []suite{s}
	defer func() { suites = old }()
	run := test{s, "TestRunSuite/TestRun"}
	if tests, err := w.list(regexp.MustCompile("Run"), false); err != nil || len(tests) != 1 || tests[0] != run {
		t.Errorf("to be run: %v, %v", tests, err)
	}
	if err := os.MkdirAll(filepath.Dir(w.output(run)), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		text string
		want tally
		ok   bool
	}{
		{"=== RUN   TestRunSuite\n=== RUN   TestRunSuite/TestRun\n--- PASS: TestRunSuite (0s)\n    --- PASS: TestRunSuite/TestRun (0s)\n", tally{passed: 1}, true},
		{"=== RUN   TestRunSuite\n=== RUN   TestRunSuite/TestRun\nError: --network is not supported\n", tally{failed: 1}, true},
		{"=== RUN   TestRunSuite\n=== RUN   TestRunSuite/TestRun\nno dockerd here\n", tally{skipped: 1}, true},
		{"=== RUN   TestRunSuite\n=== RUN   TestRunSuite/TestRun\nnobody knows\n", tally{failed: 1}, false},
	} {
		if err := os.WriteFile(w.output(run), []byte(tt.text), 0o644); err != nil {
			t.Fatal(err)
		}
		r, err := w.report()
		if err != nil {
			t.Fatal(err)
		}
		tt.want.name, tt.want.left = s.name, 1
		if len(r.suites) != 1 || r.suites[0] != tt.want || (r.unexplained() == nil) != tt.ok {
			t.Errorf("%q: got %+v, %v, want %+v", tt.text, r.suites, r.unexplained(), tt.want)
		}
	}
	if tests, err := w.list(regexp.MustCompile(""), false); err != nil || len(tests) != 0 {
		t.Errorf("to be run again: %v, %v", tests, err)
	}
}

// TestKnown compiles all patterns.
func TestKnown(t *testing.T) {
	for _, r := range slices.Concat(leftOuts, known) {
		for _, text := range []string{r.tests, r.output} {
			if _, err := regexp.Compile(text); err != nil {
				t.Error(err)
			}
		}
		if r.why == "" || r.tests == "" && r.output == "" {
			t.Errorf("a reason that fits everything, or says nothing: %+v", r)
		}
	}
}
