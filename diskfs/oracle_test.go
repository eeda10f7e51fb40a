package diskfs

import (
	"fmt"
	"os"
	"os/exec"
	"testing"
)

// needTool skips the test if a program it is judged by is missing, or fails it where
// ORACLES=1 says that all of them must be there.
func needTool(t testing.TB, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			if os.Getenv("ORACLES") == "1" {
				t.Fatalf("oracle missing: %v", err)
			}
			t.Skipf("oracle missing: %v", err)
		}
	}
}

// haveTool is needTool for a test that others judge as well.
func haveTool(t testing.TB, name string) bool {
	t.Helper()
	_, err := exec.LookPath(name)
	if err != nil && os.Getenv("ORACLES") == "1" {
		t.Fatalf("oracle missing: %v", err)
	}
	return err == nil
}

// needRoot does the same for tests that mount.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("ORACLES") == "1" {
			t.Fatal("mounting needs root")
		}
		t.Skip("mounting needs root")
	}
}

func command(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func shell(t testing.TB, script string, args ...any) string {
	t.Helper()
	return command(t, "sh", "-ec", fmt.Sprintf(script, args...))
}

// fsck holds the disk against e2fsck.
func fsck(t testing.TB, path string) {
	t.Helper()
	needTool(t, "e2fsck")
	if out, err := exec.Command("e2fsck", "-fn", path).CombinedOutput(); err != nil {
		t.Fatalf("e2fsck -fn: %v\n%s", err, out)
	}
}

// mountDisk mounts a disk until unmount is called, at the latest at the test's end.
func mountDisk(t testing.TB, path, options string) (dir string, unmount func()) {
	t.Helper()
	needRoot(t)
	needTool(t, "mount", "umount")
	dir = t.TempDir()
	out, err := exec.Command("mount", "-t", "ext4", "-o", "loop,"+options, path, dir).CombinedOutput()
	if err != nil {
		t.Fatalf("mount: %v\n%s", err, out)
	}
	mounted := true
	unmount = func() {
		if mounted {
			mounted = false
			command(t, "umount", dir)
		}
	}
	t.Cleanup(unmount)
	return dir, unmount
}
