package diskfs

import (
	"fmt"
	"os/exec"
	"testing"

	"vic/bench/oracle"
)

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
	oracle.Need(t, "e2fsck")
	if out, err := exec.Command("e2fsck", "-fn", path).CombinedOutput(); err != nil {
		t.Fatalf("e2fsck -fn: %v\n%s", err, out)
	}
}

// mountDisk mounts a disk until unmount is called, at the latest at the test's end.
func mountDisk(t testing.TB, path, options string) (dir string, unmount func()) {
	t.Helper()
	oracle.Root(t)
	oracle.Need(t, "mount", "umount")
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
