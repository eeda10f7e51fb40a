package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"go/build"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

// testTime is what one test has: enough for a dozen guests under emulation. One that hangs shall not stop the others.
const testTime = 4 * time.Minute

// A test is one that is run by itself, TestX, or TestSUITE/TestX if it is a method of a suite.
type test struct {
	suite suite
	name  string
}

func (t test) String() string { return t.suite.name + "/" + t.name }

// output is the file that has what a test wrote.
func (w workshop) output(t test) string {
	return filepath.Join(w.dir, "logs", t.suite.name, strings.ReplaceAll(t.name, "/", "."))
}

// list returns the tests that match and are to be run: all that were not, or with again those that were, too.
func (w workshop) list(only *regexp.Regexp, again bool) ([]test, error) {
	var all []test
	for _, s := range suites {
		tests, err := w.tests(s)
		if err != nil {
			return nil, err
		}
		for _, t := range tests {
			_, err := os.Stat(w.output(t))
			if only.MatchString(t.String()) && left(t) == "" && (again || err != nil) {
				all = append(all, t)
			}
		}
	}
	return all, nil
}

var (
	function = regexp.MustCompile(`(?m)^func (Test\w+)\(\w+ \*testing\.T\) {`)
	method   = regexp.MustCompile(`(?m)^func \(\w+ \*(\w+)\) (Test\w+)\(.*\*testing\.T\) {`)
)

// tests are all tests of a suite for this platform. A method is run by the test of its type's name, within which it is
// one.
func (w workshop) tests(s suite) ([]test, error) {
	dir := filepath.Join(w.source(s.module), s.pkg)
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		return nil, err
	}
	var all []test
	for _, file := range files {
		if ok, err := build.Default.MatchFile(dir, filepath.Base(file)); err != nil {
			return nil, err
		} else if !ok {
			continue
		}
		b, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		if s.methods {
			for _, m := range method.FindAllSubmatch(b, -1) {
				all = append(all, test{s, "Test" + string(m[1]) + "/" + string(m[2])})
			}
			continue
		}
		for _, m := range function.FindAllSubmatch(b, -1) {
			if name := string(m[1]); name != "TestMain" {
				all = append(all, test{s, name})
			}
		}
	}
	return all, nil
}

// runTest runs a test and keeps what it writes. What it leaves behind when it fails is removed.
func (w workshop) runTest(ctx context.Context, h *host, t test) error {
	if err := w.build(ctx, t.suite.module, w.program(t.suite), "test", "-c", "./"+t.suite.pkg); err != nil {
		return err
	}
	began := time.Now()
	text, err := w.execute(ctx, h, t)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(w.output(t)), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(w.output(t), text, 0o644); err != nil {
		return err
	}
	failed := false
	for _, o := range outcomes(t, string(text)) {
		fmt.Fprintf(w.out, "%s %s/%s %.1f s\n", o.verdict, t.suite.name, o.name, time.Since(began).Seconds())
		failed = failed || o.verdict == fail
	}
	if !failed {
		return nil
	}
	return errors.Join(h.clean(ctx), w.reload(ctx, h))
}

// execute returns what a test writes.
func (w workshop) execute(ctx context.Context, h *host, t test) ([]byte, error) {
	limited, cancel := context.WithTimeout(ctx, testTime+10*time.Second)
	defer cancel()
	pattern := "^" + strings.ReplaceAll(t.name, "/", "$/^") + "$"
	cmd := exec.CommandContext(limited, w.program(t.suite), "-test.v", "-test.timeout", testTime.String(), "-test.run", pattern)
	cmd.Dir = filepath.Join(w.source(t.suite.module), t.suite.pkg)
	home := filepath.Join(w.dir, "home")
	cmd.Env = []string{
		"HOME=" + home, "DEST=" + home, "DOCKER_HOST=unix://" + h.socket, "TEST_DOCKER_HOST=unix://" + h.socket,
		"TEST_CLIENT_BINARY=" + filepath.Join(w.bin, "peers", "dockerd", "docker"), // moby's suites are for old clients
		"PATH=" + w.path() + ":" + filepath.Dir(w.client()) + ":" + os.Getenv("PATH"),
	}
	var text bytes.Buffer
	cmd.Stdout, cmd.Stderr = &text, &text
	// Clients that it leaves behind end with it.
	cmd.SysProcAttr, cmd.WaitDelay = &syscall.SysProcAttr{Setpgid: true}, 5*time.Second
	kill := func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.Cancel = kill
	err := cmd.Run()
	if cmd.Process == nil {
		return nil, err
	}
	kill()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		fmt.Fprintln(&text, err)
	}
	return text.Bytes(), ctx.Err()
}

// The verdicts of go test.
const (
	pass = "PASS"
	fail = "FAIL"
	skip = "SKIP"
)

// An outcome is what came of a test, or of a test within one.
type outcome struct{ name, verdict string }

var (
	started = regexp.MustCompile(`(?m)^=== RUN +(\S+)`)
	ended   = regexp.MustCompile(`(?m)^ *--- (PASS|FAIL|SKIP): (\S+) \(`)
)

// outcomes reads what go test -v writes. A test with others within it counts only if it failed and none of them did.
// One without a verdict did not end.
func outcomes(t test, text string) []outcome {
	verdicts := map[string]string{}
	names := []string{}
	for _, m := range started.FindAllStringSubmatch(text, -1) {
		if _, ok := verdicts[m[1]]; !ok {
			verdicts[m[1]], names = fail, append(names, m[1])
		}
	}
	for _, m := range ended.FindAllStringSubmatch(text, -1) {
		verdicts[m[2]] = m[1]
	}
	var found []outcome
	for _, name := range names {
		isWithin := func(other string) bool { return strings.HasPrefix(other, name+"/") }
		hasFailed := func(other string) bool { return isWithin(other) && verdicts[other] == fail }
		if !slices.ContainsFunc(names, isWithin) || verdicts[name] == fail && !slices.ContainsFunc(names, hasFailed) {
			found = append(found, outcome{name, verdicts[name]})
		}
	}
	if len(found) == 0 {
		found = []outcome{{t.name, fail}}
	}
	return found
}
