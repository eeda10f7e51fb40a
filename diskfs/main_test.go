package diskfs

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"vic/bench/oracle"
)

// programs is the folder of programs that tests build, for one run of them.
var programs string

func TestMain(m *testing.M) { os.Exit(runMain(m)) }

func runMain(m *testing.M) int {
	var err error
	if programs, err = os.MkdirTemp("", "diskfs-test-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(programs)
	return m.Run()
}

var buildContainerd = sync.OnceValues(func() (string, error) {
	path := filepath.Join(programs, "containerd")
	cmd := exec.Command("go", "build", "-o", path, ".")
	cmd.Dir = filepath.Join("testdata", "containerd")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build containerd's judge: %w\n%s", err, out)
	}
	return path, nil
})

// containerdProgram returns the path of testdata/containerd, built.
func containerdProgram(t testing.TB) string {
	t.Helper()
	path, err := buildContainerd()
	if err != nil {
		oracle.Missing(t, err)
	}
	return path
}
