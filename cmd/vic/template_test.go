package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// awaitTemplate waits until containers of the default size begin from a template.
func (s *suite) awaitTemplate(t *testing.T) {
	t.Helper()
	s.awaitInfo(t, func(info string) bool { return strings.Contains(info, "Start Templates: 1\n") })
}

// awaitSpare waits until a VM is kept ready for the next container, unless all are booted.
func (s *suite) awaitSpare(t *testing.T) {
	t.Helper()
	s.awaitInfo(t, func(info string) bool {
		return !strings.Contains(info, "Start Templates: ") || strings.Contains(info, "Start Spares: 1\n")
	})
}

// awaitInfo waits until docker info is as wanted: what it is about is done when there is nothing better to do, and nobody is told.
func (s *suite) awaitInfo(t *testing.T, ok func(info string) bool) {
	t.Helper()
	for end := time.Now().Add(commandTimeout); ; time.Sleep(50 * time.Millisecond) {
		info := s.docker(t, "", "info").ok()
		if ok(info) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("it did not come to what was waited for:\n%s\n%s", info, s.log.String())
		}
	}
}

// fromTemplate is how many containers began as copies since the suite began.
func (s *suite) fromTemplate() int { return strings.Count(s.log.String(), "template=true") }

// testBoot runs containers whose machines boot; what else holds for them, containervm/boot tests.
func testBoot(t *testing.T, s *suite) {
	s.docker(t, "in\n", "run", "--rm", "-i", "bb", "sh", "-c", "cat; echo err >&2; exit 3").want(3, "in\n").wantError(3, "err\n")
	s.docker(t, "", "run", "--rm", "bb", "nope").wantError(127, `exec: "nope": executable file not found in $PATH`)
	if n := s.fromTemplate(); n != 0 {
		t.Errorf("%d began from a template", n)
	}
}

// testTemplates compares two containers that began as copies, and has one outlive the server. All tests from here on
// run such ones.
func testTemplates(t *testing.T, s *suite) {
	s.end(t)
	if left, err := filepath.Glob(filepath.Join(s.dir, "store", "boot", "templates", "*")); err != nil || len(left) != 0 {
		t.Errorf("with --no-templates there are %q, %v", left, err)
	}
	s.serve(t)
	s.awaitTemplate(t)
	run := func(name, script string) {
		s.docker(t, "", "run", "-d", "--name", name, "bb", "sh", "-c", script).ok()
		t.Cleanup(func() { s.docker(t, "", "rm", "-f", name) })
	}
	const facts = `hostname; cat /proc/sys/kernel/random/boot_id /proc/sys/kernel/random/uuid /sys/class/net/eth0/address
		ip -o -4 addr show eth0 | awk '{print $4}'; od -An -tx1 -N16 /dev/urandom; echo told; until [ -e /go ]; do sleep 0.1; done; exit 6`
	run("one", facts)
	run("two", facts)
	s.waitFor(t, "one", "told\n")
	s.waitFor(t, "two", "told\n")
	one, two := strings.Fields(s.docker(t, "", "logs", "one").ok()), strings.Fields(s.docker(t, "", "logs", "two").ok())
	if len(one) != 5+16+1 || len(two) != len(one) {
		t.Fatalf("got %q and %q", one, two)
	}
	random := func(facts []string) string { return strings.Join(facts[5:5+16], "") }
	for i, fact := range append(one[:5:5], random(one)) {
		if fact == append(two[:5:5], random(two))[i] {
			t.Errorf("%q is in both", fact)
		}
	}
	if n := s.fromTemplate(); n != 2 {
		t.Errorf("%d of 2 began from a template:\n%s", n, s.log.String())
	}
	s.end(t)
	s.serve(t)
	s.letGo(t, "one")
	s.docker(t, "", "wait", "one").want(0, "6\n")
	fi, err := os.Stat(filepath.Join(s.dir, "store", "boot", "templates"))
	if err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("templates: %v, %v", fi.Mode(), err)
	}
}
