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

// An outcome is what came of a test, or of a test within one.
type outcome struct {
	suite, test string
	verdict     string // PASS, FAIL or SKIP
	output      string // of the test that was run, with all tests within it
}

// run runs a suite's tests that match, one after the other.
func (w workshop) run(ctx context.Context, h *host, s suite, only *regexp.Regexp) ([]outcome, error) {
	tests, err := w.list(s)
	if err != nil {
		return nil, err
	}
	tests = slices.DeleteFunc(tests, func(test string) bool {
		return !only.MatchString(s.name+"/"+test) || notRun(s.name, test) != ""
	})
	if len(tests) == 0 {
		return nil, nil
	}
	if err := w.build(ctx, s.module, w.program(s), "test", "-c", "./"+s.pkg); err != nil {
		return nil, err
	}
	logs := filepath.Join(w.dir, "logs", s.name)
	if err := os.MkdirAll(logs, 0o755); err != nil {
		return nil, err
	}
	var all []outcome
	for _, test := range tests {
		began := time.Now()
		text := w.runTest(ctx, h, s, test)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err := os.WriteFile(filepath.Join(logs, strings.ReplaceAll(test, "/", ".")), text, 0o644); err != nil {
			return nil, err
		}
		found := outcomes(s.name, test, string(text))
		for _, o := range found {
			fmt.Fprintf(w.out, "%s %s/%s %.1fs\n", o.verdict, o.suite, o.test, time.Since(began).Seconds())
		}
		if slices.ContainsFunc(found, func(o outcome) bool { return o.verdict == "FAIL" }) {
			if err := h.clean(ctx); err != nil {
				fmt.Fprintln(w.out, err)
			}
		}
		all = append(all, found...)
	}
	return all, nil
}

var (
	function = regexp.MustCompile(`(?m)^func (Test\w+)\(\w+ \*testing\.T\) {`)
	method   = regexp.MustCompile(`(?m)^func \(\w+ \*(\w+)\) (Test\w+)\(.*\*testing\.T\) {`)
)

// list returns the names of a suite's tests. A method is run by the test of its type's name, within which it is one.
func (w workshop) list(s suite) ([]string, error) {
	dir := filepath.Join(w.source(s.module), s.pkg)
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		return nil, err
	}
	var tests []string
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
				tests = append(tests, "Test"+string(m[1])+"/"+string(m[2]))
			}
			continue
		}
		for _, m := range function.FindAllSubmatch(b, -1) {
			if string(m[1]) != "TestMain" {
				tests = append(tests, string(m[1]))
			}
		}
	}
	return tests, nil
}

// command runs a suite's program as its own scripts do.
func (w workshop) command(ctx context.Context, h *host, s suite, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, w.program(s), args...)
	cmd.Dir = filepath.Join(w.source(s.module), s.pkg)
	home := filepath.Join(w.dir, "home")
	cmd.Env = []string{
		"HOME=" + home, "DEST=" + home, "DOCKER_HOST=unix://" + h.socket, "TEST_DOCKER_HOST=unix://" + h.socket,
		"TEST_CLIENT_BINARY=" + filepath.Join(w.bin, "peers", "dockerd", "docker"),
		"PATH=" + w.path() + ":" + filepath.Dir(w.client()) + ":" + os.Getenv("PATH"),
	}
	cmd.WaitDelay = 5 * time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	return cmd
}

// runTest returns what a test writes.
func (w workshop) runTest(ctx context.Context, h *host, s suite, test string) []byte {
	ctx, cancel := context.WithTimeout(ctx, testTime+10*time.Second)
	defer cancel()
	pattern := "^" + strings.ReplaceAll(test, "/", "$/^") + "$"
	cmd := w.command(ctx, h, s, "-test.v", "-test.timeout", testTime.String(), "-test.run", pattern)
	var text bytes.Buffer
	cmd.Stdout, cmd.Stderr = &text, &text
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		fmt.Fprintln(&text, err)
	}
	syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // clients that it left behind
	return text.Bytes()
}

var (
	began   = regexp.MustCompile(`(?m)^=== RUN +(\S+)`)
	verdict = regexp.MustCompile(`(?m)^ *--- (PASS|FAIL|SKIP): (\S+) \(`)
)

// outcomes reads what go test -v writes. A test with others within it counts only if it failed and none of them did.
// One that has no verdict did not end.
func outcomes(suite, test, text string) []outcome {
	verdicts := map[string]string{}
	names := []string{}
	for _, m := range began.FindAllStringSubmatch(text, -1) {
		if _, ok := verdicts[m[1]]; !ok {
			verdicts[m[1]], names = "FAIL", append(names, m[1])
		}
	}
	for _, m := range verdict.FindAllStringSubmatch(text, -1) {
		verdicts[m[2]] = m[1]
	}
	var found []outcome
	for _, name := range names {
		inner := slices.ContainsFunc(names, func(other string) bool { return strings.HasPrefix(other, name+"/") })
		failed := slices.ContainsFunc(names, func(other string) bool { return strings.HasPrefix(other, name+"/") && verdicts[other] == "FAIL" })
		if !inner || verdicts[name] == "FAIL" && !failed {
			found = append(found, outcome{suite, name, verdicts[name], text})
		}
	}
	if len(found) == 0 {
		found = []outcome{{suite, test, "FAIL", text}}
	}
	return found
}
