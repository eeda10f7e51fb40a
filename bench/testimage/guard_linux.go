package testimage

import (
	"fmt"
	"os/exec"
	"syscall"
)

// guard waits for the end of its standard input, and kills what has the folder in its arguments.
const guard = `cat >/dev/null
for file in $(grep -laF -- "$0" /proc/[0-9]*/cmdline); do
	pid=${file#/proc/} pid=${pid%/cmdline}
	[ $pid = $$ ] || kill -KILL $pid
done 2>/dev/null
:`

// Guard has the programs that were started with a path inside dir end when this program ends, even if it is killed:
// virtual machines outlive their daemon, and would outlive a test. Release ends them as well.
func Guard(dir string) (release func() error, err error) {
	cmd := exec.Command("sh", "-c", guard, dir+"/")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // what is typed to end the tests is not for it
	life, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("guard %s: %w", dir, err)
	}
	return func() error {
		if err := life.Close(); err != nil {
			return err
		}
		return cmd.Wait()
	}, nil
}
