// Package oracle is for tests that others' programs judge. What such a test needs and has not makes it skip; with ORACLES=1, as in make
// test, it fails.
package oracle

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Need needs programs in $PATH.
func Need(t testing.TB, programs ...string) {
	t.Helper()
	for _, name := range programs {
		if _, err := exec.LookPath(name); err != nil {
			Missing(t, err)
		}
	}
}

// Find needs a program and returns its path. It is in $PATH, or in bin/peers of this module, where make test builds some.
func Find(t testing.TB, program string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	for dir := "."; err != nil; dir = filepath.Join(dir, "..") {
		if _, here := os.Stat(filepath.Join(dir, "go.mod")); here == nil {
			path, err = exec.LookPath(filepath.Join(dir, "bin", "peers", program))
			break
		}
		if abs, bad := filepath.Abs(dir); bad != nil || abs == "/" {
			break
		}
	}
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		Missing(t, err)
	}
	return path
}

// Have says whether a program is in $PATH, for a test that others judge as well.
func Have(t testing.TB, program string) bool {
	t.Helper()
	_, err := exec.LookPath(program)
	if err != nil && Demanded() {
		Missing(t, err)
	}
	return err == nil
}

// Root needs the rights of root.
func Root(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		Missing(t, "it takes root")
	}
}

// Missing ends a test for want of something.
func Missing(t testing.TB, what any) {
	t.Helper()
	if Demanded() {
		t.Fatalf("oracle missing: %v", what)
	}
	t.Skipf("oracle missing: %v", what)
}

// Demanded says whether all that tests need must be there.
func Demanded() bool { return os.Getenv("ORACLES") == "1" }
