package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// What, set in the environment, makes the test program vic, which some tests kill or measure
// and vic bench starts again; and a file for /proc/self/status as it is at its end.
const asVic, vicStatus = "VIC_TEST_AS_VIC", "VIC_TEST_STATUS"

// tetherDir is where the tether of all suites is, once one has begun.
var tetherDir string

// builtTether is the tether as it is.
var builtTether = sync.OnceValues(func() (bin string, err error) {
	if tetherDir, err = os.MkdirTemp("", "vic-tether-"); err != nil {
		return "", err
	}
	bin = filepath.Join(tetherDir, "tether")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", bin, "vic/cmd/tether")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the tether: %w\n%s", err, out)
	}
	return bin, nil
})

func TestMain(m *testing.M) {
	if os.Getenv(asVic) == "" {
		code := m.Run()
		if tetherDir != "" {
			os.RemoveAll(tetherDir)
		}
		os.Exit(code)
	}
	code := program()
	if path := os.Getenv(vicStatus); path != "" {
		status, err := os.ReadFile("/proc/self/status")
		if err == nil {
			err = os.WriteFile(path, status, 0o600)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 3
		}
	}
	os.Exit(code)
}
