package fetch

import (
	"os"
	"os/exec"
	"syscall"
	"testing"
)

// needTool returns the path of somebody else's program that judges us. Where
// ORACLES=1, none may be missing.
func needTool(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("ORACLES") == "1" {
			t.Fatalf("%s is missing", name)
		}
		t.Skipf("%s is missing", name)
	}
	return path
}

// makeFIFO makes a FIFO.
func makeFIFO(path string) error { return syscall.Mkfifo(path, 0o600) }
