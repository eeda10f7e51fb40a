package testimage

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// guarded, set in the environment, makes the test program one that guards a folder and is killed.
const guarded = "VIC_TEST_GUARD"

func TestMain(m *testing.M) {
	dir := os.Getenv(guarded)
	if dir == "" {
		os.Exit(m.Run())
	}
	if _, err := Guard(dir); err != nil {
		panic(err)
	}
	syscall.Kill(os.Getpid(), syscall.SIGKILL)
}

// What was started in a folder ends when its guard's program is killed, or lets go; what was not does not.
func TestGuard(t *testing.T) {
	for name, end := range map[string]func(t *testing.T, dir string){
		"killed": func(t *testing.T, dir string) {
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), guarded+"="+dir)
			if err := cmd.Run(); cmd.ProcessState == nil || cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
				t.Error(err)
			}
		},
		"released": func(t *testing.T, dir string) {
			release, err := Guard(dir)
			if err != nil {
				t.Fatal(err)
			}
			if err := release(); err != nil {
				t.Error(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			sleeper := func(arg string) *exec.Cmd {
				cmd := exec.Command("sh", "-c", "sleep 60; :", arg)
				cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
				return cmd
			}
			inside, beside := sleeper("file="+filepath.Join(dir, "disk")), sleeper(dir+"2/disk")
			end(t, dir)
			if err := inside.Wait(); inside.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
				t.Errorf("inside: %v", err)
			}
			if err := beside.Process.Signal(syscall.Signal(0)); err != nil {
				t.Errorf("beside: %v", err)
			}
		})
	}
}
